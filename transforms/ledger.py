"""The ledger: one row for each end that a completed task comes to on its way to iTel, and the bodies that were sent.

Rows fit their schemas, as those of :mod:`itel_cabinet.transforms.rows` do. All functions are pure and thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from itel_cabinet.transforms.columns import DAY, INSTANT, ORIGIN, make_day_columns, make_origin_columns, required
from itel_cabinet.transforms.enrichment import CabinetTask
from itel_cabinet.transforms.events import INT64_MAX, Announced, TaskEvent
from itel_cabinet.transforms.records import Failure, Record, Skip
from itel_cabinet.transforms.replays import describe_edit
from itel_cabinet.transforms.trace_context import read_trace

__all__ = [
    "BODIES_SCHEMA",
    "LEDGER_SCHEMA",
    "SETTLED",
    "ContractName",
    "Entry",
    "Ledger",
    "Outcome",
    "Resubmission",
    "Sent",
    "leave_settled_out",
    "make_body_rows",
    "make_ledger_rows",
    "parse_assignments",
    "refuse",
]


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


LEDGER_SCHEMA = pa.schema(
    [
        required("event_id", pa.string()),
        required("assignment_id", pa.int64()),
        required("project_id", pa.string()),
        required("task_id", pa.int64()),
        required("event_type", pa.string()),
        required("task_status", pa.string()),
        required("outcome", pa.string()),
        required("settled", pa.bool_()),
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
        pa.field("first_at", INSTANT),
        pa.field("answered_at", INSTANT),
        required("created_at", INSTANT),
        *ORIGIN,
        *DAY,
    ]
)

BODIES_SCHEMA = pa.schema(
    [
        required("event_id", pa.string()),
        required("assignment_id", pa.int64()),
        required("project_id", pa.string()),
        required("body_sha256", pa.string()),
        pa.field("contract_name", pa.string()),
        required("body", pa.string()),
        *ORIGIN,
        *DAY,
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
    """What was sent, or would have been. ``content_sha256`` is the same where iTel would learn nothing new; ``key`` is
    the one that iTel was given, None where it was not called."""

    body: bytes
    body_sha256: str
    content_sha256: str
    key: str | None = None
    is_kept: bool = True
    """Whether the body is to be kept, because it went out."""


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


class Ends(Protocol):
    """What a task can end as: a Submitted, a Failure or a Skip."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What the ledger is to hold of it."""


@dataclass(frozen=True)
class Resubmission:
    """What is to be sent again though iTel has it: these assignments, or all (None). What has been settled under its
    name once is not sent again under that name."""

    name: str
    assignments: frozenset[int] | None = None

    def covers(self, assignment_id: int) -> bool:
        return self.assignments is None or assignment_id in self.assignments


def parse_assignments(text: str) -> frozenset[int]:
    """The ids in a text, parted by commas or white space; ``#`` begins a comment that ends with its line.

    Raises:
        ValueError: there is none, or something else than one; in one line.
    """
    words = [word for line in text.splitlines() for word in line.partition("#")[0].replace(",", " ").split()]
    for word in words:
        if not (word.isascii() and word.isdigit() and 0 < int(word) <= INT64_MAX):
            raise ValueError(f"{word[:40]!r} is no assignment: give whole numbers from 1 to 2^63-1")
    if not words:
        raise ValueError("there is no assignment in it")
    return frozenset(map(int, words))


class Ledger(Protocol):
    """The ledger as the steps see it. Implementations are thread-safe and wait until an outage ends."""

    def find_settled(self, events: Sequence[TaskEvent], resubmission: Resubmission | None = None) -> Collection[str]:
        """The ids of those events that are not to be sent: they are settled, or, where a resubmission covers their
        assignment, settled under its name."""


_Task = TypeVar("_Task", CabinetTask, Announced)


def leave_settled_out(
    tasks: Sequence[_Task],
    *,
    ledger: Callable[[], Ledger],
    statuses: frozenset[str],
    resubmission: Resubmission | None = None,
) -> Iterator[_Task | Skip]:
    """The tasks, in order; a Skip ``already_submitted`` for those that would be submitted if iTel did not have them.

    Args:
        tasks: a batch, be it looked up in ClaimX or not.
        ledger: gives the process's ledger; called on the worker.
        statuses: those that are submitted.
        resubmission: what is sent although it is settled.
    """
    events = [task.event for task in tasks if task.event.task_status in statuses]
    settled = ledger().find_settled(events, resubmission) if events else ()
    for task in tasks:
        if task.event.task_status in statuses and task.event.event_id in settled:
            yield Skip(task.record, "already_submitted")
        else:
            yield task


def refuse(
    record: Record,
    event: TaskEvent,
    stage: str,
    error_class: str,
    error: str,
    first_at: float,
    last_at: float,
    attempts: int = 1,
) -> Failure:
    """A Failure before iTel was called, with its entry. The arguments are the Failure's own."""
    entry = Entry(record, event, Outcome.REFUSED, first_at, last_at, error_class)
    who = (event.event_id, event.assignment_id)
    return Failure(record, stage, error_class, error, first_at, last_at, attempts, *who, entries=(entry,))


def make_ledger_rows(
    ends: Iterable[Ends],
    *,
    contract: ContractName,
    shadow: ContractName | None = None,
    resubmission: Resubmission | None = None,
    clock: Callable[[], float],
) -> pa.Table:
    """A row of the ledger for each entry, in order. ``contract`` made the bodies for iTel, ``shadow`` those for the
    second endpoint; a row says which resubmission it is of, or who has edited its record."""
    entries = [entry for end in ends for entry in end.entries]
    now = _micros(clock())
    makers = [(shadow or contract) if one.outcome is Outcome.SHADOW else contract for one in entries]
    sent = [one.sent for one in entries]
    name = resubmission.name if resubmission else None
    return _table(
        LEDGER_SCHEMA,
        entries,
        task_id=[one.event.task_id for one in entries],
        event_type=[one.event.event_type for one in entries],
        task_status=[one.event.task_status for one in entries],
        outcome=[one.outcome.value for one in entries],
        settled=[one.outcome in SETTLED for one in entries],
        reason=[one.reason for one in entries],
        idempotency_key=[one.key if one else None for one in sent],
        contract_name=[one.name for one in makers],
        contract_version=[one.version for one in makers],
        contract_sha256=[one.sha256 for one in makers],
        body_sha256=[one.body_sha256 if one else None for one in sent],
        content_sha256=[one.content_sha256 if one else None for one in sent],
        status=[one.status for one in entries],
        attempts=[one.attempts for one in entries],
        created_id=[one.created_id for one in entries],
        latency_ms=[
            max(0.0, one.answered_at - one.first_at) * 1_000 if one.sent and one.sent.key else None for one in entries
        ],
        resubmission=[
            name if resubmission and resubmission.covers(one.event.assignment_id) else describe_edit(one.record)
            for one in entries
        ],
        traceparent=[read_trace(one.record).traceparent for one in entries],
        first_at=[_micros(one.first_at) for one in entries],
        answered_at=[_micros(one.answered_at) for one in entries],
        created_at=[now] * len(entries),
    )


def make_body_rows(ends: Iterable[Ends], *, contract: ContractName, shadow: ContractName | None = None) -> pa.Table:
    """A row for each body that was sent, in order."""
    entries = [entry for end in ends for entry in end.entries if entry.sent is not None and entry.sent.is_kept]
    sent = [one.sent for one in entries if one.sent is not None]
    return _table(
        BODIES_SCHEMA,
        entries,
        body_sha256=[one.body_sha256 for one in sent],
        contract_name=[((shadow or contract) if one.outcome is Outcome.SHADOW else contract).name for one in entries],
        body=[one.body.decode(errors="replace") for one in sent],
    )


def _table(schema: pa.Schema, entries: Sequence[Entry], **columns: list[Any]) -> pa.Table:
    """Rows of both tables: what an entry is about and where it comes from, and these columns."""
    events = [one.event for one in entries]
    columns |= {
        "event_id": [event.event_id for event in events],
        "assignment_id": [event.assignment_id for event in events],
        "project_id": [event.project_id for event in events],
        **make_origin_columns([one.record for one in entries], events),
        **make_day_columns(events),
    }
    return pa.table([pa.array(columns[field.name], type=field.type) for field in schema], schema=schema)


def _micros(moment: float) -> int:
    """Epoch seconds as the tables have instants: in whole microseconds, which Arrow takes at less cost than objects."""
    return round(moment * 1_000_000)
