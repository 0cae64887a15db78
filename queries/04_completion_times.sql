-- How long tasks took from creation to completion, slowest first.
-- :limit (integer, default 50) how many
SELECT
  assignment_id, project_id, created_at, completed_at,
  ROUND(hours_to_complete / 24, 2) AS days, ROUND(hours_to_complete, 2) AS hours
FROM tasks
WHERE hours_to_complete IS NOT NULL
ORDER BY hours_to_complete DESC, assignment_id
LIMIT :limit
