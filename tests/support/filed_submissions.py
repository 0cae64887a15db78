"""Tables about submissions as jobs leave them, made column by column, so that a hundred thousand rows are cheap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake

from itel_cabinet.io.delta import TableSpec, create_table
from itel_cabinet.pipeline.commands.shared import tables_at

__all__ = ["START", "TOPIC_ID", "append", "event", "filed", "make_tables"]

START = datetime(2026, 1, 1, tzinfo=UTC)
TOPIC_ID = "AbCdEfGhIjKlMnOpQrStUv"


def make_tables(root: object) -> dict[str, TableSpec]:
    """All tables, empty."""
    specs = tables_at(str(root), "{}")
    for spec in specs.values():
        create_table(spec)
    return specs


def event(number: int, *, event_id: str | None = None, assignment: int | None = None, **columns: Any) -> dict[str, Any]:
    """What the rows of an event have in common: the ``number``-th minute of 2026, the same offset of partition 0."""
    at = START + timedelta(minutes=number)
    return {
        "event_id": event_id or f"evt-{number:06}",
        "assignment_id": 5_000_000 + number if assignment is None else assignment,
        "project_id": "5400001",
        "event_timestamp": at,
        "event_type": "CUSTOM_TASK_COMPLETED",
        "task_id": 32513,
        "task_status": "COMPLETED",
        "status": "COMPLETED",
        "kafka_topic": "itel.cabinet.task.tracking",
        "kafka_topic_id": TOPIC_ID,
        "kafka_partition": 0,
        "kafka_offset": number,
        "processed_timestamp": at + timedelta(seconds=2),
        "created_at": at + timedelta(seconds=2),
        "updated_at": at + timedelta(seconds=2),
        "year": at.year,
        "month": at.month,
        "day": at.day,
        **columns,
    }


def filed(of: Mapping[str, Any], outcome: str, reason: str | None = None, **columns: Any) -> dict[str, Any]:
    """A row of the ledger about an event."""
    settled = outcome in ("accepted", "duplicate", "unchanged")
    at = of["event_timestamp"] + timedelta(seconds=3)
    return {
        **of,
        "status": None,
        "outcome": outcome,
        "settled": settled,
        "reason": reason,
        "answered_at": at,
        **columns,
    }


def append(spec: TableSpec, rows: Sequence[Mapping[str, Any]]) -> None:
    """Commit rows; of each only the columns that the table has, null where it has none."""
    columns = [pa.array([row.get(column.name) for row in rows], column.type) for column in spec.schema]
    schema = pa.schema([pa.field(column.name, column.type) for column in spec.schema])
    write_deltalake(
        spec.uri, pa.table(columns, schema=schema), mode="append", storage_options=dict(spec.storage_options)
    )
