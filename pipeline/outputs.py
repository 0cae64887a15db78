"""What a job tells the world over Kafka: dead letters, and the results of submissions and writes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from itel_cabinet.io.delta import WriteResult
from itel_cabinet.io.kafka import KafkaSinkSettings, Message, Refused, WriteToKafka
from itel_cabinet.transforms.dead_letters import encode_dead_letter
from itel_cabinet.transforms.publishing import Publication
from itel_cabinet.transforms.records import Failure
from itel_cabinet.transforms.results import encode_success, encode_tracked
from itel_cabinet.transforms.submissions import Submitted

__all__ = ["PublishMessages", "SendResults", "SendTracked", "WriteDeadLetters"]


@dataclass
class WriteDeadLetters(beam.PTransform):  # type: ignore[misc]
    """Lists of Failure -> dead letters on ``topic``, confirmed before the bundle ends.

    A dead letter that the broker finds too large is sent again without the record's value, which its coordinates still
    find.
    """

    kafka: KafkaSinkSettings
    topic: str
    job: str
    group: str
    max_bytes: int

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, failures: beam.PCollection) -> beam.PCollection:
        encode = functools.partial(_dead_letter, topic=self.topic, job=self.job, group=self.group)
        return (
            failures
            | "Unpack" >> beam.FlatMap(_each)
            | "Encode" >> beam.Map(encode, max_bytes=self.max_bytes)
            | "Send" >> WriteToKafka(self.kafka)
            | "Leave the value out" >> beam.Map(_origin)
            | "Encode in short" >> beam.Map(encode, max_bytes=0)
            | "Send in short" >> WriteToKafka(self.kafka)
            | "Give up" >> beam.Map(_give_up)
        )


def _each(items: Iterable[Any]) -> Iterable[Any]:
    return items


def _origin(refused: Refused) -> Failure:
    failure: Failure = refused.message.origin
    return failure


def _dead_letter(failure: Failure, *, topic: str, job: str, group: str, max_bytes: int) -> Message:
    key, value, headers = encode_dead_letter(failure, job=job, group=group, max_bytes=max_bytes)
    return Message(topic, key, value, tuple(headers), origin=failure)


def _give_up(refused: Refused) -> None:
    record = refused.message.origin.record
    raise ValueError(
        f"topic {refused.message.topic} takes not even a dead letter without its value "
        f"({record.topic} {record.coordinates}): {refused.reason}; raise its max.message.bytes"
    )


@dataclass
class SendResults(beam.PTransform):  # type: ignore[misc]
    """Lists of Submitted -> one message each on the success topic. At least once, keyed by event id."""

    kafka: KafkaSinkSettings
    topic: str
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, submitted: beam.PCollection) -> beam.PCollection:
        return (
            submitted
            | "Encode" >> beam.FlatMap(functools.partial(_successes, topic=self.topic, clock=self.clock))
            | "Send" >> WriteToKafka(self.kafka)
        )


def _successes(submitted: list[Submitted], *, topic: str, clock: Callable[[], float]) -> Iterator[Message]:
    for one in submitted:
        key, value, headers = encode_success(
            event_id=one.submission.event_id,
            assignment_id=one.submission.assignment_id,
            status=one.status,
            excerpt=one.excerpt,
            payload_sha256=hashlib.sha256(one.submission.payload).hexdigest(),
            attempts=one.attempts,
            now=clock(),
        )
        yield Message(topic, key, value, tuple(headers))


@dataclass
class SendTracked(beam.PTransform):  # type: ignore[misc]
    """WriteResults of the tracking table -> one message a row, also for rows that an earlier run had committed."""

    kafka: KafkaSinkSettings
    topic: str

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, results: beam.PCollection) -> beam.PCollection:
        return (
            results
            | "Encode" >> beam.FlatMap(functools.partial(_tracked, topic=self.topic))
            | "Send" >> WriteToKafka(self.kafka)
        )


def _tracked(result: WriteResult, *, topic: str) -> Iterator[Message]:
    for row in (*result.written, *result.replayed):
        key, value, headers = encode_tracked(row)
        yield Message(topic, key, value, tuple(headers))


@dataclass
class PublishMessages(beam.PTransform):  # type: ignore[misc]
    """Lists of Publication -> lists of Failure, for those that the broker finds too large."""

    kafka: KafkaSinkSettings
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, publications: beam.PCollection) -> beam.PCollection:
        return (
            publications
            | "Address" >> beam.FlatMap(_publications)
            | "Send" >> WriteToKafka(self.kafka)
            | "Too large" >> beam.Map(_unpublished, clock=self.clock)
        )


def _publications(publications: list[Publication]) -> Iterator[Message]:
    for one in publications:
        yield Message(one.topic, one.key, one.value, one.headers, origin=one.record)


def _unpublished(refused: Refused, *, clock: Callable[[], float]) -> list[Failure]:
    now = clock()
    return [Failure(refused.message.origin, "publish", "too_large", refused.reason, now, now)]
