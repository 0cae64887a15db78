"""The settings of every Kafka client, and what a consumer gives as a record of ours. Needs no Beam."""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import methodcaller

from confluent_kafka import Message

from itel_cabinet.io.kafka.admin import QUIET
from itel_cabinet.io.secrets import SecretRef
from itel_cabinet.io.worker import SettingError, metrics
from itel_cabinet.transforms.records import Record

__all__ = ["ClientConfig", "ConfigError", "client_config", "make_record", "resolve_config"]

ClientConfig = tuple[tuple[str, str], ...]

_OURS = {
    "bootstrap.servers": "the brokers are given by themselves",
    "group.id": "the group is given by itself",
    "enable.auto.commit": "offsets are committed after the sinks, never by a timer",
    "enable.auto.offset.store": "offsets are committed after the sinks, never by a timer",
    "auto.offset.reset": "it is given by itself; an offset lost to retention is reported, not jumped over",
    "isolation.level": "aborted transactions must not be read",
    "enable.idempotence": "a producer without it may double or reorder records",
    "transactional.id": "transactions have ids of their own, by group and partition",
    "acks": "a record must be on all in-sync replicas before its offset is committed",
    "partition.assignment.strategy": "partitions are assigned by shard, not by the group",
}
# By their names, so that those of a later librdkafka are among them.
_SECRET_KEY = re.compile(r"password|passphrase|secret|key\.pem$")


class ConfigError(SettingError):
    """A librdkafka setting that would break the delivery contract; the message names it and the reason."""


def client_config(bootstrap_servers: str, extra: Mapping[str, object] | None = None) -> ClientConfig:
    """librdkafka settings for every client of a job, as a hashable tuple.

    ``extra`` takes any librdkafka setting (SASL, TLS, Event Hubs) as text. What its name calls a secret must be a
    reference (``env:NAME``, ``file:PATH``), and any other may be; they are resolved where the client is made. Raises
    ConfigError for a setting that is ours to decide.
    """
    for key, value in (extra or {}).items():
        if key in _OURS:
            raise ConfigError(f"{key} cannot be set: {_OURS[key]}", field="kafka_config")
        if key == "group.protocol" and _text(value).lower() != "classic":
            reason = "partitions are assigned by shard, and the job's consumers join no group"
            raise ConfigError(f"{key} cannot be {_text(value)[:40]!r}: {reason}", field="kafka_config")
        if _SECRET_KEY.search(key):
            try:
                SecretRef.parse(str(value))
            except ValueError:
                message = f"{key} must be a reference, env:NAME or file:PATH"
                raise ConfigError(message, field="kafka_config") from None
    settings = {key: _text(value) for key, value in (extra or {}).items()}
    return tuple(sorted({**settings, "bootstrap.servers": bootstrap_servers}.items()))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def resolve_config(config: ClientConfig) -> dict[str, object]:
    """The settings with the secrets filled in, for handing to librdkafka and nothing else."""
    return {key: _resolve(value) for key, value in config} | {"logger": QUIET}


def _resolve(value: str) -> str:
    try:
        reference = SecretRef.parse(value)
    except ValueError:
        return value
    return reference.resolve(any_text=True)


def make_record(message: Message, topic_id: str, arrived: float | None = None) -> Record:
    """A message that a consumer gave as a Record of the incarnation ``topic_id``; ``arrived`` as Record has it."""
    return Record(
        topic=message.topic(),
        topic_id=topic_id,
        partition=message.partition(),
        offset=message.offset(),
        timestamp_ms=message.timestamp()[1],
        key=message.key(),
        value=message.value(),
        headers=_read_headers(message),
        arrived=arrived,
    )


# confluent-kafka returns a result with an exception set, which CPython's specialized calls do not look for: it would
# come up at some later call.
_call_headers = methodcaller("headers")


def _read_headers(message: Message) -> tuple[tuple[str, bytes | None], ...]:
    """The headers; none, counted, if a name is not UTF-8: clients in C, Go and Rust may write such names, and
    confluent-kafka cannot hand them out."""
    try:
        return tuple(_call_headers(message) or ())
    except (SystemError, UnicodeError):
        metrics.HEADERS_UNREADABLE.labels(message.topic()).inc()
        return ()
