"""The whole system on one machine: a Kafka broker, simulators of both APIs, and a generator of events."""
