-- The newest events, newest first.
-- :limit (integer, default 20) how many
SELECT
  event_timestamp, event_type, assignment_id, project_id, task_status, assigned_to_user_id, processed_timestamp, event_id
FROM task_events
ORDER BY event_timestamp DESC, kafka_partition DESC, kafka_offset DESC
LIMIT :limit
