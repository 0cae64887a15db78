"""The outside world: Kafka, Delta tables, HTTP APIs. Nothing here knows of cabinets, but for the two API clients."""

from itel_cabinet.io.worker.allocators import keep_small

keep_small()
