-- How often a status followed another, most frequent first.
-- An assignment's first event comes from CREATED.
-- :limit (integer, default 50) how many
SELECT from_status, to_status, COUNT(*) AS transitions, COUNT(DISTINCT assignment_id) AS assignments
FROM (
  SELECT
    assignment_id,
    COALESCE(
      LAG(task_status) OVER (PARTITION BY assignment_id ORDER BY event_timestamp, kafka_partition, kafka_offset),
      'CREATED'
    ) AS from_status,
    task_status AS to_status
  FROM task_events
) AS steps
GROUP BY from_status, to_status
ORDER BY transitions DESC, from_status, to_status
LIMIT :limit
