"""Questions about topics and groups, asked of the broker: identity, partitions, committed offsets, ends.

Plain functions over confluent-kafka's admin client and consumer. They raise ``confluent_kafka.KafkaException`` as it
comes; :func:`is_outage` says which of those a caller may retry.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ClusterMetadata, ConfigResource, NewTopic, OffsetSpec, ResourceType

from itel_cabinet.io.kafka.marks import Committed, Mark

__all__ = [
    "QUIET",
    "Cluster",
    "PartitionLag",
    "Topic",
    "UnknownTopicError",
    "committed_entries",
    "find_leaders",
    "group_lag",
    "group_positions",
    "is_outage",
    "open_onlooker",
    "when_coordinated",
]

T = TypeVar("T")

_REQUEST_SECONDS = 10.0
# librdkafka prints every failed connection to stderr; the callers here report what matters themselves.
QUIET = logging.getLogger("itel_cabinet.librdkafka")
QUIET.setLevel(logging.CRITICAL)
# What Kafka answers for a topic without an id (brokers before 2.8, Event Hubs): sixteen zero bytes.
_NO_TOPIC_ID = "AAAAAAAAAAAAAAAAAAAAAA"

# A group's coordinator is found again after an election, and for the first group that a new cluster ever sees.
_COORDINATOR_MOVES = frozenset(
    {
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError._WAIT_COORD,
    }
)
_COORDINATOR_SECONDS = 0.2

_RECORD_ERRORS = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD})


def is_outage(error: Exception) -> bool:
    """Whether ``error`` is Kafka's or the network's, and so worth waiting for, rather than one record's."""
    return isinstance(error, KafkaException) and error.args[0].code() not in _RECORD_ERRORS


class UnknownTopicError(LookupError):
    """The broker does not know the topic; the message names it."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One incarnation of a topic: ``topic_id`` changes when it is deleted and created again."""

    name: str
    topic_id: str
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """Where a group stands in a partition; ``committed`` is None where it has no offset of this incarnation.

    ``stale`` is then the offset that it has of an earlier one, if any: it counts for nothing. ``mark`` is what stands
    beside the offset, of either kind. ``held`` offsets lie behind ``end``: from there on a transaction is still open.
    """

    partition: int
    committed: int | None
    start: int
    end: int
    stale: int | None = None
    mark: Mark | None = None
    held: int = 0

    @property
    def topic_id(self) -> str | None:
        """The incarnation that the offset was committed for; None if the one that committed it did not say."""
        return (self.mark.topic_id or None) if self.mark else None

    @property
    def position(self) -> int:
        """Where the group reads on: its offset, or the log start where it has none or retention has deleted what is
        there.
        """
        return self.start if self.committed is None else max(self.committed, self.start)

    @property
    def is_beyond_the_end(self) -> bool:
        """Whether the log was cut below the group's offset."""
        return self.committed is not None and self.committed > self.end + self.held

    @property
    def lag(self) -> int:
        """Records between the group's position and the end."""
        return max(0, self.end - self.position)


class Cluster:
    """The admin side of one cluster. Thread-safe: it holds only librdkafka's own client."""

    def __init__(self, client_config: Mapping[str, object], *, timeout: float = _REQUEST_SECONDS) -> None:
        self._timeout = timeout
        self._refused: KafkaError | None = None
        self._admin = AdminClient(dict(client_config) | {"logger": QUIET, "error_cb": self._noted})

    def _noted(self, error: KafkaError) -> None:
        if error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            self._refused = error

    def ping(self) -> None:
        """Raise KafkaException unless a broker answers within the timeout."""
        self._listed()

    def _listed(self) -> ClusterMetadata:
        try:
            return self._admin.list_topics(timeout=self._timeout)
        except KafkaException as error:
            # All that is said of a refused password or certificate here is that no broker could be reached.
            self._admin.poll(0)
            if self._refused is not None:
                raise KafkaException(self._refused) from error
            raise

    def topic(self, name: str, *, epoch: int = 0) -> Topic:
        """Describe a topic; ``epoch`` names the incarnation on brokers without topic ids. Raises UnknownTopicError."""
        future = self._admin.describe_topics(TopicCollection([name]), request_timeout=self._timeout)[name]
        try:
            description = future.result()
        except KafkaException as error:
            if error.args[0].code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
                raise UnknownTopicError(f"topic {name!r} does not exist") from error
            raise
        # As Kafka's own tools print it; librdkafka's text has + and /, and ids are parts of paths here.
        topic_id = str(description.topic_id).translate(str.maketrans("+/", "-_"))
        return Topic(
            name=name,
            topic_id=f"name:{name}@{epoch}" if topic_id in ("", "None", _NO_TOPIC_ID) else topic_id,
            partitions=tuple(sorted(partition.id for partition in description.partitions)),
        )

    def bounds(self, topic: str, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """``(log start, end)`` of each partition; the end is that of the last decided transaction."""
        starts, ends = (self._offsets(topic, partitions, spec) for spec in (OffsetSpec.earliest(), OffsetSpec.latest()))
        return {p: (starts[p], ends[p]) for p in partitions}

    def written_ends(self, topic: str, partitions: Sequence[int]) -> dict[int, int]:
        """The end of each partition, with what belongs to transactions that are still open."""
        return self._offsets(topic, partitions, OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED)

    def _offsets(
        self,
        topic: str,
        partitions: Sequence[int],
        spec: OffsetSpec,
        isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
    ) -> dict[int, int]:
        futures = self._admin.list_offsets(
            {TopicPartition(topic, p): spec for p in partitions},
            isolation_level=isolation,
            request_timeout=self._timeout,
        )
        return {partition.partition: future.result().offset for partition, future in futures.items()}

    def names(self) -> frozenset[str]:
        """The names of all topics the credentials can see."""
        return frozenset(self._listed().topics)

    def offsets_at(self, topic: str, partitions: Sequence[int], timestamp_ms: int) -> dict[int, int]:
        """The first offset of each partition whose record bears that time or a later one; -1 where there is none."""
        return self._offsets(topic, partitions, OffsetSpec.for_timestamp(timestamp_ms))

    def members(self, group: str) -> int | None:
        """How many members a consumer group has, or None if the broker does not know it. Jobs are no members."""
        try:
            found = self._admin.describe_consumer_groups([group], request_timeout=self._timeout)[group].result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return None
            raise
        return None if found.state == ConsumerGroupState.DEAD else len(found.members)

    def groups(self) -> list[str]:
        """The names of the consumer groups that the credentials can see."""
        found = self._admin.list_consumer_groups(request_timeout=self._timeout).result()
        return sorted(group.group_id for group in found.valid)

    def committed_by_all(self, topic: Topic) -> dict[str, dict[int, Committed]]:
        """What each group that the credentials can see has committed in a topic, by group and partition."""
        partitions = [TopicPartition(topic.name, p) for p in topic.partitions]
        found = {}
        for group in self.groups():
            asked = [ConsumerGroupTopicPartitions(group, partitions)]
            # One by one: librdkafka takes a single group a request, and fails those whose coordinator moves.
            answer = self._admin.list_consumer_group_offsets(asked, request_timeout=self._timeout)[group].result()
            entries = _entries(answer.topic_partitions)
            if entries:
                found[group] = entries
        return found

    def retention_ms(self, topic: str) -> int:
        """How long a topic keeps its records, in milliseconds; -1 for ever."""
        resource = ConfigResource(ResourceType.TOPIC, topic)
        (future,) = self._admin.describe_configs([resource], request_timeout=self._timeout).values()
        return int(future.result()["retention.ms"].value)

    def create(self, topics: Iterable[tuple[str, int, int, Mapping[str, str]]]) -> None:
        """Create ``(name, partitions, replication, config)`` topics. Raises KafkaException for the first that fails."""
        wanted = [
            NewTopic(name, num_partitions=partitions, replication_factor=replication, config=dict(config))
            for name, partitions, replication, config in topics
        ]
        if wanted:
            for future in self._admin.create_topics(wanted, request_timeout=self._timeout).values():
                future.result()


def open_onlooker(client_config: Mapping[str, object], group: str, **settings: object) -> Consumer:
    """A consumer to look at a group's offsets with, and to set them, which joins it never.

    It has them as they are, at once, while a transaction that moves them is open: one that its job has left open,
    killed, may be so for minutes.
    """
    return Consumer(
        dict(client_config)
        | {"group.id": group, "enable.auto.commit": False, "isolation.level": "read_uncommitted", "logger": QUIET}
        | {name.replace("_", "."): value for name, value in settings.items()}
    )


def committed_entries(consumer: Consumer, topic: Topic, *, timeout: float = _REQUEST_SECONDS) -> dict[int, Committed]:
    """What the group has committed in the topic, for any incarnation of it, by partition."""

    def ask() -> list[TopicPartition]:
        answer: list[TopicPartition] = consumer.committed(
            [TopicPartition(topic.name, p) for p in topic.partitions], timeout=timeout
        )
        for entry in answer:
            if entry.error is not None:
                raise KafkaException(entry.error)
        return answer

    answer = when_coordinated(ask, timeout)
    return _entries(answer)


def find_leaders(consumer: Consumer, topic: str, *, timeout: float = _REQUEST_SECONDS) -> None:
    """Let a consumer know a topic before it is assigned partitions of it. Raises KafkaException.

    librdkafka looks for leaders that it does not know once a second, and the first record would come that much later.
    """
    consumer.list_topics(topic, timeout=timeout)


def _entries(answer: Iterable[TopicPartition]) -> dict[int, Committed]:
    return {e.partition: Committed(e.offset, Mark.from_text(e.metadata or "")) for e in answer if e.offset >= 0}


def when_coordinated(call: Callable[[], T], timeout: float = _REQUEST_SECONDS) -> T:
    """What a call about a group returns once the group's coordinator is found; KafkaException as it comes."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return call()
        except KafkaException as error:
            if error.args[0].code() not in _COORDINATOR_MOVES or time.monotonic() >= deadline:
                raise
            time.sleep(_COORDINATOR_SECONDS)


def group_positions(
    cluster: Cluster, consumer: Consumer, topic: Topic, *, timeout: float = _REQUEST_SECONDS
) -> list[PartitionLag]:
    """Where the consumer's group stands in each partition of a topic. Joins no group and moves no offset.

    Ends are asked for after offsets, so a group that keeps up is never seen ahead of an end.
    """
    entries = committed_entries(consumer, topic, timeout=timeout)
    bounds = cluster.bounds(topic.name, topic.partitions)
    written = cluster.written_ends(topic.name, topic.partitions)
    positions = []
    for partition in topic.partitions:
        entry = entries.get(partition)
        counts = entry is not None and entry.mark.is_for(topic.topic_id)
        offset = None if entry is None else entry.offset
        present, stale = (offset, None) if counts else (None, offset)
        mark = None if entry is None else entry.mark
        held = max(0, written[partition] - bounds[partition][1])
        positions.append(PartitionLag(partition, present, *bounds[partition], stale, mark, held))
    return positions


def group_lag(
    client_config: Mapping[str, object],
    group: str,
    topic_name: str,
    *,
    epoch: int = 0,
    timeout: float = _REQUEST_SECONDS,
) -> list[PartitionLag]:
    """As :func:`group_positions`, once, with clients of its own. Raises UnknownTopicError."""
    cluster = Cluster(client_config, timeout=timeout)
    topic = cluster.topic(topic_name, epoch=epoch)
    consumer = open_onlooker(client_config, group)
    try:
        return group_positions(cluster, consumer, topic, timeout=timeout)
    finally:
        consumer.close()
