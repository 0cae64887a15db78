-- The events of one assignment, oldest first, with the minutes since the one before.
-- :assignment_id (integer) the assignment
SELECT
  event_timestamp, event_type, task_status,
  ROUND((UNIX_MICROS(event_timestamp) - UNIX_MICROS(previous_timestamp)) / 6E7, 1) AS minutes_since_previous,
  assigned_to_user_id, assigned_by_user_id, event_id
FROM (
  SELECT
    event_timestamp, event_type, task_status, assigned_to_user_id, assigned_by_user_id, event_id,
    kafka_partition, kafka_offset,
    LAG(event_timestamp) OVER (ORDER BY event_timestamp, kafka_partition, kafka_offset) AS previous_timestamp
  FROM task_events
  WHERE assignment_id = :assignment_id
) AS events_of_task
ORDER BY event_timestamp, kafka_partition, kafka_offset
