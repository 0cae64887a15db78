"""What operators watch the jobs with: Prometheus rules and Grafana dashboards. See docs/monitoring.md."""
