-- What became of submissions, newest first.
-- :assignment_id (integer, optional) only this assignment's
-- :limit (integer, default 50) how many
SELECT
  COALESCE(answered_at, created_at) AS answered_at, assignment_id, event_id, outcome, reason, status, attempts,
  created_id, ROUND(latency_ms) AS latency_ms, resubmission, kafka_topic_id, kafka_partition, kafka_offset
FROM itel_cabinet_submissions
WHERE CAST(:assignment_id AS BIGINT) IS NULL OR assignment_id = :assignment_id
ORDER BY COALESCE(answered_at, created_at) DESC, kafka_partition DESC, kafka_offset DESC, outcome
LIMIT :limit
