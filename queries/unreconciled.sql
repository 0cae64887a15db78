-- Completed forms that iTel does not have, as far as the ledger of submissions says, oldest first.
-- never_tried is a form of which the ledger has nothing. Where iTel has a newer form of the assignment, superseded is
-- true: nothing is missing then. Of an event that is there twice the same copy counts as in task_events.
-- :statuses (words, default COMPLETED) the statuses that are submitted, in upper case
-- :since (time, optional) only events of then or later
-- :until (time, optional) only events before then
SELECT
  lacking.event_timestamp, lacking.event_id, lacking.assignment_id, project_id,
  COALESCE(tried.outcome, 'never_tried') AS outcome, tried.reason, tried.tried_at,
  COALESCE(newest.event_timestamp > lacking.event_timestamp, FALSE) AS superseded,
  tracked, kafka_topic, kafka_topic_id, kafka_partition, kafka_offset
FROM (
  SELECT
    completed.event_timestamp, completed.event_id, completed.assignment_id, completed.project_id, completed.tracked,
    completed.kafka_topic, completed.kafka_topic_id, completed.kafka_partition, completed.kafka_offset,
    ROW_NUMBER() OVER (
      PARTITION BY completed.event_id ORDER BY tracked DESC, kafka_offset, kafka_partition, kafka_topic_id
    ) AS copy
  FROM (
    SELECT
      event_timestamp, event_id, assignment_id, project_id, TRUE AS tracked,
      kafka_topic, kafka_topic_id, kafka_partition, kafka_offset
    FROM itel_cabinet_task_tracking
    WHERE INSTR(',' || :statuses || ',', ',' || task_status || ',') > 0
      AND (:since IS NULL OR event_timestamp >= :since)
      AND (:until IS NULL OR event_timestamp < :until)
    UNION ALL
    SELECT
      event_timestamp, event_id, assignment_id, project_id, FALSE AS tracked,
      kafka_topic, kafka_topic_id, kafka_partition, kafka_offset
    FROM claimx_itel_forms
    WHERE INSTR(',' || :statuses || ',', ',' || status || ',') > 0
      AND (:since IS NULL OR event_timestamp >= :since)
      AND (:until IS NULL OR event_timestamp < :until)
  ) AS completed
  LEFT JOIN (
    SELECT DISTINCT event_id
    FROM itel_cabinet_submissions
    WHERE settled AND (:since IS NULL OR event_timestamp >= :since)
  ) AS settled ON settled.event_id = completed.event_id
  WHERE settled.event_id IS NULL
) AS lacking
LEFT JOIN (
  SELECT
    event_id, outcome, reason, COALESCE(answered_at, created_at) AS tried_at,
    ROW_NUMBER() OVER (
      PARTITION BY event_id
      ORDER BY COALESCE(answered_at, created_at) DESC, kafka_partition DESC, kafka_offset DESC
    ) AS age
  FROM itel_cabinet_submissions
  WHERE NOT settled AND INSTR(outcome, 'shadow') = 0
) AS tried ON tried.event_id = lacking.event_id AND tried.age = 1
LEFT JOIN (
  SELECT assignment_id, MAX(event_timestamp) AS event_timestamp
  FROM itel_cabinet_submissions
  WHERE settled AND (:since IS NULL OR event_timestamp >= :since)
  GROUP BY assignment_id
) AS newest ON newest.assignment_id = lacking.assignment_id
WHERE lacking.copy = 1
ORDER BY lacking.event_timestamp, kafka_partition, kafka_offset
