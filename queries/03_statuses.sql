-- Events and assignments of each status in a month.
-- :month (month) the month, by the events' time
SELECT task_status, COUNT(*) AS events, COUNT(DISTINCT assignment_id) AS assignments
FROM task_events
WHERE event_timestamp >= :month AND event_timestamp < :month + INTERVAL '1' MONTH
GROUP BY task_status
ORDER BY events DESC, task_status
