"""The consumer of a shard: reads its next records, once the broker has said that the topic is still the same."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from itel_cabinet.io.kafka.admin import Cluster, Topic, find_leaders, is_outage
from itel_cabinet.io.kafka.config import make_record, resolve_config
from itel_cabinet.io.kafka.offsets import look_up_entries, select_foreign, select_own
from itel_cabinet.io.kafka.spec import KafkaSource, Loss, ShardPosition
from itel_cabinet.io.kafka.transactions import get_transactions
from itel_cabinet.io.worker import (
    STOP,
    OutageError,
    RefusedError,
    describe_error,
    metrics,
    retry_outage,
)
from itel_cabinet.transforms.records import Record

__all__ = ["Fetched", "OffsetError", "ShardConsumer"]

_LOGGER = logging.getLogger(__name__)

# A poll with nothing to read waits this long: FnApiRunner ignores resume delays, so the reader itself must not spin.
_IDLE_SECONDS = 0.5
# A poll is cut into slices of this length, to notice a stop.
_SLICE_SECONDS = 0.1
# What a consumer reads ahead; librdkafka's own limit of 64 MB would be a sixth of a worker's memory.
_PREFETCH_KB = 16 * 1024
# How soon it looks whether there is room again; by librdkafka's own second a backlog waits half of the time.
_REFILL_MS = 10
_SILENT_SECONDS = 30.0  # without a record, before it is looked whether there are any


class OffsetError(RefusedError):
    """The group is ahead of the log's end: the log was cut, and going on would hide new records behind the fences."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """Records, where to read on after them, and what retention deleted before it was read."""

    records: list[Record]
    position: ShardPosition
    losses: list[Loss]


class ShardConsumer:
    """The consumer of one shard. For one thread at a time, but for :meth:`end`.

    Methods raise OutageError when the broker has been away for too long, other RefusedErrors where it will not serve.
    """

    def __init__(self, source: KafkaSource, shard: int, shards: int) -> None:
        self._source = source
        self._shard = shard
        self._shards = shards
        self._trouble = threading.Event()
        self._cluster = Cluster(resolve_config(source.client))
        self._consumer = Consumer(
            {"queued.max.messages.kbytes": _PREFETCH_KB, "fetch.queue.backoff.ms": _REFILL_MS}
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
        self._position: ShardPosition | None = None  # None where it may be anywhere
        self._knows_leaders = False
        self._listed_at = -float("inf")
        self._polled_at = -float("inf")
        self._heard_at = time.monotonic()
        self._losses: list[Loss] = []
        self._consuming = threading.Lock()
        self._ends: dict[int, int] = {}

    def initial(self) -> ShardPosition:
        """Where this shard begins: at the group's offsets, else where ``start_offset`` says."""
        position: ShardPosition = self._patiently(self._initial)
        return position

    def next(self, start: ShardPosition, most: int) -> Fetched:
        """The next records after ``start``, ``most`` at most. Waits ``_IDLE_SECONDS`` for the first of them."""
        try:
            position = self._owned(start)
            if self._position != start or position is not start:
                self.assign(position)
            if position is start:
                position = self._relisted(start)
            records: list[Record] = []
            if position is start:
                messages, arrived = self._poll(start, most)
                self._polled_at = time.monotonic()
                if messages:
                    self._heard_at = self._polled_at
                elif self._polled_at - self._heard_at > _SILENT_SECONDS:
                    self._revive(start)
                position, records = self._confirmed(start, messages, arrived)
        except BaseException:
            self._position = None
            raise
        self._position = position
        losses, self._losses = self._losses, []
        return Fetched(records, position, losses)

    def end(self, partition: int) -> int:
        """The end of a partition as of the last fetch: asks nothing of the broker. Negative where nothing was fetched
        yet. Thread-safe.
        """
        # confluent-kafka lets one call at a time use a consumer, and who waits for one that reads may wait for long.
        if self._consuming.acquire(blocking=False):
            try:
                self._note_end(partition)
            finally:
                self._consuming.release()
        return self._ends.get(partition, -1)

    def assign(self, position: ShardPosition) -> None:
        """Read on from a position."""
        topic = self._source.topic
        if not self._knows_leaders:
            self._patiently(lambda: find_leaders(self._consumer, topic))
            self._knows_leaders = True
        self._consumer.assign([TopicPartition(topic, p, o) for p, o in position.offsets.items()])
        self._position = position

    def _owned(self, start: ShardPosition) -> ShardPosition:
        """``start`` itself, or what the group has committed beyond it: a runner may have kept a position from before
        the last transactions.
        """
        transactions = get_transactions(self._source) if self._source.transactions else None
        if transactions is None or (self._position == start and transactions.owns(start)):
            return start
        committed = self._patiently(lambda: transactions.take_over(start))
        ahead = {p: committed[p] for p, offset in start.offsets.items() if committed.get(p, 0) > offset}
        if not ahead:
            return start
        bounds = self._patiently(lambda: self._cluster.bounds(self._source.topic, [*ahead]))
        ahead = {p: self._within(p, offset, *bounds[p]) for p, offset in ahead.items()}
        return replace(start, offsets={**start.offsets, **ahead})

    def _revive(self, start: ShardPosition) -> None:
        """Assign the partitions again if they have records, and none has come for a while: seen once after a restart of
        the broker, where librdkafka reported nothing and went on in silence."""
        self._heard_at = time.monotonic()
        offsets = self._offsets(start)
        bounds = self._patiently(lambda: self._cluster.bounds(self._source.topic, [*offsets]))
        unread = [partition for partition, (_, end) in bounds.items() if end > offsets[partition]]
        if unread:
            _LOGGER.warning(
                "topic %s: nothing came for %.0f s, though partitions %s have records: assigned again",
                self._source.topic, _SILENT_SECONDS, unread,
            )  # fmt: skip
            self._consumer.unassign()
            self.assign(replace(start, offsets=offsets))

    def _note_end(self, partition: int) -> None:
        where = TopicPartition(self._source.topic, partition)
        _, self._ends[partition] = self._consumer.get_watermark_offsets(where, cached=True)

    def _consume(self, start: ShardPosition, most: int, seconds: float) -> list[KafkaMessage]:
        with self._consuming:
            messages: list[KafkaMessage] = self._consumer.consume(most, timeout=seconds)
            for partition in start.offsets:
                self._note_end(partition)
        return messages

    def _patiently(self, call: Callable[[], Any]) -> Any:
        servers = dict(self._source.client)["bootstrap.servers"]
        answer = retry_outage(
            call,
            what=f"Kafka at {servers}, topic {self._source.topic}",
            seconds=self._source.outage_seconds,
            is_outage=lambda error: is_outage(error) or isinstance(error, LookupError),
            describe=_describe,
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
        entries = look_up_entries(self._source, topic)
        committed = select_own(entries, self._source, topic.topic_id)
        foreign = select_foreign(entries, self._source, topic)
        if foreign:
            _LOGGER.warning("%s", foreign)
        bounds = self._cluster.bounds(topic.name, self._mine(topic))
        # A group that knows the topic meets a partition it has no offset of: the partition is new, and read whole.
        latest = self._source.start_offset == "latest" and not committed
        offsets = {p: committed.get(p, high if latest else low) for p, (low, high) in bounds.items()}
        for p, (low, high) in bounds.items():
            offsets[p] = self._within(p, offsets[p], low, high)
        ends = {p: high for p, (_, high) in bounds.items()} if self._source.until_caught_up else None
        return ShardPosition(topic.topic_id, offsets, ends)

    def _within(self, partition: int, offset: int, low: int, high: int) -> int:
        if offset > high and offset > self._cluster.written_ends(self._source.topic, [partition])[partition]:
            raise OffsetError(
                f"topic {self._source.topic} partition {partition} ends at {high}, but the group {self._source.group} "
                f"stands at {offset}: the log was cut, as by a broker brought back from a backup; set the group back "
                "to before the cut: no row is written twice"
            )
        if offset < low:
            _LOGGER.error(
                "lost to retention: topic %s partition %d offsets [%d, %d); reading goes on at %d",
                self._source.topic, partition, offset, low, low,
            )  # fmt: skip
            self._losses.append(Loss(partition, offset, low))
            # Here, since on a cluster another process may read what this one has looked up.
            metrics.RECORDS_LOST.labels(self._source.topic, partition).inc(low - offset)
        return max(offset, low)

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
        self.assign(grown)
        return grown

    def _recreated(self, topic: Topic) -> ShardPosition:
        _LOGGER.warning("topic %s was deleted and created again: read from its beginning", topic.name)
        position: ShardPosition = self._patiently(lambda: self._initial(topic))
        self.assign(position)
        return position

    def _poll(self, start: ShardPosition, most: int) -> tuple[list[KafkaMessage], list[float]]:
        """A batch, and when each message came: full, or ``max_batch_seconds`` after it could begin. While a long batch
        was worked on the next one has waited, and takes what is there."""
        source = self._source
        messages = self._consume(start, 1, 0.0)
        began = max(self._polled_at, 0.0) if messages else 0.0
        idle_until = time.monotonic() + _IDLE_SECONDS
        while not messages and not STOP.is_set() and time.monotonic() < idle_until and not self._trouble.is_set():
            messages = self._consume(start, 1, _SLICE_SECONDS)
            if not messages and self._is_through(start):
                break
        arrived = [time.monotonic()] * len(messages)
        full_at = (began or time.monotonic()) + source.max_batch_seconds
        size = sum(map(len, messages))
        while messages and len(messages) < most and size < source.max_batch_bytes and not STOP.is_set():
            left = max(0.0, full_at - time.monotonic())
            # By the size so far, so that a batch of large records ends in time.
            room = (source.max_batch_bytes - size) * len(messages) // max(1, size)
            more = self._consume(start, max(1, min(most - len(messages), room)), min(left, _SLICE_SECONDS))
            messages += more
            arrived += [time.monotonic()] * len(more)
            size += sum(map(len, more))
            if left == 0 or (not more and self._is_through(start)):
                break
        return messages, arrived

    def _is_through(self, start: ShardPosition) -> bool:
        """Whether a read that has an end has come to it."""
        return start.ends is not None and replace(start, offsets=self._offsets(start)).caught_up

    def _offsets(self, start: ShardPosition) -> dict[int, int]:
        """The consumer's own positions: unlike the last record + 1, they step over transaction markers."""
        partitions = [TopicPartition(self._source.topic, p) for p in start.offsets]
        positions = {e.partition: e.offset for e in self._consumer.position(partitions)}
        return {p: positions[p] if positions[p] >= 0 else offset for p, offset in start.offsets.items()}

    def _confirmed(
        self, start: ShardPosition, messages: Sequence[KafkaMessage], arrived: Sequence[float]
    ) -> tuple[ShardPosition, list[Record]]:
        """What may be handed on of ``messages``, once the broker says that the topic is still this one."""
        errors = [m for m in messages if m.error() is not None]
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
            elif error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise RefusedError(
                    f"Kafka, topic {self._source.topic}: this user may not read it: grant the right READ on the topic"
                )
            elif error.fatal():
                raise OutageError(f"Kafka, topic {self._source.topic}: {error.str()}")
            else:
                self._trouble.set()
        records = [
            make_record(message, start.topic_id, at)
            for message, at in zip(messages, arrived, strict=True)
            if message.error() is None
        ]
        return position, records

    def _back_in_range(self, position: ShardPosition, partition: int) -> ShardPosition:
        bounds = self._patiently(lambda: self._cluster.bounds(self._source.topic, [partition]))
        offset = self._within(partition, position.offsets[partition], *bounds[partition])
        position = replace(position, offsets={**position.offsets, partition: offset})
        self.assign(position)
        return position


def _describe(error: Exception) -> str:
    return str(error.args[0].str()) if isinstance(error, KafkaException) else describe_error(error)
