"""Kafka for Beam in plain Python, and for the tools around it: a source that loses nothing and a sink that checks
every delivery; clusters, groups and logs for commands. It knows nothing of cabinets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from itel_cabinet.io.kafka.admin import (
    QUIET,
    Cluster,
    PartitionLag,
    Topic,
    UnknownTopicError,
    group_lag,
    group_positions,
    open_onlooker,
)
from itel_cabinet.io.kafka.config import ClientConfig, ConfigError, client_config, resolve_config
from itel_cabinet.io.kafka.groups import ConsumerGroup, GroupError, Shift, shifts
from itel_cabinet.io.kafka.log import LogReader, LogWriter, UnwritableError
from itel_cabinet.io.kafka.marks import Committed, Mark, newest_mark
from itel_cabinet.io.kafka.producer import FencedError, Message, RefusedMessage

if TYPE_CHECKING:
    from itel_cabinet.io.kafka.key_groups import KEY_GROUPS
    from itel_cabinet.io.kafka.offsets import check_group, leave_group
    from itel_cabinet.io.kafka.sink import KafkaSinkSettings, WriteToKafka
    from itel_cabinet.io.kafka.source import ReadFromKafka
    from itel_cabinet.io.kafka.spec import KafkaSource
    from itel_cabinet.io.kafka.transactions import check_transactions

__all__ = [
    "KEY_GROUPS",
    "QUIET",
    "ClientConfig",
    "Cluster",
    "Committed",
    "ConfigError",
    "ConsumerGroup",
    "FencedError",
    "GroupError",
    "KafkaSinkSettings",
    "KafkaSource",
    "LogReader",
    "LogWriter",
    "Mark",
    "Message",
    "PartitionLag",
    "ReadFromKafka",
    "RefusedMessage",
    "Shift",
    "Topic",
    "UnknownTopicError",
    "UnwritableError",
    "WriteToKafka",
    "check_group",
    "check_transactions",
    "client_config",
    "group_lag",
    "group_positions",
    "leave_group",
    "newest_mark",
    "open_onlooker",
    "resolve_config",
    "shifts",
]

# Beam takes a second to import, and most commands do without it.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "key_groups": ["KEY_GROUPS"],
        "offsets": ["check_group", "leave_group"],
        "sink": ["KafkaSinkSettings", "WriteToKafka"],
        "source": ["ReadFromKafka"],
        "spec": ["KafkaSource"],
        "transactions": ["check_transactions"],
    },
)
