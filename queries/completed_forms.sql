-- How many completed events and kept forms there are to submit, each event once.
-- :statuses (words, default COMPLETED) the statuses that are submitted, in upper case
-- :since (time, optional) only events of then or later
-- :until (time, optional) only events before then
SELECT COUNT(DISTINCT event_id) AS completed
FROM (
  SELECT event_id
  FROM itel_cabinet_task_tracking
  WHERE INSTR(',' || :statuses || ',', ',' || task_status || ',') > 0
    AND (:since IS NULL OR event_timestamp >= :since)
    AND (:until IS NULL OR event_timestamp < :until)
  UNION ALL
  SELECT event_id
  FROM claimx_itel_forms
  WHERE INSTR(',' || :statuses || ',', ',' || status || ',') > 0
    AND (:since IS NULL OR event_timestamp >= :since)
    AND (:until IS NULL OR event_timestamp < :until)
) AS events_and_forms
