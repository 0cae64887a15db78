"""The outside world: Kafka, Delta tables, HTTP APIs. Nothing here knows of cabinets, but for the two API clients."""
