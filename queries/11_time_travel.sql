-- The events as they were in an older version of the tracking table, newest first.
-- On Spark, make the views of itel_cabinet_task_tracking VERSION AS OF the number first.
-- :version (version) a version, as listed by `history`
-- :limit (integer, default 1000) how many
SELECT
  event_timestamp, event_type, assignment_id, project_id, task_status, assigned_to_user_id, processed_timestamp,
  event_id, kafka_partition, kafka_offset
FROM task_events
ORDER BY event_timestamp DESC, kafka_partition DESC, kafka_offset DESC
LIMIT :limit
