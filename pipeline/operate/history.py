"""ClaimX's answers as the tracking table has kept them: what a contract can be tried on, and forms made of again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from itel_cabinet.io.delta import TableSpec, open_table
from itel_cabinet.transforms.enrichment import COMPLETED
from itel_cabinet.transforms.events import TaskEvent
from itel_cabinet.transforms.forms import TaskDetails, parse_details

__all__ = ["details_of", "event_of", "read_answers"]

_EVENT = ("event_id", "event_type", "project_id", "task_id", "assignment_id", "task_status", "task_name")
_COLUMNS = (*_EVENT, "event_timestamp", "claimx_task_full")


def read_answers(
    spec: TableSpec,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    where: str = "",
    columns: Sequence[str] = _COLUMNS,
    more: Sequence[str] = (),
) -> Iterator[pa.RecordBatch]:
    """The rows of completed events whose answer is kept, in batches as the table's files have them.

    Args:
        spec: the tracking table's.
        since: only events of then or later (aware), and ``until``: before then.
        where: a further condition in SQL.
        columns: what is read; by default what forms and bodies are made of, and ``more``: further columns.
    """
    conditions = [f"task_status = '{COMPLETED}'", "claimx_task_full IS NOT NULL", *([where] if where else [])]
    conditions += [f"event_timestamp >= '{since.isoformat()}'"] if since else []
    conditions += [f"event_timestamp < '{until.isoformat()}'"] if until else []
    scan = open_table(spec).scan(columns=[*dict.fromkeys((*columns, *more))], predicate=" AND ".join(conditions))
    yield from pa.RecordBatchReader.from_stream(scan)


def event_of(row: Mapping[str, Any]) -> TaskEvent:
    """The event of a row, as far as forms and bodies need it."""
    event = {name: row[name] for name in _EVENT} | {"timestamp": row["event_timestamp"]}
    return TaskEvent.model_construct(**event, trigger_name=None, task=None, project=None, media_ids=None)


def details_of(row: Mapping[str, Any]) -> TaskDetails:
    """ClaimX's answer in a row. Raises WrongShapeError."""
    return parse_details(row["claimx_task_full"].encode(), row["assignment_id"])
