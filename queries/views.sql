-- What the queries read. After a crash the history may hold an event twice, as two records of the topic. task_events
-- shows each event id once: of its records the one with the lowest offset; of equal offsets the lowest partition's, and
-- then the lowest topic id's.
CREATE OR REPLACE TEMPORARY VIEW task_events AS
SELECT
  event_id, event_type, event_timestamp, processed_timestamp, assignment_id, project_id, task_status,
  assigned_to_user_id, assigned_by_user_id, task_created_at, task_completed_at,
  kafka_topic_id, kafka_partition, kafka_offset
FROM (
  SELECT
    event_id, event_type, event_timestamp, processed_timestamp, assignment_id, project_id, task_status,
    assigned_to_user_id, assigned_by_user_id, task_created_at, task_completed_at,
    kafka_topic_id, kafka_partition, kafka_offset,
    ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY kafka_offset, kafka_partition, kafka_topic_id) AS copy
  FROM itel_cabinet_task_tracking
) AS copies
WHERE copy = 1;

-- One row an assignment, with the status, project and assignee of its newest event. It takes from its first known
-- creation to its first known completion; a completion before the creation is no duration.
CREATE OR REPLACE TEMPORARY VIEW tasks AS
SELECT
  assignment_id, project_id, task_status, assigned_to_user_id, last_event_at, created_at, completed_at, ever_completed,
  CASE
    WHEN task_status = 'COMPLETED' THEN 'completed'
    WHEN task_status IN ('CANCELLED', 'CANCELED') THEN 'cancelled'
    ELSE 'open'
  END AS state,
  CASE
    WHEN completed_at >= created_at THEN (UNIX_MICROS(completed_at) - UNIX_MICROS(created_at)) / 3.6E9
  END AS hours_to_complete
FROM (
  SELECT
    assignment_id, project_id, task_status, assigned_to_user_id, event_timestamp AS last_event_at,
    MIN(task_created_at) OVER (PARTITION BY assignment_id) AS created_at,
    MIN(CASE WHEN task_status = 'COMPLETED' THEN task_completed_at END)
      OVER (PARTITION BY assignment_id) AS completed_at,
    MAX(CASE WHEN task_status = 'COMPLETED' THEN 1 ELSE 0 END) OVER (PARTITION BY assignment_id) AS ever_completed,
    ROW_NUMBER() OVER (
      PARTITION BY assignment_id ORDER BY event_timestamp DESC, kafka_partition DESC, kafka_offset DESC
    ) AS age
  FROM task_events
  WHERE assignment_id IS NOT NULL
) AS events_of_tasks
WHERE age = 1;
