-- Events that lack what the other queries stand on, and rows that repeat an event.
SELECT problem, events
FROM (
  SELECT 1 AS place, 'without assignment id' AS problem, COUNT(*) AS events
  FROM task_events
  WHERE assignment_id IS NULL
  UNION ALL
  SELECT 2 AS place, 'without project id' AS problem, COUNT(*) AS events
  FROM task_events
  WHERE project_id IS NULL OR TRIM(project_id) = ''
  UNION ALL
  SELECT 3 AS place, 'completed, without creation time' AS problem, COUNT(*) AS events
  FROM task_events
  WHERE task_status = 'COMPLETED' AND task_created_at IS NULL
  UNION ALL
  SELECT 4 AS place, 'completed, without completion time' AS problem, COUNT(*) AS events
  FROM task_events
  WHERE task_status = 'COMPLETED' AND task_completed_at IS NULL
  UNION ALL
  SELECT 5 AS place, 'completed before it was created' AS problem, COUNT(*) AS events
  FROM task_events
  WHERE task_status = 'COMPLETED' AND task_completed_at < task_created_at
  UNION ALL
  SELECT 6 AS place, 'rows that repeat an event' AS problem, COUNT(*) - COUNT(DISTINCT event_id) AS events
  FROM itel_cabinet_task_tracking
) AS checks
ORDER BY place
