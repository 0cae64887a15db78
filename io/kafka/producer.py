"""The one way to Kafka: messages, and producers that lose, double and reorder none. Needs no Beam."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, Producer

from itel_cabinet.io.worker import RefusedError

__all__ = ["FENCED", "FencedError", "Message", "RefusedMessage", "make_producer", "produce"]

FENCED = frozenset({KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH})
"""What the broker answers a transactional producer once another one with its id has begun."""


class FencedError(RefusedError):
    """Another writer with the same transactional id has begun; this one may write no more."""


@dataclass(frozen=True, slots=True)
class Message:
    """A record to be produced; ``partition`` None leaves it to the key.

    ``origin`` is carried along untouched, so that a refused message can be traced back. ``since_ms``, in epoch
    milliseconds, is when its story began: how old it is once delivered is measured. ``source_partition`` is that of the
    record that it comes of; a transaction needs it, since it belongs to a partition that is read.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    origin: Any = None
    since_ms: int | None = None
    partition: int | None = None
    source_partition: int | None = None


@dataclass(frozen=True, slots=True)
class RefusedMessage:
    """A message that the broker will never take, with its reason in one line; ``too_large`` is the usual one."""

    message: Message
    reason: str
    too_large: bool

    @classmethod
    def by(cls, error: KafkaError, message: Message) -> RefusedMessage:
        return cls(message, error.str(), error.code() == KafkaError.MSG_SIZE_TOO_LARGE)


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
