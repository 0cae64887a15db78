-- Events that lack what the other queries stand on, and rows that repeat an event.
SELECT
  problem,
  CASE place
    WHEN 1 THEN without_assignment
    WHEN 2 THEN without_project
    WHEN 3 THEN without_creation
    WHEN 4 THEN without_completion
    WHEN 5 THEN backwards
    ELSE table_rows - events_once
  END AS events
FROM (
  SELECT
    COUNT(*) AS events_once,
    COUNT(CASE WHEN assignment_id IS NULL THEN 1 END) AS without_assignment,
    COUNT(CASE WHEN project_id IS NULL OR TRIM(project_id) = '' THEN 1 END) AS without_project,
    COUNT(CASE WHEN task_status = 'COMPLETED' AND task_created_at IS NULL THEN 1 END) AS without_creation,
    COUNT(CASE WHEN task_status = 'COMPLETED' AND task_completed_at IS NULL THEN 1 END) AS without_completion,
    COUNT(CASE WHEN task_status = 'COMPLETED' AND task_completed_at < task_created_at THEN 1 END) AS backwards
  FROM task_events
) AS counts
CROSS JOIN (SELECT COUNT(*) AS table_rows FROM itel_cabinet_task_tracking) AS everything
CROSS JOIN (
  VALUES
    (1, 'without assignment id'),
    (2, 'without project id'),
    (3, 'completed, without creation time'),
    (4, 'completed, without completion time'),
    (5, 'completed before it was created'),
    (6, 'rows that repeat an event')
) AS problems(place, problem)
ORDER BY place
