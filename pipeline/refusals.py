"""What an operator reads when Kafka or the table store is not as a command needs it: one line with the option and
what to do.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from confluent_kafka import KafkaError, KafkaException

from itel_cabinet.io.worker import OutageError, describe_error

if TYPE_CHECKING:
    from itel_cabinet.io.delta import TableError
    from itel_cabinet.io.kafka import UnknownTopicError

__all__ = ["describe_kafka_error", "describe_missing_topic", "describe_table_error"]

_AWAY = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError.REQUEST_TIMED_OUT,
    }
)


def describe_kafka_error(error: KafkaException, bootstrap_servers: str) -> str:
    """The line for an error of a client that has only just been made."""
    code, reason = error.args[0].code(), error.args[0].str()
    if code == KafkaError._INVALID_ARG:
        return f"--kafka_config: librdkafka refuses it: {reason}"
    if code in (KafkaError._AUTHENTICATION, KafkaError._SSL):
        return (
            f"--kafka_config: no entry at {bootstrap_servers} ({_strip_address(reason)}): "
            "check user name and password, and the file of ssl.ca.location"
        )
    if code in _AWAY:
        return (
            f"--bootstrap_servers: no broker answers at {bootstrap_servers} ({reason}): "
            "start it, or give the address of one that runs (with TLS or SASL, --kafka_config too)"
        )
    if code == KafkaError.INVALID_REPLICATION_FACTOR:
        return f"--replication_factor: more than there are brokers at {bootstrap_servers}; one broker needs 1"
    return f"--bootstrap_servers: the broker at {bootstrap_servers} refuses: {reason}"


def _strip_address(reason: str) -> str:
    """librdkafka's words without the ``sasl_ssl://host:port/bootstrap: `` before and the ``(after 5ms ...)`` behind."""
    return re.sub(r"^\S+://\S+: | \(after [^)]*\)$", "", reason).strip()


def describe_table_error(error: TableError | OutageError) -> str:
    """The line for a table that cannot be made, opened or written."""
    hint = ": give a folder or object-store URI that can be written" if isinstance(error, OutageError) else ""
    return f"--tables_root: {describe_error(error)}{hint}"


def describe_missing_topic(error: UnknownTopicError) -> str:
    """The line for a topic that is not there."""
    return f"{error}: create it with `itel-cabinet topics create`"
