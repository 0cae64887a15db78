-- How many tasks took how long from creation to completion.
SELECT took, COUNT(assignment_id) AS tasks
FROM (
  VALUES
    (1, 'under 1 hour', 0, 1),
    (2, '1 to 4 hours', 1, 4),
    (3, '4 to 24 hours', 4, 24),
    (4, '1 to 3 days', 24, 72),
    (5, '3 to 7 days', 72, 168),
    (6, '7 days or more', 168, 100000000)
) AS spans(place, took, from_hours, to_hours)
LEFT JOIN tasks ON tasks.hours_to_complete >= spans.from_hours AND tasks.hours_to_complete < spans.to_hours
GROUP BY place, took
ORDER BY place
