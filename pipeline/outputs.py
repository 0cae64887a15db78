"""What a job reports over Kafka: dead letters, and the results of submissions and writes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from itel_cabinet.io.batches import Batch, Passing
from itel_cabinet.io.delta import WriteResult
from itel_cabinet.io.kafka import KafkaSinkSettings, Message, RefusedMessage, WriteToKafka
from itel_cabinet.io.worker import metrics
from itel_cabinet.transforms.dead_letters import encode_dead_letter
from itel_cabinet.transforms.records import Failure, Skip
from itel_cabinet.transforms.results import encode_submission_result, encode_tracking_result
from itel_cabinet.transforms.rows import record_of
from itel_cabinet.transforms.submissions import Submitted
from itel_cabinet.transforms.trace_context import read_trace
from itel_cabinet.transforms.triggers import Publication

__all__ = ["PublishMessages", "SendMessages", "WriteDeadLetters", "encode_rows", "encode_submissions"]

_LOGGER = logging.getLogger(__name__)
_MOST_LOGGED = 5  # of a batch: a topic full of poison must not fill the disk


@dataclass
class WriteDeadLetters(beam.PTransform):  # type: ignore[misc]
    """Lists, whose Failures become dead letters on ``topic`` -> the same lists. Confirmed before the bundle ends, and
    before it ends for the steps behind.

    A dead letter that the broker finds too large is sent again without the record's value, which its coordinates still
    find.
    """

    kafka: KafkaSinkSettings
    topic: str
    job: str
    group: str
    max_bytes: int
    contract: str | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, failures: beam.PCollection) -> beam.PCollection:
        encode = functools.partial(
            _dead_letter, topic=self.topic, job=self.job, group=self.group, contract=self.contract
        )
        return (
            failures
            | "Encode"
            >> beam.FlatMap(_letters, encode=functools.partial(encode, max_bytes=self.max_bytes)).with_output_types(
                Batch
            )
            | "Send" >> WriteToKafka(self.kafka)
            | "Leave the value out"
            >> beam.Map(_in_short, encode=functools.partial(encode, max_bytes=0)).with_output_types(Batch)
            | "Send in short" >> WriteToKafka(self.kafka)
            | "Give up" >> beam.Map(_give_up).with_output_types(Batch)
        )


def _letters(items: Sequence[Any], *, encode: Callable[[Failure], Message]) -> Iterator[list[Message] | Passing]:
    """A message each; the first few failures are logged: by class and coordinates, never by what is in them."""
    failures = [one for one in items if isinstance(one, Failure)]
    for failure in failures[:_MOST_LOGGED]:
        record = failure.record
        _LOGGER.warning(
            "dead letter: %s: %s (%s %s)",
            failure.stage,
            failure.error_class,
            record.topic,
            record.coordinates,
            extra={
                "stage": failure.stage,
                "error_class": failure.error_class,
                "event_id": failure.event_id,
                "assignment_id": failure.assignment_id,
                "topic": record.topic,
                "topic_id": record.topic_id,
                "partition": record.partition,
                "offset": record.offset,
                "trace_id": read_trace(record).trace_id,
            },
        )
    if len(failures) > _MOST_LOGGED:
        _LOGGER.warning("and %d more dead letters of the same batch", len(failures) - _MOST_LOGGED)
    if failures:
        yield [*map(encode, failures)]
    yield Passing(items)


def _in_short(
    refused: Sequence[RefusedMessage] | Passing, *, encode: Callable[[Failure], Message]
) -> list[Message] | Passing:
    return refused if isinstance(refused, Passing) else [encode(one.message.origin) for one in refused]


def _dead_letter(
    failure: Failure, *, topic: str, job: str, group: str, contract: str | None, max_bytes: int
) -> Message:
    key, value, headers = encode_dead_letter(failure, job=job, group=group, contract=contract, max_bytes=max_bytes)
    return Message(topic, key, value, tuple(headers), origin=failure, source_partition=failure.record.partition)


def _give_up(refused: Sequence[RefusedMessage] | Passing) -> Any:
    if isinstance(refused, Passing):
        return refused.item
    message = refused[0].message
    record = message.origin.record
    raise ValueError(
        f"topic {message.topic} takes not even a dead letter without its value "
        f"({record.topic} {record.coordinates}): {refused[0].reason}; raise its max.message.bytes"
    )


@dataclass
class SendMessages(beam.PTransform):  # type: ignore[misc]
    """Items -> lists of Failure, for those messages that ``encode`` makes of them which the broker refuses. At least
    once; confirmed before the bundle ends. Each message's ``origin`` is the record that it reports on. If it
    ``passes`` its items, which are lists then, they come out too, and the steps behind end their bundle after it."""

    kafka: KafkaSinkSettings
    encode: Callable[[Any], Iterable[Message]]
    clock: Callable[[], float]
    passes: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, items: beam.PCollection) -> beam.PCollection:
        return (
            items
            | "Encode" >> beam.FlatMap(_messages, encode=self.encode, passes=self.passes).with_output_types(Batch)
            | "Send" >> WriteToKafka(self.kafka)
            | "Refused" >> beam.Map(_refused, stage="report", clock=self.clock).with_output_types(Batch)
        )


def _messages(
    item: Any, *, encode: Callable[[Any], Iterable[Message]], passes: bool
) -> Iterator[list[Message] | Passing]:
    if messages := [*encode(item)]:
        yield messages
    if passes:
        yield Passing(item)


def encode_submissions(
    ends: list[Submitted | Failure | Skip], *, topic: str, contract: str, clock: Callable[[], float]
) -> Iterator[Message]:
    """A message for each that iTel has, keyed by event id."""
    for one in ends:
        if not isinstance(one, Submitted):
            continue
        key, value, headers = encode_submission_result(one, clock(), contract)
        yield Message(topic, key, value, tuple(headers), origin=one.submission.record)


def encode_rows(result: WriteResult, *, topic: str) -> Iterator[Message]:
    """A message each row, also for rows that an earlier run had committed."""
    for row in (*result.written, *result.replayed):
        key, value, headers = encode_tracking_result(row)
        yield Message(topic, key, value, tuple(headers), origin=record_of(row))


@dataclass
class PublishMessages(beam.PTransform):  # type: ignore[misc]
    """Lists of Publication -> lists of Failure, for those that the broker refuses."""

    kafka: KafkaSinkSettings
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, publications: beam.PCollection) -> beam.PCollection:
        return (
            publications
            | "Address" >> beam.Map(_publications).with_output_types(Batch)
            | "Send" >> WriteToKafka(self.kafka)
            | "Too large" >> beam.Map(_refused, stage="publish", clock=self.clock)
        )


def _publications(publications: list[Publication]) -> list[Message]:
    return [
        Message(
            one.topic, one.key, one.value, one.headers,
            origin=one.record, since_ms=one.record.timestamp_ms, source_partition=one.record.partition,
        )
        for one in publications
    ]  # fmt: skip


def _refused(refused: Sequence[RefusedMessage] | Passing, *, stage: str, clock: Callable[[], float]) -> Any:
    if isinstance(refused, Passing):
        return refused.item
    now = clock()
    failures = []
    for one in refused:
        error_class = "too_large" if one.too_large else "broker_refused"
        metrics.DEAD_LETTERS.labels(stage, error_class).inc()
        error = f"topic {one.message.topic}: {one.reason}"
        failures.append(Failure(one.message.origin, stage, error_class, error, now, now))
    return failures
