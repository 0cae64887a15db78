"""The ledger of submissions, read: what was filed of an assignment, of an event, or lately."""

from __future__ import annotations

import heapq
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from itel_cabinet.io.delta import TableSpec, at_once, literal
from itel_cabinet.pipeline.queries import open_present

__all__ = ["Filed", "find_bodies", "find_filed", "find_filed_of", "read_assignment_id", "rows_about", "scan_rows"]

Body = tuple[str, str | None, str | None]


@dataclass(frozen=True, slots=True)
class Filed:
    """A row of the ledger, by its columns."""

    row: dict[str, Any]

    @property
    def ended_at(self) -> datetime:
        """When it was answered, or given up."""
        at: datetime = self.row["answered_at"] or self.row["created_at"]
        return at

    @property
    def sent(self) -> Body:
        """What its body is known by: event, hash and contract."""
        return self.row["event_id"], self.row["body_sha256"], self.row["contract_name"]


def find_filed(
    spec: TableSpec,
    *,
    outcomes: Collection[str] = (),
    reason: str | None = None,
    assignment_id: int | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int,
) -> list[Filed]:
    """The newest ``limit`` rows of the ledger that fit all that is given, newest first; times (aware) are about their
    end. Raises TableMissingError and OutageError."""
    ended = "COALESCE(answered_at, created_at)"
    conditions = [
        f"outcome IN ({', '.join(map(literal, outcomes))})" if outcomes else "",
        f"reason = {literal(reason)}" if reason is not None else "",
        f"assignment_id = {assignment_id}" if assignment_id is not None else "",
        f"{ended} >= '{since.isoformat()}'" if since else "",
        f"{ended} < '{until.isoformat()}'" if until else "",
    ]
    rows = map(Filed, scan_rows(spec, " AND ".join(filter(None, conditions)) or None))
    return heapq.nlargest(limit, rows, key=_order)


def find_filed_of(spec: TableSpec, identity: str) -> list[Filed]:
    """All rows of the ledger about an assignment or an event, oldest first. Raises as :func:`find_filed`."""
    return sorted(map(Filed, scan_rows(spec, rows_about(identity))), key=_order)


def find_bodies(spec: TableSpec, found: Sequence[Filed]) -> dict[Body, str]:
    """What was sent, of those rows of which the table of bodies has it. Raises as :func:`find_filed`."""
    events = sorted({one.row["event_id"] for one in found})
    days = sorted({(one.row["year"], one.row["month"], one.row["day"]) for one in found})
    within = " OR ".join(f"(year = {year} AND month = {month} AND day = {day})" for year, month, day in days)
    rows = scan_rows(spec, f"({within}) AND event_id IN ({', '.join(map(literal, events))})")
    return {(row["event_id"], row["body_sha256"], row["contract_name"]): row["body"] for row in rows}


def rows_about(identity: str) -> str:
    """The condition in SQL that holds for the rows of an assignment's or an event's id: what looks like either may be
    both."""
    of_event, assignment = f"event_id = {literal(identity)}", read_assignment_id(identity)
    return of_event if assignment is None else f"({of_event} OR assignment_id = {assignment})"


def read_assignment_id(identity: str) -> int | None:
    """The assignment that an id may be of."""
    return int(identity) if re.fullmatch(r"[0-9]{1,18}", identity) else None


def scan_rows(spec: TableSpec, where: str | None, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows for which a condition in SQL holds, piece by piece. Raises TableMissingError and OutageError."""
    table = open_present(spec)
    there = [column.name for column in table.schema().fields]
    wanted = there if columns is None else [name for name in columns if name in there]
    batches = iter(pa.RecordBatchReader.from_stream(table.scan(columns=wanted, predicate=where)))
    while (batch := at_once(spec, lambda: next(batches, None))) is not None:
        yield from batch.to_pylist()


def _order(filed: Filed) -> tuple[Any, ...]:
    row = filed.row
    return filed.ended_at, row["kafka_topic_id"], row["kafka_partition"], row["kafka_offset"], row["outcome"]
