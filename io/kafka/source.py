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
* With ``transactions`` they move in one transaction with what :class:`~itel_cabinet.io.kafka.WriteToKafka` writes while
  the batch is worked on, as soon as that is done: see :mod:`itel_cabinet.io.kafka.transactions`.
* No runner may split a shard: the halves would be committed out of order, and a sink that fences by offset would then
  drop the earlier half. Scale comes from ``shards``.
* While the steps work on a batch the next one is read (``ahead`` has begun on it by then), but for transactions.
* A batch is only handed on after the broker confirmed that the topic is still the one the reader thinks it reads, so a
  topic deleted and created again is read from its beginning, under its own id.

One consumer a shard and one producer a process are kept between bundles (module-level, keyed by their settings): a
runner makes DoFn instances as it pleases, and a new consumer fetches its first batch for nothing.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.coders import Coder
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.metrics import Metrics
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from itel_cabinet.io.batches import Batch
from itel_cabinet.io.kafka.offsets import get_group_offsets
from itel_cabinet.io.kafka.reader import get_shard_reader
from itel_cabinet.io.kafka.spec import KafkaSource, ShardPosition
from itel_cabinet.io.kafka.transactions import get_transactions
from itel_cabinet.io.worker import STOP
from itel_cabinet.transforms.records import Record

__all__ = ["ReadFromKafka", "ShardTracker"]

_NAMESPACE = "kafka"


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


class _ReadShard(beam.DoFn, RestrictionProvider):  # type: ignore[misc]
    """Reads one batch a call, then defers the rest of its shard: so every bundle ends soon and its offsets can move."""

    def __init__(
        self, source: KafkaSource, on_worker: Callable[[], object], ahead: Callable[[list[Record]], Any]
    ) -> None:
        self._source = source
        self._on_worker = on_worker
        self._ahead = ahead
        self._read = Metrics.counter(_NAMESPACE, "records_read")
        self._lost = Metrics.counter(_NAMESPACE, "records_lost_to_retention")

    def setup(self) -> None:
        self._on_worker()

    def initial_restriction(self, element: str) -> ShardPosition:
        return get_shard_reader(self._source, element).initial()

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
        offsets = get_group_offsets(self._source)
        batch = get_shard_reader(self._source, element).read(start, self._ahead)
        records, position = batch.fetched.records, batch.fetched.position
        tracker.try_claim(position)
        self._lost.inc(sum(loss.end - loss.start for loss in batch.fetched.losses))
        settling: AbstractContextManager[None] = nullcontext()
        if position.offsets != start.offsets or offsets.due():
            if self._source.transactions:
                settling = get_transactions(self._source).begin(position)
            else:
                finalizer.register(functools.partial(offsets.commit, position, offsets.generation))
        with settling:
            if records:
                self._read.inc(len(records))
                timestamp = _event_time(records[0])
                # All steps fused with the read have dealt with the batch when this goes on.
                yield TimestampedValue(batch.element, timestamp)
                # A lower watermark than before kills the job.
                if watermark.current_watermark() is None or timestamp > watermark.current_watermark():
                    watermark.set_watermark(timestamp)
        if position.caught_up or STOP.is_set():
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

    ``on_worker`` is called in each process that may read, before it does, and any number of times. ``ahead`` makes of a
    batch the element that is handed on in its place: mostly in a thread, while the steps work on the batch before, so
    that it must not rest on what they do. It may be called again for a batch. What it raises fails the batch's own
    bundle.
    """

    source: KafkaSource
    on_worker: Callable[[], object] = _nothing
    ahead: Callable[[list[Record]], Any] = list

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        return (
            pbegin
            | "Shards" >> beam.Create(self.source.elements(), reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(_ReadShard(self.source, self.on_worker, self.ahead)).with_output_types(Batch)
        )
