"""The systems outside: Kafka, Delta tables, HTTP APIs, object stores."""
