"""The one way to Kafka: messages, and producers that lose, double and reorder none. Needs no Beam."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, Producer

__all__ = ["Message", "make_producer", "produce"]


@dataclass(frozen=True, slots=True)
class Message:
    """A record to be produced; ``partition`` None leaves it to the key.

    ``origin`` is carried along untouched, so that a refused message can be traced back. ``since_ms``, in epoch
    milliseconds, is when its story began: how old it is once delivered is measured.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    origin: Any = None
    since_ms: int | None = None
    partition: int | None = None


def make_producer(client: Mapping[str, object], *, delivery_seconds: float, **settings: object) -> Producer:
    """An idempotent producer. ``client`` may choose compression and linger; ``settings`` and the rest are ours.

    Args:
        client: librdkafka's settings, secrets resolved.
        delivery_seconds: after so long a message is given up.
        settings: more of librdkafka's settings, with ``_`` for its dots.
    """
    chosen = "compression.type" in client or "compression.codec" in client
    return Producer(
        {"linger.ms": 5}
        | ({} if chosen else {"compression.type": "lz4"})
        | dict(client)
        | {
            "enable.idempotence": True,
            "delivery.timeout.ms": int(delivery_seconds * 1000),
            # Only the broker knows its own limit; librdkafka's guess would refuse what the broker takes.
            "message.max.bytes": 100_000_000,
        }
        | {name.replace("_", "."): value for name, value in settings.items()}
    )


def produce(producer: Producer, message: Message, on_delivery: Callable[[KafkaError | None, Any], None]) -> None:
    """Queue a message. Raises BufferError while the queue is full, KafkaException for what cannot be queued."""
    producer.produce(
        message.topic,
        message.value,
        message.key,
        **({} if message.partition is None else {"partition": message.partition}),
        headers=list(message.headers),
        on_delivery=on_delivery,
    )
