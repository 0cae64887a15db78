"""A small history whose every answer can be told by hand: nine assignments in three projects, and what goes wrong.

It holds events that are there twice, that came late, without creation or completion time, with a status that nobody
knows, reassignments, a resubmission, a completion before its creation, and hostile text. The rows are made by the real
transforms and committed by the real sink, in two commits: versions 1 and 2 of the tracking table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from itel_cabinet.io.delta import FencedTable, TableSpec, create_table
from itel_cabinet.pipeline.commands.shared import table_settings
from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS, LEDGER, TRACKING, table_specs
from itel_cabinet.transforms.enrichment import CabinetTask
from itel_cabinet.transforms.events import TaskEvent, parse_event
from itel_cabinet.transforms.rows import make_attachment_rows, make_form_rows, make_tracking_rows
from tests.support.cabinet_samples import TASK_IDS, details, group, parse_form, question, record, tracking_message
from tests.support.filed_submissions import append, event, filed

__all__ = ["HOSTILE", "NOW", "PERSON", "PROJECTS", "Told", "at", "form", "specs", "write"]

NOW = "2026-02-10T00:00:00Z"
HOSTILE = "=1+1 <script>alert('é')</script>"
PERSON = ("Quentin", "Zebrowski", "quentin@zebrowski.example", "5550199")
"""First name, last name, e-mail and phone of every customer: nothing of it belongs into a report."""

PROJECTS = {
    **dict.fromkeys((101, 102, 107, 108), "5400001"),
    **dict.fromkeys((103, 104, 105, 109), "5400002"),
    106: HOSTILE,
}


def at(text: str) -> datetime:
    """``01-05T09:00`` is of 2026, ``2025-12-31T23:00`` is whole; in UTC."""
    return datetime.fromisoformat(text if text.count("-") > 1 else f"2026-{text}").replace(tzinfo=UTC)


def specs(root: str) -> dict[str, TableSpec]:
    return table_specs(table_settings(tables_root=root))


def write(root: str, *batches: Sequence[Told]) -> None:
    """Make the tables in ``root`` and fill them, a commit for each of ``batches``; without any, with the known history
    in two, and what became of its submissions.
    """
    tables = {name: FencedTable(spec) for name, spec in specs(root).items()}
    for batch in batches or (_FIRST, _SECOND):
        told = [(one.task(), one.processed()) for one in batch]
        tracked = [row for task, now in told for row in make_tracking_rows([task], clock=now.timestamp).to_pylist()]
        assert tables[TRACKING].write(tracked).version is not None
        tables[FORMS].write([row for task, now in told for row in make_form_rows([task], clock=now.timestamp)])
        photos = [row for task, now in told for row in make_attachment_rows([task], clock=now.timestamp).to_pylist()]
        tables[ATTACHMENTS].write(photos)
    create_table(tables[LEDGER].spec)
    if not batches:
        events = {one.event_id: one for one in (*_FIRST, *_SECOND)}
        append(tables[LEDGER].spec, [_filed(events[of], *rest) for of, *rest in _SUBMISSIONS])


def _filed(of: Told, outcome: str, reason: str | None, minutes: float, latency_ms: float | None) -> dict[str, Any]:
    moment = at(of.when) + timedelta(minutes=minutes)
    partition, offset = of.place
    like = {"assignment_id": of.assignment, "project_id": of.project or PROJECTS[of.assignment]}
    place = {"kafka_partition": partition, "kafka_offset": offset, "event_timestamp": at(of.when)}
    when = {"answered_at": moment, "created_at": moment, "latency_ms": latency_ms}
    return filed(event(0, event_id=of.event_id, **like, **place), outcome, reason, **when)


@dataclass(frozen=True)
class Told:
    """An event and what ClaimX says of its task; ``lag`` seconds lie between the event and its row."""

    place: tuple[int, int]  # partition and offset
    event_id: str
    status: str
    when: str
    assignment: int
    user: int | None = None
    created: str | None = None
    completed: str | None = None
    lag: float = 2.0
    kind: str | None = None
    form: list[Any] | None = None
    project: str | None = None

    def processed(self) -> datetime:
        return at(self.when) + timedelta(seconds=self.lag)

    def task(self) -> CabinetTask:
        message = tracking_message(
            event_id=self.event_id,
            event_type=f"CUSTOM_TASK_{self.kind or self.status.upper()}",
            task_status=self.status,
            timestamp=at(self.when).isoformat(),
            assignment_id=self.assignment,
            project_id=self.project or PROJECTS[self.assignment],
            task=None,
        )
        partition, offset = self.place
        source = replace(record(message), partition=partition, offset=offset)
        event = parse_event(source, 0.0, task_ids=TASK_IDS)
        assert isinstance(event, TaskEvent), event
        first, last, email, phone = PERSON
        known = details(
            *(self.form or ()),
            assigneeId=self.user,
            assignorId=900,
            dateAssigned=self.created and at(self.created).isoformat(),
            dateCompleted=self.completed and at(self.completed).isoformat(),
            assignor=email,
            externalLinkData={"url": "https://x", "firstName": first, "lastName": last, "email": email, "phone": phone},
        )
        return CabinetTask(source, event, known, None if self.form is None else parse_form(known))


def form(*answers: tuple[str, str, Any], photos: tuple[int, ...] = ()) -> list[Any]:
    overview = [group("Overview", question("Upload Overview Photo(s)", list(photos)))] if photos else []
    return [group(where, question(asked, answer)) for where, asked, answer in answers] + overview


_DAMAGED = "Cabinet Types Damaged"
_FEET = "Linear Feet Capture"

_FIRST = [
    Told((0, 0), "a1", "ASSIGNED", "01-05T09:00", 101, user=11, created="01-05T08:00"),
    Told(
        (0, 1), "a2", "COMPLETED", "01-06T10:30", 101, user=11, created="01-05T08:00", completed="01-06T10:00",
        form=form(
            (_DAMAGED, "Lower Cabinets Damaged?", "Yes"),
            (_FEET, "Lower Cabinets (linear feet)", 12.5),
            ("Lower Cabinets", "Enter Number of Damaged Lower Boxes", 3),
            photos=(7001, 7002),
        ),
    ),
    Told((1, 0), "b1", "ASSIGNED", "01-07T12:00", 102, user=11, created="01-07T11:00", lag=4),
    Told(
        (1, 1), "b3", "COMPLETED", "02-01T12:00", 102, user=12, created="01-07T11:00", completed="02-01T11:00", lag=5,
        form=form(
            (_DAMAGED, "Lower Cabinets Damaged?", "No"),
            (_FEET, "Lower Cabinets (linear feet)", 4),
            (_DAMAGED, "Upper Cabinets Damaged?", "Yes"),
            (_FEET, "Upper Cabinets (linear feet)", 8),
            ("Upper Cabinets", "Enter Number of Damaged Upper Boxes", 2),
        ),
    ),
    # Late: before b3 by its time, after it by its offset.
    Told((1, 2), "b2", "ASSIGNED", "01-08T12:00", 102, user=12, created="01-07T11:00"),
    Told((2, 0), "c1", "ASSIGNED", "01-20T00:00", 103, user=13, created="01-19T23:00"),
    Told((2, 1), "i1", "assigned", "2025-12-31T23:00", 109, user=14, created="2025-12-31T22:00"),
    Told(
        (2, 2), "i2", "COMPLETED", "01-01T01:00", 109, user=14, created="2025-12-31T22:00", completed="01-01T00:30",
        form=form(
            (_DAMAGED, "Full Height Cabinets Damaged?", "Yes, all"),
            (_FEET, "Full-Height Cabinets (linear feet)", 7.25),
        ),
    ),
]  # fmt: skip
_SECOND = [
    Told((2, 3), "c2", "ON_HOLD", "01-25T00:00", 103, user=13, created="01-19T23:00", kind="UPDATED"),
    # There twice: the copy of the lower partition counts.
    Told((2, 4), "d1", "COMPLETED", "01-31T23:30", 104, completed="01-31T23:00"),
    Told((0, 4), "d1", "COMPLETED", "01-31T23:31", 104, completed="01-31T23:00"),
    # There twice: the copy of the lower offset counts.
    Told((0, 2), "a1", "ASSIGNED", "01-05T09:05", 101, user=11, created="01-05T08:00", lag=50),
    Told((0, 3), "e1", "ASSIGNED", "02-01T00:00", 105, user=12, created="02-01T00:00"),
    Told((0, 6), "e2", "CANCELLED", "02-02T00:00", 105, user=12, created="02-01T00:00"),
    Told((0, 5), "f1", "ASSIGNED", "02-09T12:00", 106, user=11, created="02-09T12:00"),
    Told((1, 3), "g1", "COMPLETED", "02-05T01:00", 107, user=13, created="02-05T00:00", completed="02-04T00:00"),
    Told(
        (1, 4), "h1", "COMPLETED", "01-10T06:00", 108, user=12, created="01-10T00:00", completed="01-10T05:30",
        form=form(
            (_DAMAGED, "Island Cabinets Damaged?", "Yes"),
            ("Island Cabinets", "Enter Number of Damaged Island Boxes", 1),
            photos=(7003,),
        ),
    ),
    # Sent once more, without its photo, and nobody says when it was completed.
    Told(
        (1, 5), "h2", "COMPLETED", "01-12T00:00", 108, user=12, created="01-10T00:00",
        form=form(
            (_DAMAGED, "Island Cabinets Damaged?", "Yes"),
            (_FEET, "Island Cabinets (linear feet)", 6.5),
            ("Island Cabinets", "Enter Number of Damaged Island Boxes", 2),
        ),
    ),
]  # fmt: skip
# Event, outcome, reason, minutes after the event, milliseconds of the calls.
_SUBMISSIONS: list[tuple[Any, ...]] = [
    ("a2", "accepted", None, 1, 100.0),
    ("b3", "refused", "timeout", 1, 30_000.0),
    ("i2", "refused", "timeout", 1, 30_000.0),
    ("i2", "accepted", None, 60, 200.0),
    ("d1", "refused", "no_form", 1, None),
    # Nothing of g1; and iTel has the newer form of h1's assignment.
    ("h1", "held", None, 1, None),
    ("h2", "duplicate", None, 1, 60.0),
    ("h2", "shadow", None, 1, 80.0),
]
