-- How submissions ended, most frequent first, with the mean time of the calls.
SELECT
  outcome, reason, COUNT(*) AS submissions, COUNT(DISTINCT assignment_id) AS assignments,
  ROUND(AVG(latency_ms)) AS mean_ms, MAX(COALESCE(answered_at, created_at)) AS newest_at
FROM itel_cabinet_submissions
GROUP BY outcome, reason
ORDER BY submissions DESC, outcome, reason
