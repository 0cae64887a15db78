"""A batch's messages and the offsets of its records in one transaction, so that readers of committed records see what
comes of each record once.

Each partition that is read has a transactional id of its own, since shards may be dealt out otherwise tomorrow: the
process that opened it last owns the partition, and every other one is fenced, however many shards it was started with.
A process reads a partition only after it has opened its id, from the offset that the group has then, or a later one
that its runner kept; and no offset of the group moves but in a transaction of the owner. So what one process has
committed no other can commit once more.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import TopicPartition

from itel_cabinet.io.kafka.offsets import GroupOffsets, get_group_offsets
from itel_cabinet.io.kafka.partition_producer import PartitionProducer
from itel_cabinet.io.kafka.producer import FencedError, Message, RefusedMessage
from itel_cabinet.io.kafka.spec import KafkaSource, ShardPosition
from itel_cabinet.io.worker import crash_points, get_pool, once_per_process

__all__ = ["Transaction", "Transactions", "check_transactions", "current_transaction", "get_transactions"]

_AT_A_TIME = 16  # partitions whose transactions a process commits side by side
_CHECK_SECONDS = 10.0

T = TypeVar("T")

_threads = threading.local()


class Transaction:
    """What comes of one batch: a transaction a partition, since each has its owner. For the batch's own thread."""

    def __init__(self, producers: Mapping[int, PartitionProducer]) -> None:
        self._producers = producers
        self._written: set[int] = set()
        self._afterwards: list[Callable[[], object]] = []

    def write(self, messages: Sequence[Message]) -> list[RefusedMessage]:
        """Write with the offset of the record that each message comes of; what the broker never takes is left out and
        returned. Raises as :class:`PartitionProducer` does.
        """
        shares: dict[int, list[Message]] = defaultdict(list)
        for message in messages:
            if message.source_partition is None or message.source_partition not in self._producers:
                raise ValueError(f"a message for {message.topic} comes of no partition of the batch under way")
            shares[message.source_partition].append(message)
        self._written |= shares.keys()
        refused = _side_by_side([partial(self._producers[p].write, share) for p, share in shares.items()])
        return [one for some in refused for one in some]

    def then(self, call: Callable[[], object]) -> None:
        """Have something called once the transaction is committed."""
        self._afterwards.append(call)

    def commit(self, offsets: Sequence[TopicPartition], group: Any) -> None:
        """Commit what was written, and these offsets; a partition that is not among them keeps the one it has."""
        ours = {offset.partition: offset for offset in offsets}
        _side_by_side([partial(self._producers[p].commit, ours.get(p), group) for p in self._written | ours.keys()])
        crash_points.maybe_crash("after-transaction")
        for call in self._afterwards:
            call()

    def is_of(self, producers: Mapping[int, PartitionProducer | None]) -> bool:
        """Whether all of these are the ones that it writes with."""
        return all(self._producers.get(p) is producer for p, producer in producers.items())

    def abort(self) -> None:
        """Undo what was written, as far as the broker can be reached."""
        _side_by_side([self._producers[p].abort for p in self._written])


class Transactions:
    """The partitions of a source that this process owns; one a process and source. Thread-safe."""

    def __init__(self, source: KafkaSource, offsets: GroupOffsets) -> None:
        self._source = source
        self._offsets = offsets
        self._lock = threading.Lock()
        self._producers: dict[tuple[str, int], PartitionProducer] = {}
        offsets.commit_with(self._write_offsets)

    def owns(self, position: ShardPosition) -> bool:
        """Whether this process has taken over all partitions of a shard, and not failed with one since."""
        with self._lock:
            return all((position.topic_id, p) in self._producers for p in position.offsets)

    def take_over(self, position: ShardPosition) -> dict[int, int]:
        """Become the owner of a shard's partitions; the group's offsets, after which nothing else can move them."""
        opened = {p: self._make_producer(position.topic_id, p) for p in position.offsets}
        _side_by_side([producer.open for producer in opened.values()])
        with self._lock:
            self._producers |= {(position.topic_id, p): producer for p, producer in opened.items()}
        return self._offsets.resume(position)

    @contextmanager
    def begin(self, position: ShardPosition) -> Iterator[None]:
        """What is written in it, on this thread, is committed at its end with the offsets of ``position``; or undone,
        if anything is raised. Raises FencedError if the shard is another's by now.
        """
        transaction = Transaction(self._owned(position))
        _threads.transaction = transaction
        try:
            yield
            self._owned(position, transaction)
            self._offsets.commit_now(position, lambda offsets: transaction.commit(offsets, self._offsets.group))
        except BaseException:
            # Taken over once more before it is read on: what became of the offsets has to be looked up.
            self._disown(position, transaction)
            transaction.abort()
            raise
        finally:
            if current_transaction() is transaction:
                _threads.transaction = None

    def _make_producer(self, topic_id: str, partition: int) -> PartitionProducer:
        source = self._source
        return PartitionProducer(
            source.client,
            f"{_prefix(source)}{topic_id}/{partition}",
            source.outage_seconds,
            partial(self._offsets.confirm, topic_id, partition),
        )

    def _owned(self, position: ShardPosition, by: Transaction | None = None) -> dict[int, PartitionProducer]:
        with self._lock:
            found = {p: self._producers.get((position.topic_id, p)) for p in position.offsets}
        producers = {p: producer for p, producer in found.items() if producer is not None}
        if len(producers) < len(found) or (by is not None and not by.is_of(producers)):
            raise FencedError("another attempt in this process has begun to read these partitions")
        return producers

    def _disown(self, position: ShardPosition, transaction: Transaction) -> None:
        with self._lock:
            for partition in position.offsets:
                if transaction.is_of({partition: self._producers.get((position.topic_id, partition))}):
                    del self._producers[position.topic_id, partition]

    def _write_offsets(self, topic_id: str, offsets: Sequence[TopicPartition]) -> None:
        """Commit offsets alone, of the partitions that are this process's own."""
        with self._lock:
            producers = {o.partition: self._producers.get((topic_id, o.partition)) for o in offsets}
        owned = {p: producer for p, producer in producers.items() if producer is not None}
        Transaction(owned).commit([o for o in offsets if o.partition in owned], self._offsets.group)


def current_transaction() -> Transaction | None:
    """That of the batch which this thread works on; None without one."""
    return getattr(_threads, "transaction", None)


def get_transactions(source: KafkaSource) -> Transactions:
    """The process's own, of a source with ``transactions``."""
    return _transactions(source)


def check_transactions(source: KafkaSource) -> None:
    """Raise RefusedError, OutageError or KafkaException unless the broker lets this user write in transactions."""
    PartitionProducer(source.client, f"{_prefix(source)}check", _CHECK_SECONDS).open()


@once_per_process
def _transactions(source: KafkaSource) -> Transactions:
    return Transactions(source, get_group_offsets(source))


def _prefix(source: KafkaSource) -> str:
    return f"{source.transactions}/{source.group}/"


def _side_by_side(calls: Sequence[Callable[[], T]]) -> list[T]:
    """What each call gives. Waits for all of them, then raises what one has raised."""
    if len(calls) == 1:
        return [call() for call in calls]
    pool = get_pool("transactions", _AT_A_TIME)
    futures = [pool.submit(call) for call in calls]
    wait(futures)
    return [future.result() for future in futures]
