-- How many tasks were seen, completed at least once, have their form kept, and photos on it.
SELECT stage, tasks
FROM (
  SELECT 1 AS place, 'seen' AS stage, COUNT(*) AS tasks
  FROM tasks
  UNION ALL
  SELECT 2 AS place, 'completed' AS stage, COUNT(*) AS tasks
  FROM tasks
  WHERE ever_completed = 1
  UNION ALL
  SELECT 3 AS place, 'form kept' AS stage, COUNT(*) AS tasks
  FROM tasks
  WHERE ever_completed = 1 AND assignment_id IN (SELECT assignment_id FROM claimx_itel_forms)
  UNION ALL
  SELECT 4 AS place, 'with photos' AS stage, COUNT(*) AS tasks
  FROM tasks
  WHERE
    ever_completed = 1
    AND assignment_id IN (SELECT assignment_id FROM claimx_itel_forms)
    AND assignment_id IN (SELECT assignment_id FROM claimx_itel_attachments WHERE is_active)
) AS stages
ORDER BY place
