-- Seconds from an event to its row, mean and longest, by the event's day.
-- :year (integer, optional) only this year
SELECT day, COUNT(*) AS events, ROUND(AVG(lag_seconds), 3) AS mean_seconds, ROUND(MAX(lag_seconds), 3) AS max_seconds
FROM (
  SELECT
    CAST(event_timestamp AS DATE) AS day,
    (UNIX_MICROS(processed_timestamp) - UNIX_MICROS(event_timestamp)) / 1E6 AS lag_seconds
  FROM task_events
  WHERE CAST(:year AS BIGINT) IS NULL OR EXTRACT(YEAR FROM event_timestamp) = :year
) AS lags
GROUP BY day
ORDER BY day
