"""A consumer group's offsets in a topic: looked at, and moved while nobody reads with the group.

Offsets are written with the topic's id as metadata, as the jobs do it, so that they never count for a topic of the same
name that is made later; and without a job's name, so that any job takes them.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from itel_cabinet.io.kafka.admin import (
    Cluster,
    PartitionLag,
    Topic,
    committed_entries,
    group_positions,
    open_onlooker,
    when_coordinated,
)
from itel_cabinet.io.kafka.marks import Committed, Mark

__all__ = ["ConsumerGroup", "GroupError", "Shift", "shifts"]

_MEMBERS = frozenset({KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION, KafkaError.REBALANCE_IN_PROGRESS})


class GroupError(ValueError):
    """A group or an offset is not as it must be. One line with what to do; no offset was moved."""


@dataclass(frozen=True, slots=True)
class Shift:
    """A partition's offset and what becomes of it; ``before`` is None where none counts."""

    partition: int
    before: int | None
    after: int


class ConsumerGroup:
    """A group's offsets in a topic as it is now. Raises UnknownTopicError and, of every call, KafkaException as it
    comes.

    Joins no group. Not thread-safe.
    """

    def __init__(
        self, client: Mapping[str, object], group: str, topic: str, *, epoch: int = 0, timeout: float = 10.0
    ) -> None:
        self.name = group
        self._client = client
        self._epoch = epoch
        self._timeout = timeout
        self._cluster = Cluster(client, timeout=timeout)
        self.topic: Topic = self._cluster.topic(topic, epoch=epoch)

    def check_known(self) -> None:
        """Raise GroupError if the broker has never heard of the group."""
        if self._cluster.members(self.name) is None:
            alike = difflib.get_close_matches(self.name, self._cluster.groups(), n=1)
            hint = f"did you mean {alike[0]}?" if alike else "give one that has committed offsets"
            raise GroupError(f"the broker knows no group {self.name!r}: {hint}")

    def positions(self) -> list[PartitionLag]:
        """Where the group stands in each partition of the topic."""
        with closing(self._consumer()) as consumer:
            return group_positions(self._cluster, consumer, self.topic, timeout=self._timeout)

    def offsets(self) -> dict[int, int]:
        """The offsets that count, by partition."""
        return {p.partition: p.committed for p in self.positions() if p.committed is not None}

    def at_time(self, timestamp_ms: int) -> dict[int, int]:
        """The offset of each partition's first record of that time or later, or its end."""
        found = self._cluster.offsets_at(self.topic.name, self.topic.partitions, timestamp_ms)
        bounds = self._cluster.bounds(self.topic.name, self.topic.partitions)
        return {p: bounds[p][1] if offset < 0 else offset for p, offset in found.items()}

    def check_at_rest(self, watch_seconds: float, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Raise GroupError if the group has members, or if its offsets move within ``watch_seconds``.

        The jobs assign partitions to themselves and are no members: only their commits can be seen, and an idle one
        commits nothing.
        """
        members = self._cluster.members(self.name)
        if members:
            raise GroupError(f"the group {self.name} has members that read ({members}): stop them first")
        before = self._committed()
        sleep(watch_seconds)
        after = self._committed()
        if before != after:
            partition = min(p for p in {*before, *after} if before.get(p) != after.get(p))
            at, now = (getattr(entries.get(partition), "offset", None) for entries in (before, after))
            raise GroupError(
                f"the group {self.name} moves: partition {partition} went from {at} to {now} within "
                f"{watch_seconds:g} s: stop the job that reads with it first"
            )

    def move(self, to: Mapping[int, int]) -> None:
        """Set offsets, marked with the topic's id. Raises GroupError if the group has got members, or the offsets are
        others when they are read back.
        """
        if not to:
            return
        mark = Mark(self.topic.topic_id, job="", at=int(time.time())).to_text()
        offsets = [TopicPartition(self.topic.name, p, o, mark) for p, o in sorted(to.items())]
        with closing(self._consumer()) as consumer:
            try:
                when_coordinated(lambda: consumer.commit(offsets=offsets, asynchronous=False), self._timeout)
            except KafkaException as error:
                if error.args[0].code() in _MEMBERS:
                    raise GroupError(f"the group {self.name} has got members that read: stop them first") from None
                raise
        entries = self._committed()
        if {p: entry.offset for p, entry in entries.items() if p in to} != dict(to):
            raise GroupError(f"the group {self.name} moved at the same moment: stop the job that reads with it first")

    def check_in_range(self, to: Mapping[int, int]) -> None:
        """Raise GroupError unless each offset is between the log's start and end, in a partition that there is."""
        bounds = self._cluster.bounds(self.topic.name, self.topic.partitions)
        for partition, offset in sorted(to.items()):
            if partition not in bounds:
                raise GroupError(
                    f"topic {self.topic.name} has no partition {partition}: it has 0 to {max(self.topic.partitions)}"
                )
            start, end = bounds[partition]
            if not start <= offset <= end:
                lost = f"; retention has deleted what lies before {start}" if offset < start else ""
                raise GroupError(
                    f"partition {partition} of topic {self.topic.name} goes from {start} to {end}, which {offset} is "
                    f"out of{lost}"
                )

    def _committed(self) -> dict[int, Committed]:
        with closing(self._consumer()) as consumer:
            return committed_entries(consumer, self.topic, timeout=self._timeout)

    def _consumer(self) -> Consumer:
        return open_onlooker(self._client, self.name, session_timeout_ms=6_000)


def shifts(group: ConsumerGroup, to: Mapping[int, int], *, only_back: bool = False) -> list[Shift]:
    """What moving the group's offsets ``to`` there means.

    With ``only_back`` those that would not move backwards are left out; so are those of partitions without an offset,
    which the jobs read from the beginning.
    """
    before = group.offsets()
    moved = []
    for partition, after in sorted(to.items()):
        at = before.get(partition)
        if not only_back or (at is not None and after < at):
            moved.append(Shift(partition, at, after))
    return moved
