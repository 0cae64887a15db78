-- How many open tasks have been idle how long.
-- :now (time, default now) idle until when
SELECT idle, COUNT(assignment_id) AS tasks
FROM (
  VALUES
    (1, 'under 1 day', -100000000, 1),
    (2, '1 to 3 days', 1, 3),
    (3, '3 to 7 days', 3, 7),
    (4, '7 to 14 days', 7, 14),
    (5, '14 to 30 days', 14, 30),
    (6, '30 days or more', 30, 100000000)
) AS spans(place, idle, from_days, to_days)
LEFT JOIN (
  SELECT assignment_id, (UNIX_MICROS(:now) - UNIX_MICROS(last_event_at)) / 8.64E10 AS idle_days
  FROM tasks
  WHERE state = 'open'
) AS open_tasks ON open_tasks.idle_days >= spans.from_days AND open_tasks.idle_days < spans.to_days
GROUP BY place, idle
ORDER BY place
