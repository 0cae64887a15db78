"""Kafka for Beam in plain Python: a source that loses nothing and a sink that checks every delivery.

``ReadFromKafka`` is a splittable DoFn over confluent-kafka, for runners where Beam's own ``ReadFromKafka`` (a Java
expansion service and Docker) cannot go. Its elements are *batches*, lists of
:class:`~itel_cabinet.transforms.records.Record` in order per partition, since a DoFn call a record costs more than the
work on it::

    records = (
        pipeline
        | ReadFromKafka(KafkaSource(client=client_config("localhost:9092"), topic="orders", group="billing"))
        | beam.FlatMap(lambda batch: batch)
    )

How it keeps its promise:

* An element is shard k of K and reads the partitions p with p % K == k; the restriction is the next offset of each of
  them.
* The group's offsets move in a bundle finalizer, that is after every step fused with the read has finished its bundle.
  So keep the steps between this source and the sinks free of shuffles.
* No runner may split a shard: the halves would be committed out of order, and a sink that fences by offset would then
  drop the earlier half. Scale comes from ``shards``.
* A batch is only handed on after the broker confirmed that the topic is still the one the reader thinks it reads, so a
  topic deleted and created again is read from its beginning, under its own id.

One consumer a shard and one producer a process are kept between bundles (module-level, keyed by their settings): a
runner makes DoFn instances as it pleases, and a new consumer fetches its first batch for nothing.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import apache_beam as beam
from apache_beam.coders import Coder
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.metrics import Metrics
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import GlobalWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import Message as KafkaMessage

from itel_cabinet.io.batches import Batch
from itel_cabinet.io.kafka.admin import Cluster, Topic, committed_offsets, is_outage
from itel_cabinet.io.kafka.config import ClientConfig, make_record, resolve_config
from itel_cabinet.io.kafka.key_groups import evenly_spread
from itel_cabinet.io.worker import (
    PULSE,
    STOP,
    OutageError,
    beat,
    crash_points,
    describe_error,
    limit_wait,
    metrics,
    once_per_process,
    retry_outage,
)
from itel_cabinet.transforms.records import Record

__all__ = [
    "KafkaSource",
    "Loss",
    "Message",
    "OffsetError",
    "ReadFromKafka",
    "Refused",
    "ShardPosition",
    "ShardTracker",
    "WriteToKafka",
    "has_committed_offsets",
]

_LOGGER = logging.getLogger(__name__)
_NAMESPACE = "kafka"

# A poll with nothing to read waits this long: FnApiRunner ignores resume delays, so the reader itself must not spin.
_IDLE_SECONDS = 0.5
# A poll is cut into slices of this length, to notice a stop.
_SLICE_SECONDS = 0.1
_RELIST_SECONDS = 30.0
# What a consumer reads ahead; librdkafka's own limit of 64 MB would be a sixth of a worker's memory.
_PREFETCH_KB = 16 * 1024
# A partition that was not read for so long is no longer reported: Flink may have given it to another worker.
_UNREAD_SECONDS = 120.0
# Kafka forgets the offsets of a group that commits nothing for offsets.retention.minutes (7 days by default).
_RECOMMIT_SECONDS = 3600.0
_COMMIT_PATIENCE_SECONDS = 15.0
_COMMIT_WAIT_MS = 6_000


class OffsetError(RuntimeError):
    """The group is ahead of the log's end: the log was cut, and going on would hide new records behind the fences."""


# --------------------------------------------------------------------------------------------------------------- source


@dataclass(frozen=True)
class KafkaSource:
    """Where and how to read. Hashable and picklable; secrets only as references."""

    client: ClientConfig
    topic: str
    group: str
    start_offset: str = "earliest"
    """Where to start a partition for which the group has no offset: ``earliest`` or ``latest``."""
    shards: int = 1
    max_batch_records: int = 500
    max_batch_seconds: float = 0.2
    """A batch ends at either limit; the seconds count from its first record."""
    until_caught_up: bool = False
    """Finish once every partition has reached the end it had at the start."""
    outage_seconds: float = 120.0
    """How long the broker may be away before the job fails."""
    topic_epoch: int = 0
    """Names the incarnation of the topic where the broker has no topic ids; raise it after recreating the topic."""
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


class _PositionCoder(Coder):  # type: ignore[misc]
    """Restrictions live in checkpoints and savepoints, so they are JSON that a later build can read, never pickle."""

    def encode(self, value: ShardPosition) -> bytes:
        return value.to_json()

    def decode(self, encoded: bytes) -> ShardPosition:
        return ShardPosition.from_json(encoded)

    def is_deterministic(self) -> bool:
        return True


class ShardTracker(RestrictionTracker):  # type: ignore[misc]
    """Tracks one shard and refuses every split but the reader's own ``defer_remainder``.

    The reader claims where it has got to (a :class:`ShardPosition`), or None to say that it is finished. A runner asks
    for splits from a thread of its own (Prism within a second); the reader's ``defer_remainder`` comes from the thread
    that claims.
    """

    def __init__(self, restriction: ShardPosition) -> None:
        self._restriction = restriction
        self._claimed: ShardPosition | None = None
        self._finished = False
        self._reader: int | None = None

    def current_restriction(self) -> ShardPosition:
        return self._restriction

    def current_progress(self) -> RestrictionProgress:
        return RestrictionProgress(fraction=1.0 if self._finished else 0.0)

    def try_claim(self, position: ShardPosition | None) -> bool:
        self._reader = threading.get_ident()
        if position is None:
            self._finished = True
        else:
            self._claimed = position
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[ShardPosition, ShardPosition] | None:  # noqa: ARG002
        if self._claimed is None or self._finished or threading.get_ident() != self._reader:
            return None
        self._finished = True
        return self._restriction, self._claimed

    def check_done(self) -> None:
        if not self._finished:
            raise ValueError("the shard's reader stopped without finishing or deferring its restriction")

    def is_bounded(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Loss:
    """Offsets ``[start, end)`` of a partition that retention deleted before the group read them."""

    partition: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Batch:
    records: list[Record]
    position: ShardPosition
    losses: list[Loss]


class _ShardReader:
    """The consumer of one shard, kept for the life of the process. A lock lets one bundle at a time read from it."""

    def __init__(self, source: KafkaSource, shard: int, shards: int) -> None:
        self._source = source
        self._shard = shard
        self._shards = shards
        self._lock = threading.Lock()
        self._trouble = threading.Event()
        self._cluster = Cluster(resolve_config(source.client))
        self._consumer = Consumer(
            {"queued.max.messages.kbytes": _PREFETCH_KB}
            | resolve_config(source.client)
            | {
                "group.id": source.group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 100,
                "error_cb": lambda _error: self._trouble.set(),
            }
        )
        self._position: ShardPosition | None = None
        self._listed_at = -float("inf")
        self._read_at = -float("inf")
        self._losses: list[Loss] = []

    def initial(self) -> ShardPosition:
        """Where this shard begins: at the group's offsets, else where ``start_offset`` says."""
        with self._lock:
            position: ShardPosition = self._patiently(self._initial)
            return position

    def read(self, start: ShardPosition) -> _Batch:
        """The next batch after ``start``. Waits for its first record (``_IDLE_SECONDS`` at most), then fills it."""
        beat()
        with self._lock:
            if self._position != start:
                self._assign(start)
            position = self._relisted(start)
            if position is start:
                messages = self._poll(start)
                position, records = self._confirmed(start, messages)
            else:
                records = []
            self._position = position
            self._read_at = time.monotonic()
            losses, self._losses = self._losses, []
            self._measure(records, losses)
            return _Batch(records, position, losses)

    def _measure(self, records: Sequence[Record], losses: Sequence[Loss]) -> None:
        topic = self._source.topic
        for partition, count in Counter(record.partition for record in records).items():
            metrics.RECORDS_CONSUMED.labels(topic, partition).inc(count)
        for loss in losses:
            metrics.RECORDS_LOST.labels(topic, loss.partition).inc(loss.end - loss.start)

    def _lag(self, partition: int) -> int | None:
        """Also while the last batch is being worked on; None for a partition that another worker may have by now."""
        position = self._position
        unread = time.monotonic() - self._read_at > _UNREAD_SECONDS and not PULSE.waits
        if position is None or partition not in position.offsets or unread:
            return None
        # As of the last fetch: asks nothing of the broker, and is negative where nothing was fetched yet.
        _, end = self._consumer.get_watermark_offsets(TopicPartition(self._source.topic, partition), cached=True)
        return max(0, end - position.offsets[partition]) if end >= 0 else None

    def _patiently(self, call: Callable[[], Any]) -> Any:
        servers = dict(self._source.client)["bootstrap.servers"]
        answer = retry_outage(
            call,
            what=f"Kafka at {servers}, topic {self._source.topic}",
            seconds=self._source.outage_seconds,
            is_outage=lambda error: is_outage(error) or isinstance(error, LookupError),
            describe=_described,
        )
        self._trouble.clear()
        return answer

    def _describe(self) -> Topic:
        topic = self._cluster.topic(self._source.topic, epoch=self._source.topic_epoch)
        self._listed_at = time.monotonic()
        return topic

    def _mine(self, topic: Topic) -> list[int]:
        return [p for p in topic.partitions if p % self._shards == self._shard]

    def _initial(self, topic: Topic | None = None) -> ShardPosition:
        topic = topic or self._describe()
        committed = committed_offsets(self._consumer, topic)
        bounds = self._cluster.bounds(topic.name, self._mine(topic))
        # A group that knows the topic meets a partition it has no offset of: the partition is new, and read whole.
        latest = self._source.start_offset == "latest" and not committed
        offsets = {p: committed.get(p, high if latest else low) for p, (low, high) in bounds.items()}
        for p, (low, high) in bounds.items():
            offsets[p] = self._within(p, offsets[p], low, high)
        ends = {p: high for p, (_, high) in bounds.items()} if self._source.until_caught_up else None
        return ShardPosition(topic.topic_id, offsets, ends)

    def _within(self, partition: int, offset: int, low: int, high: int) -> int:
        if offset > high:
            raise OffsetError(
                f"topic {self._source.topic} partition {partition} ends at {high}, but the group {self._source.group} "
                f"stands at {offset}: the log was cut; set the group's offset and the tables' fences back before "
                "reading on"
            )
        if offset < low:
            _LOGGER.error(
                "lost to retention: topic %s partition %d offsets [%d, %d); reading goes on at %d",
                self._source.topic, partition, offset, low, low,
            )  # fmt: skip
            self._losses.append(Loss(partition, offset, low))
        return max(offset, low)

    def _assign(self, position: ShardPosition) -> None:
        topic = self._source.topic
        self._consumer.assign([TopicPartition(topic, p, o) for p, o in position.offsets.items()])
        self._position = position
        for partition in position.offsets:
            metrics.RECORDS_CONSUMED.labels(topic, partition).inc(0)  # there from the first scrape on
            metrics.RECORDS_LOST.labels(topic, partition).inc(0)
            metrics.READER_LAG.follow(functools.partial(self._lag, partition), topic, partition)

    def _relisted(self, position: ShardPosition) -> ShardPosition:
        """``position`` itself, or another one where partitions were added or the topic is another incarnation."""
        if not self._trouble.is_set() and time.monotonic() - self._listed_at < self._source.relist_seconds:
            return position
        topic = self._patiently(self._describe)
        if topic.topic_id != position.topic_id:
            return self._recreated(topic)
        new = [p for p in self._mine(topic) if p not in position.offsets] if position.ends is None else []
        if not new:
            return position
        bounds = self._patiently(lambda: self._cluster.bounds(topic.name, new))
        _LOGGER.info("topic %s has new partitions %s: read from their beginning", topic.name, new)
        grown = replace(position, offsets={**position.offsets, **{p: bounds[p][0] for p in new}})
        self._assign(grown)
        return grown

    def _recreated(self, topic: Topic) -> ShardPosition:
        _LOGGER.warning("topic %s was deleted and created again: read from its beginning", topic.name)
        position: ShardPosition = self._patiently(lambda: self._initial(topic))
        self._assign(position)
        return position

    def _poll(self, start: ShardPosition) -> list[KafkaMessage]:
        source = self._source
        idle_until = time.monotonic() + _IDLE_SECONDS
        messages: list[KafkaMessage] = []
        while not messages and not STOP.is_set() and time.monotonic() < idle_until and not self._trouble.is_set():
            messages = self._consumer.consume(1, timeout=_SLICE_SECONDS)
            if not messages and start.ends is not None and replace(start, offsets=self._offsets(start)).caught_up:
                break
        full_at = time.monotonic() + source.max_batch_seconds
        while messages and len(messages) < source.max_batch_records and not STOP.is_set():
            left = full_at - time.monotonic()
            if left <= 0:
                break
            messages += self._consumer.consume(
                source.max_batch_records - len(messages), timeout=min(left, _SLICE_SECONDS)
            )
        return messages

    def _offsets(self, start: ShardPosition) -> dict[int, int]:
        """The consumer's own positions: unlike the last record + 1, they step over transaction markers."""
        partitions = [TopicPartition(self._source.topic, p) for p in start.offsets]
        positions = {e.partition: e.offset for e in self._consumer.position(partitions)}
        return {p: positions[p] if positions[p] >= 0 else offset for p, offset in start.offsets.items()}

    def _confirmed(self, start: ShardPosition, messages: Sequence[KafkaMessage]) -> tuple[ShardPosition, list[Record]]:
        """What may be handed on of ``messages``, once the broker says that the topic is still this one."""
        errors = [m for m in messages if m.error() is not None]
        good = [m for m in messages if m.error() is None]
        if not messages:
            return replace(start, offsets=self._offsets(start)), []
        topic = self._patiently(self._describe)
        if topic.topic_id != start.topic_id:
            return self._recreated(topic), []
        position = replace(start, offsets=self._offsets(start))
        for message in errors:
            error = message.error()
            if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                position = self._back_in_range(position, message.partition())
            elif error.fatal():
                raise OutageError(f"Kafka, topic {self._source.topic}: {error.str()}")
            else:
                self._trouble.set()
        return position, [make_record(m, start.topic_id) for m in good]

    def _back_in_range(self, position: ShardPosition, partition: int) -> ShardPosition:
        bounds = self._patiently(lambda: self._cluster.bounds(self._source.topic, [partition]))
        offset = self._within(partition, position.offsets[partition], *bounds[partition])
        position = replace(position, offsets={**position.offsets, partition: offset})
        self._assign(position)
        return position


def _described(error: Exception) -> str:
    return str(error.args[0].str()) if isinstance(error, KafkaException) else describe_error(error)


class _GroupOffsets:
    """Commits one group's offsets in one topic, never backwards; one a process and group. Thread-safe.

    Runners call finalizers concurrently and out of order (Flink: all bundles finished since the last checkpoint), and
    Beam swallows what a finalizer raises, so failures are retried for a while, logged and counted here. A commit that
    fails for good costs nothing but a replay after a restart, which the fences drop.
    """

    def __init__(self, client: ClientConfig, group: str, topic: str) -> None:
        self._lock = threading.Lock()
        self._topic = topic
        self._consumer = Consumer(
            resolve_config(client)
            # How long librdkafka lets a commit wait for the group's coordinator; the group has no members.
            | {"group.id": group, "enable.auto.commit": False, "session.timeout.ms": _COMMIT_WAIT_MS}
        )
        self._committed: dict[tuple[str, int], int] = {}
        self._committed_at = -float("inf")

    def stale(self) -> bool:
        """Whether to commit without news: at the start, so that ``latest`` holds; after a failure; and now and then,
        lest Kafka forget.
        """
        return time.monotonic() - self._committed_at > _RECOMMIT_SECONDS

    def commit(self, position: ShardPosition) -> None:
        crash_points.maybe_crash("before-finalizer")
        with self._lock:
            ahead = self._committed
            due = {p: max(o, ahead.get((position.topic_id, p), 0)) for p, o in position.offsets.items()}
            if not due:
                # A shard without partitions; librdkafka takes an empty commit for one of its own stored offsets.
                return
            if not self.stale() and all(ahead.get((position.topic_id, p)) == o for p, o in due.items()):
                return
            offsets = [TopicPartition(self._topic, p, o, position.topic_id) for p, o in due.items()]
            try:
                retry_outage(
                    lambda: self._consumer.commit(offsets=offsets, asynchronous=False),
                    what=f"offset commit for topic {self._topic}",
                    seconds=_COMMIT_PATIENCE_SECONDS,
                    is_outage=is_outage,
                )
            except (OutageError, KafkaException) as error:
                metrics.OFFSET_COMMIT_FAILURES.labels(self._topic).inc()
                self._committed_at = -float("inf")
                _LOGGER.error("offsets not committed, they will be with a later bundle: %s", error)
                return
            self._committed |= {(position.topic_id, p): o for p, o in due.items()}
            for partition, offset in due.items():
                metrics.COMMITTED_OFFSET.labels(self._topic, partition).set(offset)
            self._committed_at = time.monotonic()


class _ReadShard(beam.DoFn, RestrictionProvider):  # type: ignore[misc]
    """Reads one batch a call, then defers the rest of its shard: so every bundle ends soon and its offsets can move."""

    def __init__(self, source: KafkaSource, on_worker: Callable[[], object]) -> None:
        self._source = source
        self._on_worker = on_worker
        self._read = Metrics.counter(_NAMESPACE, "records_read")
        self._lost = Metrics.counter(_NAMESPACE, "records_lost_to_retention")

    def setup(self) -> None:
        self._on_worker()

    def initial_restriction(self, element: str) -> ShardPosition:
        return _reader(self._source, element).initial()

    def create_tracker(self, restriction: ShardPosition) -> ShardTracker:
        return ShardTracker(restriction)

    def restriction_size(self, element: str, restriction: ShardPosition) -> int:  # noqa: ARG002
        return 1

    def restriction_coder(self) -> Coder:
        return _PositionCoder()

    @beam.DoFn.unbounded_per_element()  # type: ignore[untyped-decorator]
    def process(
        self,
        element: str,
        finalizer: Any = beam.DoFn.BundleFinalizerParam,
        tracker: Any = beam.DoFn.RestrictionParam(),  # noqa: B008
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),  # noqa: B008
    ) -> Iterator[Any]:
        start = tracker.current_restriction()
        if start.caught_up or STOP.is_set():
            tracker.try_claim(None)
            return
        offsets = _group_offsets(self._source.client, self._source.group, self._source.topic)
        batch = _reader(self._source, element).read(start)
        tracker.try_claim(batch.position)
        self._lost.inc(sum(loss.end - loss.start for loss in batch.losses))
        if batch.position.offsets != start.offsets or offsets.stale():
            finalizer.register(functools.partial(offsets.commit, batch.position))
        if batch.records:
            self._read.inc(len(batch.records))
            timestamp = _event_time(batch.records[0])
            yield TimestampedValue(batch.records, timestamp)
            # A lower watermark than before kills the job.
            if watermark.current_watermark() is None or timestamp > watermark.current_watermark():
                watermark.set_watermark(timestamp)
        if batch.position.caught_up or STOP.is_set():
            tracker.try_claim(None)
        else:
            tracker.defer_remainder()


def _event_time(record: Record) -> Timestamp:
    """Kafka's timestamp, kept between the epoch and now: a producer may write anything, the end of time included."""
    return Timestamp(micros=int(min(max(record.timestamp_ms, 0), time.time() * 1000) * 1000))


def _nothing() -> None:
    """What there is to do in a worker by default."""


@dataclass
class ReadFromKafka(beam.PTransform):  # type: ignore[misc]
    """PBegin -> batches (lists) of Records, each partition in its order; a batch bears its first record's time.

    ``on_worker`` is called in each process that may read, before it does, and any number of times.
    """

    source: KafkaSource
    on_worker: Callable[[], object] = _nothing

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        return (
            pbegin
            | "Shards" >> beam.Create(self.source.elements(), reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(_ReadShard(self.source, self.on_worker)).with_output_types(Batch)
        )


# ----------------------------------------------------------------------------------------------------------------- sink


@dataclass(frozen=True, slots=True)
class Message:
    """A record to be produced. ``origin`` is carried along untouched, so that a refused message can be traced back.

    ``since_ms``, in epoch milliseconds, is when its story began: how old it is once delivered is measured.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    origin: Any = None
    since_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that the broker will never take (too large), with its reason in one line."""

    message: Message
    reason: str


@dataclass(frozen=True)
class KafkaSinkSettings:
    """What a producer needs. Writers with equal settings share one producer in a process."""

    client: ClientConfig
    outage_seconds: float = 120.0


@dataclass
class WriteToKafka(beam.PTransform):  # type: ignore[misc]
    """Messages -> the :class:`Refused` among them. At least once: every delivery is confirmed before the bundle ends.

    The broker being away is waited for as long as ``outage_seconds`` and then raised as OutageError. Order within a
    partition is kept (idempotent producer).
    """

    settings: KafkaSinkSettings

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, messages: beam.PCollection) -> beam.PCollection:
        return messages | "Produce" >> beam.ParDo(_Produce(self.settings)).with_output_types(Refused)


@dataclass
class _Deliveries:
    """The delivery reports of one bundle. Reports arrive on any thread that polls the shared producer."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    pending: Counter[str] = field(default_factory=Counter)
    refused: list[Refused] = field(default_factory=list)
    failed: KafkaError | None = None
    lost: Counter[str] = field(default_factory=Counter)

    def expect(self, message: Message) -> Callable[[KafkaError | None, Any], None]:
        with self.lock:
            self.pending[message.topic] += 1
        return functools.partial(self._report, message)

    def _report(self, message: Message, error: KafkaError | None, _delivered: Any) -> None:
        with self.lock:
            self.pending[message.topic] -= 1
            if error is None:
                return
            if is_outage(KafkaException(error)):
                self.failed = error
                self.lost[message.topic] += 1
            else:
                self.refused.append(Refused(message, error.str()))

    def undelivered(self) -> Counter[str]:
        """Messages by topic that the broker did not take, or did not say so of in time."""
        with self.lock:
            return self.lost + self.pending


class _Produce(beam.DoFn):  # type: ignore[misc]
    def __init__(self, settings: KafkaSinkSettings) -> None:
        self._settings = settings
        self._written = Metrics.counter(_NAMESPACE, "records_written")

    def start_bundle(self) -> None:
        self._deliveries = _Deliveries()
        self._sent: Counter[str] = Counter()
        self._since: dict[str, int] = {}

    def process(self, message: Message) -> None:
        self._send(message, self._deliveries)
        self._sent[message.topic] += 1
        if message.since_ms is not None:
            self._since[message.topic] = min(message.since_ms, self._since.get(message.topic, message.since_ms))

    def finish_bundle(self) -> Iterable[Any]:
        if not self._sent:
            return
        refused = self._settled(self._deliveries)
        if len(refused) > 1 or self._sent.total() > 1:
            # The broker refuses a whole batch over its limit; alone, each message shows whether it is at fault.
            refused = [again for one in refused for again in self._alone(one.message)]
        crash_points.maybe_crash("after-flush")
        self._written.inc(self._sent.total() - len(refused))
        self._measure(refused)
        for one in refused:
            yield GlobalWindows.windowed_value(one)

    def _measure(self, refused: Sequence[Refused]) -> None:
        turned_down = Counter(one.message.topic for one in refused)
        for topic, count in self._sent.items():
            metrics.MESSAGES_PUBLISHED.labels(topic).inc(count - turned_down[topic])
        for topic, count in turned_down.items():
            metrics.PUBLISH_FAILURES.labels(topic).inc(count)
        for topic, since_ms in self._since.items():
            metrics.observe_freshness(topic, since_ms / 1000)

    def _alone(self, message: Message) -> list[Refused]:
        deliveries = _Deliveries()
        self._send(message, deliveries)
        return self._settled(deliveries)

    def _send(self, message: Message, deliveries: _Deliveries) -> None:
        producer = _producer(self._settings)
        on_delivery = deliveries.expect(message)
        began = time.monotonic()
        while True:
            try:
                producer.produce(
                    message.topic, message.value, message.key, headers=list(message.headers), on_delivery=on_delivery
                )
                return
            except BufferError:
                if time.monotonic() - began > limit_wait(self._settings.outage_seconds):
                    raise OutageError(self._away(began, "its queue stays full")) from None
                producer.poll(_SLICE_SECONDS)
            except KafkaException as error:
                on_delivery(error.args[0], None)
                return

    def _settled(self, deliveries: _Deliveries) -> list[Refused]:
        """Wait for every delivery report; what the broker refused. Raises OutageError for what it did not take in
        time.
        """
        producer = _producer(self._settings)
        began = time.monotonic()
        # librdkafka gives a message up after outage_seconds; the margin is for its last report.
        while deliveries.pending.total() and time.monotonic() - began < limit_wait(self._settings.outage_seconds + 10):
            producer.flush(_SLICE_SECONDS)
        if deliveries.failed is not None or deliveries.pending.total():
            _producer.cache_clear()  # type: ignore[attr-defined]
            for topic, count in deliveries.undelivered().items():
                metrics.PUBLISH_FAILURES.labels(topic).inc(count)
            reason = deliveries.failed.str() if deliveries.failed else "no delivery report"
            raise OutageError(self._away(began, reason))
        return deliveries.refused

    def _away(self, began: float, reason: str) -> str:
        servers = dict(self._settings.client)["bootstrap.servers"]
        return f"Kafka at {servers} took no messages for {time.monotonic() - began:.0f} s: {reason}"


# ------------------------------------------------------------------------------------------- what lives once in a
# process


@once_per_process
def _producer(settings: KafkaSinkSettings) -> Producer:
    return Producer(
        resolve_config(settings.client)
        | {
            "enable.idempotence": True,
            "linger.ms": 5,
            "compression.type": "lz4",
            "delivery.timeout.ms": int(settings.outage_seconds * 1000),
            # Only the broker knows its own limit; librdkafka's guess would refuse what the broker takes.
            "message.max.bytes": 100_000_000,
        }
    )


@once_per_process
def _group_offsets(client: ClientConfig, group: str, topic: str) -> _GroupOffsets:
    return _GroupOffsets(client, group, topic)


@once_per_process
def _shard_reader(source: KafkaSource, shard: int, shards: int) -> _ShardReader:
    return _ShardReader(source, shard, shards)


def _reader(source: KafkaSource, element: str) -> _ShardReader:
    document = json.loads(element)
    if document.get("v") != 1:
        raise ValueError(f"a shard of version {document.get('v')!r}: this build reads version 1")
    reader: _ShardReader = _shard_reader(source, document["shard"], document["shards"])
    return reader


def has_committed_offsets(source: KafkaSource) -> bool:
    """Whether the source's group has an offset in the present incarnation of the topic. Raises as kafka_admin does."""
    topic = Cluster(resolve_config(source.client)).topic(source.topic, epoch=source.topic_epoch)
    consumer = Consumer(resolve_config(source.client) | {"group.id": source.group})
    try:
        return bool(committed_offsets(consumer, topic))
    finally:
        consumer.close()
