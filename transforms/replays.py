"""How a replayed record is marked: for which group it is, which record it repeats, and what has been done already.

A replay is the original's bytes on the original's topic, under new coordinates, with four headers more, and in the
original's trace. All functions
are pure and thread-safe.
"""

from __future__ import annotations

import re

from itel_cabinet.transforms.records import Record
from itel_cabinet.transforms.trace_context import TRACE_HEADERS, make_trace, read_own_trace

__all__ = [
    "REPLAY_COUNT",
    "REPLAY_FOR",
    "REPLAY_OF",
    "REPLAY_TRACKED",
    "count_replays",
    "find_original",
    "has_row",
    "is_for_other_group",
    "make_replay_headers",
]

REPLAY_FOR = "x-replay-for"
"""The consumer group a replay is meant for. Jobs of other groups leave it alone."""
REPLAY_OF = "x-replay-of"
"""The coordinates of the record whose dead letter was replayed."""
REPLAY_COUNT = "x-replay-count"
"""How often the event has been replayed by now: 1 for the first time."""
REPLAY_TRACKED = "x-replay-tracked"
"""There if the event's row is in the tracking table: it failed on its way to iTel, and must get no second row."""

_OURS = frozenset({REPLAY_FOR, REPLAY_OF, REPLAY_COUNT, REPLAY_TRACKED})


def is_for_other_group(record: Record, group: str) -> bool:
    """Whether this is a replay for another consumer group than ``group``."""
    return any(name == REPLAY_FOR and value != group.encode() for name, value in record.headers)


def has_row(record: Record) -> bool:
    """Whether this is a replay of an event that the tracking table has under earlier coordinates."""
    return any(name == REPLAY_TRACKED for name, _ in record.headers)


def count_replays(record: Record) -> int:
    """How often the event had been replayed when this record was written; 0 where the header makes no sense."""
    counts = [value or b"" for name, value in record.headers if name == REPLAY_COUNT]
    return max((int(count) for count in counts if re.fullmatch(rb"[0-9]{1,9}", count)), default=0)


def find_original(record: Record) -> str | None:
    """The coordinates of the record that this is a replay of; None for any other."""
    return next((value.decode(errors="replace") for name, value in record.headers if name == REPLAY_OF and value), None)


def make_replay_headers(
    record: Record, *, group: str, count: int, tracked: bool
) -> tuple[tuple[str, bytes | None], ...]:
    """The headers of a replay of ``record``: its own, without those of an earlier replay, and ours. The trace context
    of a record that has no valid one is made of its coordinates, and the replay has others: so it is put in.

    Args:
        group: the consumer group that is to read it.
        count: how often the event has been replayed, this time included.
        tracked: the event has its row in the tracking table.
    """
    own = tuple((name, value) for name, value in record.headers if name not in _OURS)
    if read_own_trace(record) is None:
        made = make_trace(record.coordinates).headers.items()
        own = tuple((name, value) for name, value in own if name.lower() not in TRACE_HEADERS)
        own += tuple((name, value.encode()) for name, value in made)
    marks: tuple[tuple[str, bytes | None], ...] = (
        (REPLAY_FOR, group.encode()),
        (REPLAY_OF, record.coordinates.encode()),
        (REPLAY_COUNT, str(count).encode()),
    )
    return own + marks + (((REPLAY_TRACKED, b"yes"),) if tracked else ())
