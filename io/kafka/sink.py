"""Messages from a pipeline to Kafka, every delivery confirmed before the bundle ends."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows
from confluent_kafka import KafkaError, KafkaException, Producer

from itel_cabinet.io.batches import Batch, Passing
from itel_cabinet.io.kafka.admin import is_outage
from itel_cabinet.io.kafka.config import ClientConfig, resolve_config
from itel_cabinet.io.kafka.producer import Message, RefusedMessage, make_producer, produce
from itel_cabinet.io.kafka.transactions import current_transaction
from itel_cabinet.io.worker import OutageError, crash_points, limit_wait, metrics, once_per_process

__all__ = ["KafkaSinkSettings", "WriteToKafka"]

_CONNECT_SECONDS = 1.0
_SLICE_SECONDS = 0.1  # a flush is cut into slices of this length, to notice a stop


@dataclass(frozen=True)
class KafkaSinkSettings:
    """What a producer needs. Writers with equal settings share one producer in a process."""

    client: ClientConfig
    outage_seconds: float = 120.0
    transactional: bool = False
    """Write in the transaction of the batch under way, which the source begins."""


@dataclass
class WriteToKafka(beam.PTransform):  # type: ignore[misc]
    """Lists of Message -> lists of RefusedMessage, of those that the broker never takes. Every delivery is confirmed in
    its bundle; where the settings are ``transactional``, while the batch is worked on. Passing goes through.

    The broker being away is waited for as long as ``outage_seconds`` and then raised as OutageError. Order within a
    partition is kept (idempotent producer).
    """

    settings: KafkaSinkSettings

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, messages: beam.PCollection) -> beam.PCollection:
        return messages | "Produce" >> beam.ParDo(_Produce(self.settings)).with_output_types(Batch)


@dataclass
class _Deliveries:
    """The delivery reports of one bundle. Reports arrive on any thread that polls the shared producer."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    pending: Counter[str] = field(default_factory=Counter)
    refused: list[RefusedMessage] = field(default_factory=list)
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
                self.refused.append(RefusedMessage.by(error, message))

    def undelivered(self) -> Counter[str]:
        """Messages by topic that the broker did not take, or did not say so of in time."""
        with self.lock:
            return self.lost + self.pending


class _Produce(beam.DoFn):  # type: ignore[misc]
    def __init__(self, settings: KafkaSinkSettings) -> None:
        self._settings = settings
        self._written = Metrics.counter("kafka", "records_written")

    def start_bundle(self) -> None:
        self._deliveries = _Deliveries()
        self._sent: Counter[str] = Counter()
        self._since: dict[str, int] = {}

    def process(self, messages: Sequence[Message] | Passing) -> Sequence[Sequence[RefusedMessage] | Passing]:
        if isinstance(messages, Passing):
            return [messages]
        if self._settings.transactional:
            return self._write(messages)
        for message in messages:
            self._send(message, self._deliveries)
        _count(messages, self._sent, self._since)
        return []

    def finish_bundle(self) -> Iterable[Any]:
        if not self._sent:
            return
        refused = self._settled(self._deliveries)
        if len(refused) > 1 or self._sent.total() > 1:
            # The broker refuses a whole batch over its limit; alone, each message shows whether it is at fault.
            refused = [again for one in refused for again in self._alone(one.message)]
        crash_points.maybe_crash("after-flush")
        self._written.inc(self._sent.total() - len(refused))
        _measure(self._sent, self._since, refused)
        if refused:
            yield GlobalWindows.windowed_value(refused)

    def _write(self, messages: Sequence[Message]) -> list[list[RefusedMessage]]:
        transaction = current_transaction()
        if transaction is None:
            raise RuntimeError("messages outside of the batch under way: they would not be in its transaction")
        refused = transaction.write(messages)
        crash_points.maybe_crash("after-flush")
        sent: Counter[str] = Counter()
        since: dict[str, int] = {}
        _count(messages, sent, since)
        self._written.inc(len(messages) - len(refused))
        transaction.then(functools.partial(_measure, sent, since, refused))
        return [refused] if refused else []

    def _alone(self, message: Message) -> list[RefusedMessage]:
        deliveries = _Deliveries()
        self._send(message, deliveries)
        return self._settled(deliveries)

    def _send(self, message: Message, deliveries: _Deliveries) -> None:
        producer = _producer(self._settings)
        on_delivery = deliveries.expect(message)
        began = time.monotonic()
        while True:
            try:
                produce(producer, message, on_delivery)
                return
            except BufferError:
                if time.monotonic() - began > limit_wait(self._settings.outage_seconds):
                    raise OutageError(self._away(began, "its queue stays full")) from None
                producer.poll(_SLICE_SECONDS)
            except KafkaException as error:
                on_delivery(error.args[0], None)
                return

    def _settled(self, deliveries: _Deliveries) -> list[RefusedMessage]:
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


def _count(messages: Sequence[Message], sent: Counter[str], since: dict[str, int]) -> None:
    for message in messages:
        sent[message.topic] += 1
        if message.since_ms is not None:
            since[message.topic] = min(message.since_ms, since.get(message.topic, message.since_ms))


def _measure(sent: Mapping[str, int], since: Mapping[str, int], refused: Sequence[RefusedMessage]) -> None:
    turned_down = Counter(one.message.topic for one in refused)
    for topic, count in sent.items():
        metrics.MESSAGES_PUBLISHED.labels(topic).inc(count - turned_down[topic])
    for topic, count in turned_down.items():
        metrics.PUBLISH_FAILURES.labels(topic).inc(count)
    for topic, since_ms in since.items():
        metrics.observe_freshness(topic, since_ms / 1000)


@once_per_process
def _producer(settings: KafkaSinkSettings) -> Producer:
    producer = make_producer(resolve_config(settings.client), delivery_seconds=settings.outage_seconds)
    # An idempotent producer asks for its id when it is made, if a broker is connected by then, else half a second
    # later. A broker that is away is waited for with the messages.
    with contextlib.suppress(KafkaException):
        producer.list_topics(timeout=_CONNECT_SECONDS)
    return producer
