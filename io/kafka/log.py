"""A topic as a log: read from outside any group, written in whole transactions. For tools; jobs have their own source
and sink in :mod:`itel_cabinet.io.kafka.source`.

What the broker does not take or answer is raised as ``confluent_kafka.KafkaException``, as it comes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from itel_cabinet.io.kafka.admin import QUIET, Cluster, Topic, find_leaders, is_outage
from itel_cabinet.io.kafka.config import make_record
from itel_cabinet.io.kafka.producer import FENCED, FencedError, Message, make_producer, produce
from itel_cabinet.transforms.records import Record

__all__ = ["LogReader", "LogWriter", "UnwritableError"]

_POLL_SECONDS = 0.1
_PREFETCH_KB = 16 * 1024
# Records that lie between two wanted ones are read over rather than jumped over, up to so many.
_NEAR = 500
# A transaction that its writer has left open holds back the readers behind it for so long (the broker's own clock adds
# up to 10 s).
_TRANSACTION_MS = 15_000
_ATTEMPTS = 3


class UnwritableError(RuntimeError):
    """The broker will never take these messages (one is too large); none of them was written."""


class LogReader:
    """Reads the committed records of topics; joins no group, and neither reads nor moves an offset of one.

    With ``committed_only=False`` also what belongs to transactions that are open or were aborted. Not thread-safe.
    ``timeout`` seconds without a record, where there must be one, raise KafkaException; ``epoch`` is
    the incarnation of topics where the broker has no topic ids. ``cluster`` saves a connection where there is one.
    """

    def __init__(
        self,
        client: Mapping[str, object],
        *,
        epoch: int = 0,
        timeout: float = 30.0,
        committed_only: bool = True,
        cluster: Cluster | None = None,
    ) -> None:
        self._timeout = timeout
        self._epoch = epoch
        self._cluster = cluster or Cluster(client)
        self._topics: dict[str, Topic] = {}
        self._found: set[str] = set()
        self._next: tuple[str, int, int] | None = None
        self._consumer = Consumer(
            dict(client)
            | {
                "group.id": "itel-cabinet-log-reader",  # demanded by librdkafka; never joined
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed" if committed_only else "read_uncommitted",
                "queued.max.messages.kbytes": _PREFETCH_KB,
                "fetch.wait.max.ms": 100,
                "logger": QUIET,
            }
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._consumer.close()

    def topic(self, name: str) -> Topic:
        """The topic as it was when this reader first asked. Raises UnknownTopicError."""
        if name not in self._topics:
            self._topics[name] = self._cluster.topic(name, epoch=self._epoch)
        return self._topics[name]

    def bounds(self, name: str) -> dict[int, tuple[int, int]]:
        """``(log start, end)`` of each partition now."""
        return self._cluster.bounds(name, self.topic(name).partitions)

    def all(self, name: str, newest: int | None = None, since: Mapping[int, int] | None = None) -> Iterator[Record]:
        """The records from the log's start to its present end, in order within each partition; or only those at the
        ``newest`` so many offsets of each, and from the offsets ``since`` on, by partition.
        """
        topic, bounds, since = self.topic(name), self.bounds(name), since or {}
        starts = {
            p: max(start, since.get(p, 0), 0 if newest is None else end - newest) for p, (start, end) in bounds.items()
        }
        ends = {p: end for p, (_, end) in bounds.items() if starts[p] < end}
        self._next = None
        self._assign(name, {p: starts[p] for p in ends})
        while ends:
            message = self._poll(f"topic {name}")
            partition = message.partition()
            if message.error() is None and message.offset() < ends.get(partition, 0):
                yield make_record(message, topic.topic_id)
            if message.error() is not None or message.offset() + 1 >= ends.get(partition, 0):
                ends.pop(partition, None)

    def at(self, name: str, partition: int, offset: int) -> Record | None:
        """The record at an offset, or None where there is none: deleted by retention, or never committed.

        Cheapest for growing offsets of one partition.
        """
        ahead = offset - self._next[2] if self._next and self._next[:2] == (name, partition) else -1
        if not 0 <= ahead <= _NEAR:
            ahead = 0
            self._assign(name, {partition: offset})
        self._next = None
        while True:
            message = self._poll(f"topic {name} partition {partition}")
            if message.error() is not None:
                return None
            # Of an offset out of range librdkafka goes to the log's start, which may lie before it.
            if message.offset() > offset or (message.offset() < offset and not ahead):
                return None
            if message.offset() == offset:
                self._next = (name, partition, offset + 1)
                return make_record(message, self.topic(name).topic_id)

    def first(self, name: str, offsets: Mapping[int, int]) -> dict[int, Record]:
        """Of each partition with an offset, the first record there or behind it, if there is one yet."""
        self._next = None
        self._assign(name, offsets)
        found: dict[int, Record] = {}
        left = {*offsets}
        while left:
            message = self._poll(f"topic {name}")
            partition = message.partition()
            if partition in left:
                left.remove(partition)
                self._consumer.pause([TopicPartition(name, partition)])
                if message.error() is None:
                    found[partition] = make_record(message, self.topic(name).topic_id)
        return found

    def _assign(self, name: str, offsets: Mapping[int, int]) -> None:
        if name not in self._found:
            find_leaders(self._consumer, name, timeout=self._timeout)
            self._found.add(name)
        self._consumer.assign([TopicPartition(name, p, offset) for p, offset in offsets.items()])

    def _poll(self, what: str) -> KafkaMessage:
        """The next record, or the end of a partition. Raises KafkaException for any other error."""
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            message = self._consumer.poll(_POLL_SECONDS)
            if message is None:
                continue
            error = message.error()
            if error is None or error.code() == KafkaError._PARTITION_EOF:
                return message
            if not error.retriable() and error.code() != KafkaError._TRANSPORT:
                raise KafkaException(error)
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"{what} could not be read"))


class LogWriter:
    """Writes lists of messages, each list whole or not at all, for readers of committed records.

    Of two writers with one ``name`` the later one wins: from the moment it is made, what the earlier one had begun is
    undone, and its next write raises FencedError. Not thread-safe.

    ``transactions=False`` is for brokers that have none (some Event Hubs tiers): a list that fails or is cut off may
    then be written in part, and no writer is fenced.
    """

    def __init__(
        self, client: Mapping[str, object], name: str, *, transactions: bool = True, timeout: float = 30.0
    ) -> None:
        self._timeout = timeout
        self.transactions = transactions
        transactional = {"transactional_id": name, "transaction_timeout_ms": _TRANSACTION_MS} if transactions else {}
        self._producer = make_producer(client, delivery_seconds=_TRANSACTION_MS / 1000, logger=QUIET, **transactional)
        if transactions:
            self._producer.init_transactions(timeout)

    def write(self, messages: Sequence[Message], then: Sequence[Message] = ()) -> None:
        """Write ``messages`` and ``then``, in order within each partition; they are durable when this returns.

        Without transactions ``then`` is begun once ``messages`` are durable. Raises UnwritableError and FencedError,
        and KafkaException if the broker is away: what became of the list shows later.
        """
        for attempt in range(_ATTEMPTS):
            try:
                if self.transactions:
                    self._commit([*messages, *then])
                else:
                    self._deliver(messages)
                    self._deliver(then)
                return
            except KafkaException as exception:
                error = exception.args[0]
                self._undo()
                if error.code() in FENCED:
                    raise FencedError(error.str()) from None
                if not is_outage(exception):
                    raise UnwritableError(error.str()) from None
                # librdkafka loses count of what it sends in the transaction after one that the broker has refused.
                if not error.txn_requires_abort() or attempt + 1 == _ATTEMPTS:
                    raise

    def _commit(self, messages: Sequence[Message]) -> None:
        self._producer.begin_transaction()
        for message in messages:
            self._produce(message, [])
        self._producer.commit_transaction(self._timeout)  # tells the reason if a message has failed

    def _deliver(self, messages: Sequence[Message]) -> None:
        failures: list[KafkaError] = []
        for message in messages:
            self._produce(message, failures)
        left = self._producer.flush(self._timeout)
        if failures:
            raise KafkaException(failures[0])
        if left:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no delivery report"))

    def _produce(self, message: Message, failures: list[KafkaError]) -> None:
        while True:
            try:
                produce(
                    self._producer,
                    message,
                    lambda error, _: failures.append(error) if error is not None else None,
                )
                return
            except BufferError:
                self._producer.poll(_POLL_SECONDS)

    def _undo(self) -> None:
        """Best effort: a transaction that stays open is undone by the next writer, or by the broker in time."""
        if self.transactions:
            with contextlib.suppress(KafkaException):
                self._producer.abort_transaction(self._timeout)
