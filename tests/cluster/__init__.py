"""A real Flink cluster."""
