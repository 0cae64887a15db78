"""The ledger: one row for each end that a completed task comes to on its way to iTel, and the bodies that were sent.

Rows fit their schemas, as those of :mod:`itel_cabinet.transforms.rows` do. All functions are pure and thread-safe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pyarrow as pa

from itel_cabinet.transforms.events import TaskEvent
from itel_cabinet.transforms.records import Record

__all__ = [
    "BODIES_SCHEMA",
    "LEDGER_SCHEMA",
    "SETTLED",
    "ContractName",
    "Entry",
    "Outcome",
    "Sent",
    "make_body_rows",
    "make_ledger_rows",
]

_INSTANT = pa.timestamp("us", tz="UTC")


class Outcome(StrEnum):
    """What can become of a completed task."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    """iTel had it before this call."""
    UNCHANGED = "unchanged"
    """Not sent: iTel has the same content by another event of the assignment."""
    REFUSED = "refused"
    """A dead letter: by iTel, or before it was asked. The row's reason is the letter's error class."""
    HELD = "held"
    """The contract's gate does not let the form through."""
    SHADOW = "shadow"
    """Offered to the second endpoint, beside what became of it at the first."""


SETTLED = frozenset({Outcome.ACCEPTED, Outcome.DUPLICATE, Outcome.UNCHANGED})
"""The outcomes after which an event is not sent again."""


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_ORIGIN = [
    _required("event_timestamp", _INSTANT),
    _required("kafka_topic", pa.string()),
    _required("kafka_topic_id", pa.string()),
    _required("kafka_partition", pa.int32()),
    _required("kafka_offset", pa.int64()),
    # The day of the event's own time: what is looked up by an event reads that day alone.
    pa.field("year", pa.int32()),
    pa.field("month", pa.int32()),
    pa.field("day", pa.int32()),
]

LEDGER_SCHEMA = pa.schema(
    [
        _required("event_id", pa.string()),
        _required("assignment_id", pa.int64()),
        _required("project_id", pa.string()),
        _required("task_id", pa.int64()),
        _required("event_type", pa.string()),
        _required("task_status", pa.string()),
        _required("outcome", pa.string()),
        _required("settled", pa.bool_()),
        pa.field("reason", pa.string()),
        pa.field("idempotency_key", pa.string()),
        pa.field("contract_name", pa.string()),
        pa.field("contract_version", pa.string()),
        pa.field("contract_sha256", pa.string()),
        pa.field("body_sha256", pa.string()),
        pa.field("content_sha256", pa.string()),
        pa.field("status", pa.int32()),
        pa.field("attempts", pa.int32()),
        pa.field("created_id", pa.string()),
        pa.field("latency_ms", pa.float64()),
        pa.field("resubmission", pa.string()),
        pa.field("traceparent", pa.string()),
        pa.field("first_at", _INSTANT),
        pa.field("answered_at", _INSTANT),
        _required("created_at", _INSTANT),
        *_ORIGIN,
    ]
)

BODIES_SCHEMA = pa.schema(
    [
        _required("event_id", pa.string()),
        _required("assignment_id", pa.int64()),
        _required("project_id", pa.string()),
        _required("body_sha256", pa.string()),
        pa.field("contract_name", pa.string()),
        _required("body", pa.string()),
        *_ORIGIN,
    ]
)


@dataclass(frozen=True, slots=True)
class ContractName:
    """Which contract made a body."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent, or would have been. ``content`` (SHA-256, hex) is the same where iTel would learn nothing new;
    ``key`` is the one that iTel was given; ``called`` is False where it was not."""

    body: bytes
    content: str
    key: str | None = None
    called: bool = True


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the ledger, as a step has come to know it. Times are epoch seconds."""

    record: Record
    event: TaskEvent
    outcome: Outcome
    first_at: float
    answered_at: float
    reason: str | None = None
    sent: Sent | None = None
    status: int | None = None
    attempts: int | None = None
    created_id: str | None = None
    resubmission: str | None = None


def make_ledger_rows(
    entries: Sequence[Entry],
    *,
    contract: ContractName,
    shadow: ContractName | None = None,
    clock: Callable[[], float],
) -> list[dict[str, Any]]:
    """A row of the ledger for each entry, in order. ``contract`` made the bodies for iTel, ``shadow`` those for the
    second endpoint."""
    now = datetime.fromtimestamp(clock(), UTC)
    return [_make_row(one, (shadow or contract) if one.outcome is Outcome.SHADOW else contract, now) for one in entries]


def make_body_rows(
    entries: Sequence[Entry], *, contract: ContractName, shadow: ContractName | None = None
) -> list[dict[str, Any]]:
    """A row for each body that was sent, in order."""
    return [*_make_bodies(entries, contract, shadow or contract)]


def _make_bodies(entries: Sequence[Entry], contract: ContractName, shadow: ContractName) -> Iterator[dict[str, Any]]:
    for one in entries:
        if one.sent is not None and one.sent.called:
            yield {
                **_subject(one),
                "body_sha256": _sha256(one.sent.body),
                "contract_name": (shadow if one.outcome is Outcome.SHADOW else contract).name,
                "body": one.sent.body.decode(errors="replace"),
                **_origin(one),
            }


def _make_row(entry: Entry, contract: ContractName, now: datetime) -> dict[str, Any]:
    event, sent = entry.event, entry.sent
    called = sent is not None and sent.called
    return {
        **_subject(entry),
        "task_id": event.task_id,
        "event_type": event.event_type,
        "task_status": event.task_status,
        "outcome": entry.outcome.value,
        "settled": entry.outcome in SETTLED,
        "reason": entry.reason,
        "idempotency_key": sent.key if sent else None,
        "contract_name": contract.name,
        "contract_version": contract.version,
        "contract_sha256": contract.sha256,
        "body_sha256": _sha256(sent.body) if sent else None,
        "content_sha256": sent.content if sent else None,
        "status": entry.status,
        "attempts": entry.attempts,
        "created_id": entry.created_id,
        "latency_ms": max(0.0, entry.answered_at - entry.first_at) * 1_000 if called else None,
        "resubmission": entry.resubmission,
        "traceparent": None,
        "first_at": datetime.fromtimestamp(entry.first_at, UTC),
        "answered_at": datetime.fromtimestamp(entry.answered_at, UTC),
        "created_at": now,
        **_origin(entry),
    }


def _subject(entry: Entry) -> dict[str, Any]:
    event = entry.event
    return {"event_id": event.event_id, "assignment_id": event.assignment_id, "project_id": event.project_id}


def _origin(entry: Entry) -> dict[str, Any]:
    record, moment = entry.record, entry.event.timestamp
    return {
        "event_timestamp": moment,
        "kafka_topic": record.topic,
        "kafka_topic_id": record.topic_id,
        "kafka_partition": record.partition,
        "kafka_offset": record.offset,
        "year": moment.year,
        "month": moment.month,
        "day": moment.day,
    }


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
