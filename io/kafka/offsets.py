"""A group's offsets, as the jobs of a process commit them: never over those of another job, nor over an operator's.

Each commit first looks at what is there. What another job has committed ends this one, since each would move the other
away from what it has not settled. What a person has set meanwhile is obeyed if it lies further back: the records are
read again. Further ahead would skip what is not settled, and is reported instead.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from itel_cabinet.io.kafka.admin import Cluster, Topic, UnknownTopicError, committed_entries, is_outage, open_onlooker
from itel_cabinet.io.kafka.config import resolve_config
from itel_cabinet.io.kafka.marks import Committed, Mark
from itel_cabinet.io.kafka.producer import FencedError
from itel_cabinet.io.kafka.spec import KafkaSource, ShardPosition
from itel_cabinet.io.worker import OutageError, RefusedError, crash_points, metrics, once_per_process, retry_outage

__all__ = [
    "ForeignOffsets",
    "GroupOffsets",
    "check_group",
    "get_group_offsets",
    "leave_group",
    "look_up_entries",
    "select_foreign",
    "select_own",
]

_LOGGER = logging.getLogger(__name__)

# A sign of life, besides: Kafka forgets a group that commits nothing for offsets.retention.minutes (7 days by default).
_RECOMMIT_SECONDS = 60.0
_COMMIT_RETRY_SECONDS = 15.0
_COMMIT_WAIT_MS = 6_000
_LOOK_SECONDS = 10.0  # how often an idle job looks at its group


def select_own(entries: Mapping[int, Committed], source: KafkaSource, topic_id: str) -> dict[int, int]:
    """The offsets that count for a source, by partition. Raises RefusedError if they are another job's."""
    for partition, entry in sorted(entries.items()):
        if entry.mark.is_for(topic_id) and entry.mark.job and source.job and entry.mark.job != source.job:
            raise RefusedError(
                f"the group {source.group} is that of the job {entry.mark.job}, which has committed {entry.offset} of "
                f"partition {partition} of topic {source.topic}: give {source.job} a group of its own; to go on from "
                "there, copy these offsets to it first"
            )
    return {partition: entry.offset for partition, entry in entries.items() if entry.mark.is_for(topic_id)}


@dataclass(frozen=True, slots=True)
class ForeignOffsets:
    """Offsets of a group, by partition, that were committed for another topic of the same name: they do not count."""

    offsets: Mapping[int, int]
    text: str

    def __str__(self) -> str:
        return self.text


def check_group(source: KafkaSource) -> tuple[dict[int, int], ForeignOffsets | None]:
    """The offsets from which a source would start, and those of another topic.

    Raises RefusedError if the group is another job's, and as :class:`Cluster` does.
    """
    topic = Cluster(resolve_config(source.client)).topic(source.topic, epoch=source.topic_epoch)
    entries = look_up_entries(source, topic)
    return select_own(entries, source, topic.topic_id), select_foreign(entries, source, topic)


def look_up_entries(source: KafkaSource, topic: Topic) -> dict[int, Committed]:
    """What the source's group has committed in the topic. Raises KafkaException as it comes."""
    with closing(open_onlooker(resolve_config(source.client), source.group)) as consumer:
        return committed_entries(consumer, topic)


def select_foreign(entries: Mapping[int, Committed], source: KafkaSource, topic: Topic) -> ForeignOffsets | None:
    """Those that were committed for another topic of this name; None without such."""
    foreign = {p: entry for p, entry in sorted(entries.items()) if not entry.mark.is_for(topic.topic_id)}
    if not foreign:
        return None
    where = "end" if source.start_offset == "latest" and len(foreign) == len(entries) else "start"
    listed = ", ".join(f"{partition}={entry.offset}" for partition, entry in foreign.items())
    return ForeignOffsets(
        {partition: entry.offset for partition, entry in foreign.items()},
        f"the group {source.group} has offsets ({listed}) that were committed for another topic of the name "
        f"{topic.name} (id {next(iter(foreign.values())).mark.topic_id:.50}, now {topic.topic_id}): they do not count, "
        f"and these partitions are read from the log's {where}; if they are right, as on a copied cluster, stop the "
        "job and set them again",
    )


class GroupOffsets:
    """Commits one group's offsets in one topic, never backwards by itself; one a process and group. Thread-safe.

    Runners call finalizers concurrently and out of order (Flink: all bundles finished since the last checkpoint), and
    Beam swallows what a finalizer raises, so failures are retried for a while, logged and counted here. A commit that
    fails for good costs nothing but a replay after a restart, which the fences drop.
    """

    def __init__(self, source: KafkaSource, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._consumer = Consumer(
            resolve_config(source.client)
            # How long librdkafka lets a commit wait for the group's coordinator; the group has no members.
            | {"group.id": source.group, "enable.auto.commit": False, "session.timeout.ms": _COMMIT_WAIT_MS}
        )
        self._committed: dict[tuple[str, int], int] = {}
        self._committed_at = self._looked_at = -float("inf")
        self._started = int(time.time())
        self._starts: dict[tuple[str, int], tuple[int, ...]] = {}
        self._moved: dict[tuple[str, int], int] = {}
        self._seen: dict[tuple[str, int], int] = {}  # what was moved to and dealt with, until it is committed over
        self._write: Callable[[str, Sequence[TopicPartition]], object] = self._commit
        self._generation = 0
        self._refusal: RefusedError | None = None
        self._stopped = False

    @property
    def generation(self) -> int:
        """How often this process has been sent back; commits of what was read before that are void."""
        return self._generation

    @property
    def group(self) -> Any:
        """The group as transactions name it."""
        return self._consumer.consumer_group_metadata()

    def commit_with(self, write: Callable[[str, Sequence[TopicPartition]], object]) -> None:
        """Have ``write``, which gets a topic's id and offsets, commit what this would commit of itself."""
        self._write = write

    def due(self) -> bool:
        """Whether to call :meth:`commit` without news: at the start, so that ``latest`` holds; after a failure; and now
        and then, lest Kafka forget or an operator's move go unseen.
        """
        return self._stale() or self._clock() - self._looked_at > _LOOK_SECONDS

    def _stale(self) -> bool:
        return self._clock() - self._committed_at > _RECOMMIT_SECONDS

    def follow(self, position: ShardPosition) -> ShardPosition:
        """Where to read on: ``position`` itself, or further back if a person has set the group's offsets back.

        Raises RefusedError if another job commits with this group.
        """
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            moved = {
                p: self._moved.pop((position.topic_id, p)) for p in position.offsets if self._is_moved(position, p)
            }
            if not moved:
                return position
            self._generation += 1
            back = {p: offset for p, offset in moved.items() if offset < position.offsets[p]}
            for partition, offset in sorted(moved.items()):
                at, back_too = position.offsets[partition], partition in back
                self._committed[position.topic_id, partition] = min(offset, at)
                self._seen[position.topic_id, partition] = offset
                self._committed_at = -float("inf")
                metrics.OFFSETS_MOVED.labels(self._source.topic, "back" if back_too else "ahead").inc()
                _LOGGER.log(
                    logging.WARNING if back_too else logging.ERROR,
                    "offsets of the group %s were set from outside: topic %s partition %d from %d to %d; %s",
                    self._source.group, self._source.topic, partition, at, offset,
                    "they are read again from there" if back_too else "not followed, since what lies between is not "
                    "settled: stop the job to skip it",
                )  # fmt: skip
            return ShardPosition(position.topic_id, {**position.offsets, **back}, position.ends)

    def _is_moved(self, position: ShardPosition, partition: int) -> bool:
        return (position.topic_id, partition) in self._moved

    def commit(self, position: ShardPosition, generation: int) -> None:
        """Commit what was read up to ``position`` in a :attr:`generation`; nothing if that is over."""
        crash_points.maybe_crash("before-finalizer")
        with self._lock:
            ahead = self._committed
            due = {p: max(o, ahead.get((position.topic_id, p), 0)) for p, o in position.offsets.items()}
            # A shard without partitions has nothing due; librdkafka takes an empty commit for one of its own offsets.
            if not due or generation != self._generation or self._refusal is not None:
                return
            news = any(ahead.get((position.topic_id, p)) != o for p, o in due.items())
            if not news and not self.due():
                return
            try:
                retry_outage(
                    lambda: self._look_and_commit(position.topic_id, due, news=news or self._stale()),
                    what=f"offset commit for topic {self._source.topic}",
                    seconds=_COMMIT_RETRY_SECONDS,
                    is_outage=is_outage,
                )
            except RefusedError as error:
                if isinstance(error, OutageError):
                    self._failed(error)
                else:
                    self._refusal = error
            except KafkaException as error:
                self._failed(error)

    def resume(self, position: ShardPosition) -> dict[int, int]:
        """The group's offsets of a shard as they are now, taken for this process's own: it goes on from there.

        Raises RefusedError if they are another job's, and KafkaException as it comes.
        """
        entries = committed_entries(
            self._consumer, Topic(self._source.topic, position.topic_id, tuple(position.offsets))
        )
        offsets = select_own(entries, self._source, position.topic_id)
        with self._lock:
            for partition in position.offsets:
                self._committed.pop((position.topic_id, partition), None)
            self._committed |= {(position.topic_id, p): offset for p, offset in offsets.items()}
        return offsets

    def confirm(self, topic_id: str, partition: int) -> None:
        """Raise FencedError unless the offset of a partition is the one that this process has committed, and
        KafkaException as it comes.
        """
        entries = committed_entries(self._consumer, Topic(self._source.topic, topic_id, (partition,)))
        found = select_own(entries, self._source, topic_id).get(partition)
        if found != self._committed.get((topic_id, partition)):
            raise FencedError(
                f"the group {self._source.group}: partition {partition} of topic {self._source.topic} is at {found}, "
                "where this process has not left it: it ends, and the next one goes on from there"
            )

    def commit_now(self, position: ShardPosition, write: Callable[[Sequence[TopicPartition]], object]) -> None:
        """Commit what is due of a ``position`` by ``write``, which is called even if nothing is: a transaction has its
        messages all the same. Raises what ``write`` raises, and as :meth:`follow` does.
        """
        topic_id = position.topic_id
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            stale = self._stale()
            due = {p: o for p, o in position.offsets.items() if stale or self._committed.get((topic_id, p)) != o}
            offsets = retry_outage(
                lambda: self._look(topic_id, due, position.offsets),
                what=f"offsets of the group {self._source.group} in topic {self._source.topic}",
                seconds=self._source.outage_seconds,
                is_outage=is_outage,
            )
        write(offsets)
        with self._lock:
            self._note(topic_id, offsets)

    def leave(self) -> None:
        """Say beside what was committed that this process has ended of itself. Best effort: at worst it is not said."""
        with self._lock:
            self._stopped = True
            for topic_id in {topic_id for topic_id, _ in self._committed}:
                own = {p: offset for (one, p), offset in self._committed.items() if one == topic_id}
                try:
                    self._look_and_commit(topic_id, own, news=True)
                except (RefusedError, KafkaException, UnknownTopicError) as error:
                    _LOGGER.debug("not said that the job has ended: %s", error)
            self._stopped = False

    def _failed(self, error: Exception) -> None:
        metrics.OFFSET_COMMIT_FAILURES.labels(self._source.topic).inc()
        self._committed_at = -float("inf")
        _LOGGER.error("offsets not committed, they will be with a later bundle: %s", error)

    def _look_and_commit(self, topic_id: str, due: Mapping[int, int], *, news: bool) -> None:
        offsets = self._look(topic_id, due, due)
        if offsets and news:
            self._write(topic_id, offsets)
            self._note(topic_id, offsets)

    def _look(self, topic_id: str, due: Mapping[int, int], partitions: Iterable[int]) -> list[TopicPartition]:
        """What of that which is due may be committed, with its mark: nothing of what a person has moved."""
        entries = committed_entries(self._consumer, Topic(self._source.topic, topic_id, tuple(partitions)))
        self._looked_at = self._clock()
        select_own(entries, self._source, topic_id)
        self._moved |= {
            (topic_id, p): entry.offset for p, entry in entries.items() if self._is_others(topic_id, p, entry)
        }
        return [
            TopicPartition(self._source.topic, p, o, self._mark(topic_id, p, entries.get(p)).to_text())
            for p, o in due.items()
            if (topic_id, p) not in self._moved
        ]

    def _commit(self, _topic_id: str, offsets: Sequence[TopicPartition]) -> None:
        self._consumer.commit(offsets=list(offsets), asynchronous=False)

    def _note(self, topic_id: str, committed: Iterable[TopicPartition]) -> None:
        for one in committed:
            self._committed[topic_id, one.partition] = one.offset
            self._seen.pop((topic_id, one.partition), None)
            metrics.COMMITTED_OFFSET.labels(self._source.topic, one.partition).set(one.offset)
            self._committed_at = self._clock()

    def _is_others(self, topic_id: str, partition: int, entry: Committed) -> bool:
        """Whether a person has set this offset since this process committed its own."""
        own = self._committed.get((topic_id, partition))
        if own is None or entry.mark.job != "" or not entry.mark.is_for(topic_id):
            return False
        return entry.offset not in (own, self._seen.get((topic_id, partition)))

    def _mark(self, topic_id: str, partition: int, entry: Committed | None) -> Mark:
        starts = self._starts.get((topic_id, partition))
        if starts is None:
            before = entry.mark.starts if entry and entry.mark.job == self._source.job else ()
            starts = self._starts[topic_id, partition] = (*before, self._started)
        return Mark(topic_id, self._source.job or None, int(time.time()), starts, self._stopped)


def leave_group(source: KafkaSource) -> None:
    """Let others see that no process of this job reads with the group any more; nothing if it has committed nothing."""
    get_group_offsets(source).leave()


def get_group_offsets(source: KafkaSource) -> GroupOffsets:
    """The process's one committer of a source's group."""
    return _group_offsets(source)


@once_per_process
def _group_offsets(source: KafkaSource) -> GroupOffsets:
    return GroupOffsets(source)
