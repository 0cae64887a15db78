"""Which events the tables know: those with a row in the history, and those that iTel is done with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import date
from typing import NamedTuple

import pyarrow as pa

from itel_cabinet.io.delta import TableSpec, at_once, open_table
from itel_cabinet.transforms.events import parse_timestamp
from itel_cabinet.transforms.json_text import read_json

__all__ = ["EventKey", "event_key", "know_none", "make_index"]

_DAYS_KEPT = 31  # of event ids, some 10 MB a day at 100,000 events


class EventKey(NamedTuple):
    """An event by its id, and the day (UTC) of its own time, by which the tables are partitioned."""

    event_id: str
    day: date


def event_key(value: bytes | None) -> EventKey | None:
    """Which event a record of the tracking topic is about; None if it cannot be read, and so was never processed."""
    try:
        content, _ = read_json(value or b"")
        return EventKey(content["event_id"].strip(), parse_timestamp(content["timestamp"]).date())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def know_none(_: EventKey) -> bool:
    """The index of a table that there is none of."""
    return False


def make_index(spec: TableSpec, where: str = "") -> Callable[[EventKey], bool]:
    """Tells whether a table has a row of an event, of those for which ``where`` (SQL) holds. Each day is read once, its
    ids alone, when it is first asked for; then it raises OutageError if the table is unreadable. Not thread-safe."""

    @functools.lru_cache(maxsize=_DAYS_KEPT)
    def ids_of(day: date) -> frozenset[str]:
        conditions = [
            f"`year` = {day.year} AND `month` = {day.month} AND `day` = {day.day}",
            *([where] if where else []),
        ]

        def look() -> frozenset[str]:
            scan = open_table(spec).scan(columns=["event_id"], predicate=" AND ".join(conditions))
            batches = pa.RecordBatchReader.from_stream(scan)
            return frozenset(event_id for batch in batches for event_id in batch.column(0).to_pylist())

        return at_once(spec, look)

    return lambda key: key.event_id in ids_of(key.day)
