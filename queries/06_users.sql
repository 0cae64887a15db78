-- Assignments and completions of each user, and the share that was completed.
-- A reassigned task counts for each of its users.
SELECT user_id, assigned, completed, ROUND(completed / assigned, 3) AS completion_rate
FROM (
  SELECT
    assigned_to_user_id AS user_id,
    COUNT(DISTINCT assignment_id) AS assigned,
    COUNT(DISTINCT CASE WHEN task_status = 'COMPLETED' THEN assignment_id END) AS completed
  FROM task_events
  WHERE assigned_to_user_id IS NOT NULL
  GROUP BY assigned_to_user_id
) AS users
ORDER BY assigned DESC, user_id
