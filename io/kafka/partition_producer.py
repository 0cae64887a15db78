"""The transactional producer of one partition that is read: what comes of its records, and their offset, is whole or
not there at all.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from itel_cabinet.io.kafka.admin import is_outage
from itel_cabinet.io.kafka.config import ClientConfig, resolve_config
from itel_cabinet.io.kafka.producer import FENCED, FencedError, Message, RefusedMessage, make_producer, produce
from itel_cabinet.io.worker import RefusedError, crash_points, limit_wait, retry_outage

__all__ = ["PartitionProducer"]

_SLICE_SECONDS = 0.1  # a flush is cut into slices of this length, to notice a stop
_CALL_SECONDS = 5.0  # a call that takes longer is made again
# A message that the broker has not taken by then is written again, in another transaction.
_DELIVERY_SECONDS = 15.0
# The broker ends a transaction that is open for longer, which fences its producer: not before the outage is given up.
_MARGIN_SECONDS = 60.0
_ATTEMPTS = 3
_MOST_SECONDS = 900.0  # what brokers allow by default
_RIGHTS = {
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "WRITE on the transactional id",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "READ on the group",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "READ on the topic that is read and WRITE on those that are written",
}


class PartitionProducer:
    """Of two with one ``name``, a transactional id, in any processes, the one opened later wins: what the other has
    begun is undone, and what it does next raises FencedError.

    Everything but :meth:`abort` raises OutageError once the broker has been away for ``outage_seconds``, and
    RefusedError if this user may not do it or the broker has no transactions. For one thread at a time.
    """

    def __init__(
        self, client: ClientConfig, name: str, outage_seconds: float, confirm: Callable[[], object] = lambda: None
    ) -> None:
        """``confirm`` raises FencedError unless all is as this one has left it; after some outages it is asked."""
        self._client, self._name, self._confirm = client, name, confirm
        self._outage_seconds = outage_seconds
        self._what = f"Kafka at {dict(client)['bootstrap.servers']}, transaction {name}"
        self._producer = self._make()
        self._messages: list[Message] = []  # what the transaction is to hold; the first so many are written
        self._written = 0
        self._begun = self._spoilt = self._committing = self._one_by_one = False
        self._opened = self._lost = False

    def open(self) -> None:
        """Take the name: returns once what another has begun under it is undone. To be called first, and once."""
        self._retry(self._open)

    def write(self, messages: Sequence[Message]) -> list[RefusedMessage]:
        """Write in the transaction, which begins with it; what the broker never takes is left out and returned."""
        refused: list[RefusedMessage] = []
        self._messages += messages
        self._retry(lambda: self._put(refused))
        return refused

    def commit(self, offset: TopicPartition | None, group: Any) -> None:
        """Commit what was written and ``offset`` of ``group`` (a consumer's group metadata), if one is given."""
        self._retry(lambda: self._commit(offset, group))
        self._messages, self._written, self._one_by_one = [], 0, False

    def abort(self) -> None:
        """Undo what was written. Best effort: what stays open is undone by the next one of this name, or in time."""
        self._messages, self._spoilt = [], True
        with contextlib.suppress(KafkaException):
            self._undo()

    def _make(self) -> Producer:
        return make_producer(
            resolve_config(self._client),
            delivery_seconds=_DELIVERY_SECONDS,
            transactional_id=self._name,
            transaction_timeout_ms=int(min(self._outage_seconds + _MARGIN_SECONDS, _MOST_SECONDS) * 1000),
        )

    def _open(self) -> None:
        self._call(self._producer.init_transactions, _CALL_SECONDS)
        self._opened = True

    def _open_again(self) -> None:
        """Go on with another producer: after a broker's end amid a transaction librdkafka may give its own up, though
        nobody has taken the name.
        """
        self._producer = self._make()
        self._begun = self._spoilt = self._committing = False
        self._written = 0
        was_open = self._opened
        self._open()
        if was_open:
            self._confirm()
        self._lost = False

    def _put(self, refused: list[RefusedMessage]) -> None:
        while suspects := self._deliver(self._messages[self._written :]):
            self._undo()
            culprits = suspects if len(suspects) == 1 else self._judge([one.message for one in suspects])
            left_out = {id(one.message) for one in culprits}
            self._messages = [message for message in self._messages if id(message) not in left_out]
            refused += culprits
            self._one_by_one = True
        self._written = len(self._messages)

    def _judge(self, suspects: Sequence[Message]) -> list[RefusedMessage]:
        """The broker refuses a whole batch over its limit; alone, in transactions that are undone, each message shows
        whether it is at fault.
        """
        culprits = []
        for message in suspects:
            if refused := self._deliver_alone(message):
                self._undo()
                culprits += refused
        self._undo()
        return culprits

    def _deliver_alone(self, message: Message) -> list[RefusedMessage]:
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._deliver([message])
            except KafkaException as exception:
                # librdkafka loses count after a batch that the broker has refused, and fails the next one once.
                self._check(exception.args[0])
                self._undo()
        return self._deliver([message])

    def _deliver(self, messages: Sequence[Message]) -> list[RefusedMessage]:
        """Write and wait for every report: what the broker never takes, upon which the transaction must be undone."""
        if not messages:
            return []
        self._begin()
        reports: list[tuple[Message, KafkaError | None]] = []
        for message in messages:
            self._queue(message, functools.partial(_report, reports, message))
            if self._one_by_one:
                self._flush()
        self._flush()
        failed = [(message, error) for message, error in reports if error is not None]
        refused = [
            RefusedMessage.by(error, message) for message, error in failed if not is_outage(KafkaException(error))
        ]
        if failed and not refused:
            raise KafkaException(failed[0][1])
        if len(reports) < len(messages) and not refused:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no delivery report"))
        return refused

    def _queue(self, message: Message, on_delivery: Callable[[KafkaError | None, Any], None]) -> None:
        until = time.monotonic() + _DELIVERY_SECONDS
        while True:
            try:
                produce(self._producer, message, on_delivery)
                return
            except BufferError:
                if time.monotonic() > until:
                    raise KafkaException(KafkaError(KafkaError._QUEUE_FULL)) from None
                self._producer.poll(_SLICE_SECONDS)
            except KafkaException as error:
                if is_outage(error):
                    raise
                on_delivery(error.args[0], None)
                return

    def _flush(self) -> None:
        until = time.monotonic() + limit_wait(_DELIVERY_SECONDS + _CALL_SECONDS)
        while self._producer.flush(_SLICE_SECONDS) and time.monotonic() < until:
            pass

    def _begin(self) -> None:
        if not self._begun:
            self._producer.begin_transaction()
            self._begun = True

    def _commit(self, offset: TopicPartition | None, group: Any) -> None:
        if not self._committing:
            refused: list[RefusedMessage] = []
            self._put(refused)  # nothing, unless the transaction had to be undone
            if refused:
                raise RefusedError(f"{self._what}: {refused[0].reason}, though the message was taken before")
            self._begin()
            if offset is not None:
                self._call(self._producer.send_offsets_to_transaction, [offset], group, _CALL_SECONDS)
            crash_points.maybe_crash("before-transaction")
            self._committing = True
        self._call(self._producer.commit_transaction, _CALL_SECONDS)
        self._begun = self._committing = False

    def _undo(self) -> None:
        if self._begun:
            self._call(self._producer.abort_transaction, _CALL_SECONDS)
        self._begun = self._spoilt = self._committing = False
        self._written = 0

    def _call(self, call: Callable[..., object], *arguments: Any) -> None:
        """Call librdkafka, which after a broker's restart may not come back within the time that it was given (seen of
        2.16 for offsets in a transaction): the producer is given up then.
        """
        ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

        def run() -> None:
            try:
                call(*arguments)
            except Exception as error:
                ended.put(error)
            else:
                ended.put(None)

        threading.Thread(target=run, name="transaction", daemon=True).start()
        try:
            error = ended.get(timeout=2 * _CALL_SECONDS)
        except queue.Empty:
            self._lost = True
            error = KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer in a transaction"))
        if error is not None:
            raise error

    def _retry(self, call: Callable[[], None]) -> None:
        """Call until it is done; a transaction that has failed is undone and written again."""

        def attempt() -> None:
            try:
                if self._lost:
                    self._open_again()
                if self._spoilt:
                    self._undo()
                call()
            except KafkaException as exception:
                error = exception.args[0]
                self._check(error)
                self._lost = self._lost or error.fatal()
                self._spoilt = self._spoilt or not error.retriable()
                raise

        retry_outage(
            attempt,
            what=self._what,
            seconds=self._outage_seconds,
            is_outage=lambda error: isinstance(error, KafkaException),
            describe=lambda error: str(error.args[0].str()),
        )

    def _check(self, error: KafkaError) -> None:
        """Raise for what no repetition helps."""
        if error.code() in FENCED:
            raise FencedError(
                f"{self._what}: fenced: another copy of the job has begun to read this partition, or the broker was "
                "away for too long amid a transaction: nothing of this transaction was written; let one copy run"
            )
        if error.code() in _RIGHTS:
            raise RefusedError(f"{self._what}: {error.str()}: grant this user the right {_RIGHTS[error.code()]}")
        if error.fatal() and not self._opened:
            raise RefusedError(f"{self._what}: {error.str()}")


def _report(
    reports: list[tuple[Message, KafkaError | None]], message: Message, error: KafkaError | None, _delivered: Any
) -> None:
    reports.append((message, error))
