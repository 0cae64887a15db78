"""The Kafka topics that the four jobs use: how they should be made, and how they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException

from itel_cabinet.io.kafka import Cluster, UnknownTopic

__all__ = ["DAY_MS", "TOPICS", "Made", "Seen", "TopicSpec", "create_topics", "describe_topics"]

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic to make. ``retention_days`` None leaves the retention to the broker's default."""

    name: str
    partitions: int
    retention_days: int | None = None

    @property
    def config(self) -> dict[str, str]:
        """The topic's configuration in Kafka's terms."""
        return {} if self.retention_days is None else {"retention.ms": str(self.retention_days * DAY_MS)}


TOPICS = (
    TopicSpec("claimx.events.enriched", 3, 7),
    TopicSpec("itel.cabinet.task.tracking", 3, 7),
    TopicSpec("itel.cabinet.task.tracking.success", 1, 3),
    TopicSpec("itel.cabinet.task.tracking.errors", 1, 30),
    TopicSpec("itel.cabinet.api.success", 1),
    TopicSpec("itel.cabinet.api.errors", 1),
)
"""The topics by their default names."""


@dataclass(frozen=True, slots=True)
class Made:
    """What became of one topic: ``created`` (or with a dry run would be), else it was there and is left as it is."""

    spec: TopicSpec
    created: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """A topic as it is. ``records`` counts the offsets that retention has left; ``retention_ms`` is -1 for ever."""

    name: str
    topic_id: str
    partitions: int
    retention_ms: int
    records: int


def create_topics(
    cluster: Cluster, replication: int, *, topics: Sequence[TopicSpec] = TOPICS, dry_run: bool = False
) -> Iterator[Made]:
    """Make the topics that are missing, one after the other; those that exist are left alone. May be repeated.

    ``replication`` is the number of brokers that hold each record. Raises KafkaException; what was made stays.
    """
    known = cluster.names()
    for spec in topics:
        missing = spec.name not in known
        if missing and not dry_run:
            missing = _created(cluster, spec.name, spec.partitions, replication, spec.config)
        yield Made(spec, missing)


def _created(cluster: Cluster, name: str, partitions: int, replication: int, config: Mapping[str, str]) -> bool:
    try:
        cluster.create([(name, partitions, replication, config)])
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # someone else was faster
            raise
        return False
    return True


def describe_topics(cluster: Cluster, *, topics: Sequence[TopicSpec] = TOPICS) -> Iterator[Seen | TopicSpec]:
    """How each topic is now, or for one that does not exist its specification. Raises KafkaException."""
    for spec in topics:
        try:
            topic = cluster.topic(spec.name)
        except UnknownTopic:
            yield spec
            continue
        bounds = cluster.bounds(spec.name, topic.partitions).values()
        records = sum(end - start for start, end in bounds)
        yield Seen(spec.name, topic.topic_id, len(topic.partitions), cluster.retention_ms(spec.name), records)
