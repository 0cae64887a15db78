-- The versions of the tracking table and what made them, newest first.
-- On Spark, table_history is what DESCRIBE HISTORY itel_cabinet_task_tracking gives.
-- :limit (integer, default 50) how many
SELECT version, timestamp, operation
FROM table_history
ORDER BY version DESC
LIMIT :limit
