"""The settings of every Kafka client, and what a consumer gives as a record of ours. Needs no Beam."""

from __future__ import annotations

from collections.abc import Mapping

from confluent_kafka import Message

from itel_cabinet.io.kafka.admin import QUIET
from itel_cabinet.io.secrets import SecretRef
from itel_cabinet.transforms.records import Record

__all__ = ["ClientConfig", "ConfigRefused", "client_config", "record_of", "resolved"]

ClientConfig = tuple[tuple[str, str], ...]

_OURS = {
    "bootstrap.servers": "use --bootstrap_servers",
    "group.id": "use --consumer_group",
    "enable.auto.commit": "offsets are committed after the sinks, never by a timer",
    "enable.auto.offset.store": "offsets are committed after the sinks, never by a timer",
    "auto.offset.reset": "use --start_offset; an offset lost to retention is reported, not jumped over",
    "isolation.level": "aborted transactions must not be read",
    "enable.idempotence": "a producer without it may double or reorder records",
    "acks": "a record must be on all in-sync replicas before its offset is committed",
    "partition.assignment.strategy": "partitions are assigned by shard, not by the group",
}
_SECRET_KEYS = frozenset(
    {"sasl.password", "ssl.key.password", "ssl.keystore.password", "ssl.key.pem", "sasl.oauthbearer.client.secret"}
)


class ConfigRefused(ValueError):
    """A librdkafka setting that would break the delivery contract; the message names it and the reason."""


def client_config(bootstrap_servers: str, extra: Mapping[str, object] | None = None) -> ClientConfig:
    """librdkafka settings for every client of a job, as a hashable tuple.

    ``extra`` takes any librdkafka setting (SASL, TLS, Event Hubs) as text; passwords only as references (``env:NAME``,
    ``file:PATH``), which are resolved where the client is made. Raises ConfigRefused for a setting that is ours to
    decide.
    """
    for key, value in (extra or {}).items():
        if key in _OURS:
            raise ConfigRefused(f"--kafka_config: {key} cannot be set: {_OURS[key]}")
        if key in _SECRET_KEYS:
            try:
                SecretRef.parse(str(value))
            except ValueError:
                raise ConfigRefused(f"--kafka_config: {key} must be a reference, env:NAME or file:PATH") from None
    settings = {key: _text(value) for key, value in (extra or {}).items()}
    return tuple(sorted({**settings, "bootstrap.servers": bootstrap_servers}.items()))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def resolved(config: ClientConfig) -> dict[str, object]:
    """The settings with the secrets filled in, for handing to librdkafka and nothing else."""
    return {k: SecretRef.parse(v).resolve() if k in _SECRET_KEYS else v for k, v in config} | {"logger": QUIET}


def record_of(message: Message, topic_id: str) -> Record:
    """A message that a consumer gave as a Record of the incarnation ``topic_id``."""
    return Record(
        topic=message.topic(),
        topic_id=topic_id,
        partition=message.partition(),
        offset=message.offset(),
        timestamp_ms=message.timestamp()[1],
        key=message.key(),
        value=message.value(),
        headers=tuple(message.headers() or ()),
    )
