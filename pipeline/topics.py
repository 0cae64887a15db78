"""The Kafka topics that the four jobs use: how they should be made, and how they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from confluent_kafka import KafkaError, KafkaException

from itel_cabinet.io.kafka import Cluster, UnknownTopicError

__all__ = [
    "CLAIMX_EVENTS",
    "DAY_MS",
    "ITEL_ERRORS",
    "ITEL_SUCCESSES",
    "TASK_ERRORS",
    "TASK_EVENTS",
    "TASK_SUCCESSES",
    "TOPICS",
    "TopicPlan",
    "TopicSpec",
    "TopicState",
    "create_topics",
    "describe_topics",
]

CLAIMX_EVENTS = "claimx.events.enriched"
TASK_EVENTS = "itel.cabinet.task.tracking"
TASK_SUCCESSES = f"{TASK_EVENTS}.success"
TASK_ERRORS = f"{TASK_EVENTS}.errors"
ITEL_SUCCESSES = "itel.cabinet.api.success"
ITEL_ERRORS = "itel.cabinet.api.errors"

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
    TopicSpec(CLAIMX_EVENTS, 3, 7),
    TopicSpec(TASK_EVENTS, 3, 7),
    TopicSpec(TASK_SUCCESSES, 1, 3),
    TopicSpec(TASK_ERRORS, 1, 30),
    TopicSpec(ITEL_SUCCESSES, 1),
    TopicSpec(ITEL_ERRORS, 1, 30),
)
"""The topics by their default names."""


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """One topic: it is ``created`` (with a dry run: would be), or it exists and is left alone."""

    spec: TopicSpec
    created: bool


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as it is. ``records`` counts the offsets that retention has left; ``retention_ms`` -1 means for ever."""

    name: str
    topic_id: str
    partitions: int
    retention_ms: int
    records: int


def create_topics(
    cluster: Cluster,
    replication: int,
    *,
    topics: Sequence[TopicSpec] = TOPICS,
    letter_days: int | None = None,
    dry_run: bool = False,
) -> Iterator[TopicPlan]:
    """Make the topics that are missing, one after the other; those that exist are left alone. May be repeated.

    ``replication`` is the number of brokers that hold each record, ``letter_days`` how long the error topics keep
    theirs, in place of what ``topics`` say. Raises KafkaException; what was made stays.
    """
    known = cluster.names()
    for spec in topics:
        if letter_days is not None and spec.name in (TASK_ERRORS, ITEL_ERRORS):
            spec = replace(spec, retention_days=letter_days)
        missing = spec.name not in known
        if missing and not dry_run:
            missing = _create(cluster, spec, replication)
        yield TopicPlan(spec, missing)


def _create(cluster: Cluster, spec: TopicSpec, replication: int) -> bool:
    try:
        cluster.create([(spec.name, spec.partitions, replication, spec.config)])
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another process was faster
            raise
        return False
    return True


def describe_topics(cluster: Cluster, *, topics: Sequence[TopicSpec] = TOPICS) -> Iterator[TopicState | TopicSpec]:
    """How each topic is now, or for one that does not exist its specification. Raises KafkaException."""
    for spec in topics:
        try:
            topic = cluster.topic(spec.name)
        except UnknownTopicError:
            yield spec
            continue
        bounds = cluster.bounds(spec.name, topic.partitions).values()
        records = sum(end - start for start, end in bounds)
        yield TopicState(spec.name, topic.topic_id, len(topic.partitions), cluster.retention_ms(spec.name), records)
