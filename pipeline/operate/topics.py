"""The topics of the jobs on a cluster: made, and described."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from confluent_kafka import KafkaError, KafkaException

from itel_cabinet.io.kafka import Cluster, UnknownTopicError
from itel_cabinet.pipeline.topics import ITEL_ERRORS, TASK_ERRORS, TOPICS, TopicSpec

__all__ = ["TopicPlan", "TopicState", "create_topics", "describe_topics"]


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
