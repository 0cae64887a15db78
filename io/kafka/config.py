"""The settings of every Kafka client, and what a consumer gives as a record of ours. Needs no Beam."""

from __future__ import annotations

from collections.abc import Mapping

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
    "acks": "a record must be on all in-sync replicas before its offset is committed",
    "partition.assignment.strategy": "partitions are assigned by shard, not by the group",
}
_SECRET_KEYS = frozenset(
    {"sasl.password", "ssl.key.password", "ssl.keystore.password", "ssl.key.pem", "sasl.oauthbearer.client.secret"}
)


class ConfigError(SettingError):
    """A librdkafka setting that would break the delivery contract; the message names it and the reason."""


def client_config(bootstrap_servers: str, extra: Mapping[str, object] | None = None) -> ClientConfig:
    """librdkafka settings for every client of a job, as a hashable tuple.

    ``extra`` takes any librdkafka setting (SASL, TLS, Event Hubs) as text; passwords only as references (``env:NAME``,
    ``file:PATH``), which are resolved where the client is made. Raises ConfigError for a setting that is ours to
    decide.
    """
    for key, value in (extra or {}).items():
        if key in _OURS:
            raise ConfigError(f"{key} cannot be set: {_OURS[key]}", field="kafka_config")
        if key in _SECRET_KEYS:
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
    return {k: SecretRef.parse(v).resolve() if k in _SECRET_KEYS else v for k, v in config} | {"logger": QUIET}


def make_record(message: Message, topic_id: str) -> Record:
    """A message that a consumer gave as a Record of the incarnation ``topic_id``."""
    return Record(
        topic=message.topic(),
        topic_id=topic_id,
        partition=message.partition(),
        offset=message.offset(),
        timestamp_ms=message.timestamp()[1],
        key=message.key(),
        value=message.value(),
        headers=_read_headers(message),
    )


def _read_headers(message: Message) -> tuple[tuple[str, bytes | None], ...]:
    """The headers; none, counted, if a name is not UTF-8: clients in C, Go and Rust may write such names, and
    confluent-kafka cannot hand them out."""
    try:
        return tuple(message.headers() or ())
    except (SystemError, UnicodeError):
        metrics.HEADERS_UNREADABLE.labels(message.topic()).inc()
        return ()
