-- Assigned and completed events of each day.
-- By the event's type; its status is the task's when it was looked up, which may be a later one.
-- :year (integer, optional) only this year
SELECT
  CAST(event_timestamp AS DATE) AS day,
  COUNT(CASE WHEN event_type = 'CUSTOM_TASK_ASSIGNED' THEN 1 END) AS assigned,
  COUNT(CASE WHEN event_type = 'CUSTOM_TASK_COMPLETED' THEN 1 END) AS completed
FROM task_events
WHERE CAST(:year AS BIGINT) IS NULL OR EXTRACT(YEAR FROM event_timestamp) = :year
GROUP BY CAST(event_timestamp AS DATE)
ORDER BY day
