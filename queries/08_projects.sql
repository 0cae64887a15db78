-- Tasks of each project: all, completed, active, and the mean hours to complete.
-- Active is neither completed nor cancelled.
SELECT
  project_id,
  COUNT(*) AS tasks,
  COUNT(CASE WHEN state = 'completed' THEN 1 END) AS completed,
  COUNT(CASE WHEN state = 'open' THEN 1 END) AS active,
  ROUND(AVG(hours_to_complete), 2) AS mean_hours_to_complete
FROM tasks
GROUP BY project_id
ORDER BY tasks DESC, project_id
