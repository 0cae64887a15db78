"""The reader of a shard, which reads a batch ahead: what lives in a process between bundles."""

from __future__ import annotations

import functools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from itel_cabinet.io.batch_limits import FETCHED, BatchLimit
from itel_cabinet.io.kafka.offsets import get_group_offsets
from itel_cabinet.io.kafka.shard_consumer import Fetched, ShardConsumer
from itel_cabinet.io.kafka.spec import KafkaSource, ShardPosition
from itel_cabinet.io.worker import PULSE, beat, metrics, once_per_process
from itel_cabinet.transforms.records import Record

__all__ = ["ReadBatch", "ShardReader", "get_shard_reader"]

# A partition that was not read for so long is no longer reported: Flink may have given it to another worker.
_UNREAD_SECONDS = 120.0
_BUSY, _HAS_ROOM = 0.95, 0.8  # of one processor, used by this process while a batch was worked on
_FRESH_SECONDS = 20.0  # what was made longer ago, as before an outage, is made again: much may have changed since

Make = Callable[[list[Record]], Any]


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """What was read, and the element that was made of it, beginning at ``made_at``, in ``seconds``; None without
    records."""

    fetched: Fetched
    element: Any = None
    made_at: float = -float("inf")
    seconds: float = 0.0


class ShardReader:
    """Reads a shard batch by batch, for the life of the process. A lock lets one bundle at a time read from it.

    While a batch is worked on, a thread reads the next one and makes its element. It is handed on to the bundle that
    begins where this batch ends; for any other (of a batch that failed, or where a person has set the group's offsets
    back) it is forgotten, and read again; and made again if it has waited for long. Where the work waits for this
    process's own processor nothing is made ahead, which would only take the interpreter from it.
    """

    def __init__(self, source: KafkaSource, shard: int, shards: int) -> None:
        self._source = source
        self._consumer = ShardConsumer(source, shard, shards)
        self._limit = BatchLimit(source.max_batch_records, source.max_batch_bytes, source.max_bundle_seconds)
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ahead: tuple[ShardPosition, Future[ReadBatch]] | None = None
        self._makes_ahead = True
        self._work = _Work()
        self._fetched_bytes = self._fetched_records = 0.0
        self._at: ShardPosition | None = None
        self._shown: set[int] = set()

    def initial(self) -> ShardPosition:
        """Where the shard begins. Raises as :class:`ShardConsumer` does."""
        with self._lock:
            return self._consumer.initial()

    def read(self, start: ShardPosition, make: Make = list) -> ReadBatch:
        """The batch after ``start``; without records if none has come for a while.

        ``make`` makes of records the element that is handed on; it is called in any thread, and again if a batch is
        read again. Raises what it raises, and as :class:`ShardConsumer` does.
        """
        beat()
        with self._lock:
            self._work.end()
            batch = self._next(start, make)
            fetched = batch.fetched
            self._show(fetched)
            self._learn(batch)
            self._work.begin(len(fetched.records))
            # A transaction is of one batch: where the next one begins is known when it has ended.
            if fetched.records and not fetched.position.caught_up and not self._source.transactions:
                self._makes_ahead = self._work.share < (_BUSY if self._makes_ahead else _HAS_ROOM)
                ahead = self._thread.submit(self._fetch, fetched.position, make if self._makes_ahead else None)
                self._ahead = fetched.position, ahead
            return batch

    def _next(self, start: ShardPosition, make: Make) -> ReadBatch:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            wait([ahead[1]])  # from here on nobody else uses the consumer
        position = get_group_offsets(self._source).follow(start)
        if position is not start:
            self._consumer.assign(position)
            return ReadBatch(Fetched([], position, []))
        batch = ahead[1].result() if ahead is not None and ahead[0] == start else self._fetch(start)
        return batch if time.monotonic() - batch.made_at < _FRESH_SECONDS else _made(batch.fetched, make)

    def _fetch(self, start: ShardPosition, make: Make | None = None) -> ReadBatch:
        fetched = self._consumer.next(start, self._limit.records)
        return ReadBatch(fetched) if make is None else _made(fetched, make)

    def _learn(self, batch: ReadBatch) -> None:
        """What this batch, and the work on the last one, say of the records that the next one may have."""
        records, work = batch.fetched.records, self._work
        if records and work.records:
            values = sum(len(record.value or b"") for record in records)
            # For this batch ahead, or in the work on the last one: so for the smaller of them, and over some batches.
            self._fetched_bytes = self._fetched_bytes / 2 + FETCHED.take()
            self._fetched_records = self._fetched_records / 2 + min(len(records), work.records)
            size = values + int(len(records) * self._fetched_bytes / self._fetched_records)
            self._limit.learn(len(records), size, max(batch.seconds, len(records) * work.record_seconds))

    def _show(self, fetched: Fetched) -> None:
        topic, self._at = self._source.topic, fetched.position
        for partition in fetched.position.offsets.keys() - self._shown:
            self._shown.add(partition)
            metrics.RECORDS_CONSUMED.labels(topic, partition).inc(0)  # there from the first scrape on
            metrics.RECORDS_LOST.labels(topic, partition).inc(0)
            metrics.READER_LAG.follow(functools.partial(self.lag, partition), topic, partition)
        for partition, count in Counter(record.partition for record in fetched.records).items():
            metrics.RECORDS_CONSUMED.labels(topic, partition).inc(count)

    def lag(self, partition: int) -> int | None:
        """How many records of a partition were not handed on yet, also while the last batch is being worked on; None
        for a partition that another worker may have by now. Thread-safe.
        """
        position = self._at
        unread = self._work.age() > _UNREAD_SECONDS and not PULSE.waits
        if position is None or partition not in position.offsets or unread:
            return None
        end = self._consumer.end(partition)
        return max(0, end - position.offsets[partition]) if end >= 0 else None


def _made(fetched: Fetched, make: Make) -> ReadBatch:
    began = time.monotonic()
    return ReadBatch(fetched, make(fetched.records) if fetched.records else None, began, time.monotonic() - began)


class _Work:
    """What the steps' work on a batch takes: time for a record, and a share of one processor. Not thread-safe."""

    def __init__(self) -> None:
        self.records = 0  # of the last batch that had any
        self.record_seconds = self.share = 0.0
        self._is_under_way = False
        self._began = -float("inf"), 0.0

    def begin(self, records: int) -> None:
        """A batch is handed on, which may have none."""
        self._is_under_way = records > 0
        self.records = records or self.records
        self._began = time.monotonic(), time.process_time()

    def end(self) -> None:
        """The next one is asked for."""
        if self._is_under_way:
            self._is_under_way = False
            seconds, used = time.monotonic() - self._began[0], time.process_time() - self._began[1]
            self.record_seconds = seconds / self.records
            self.share = used / seconds if seconds else 0.0

    def age(self) -> float:
        """Seconds since a batch was handed on."""
        return time.monotonic() - self._began[0]


def get_shard_reader(source: KafkaSource, element: str) -> ShardReader:
    """The process's reader of the shard that an element of the source names."""
    document = json.loads(element)
    if document.get("v") != 1:
        raise ValueError(f"a shard of version {document.get('v')!r}: this build reads version 1")
    reader: ShardReader = _shard_reader(source, document["shard"], document["shards"])
    return reader


@once_per_process
def _shard_reader(source: KafkaSource, shard: int, shards: int) -> ShardReader:
    return ShardReader(source, shard, shards)
