-- How many tasks were seen, completed at least once, have their form kept, and photos on it.
SELECT
  stage,
  CASE place WHEN 1 THEN seen WHEN 2 THEN completed WHEN 3 THEN with_form ELSE with_photos END AS tasks
FROM (
  SELECT
    COUNT(*) AS seen,
    COUNT(CASE WHEN ever_completed = 1 THEN 1 END) AS completed,
    COUNT(CASE WHEN ever_completed = 1 THEN forms.assignment_id END) AS with_form,
    COUNT(CASE WHEN ever_completed = 1 AND forms.assignment_id IS NOT NULL THEN photos.assignment_id END) AS with_photos
  FROM tasks
  LEFT JOIN (
    SELECT DISTINCT assignment_id
    FROM claimx_itel_forms
  ) AS forms ON forms.assignment_id = tasks.assignment_id
  LEFT JOIN (
    SELECT DISTINCT assignment_id
    FROM claimx_itel_attachments
    WHERE is_active
  ) AS photos ON photos.assignment_id = tasks.assignment_id
) AS counts
CROSS JOIN (VALUES (1, 'seen'), (2, 'completed'), (3, 'form kept'), (4, 'with photos')) AS stages(place, stage)
ORDER BY place
