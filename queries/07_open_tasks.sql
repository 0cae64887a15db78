-- Tasks whose newest event is neither COMPLETED nor CANCELLED, longest idle first.
-- :now (time, default now) idle until when
SELECT
  assignment_id, project_id, task_status, assigned_to_user_id, last_event_at,
  ROUND((UNIX_MICROS(:now) - UNIX_MICROS(last_event_at)) / 8.64E10, 1) AS idle_days
FROM tasks
WHERE state = 'open'
ORDER BY last_event_at, assignment_id
