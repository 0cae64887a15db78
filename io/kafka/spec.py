"""What a source reads and where it stands: values that are hashable, or travel as versioned JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from itel_cabinet.io.kafka.config import ClientConfig
from itel_cabinet.io.kafka.key_groups import evenly_spread

__all__ = ["KafkaSource", "Loss", "ShardPosition"]

_RELIST_SECONDS = 30.0


@dataclass(frozen=True)
class KafkaSource:
    """Where and how to read. Hashable and picklable; secrets only as references."""

    client: ClientConfig
    topic: str
    group: str
    job: str = ""
    """Who commits with the group; another job that does is noticed. Empty for none in particular."""
    start_offset: str = "earliest"
    """Where to start a partition for which the group has no offset: ``earliest`` or ``latest``."""
    shards: int = 1
    max_batch_records: int = 500
    max_batch_seconds: float = 0.2
    """A batch ends at either limit; the seconds count from its first record, or from where the batch before was full
    if it waited for that."""
    max_batch_bytes: int = 8 * 1024 * 1024
    max_bundle_seconds: float = 10.0
    """A batch ends at about this size, judged by the one before: its records, and what was fetched for them."""
    until_caught_up: bool = False
    """Finish once every partition has reached the end it had at the start."""
    outage_seconds: float = 120.0
    """How long the broker may be away before the job fails."""
    topic_epoch: int = 0
    """Names the incarnation of the topic where the broker has no topic ids; raise it after recreating the topic."""
    transactions: str = ""
    """Commit what comes of a batch and its offsets in one transaction; ids begin with this. Empty: no transactions."""
    relist_seconds: float = _RELIST_SECONDS

    def elements(self) -> list[str]:
        """The SDF's elements, one a shard, as versioned JSON."""
        return evenly_spread([{"v": 1, "shard": k, "shards": self.shards} for k in range(self.shards)])


@dataclass(frozen=True)
class ShardPosition:
    """A shard's restriction: the next offset of each of its partitions, all of them from the start.

    ``ends`` holds the offsets to stop at (``until_caught_up``), or None for an endless read. A residual made from
    claimed partitions only would lose the idle ones, so positions always name every partition.
    """

    topic_id: str
    offsets: Mapping[int, int]
    ends: Mapping[int, int] | None = None

    @property
    def caught_up(self) -> bool:
        return self.ends is not None and all(self.offsets.get(p, end) >= end for p, end in self.ends.items())

    def to_json(self) -> bytes:
        document = {"v": 1, "topic_id": self.topic_id, "offsets": _string_keys(self.offsets)}
        if self.ends is not None:
            document["ends"] = _string_keys(self.ends)
        return json.dumps(document, sort_keys=True).encode()

    @classmethod
    def from_json(cls, encoded: bytes) -> ShardPosition:
        document = json.loads(encoded)
        if document.get("v") != 1:
            raise ValueError(f"a restriction of version {document.get('v')!r}: this build reads version 1")
        ends = document.get("ends")
        return cls(document["topic_id"], _int_keys(document["offsets"]), None if ends is None else _int_keys(ends))


def _string_keys(offsets: Mapping[int, int]) -> dict[str, int]:
    return {str(partition): offset for partition, offset in sorted(offsets.items())}


def _int_keys(offsets: Mapping[str, int]) -> dict[int, int]:
    return {int(partition): offset for partition, offset in offsets.items()}


@dataclass(frozen=True, slots=True)
class Loss:
    """Offsets ``[start, end)`` of a partition that retention deleted before the group read them."""

    partition: int
    start: int
    end: int
