"""How a replayed record is marked: for which group it is, which record it repeats, what has been done already, and who
has edited it.

A replay is the original's bytes on the original's topic, under new coordinates, with four headers more, and in the
original's trace. All functions are pure and thread-safe.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from itel_cabinet.transforms.records import Record
from itel_cabinet.transforms.trace_context import TRACE_HEADERS, make_trace, read_own_trace

__all__ = [
    "EDITED_AT",
    "EDITED_BY",
    "EDIT_OF",
    "REPLAY_COUNT",
    "REPLAY_FOR",
    "REPLAY_OF",
    "REPLAY_TRACKED",
    "Edit",
    "Headers",
    "count_replays",
    "describe_edit",
    "find_original",
    "has_row",
    "is_editor",
    "is_for_other_group",
    "make_edit",
    "make_replay_headers",
    "read_edit",
]

Headers = tuple[tuple[str, bytes | None], ...]

REPLAY_FOR = "x-replay-for"
"""The consumer group a replay is meant for. Jobs of other groups leave it alone."""
REPLAY_OF = "x-replay-of"
"""The coordinates of the record whose dead letter was replayed."""
REPLAY_COUNT = "x-replay-count"
"""How often the event has been replayed by now: 1 for the first time."""
REPLAY_TRACKED = "x-replay-tracked"
"""There if the event's row is in the tracking table: it failed on its way to iTel, and must get no second row."""

EDITED_BY = "x-edited-by"
"""Who has changed the value of the original by hand."""
EDITED_AT = "x-edited-at"
"""When: ISO 8601, UTC."""
EDIT_OF = "x-edit-of"
"""Coordinates of the original, and the SHA-256 (hex) of its value and of the new one, parted by spaces."""

_OURS = frozenset({REPLAY_FOR, REPLAY_OF, REPLAY_COUNT, REPLAY_TRACKED})
_EDIT = frozenset({EDITED_BY, EDITED_AT, EDIT_OF})
_EDITOR = re.compile(r"(?! )[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,100}")
_EDIT_OF = re.compile(r"([\x21-\x7e]{1,300}) ([0-9a-f]{64}) ([0-9a-f]{64})")
_INSTANT = re.compile(r"[0-9T:+.Z-]{10,40}")


@dataclass(frozen=True, slots=True)
class Edit:
    """A value that a person has put in the place of a record's: ``by`` whom, ``at`` (ISO 8601, UTC), ``of`` which
    coordinates, and the SHA-256 (hex) of the value ``before`` and ``after``."""

    by: str
    at: str
    of: str
    before: str
    after: str

    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]:
        """The marks of the edited record."""
        marks = ((EDITED_BY, self.by), (EDITED_AT, self.at), (EDIT_OF, f"{self.of} {self.before} {self.after}"))
        return tuple((name, value.encode()) for name, value in marks)


def is_editor(name: str) -> bool:
    """Whether a name can stand for one who edits: 1 to 100 characters on one line."""
    return _EDITOR.fullmatch(name) is not None


def make_edit(record: Record, value: bytes, *, by: str, now: float) -> Edit:
    """The mark of ``value`` in the place of the record's, at ``now`` (epoch seconds)."""
    at = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    return Edit(by, at, record.coordinates, _sha256(record.value), _sha256(value))


def read_edit(headers: Iterable[tuple[str, bytes | None]]) -> Edit | None:
    """The mark among a record's headers, or those of the note of its replay; None without one, and for one that is not
    as :class:`Edit` writes it."""
    found = {name: (value or b"").decode(errors="replace") for name, value in headers if name in _EDIT}
    of = _EDIT_OF.fullmatch(found.get(EDIT_OF, ""))
    if of is None or not _INSTANT.fullmatch(found.get(EDITED_AT, "")) or not is_editor(found.get(EDITED_BY, "")):
        return None
    return Edit(found[EDITED_BY], found[EDITED_AT], *of.groups())


def describe_edit(record: Record) -> str | None:
    """One line on who has edited a record and which it was; None for one that nobody has."""
    edit = read_edit(record.headers) if record.headers else None
    return None if edit is None else f"edited by {edit.by}: {edit.of}"


def _sha256(value: bytes | None) -> str:
    return hashlib.sha256(value or b"").hexdigest()


def is_for_other_group(record: Record, group: str) -> bool:
    """Whether this is a replay for another consumer group than ``group``."""
    headers = record.headers
    return bool(headers) and any(name == REPLAY_FOR and value != group.encode() for name, value in headers)


def has_row(record: Record) -> bool:
    """Whether this is a replay of an event that the tracking table has under earlier coordinates."""
    return bool(record.headers) and any(name == REPLAY_TRACKED for name, _ in record.headers)


def count_replays(record: Record) -> int:
    """How often the event had been replayed when this record was written; 0 where the header makes no sense."""
    counts = [value or b"" for name, value in record.headers if name == REPLAY_COUNT]
    return max((int(count) for count in counts if re.fullmatch(rb"[0-9]{1,9}", count)), default=0)


def find_original(record: Record) -> str | None:
    """The coordinates of the record that this is a replay of; None for any other."""
    return next((value.decode(errors="replace") for name, value in record.headers if name == REPLAY_OF and value), None)


def make_replay_headers(record: Record, *, group: str, count: int, tracked: bool, edit: Edit | None = None) -> Headers:
    """The headers of a replay of ``record``: its own, without those of an earlier replay, and ours. The trace context
    of a record that has no valid one is made of its coordinates, and the replay has others: so it is put in.

    Args:
        group: the consumer group that is to read it.
        count: how often the event has been replayed, this time included.
        tracked: the event has its row in the tracking table.
        edit: what has been done to its value by hand, in the place of what had been done before.
    """
    dropped = _OURS if edit is None else _OURS | _EDIT
    own = tuple((name, value) for name, value in record.headers if name not in dropped)
    if read_own_trace(record) is None:
        made = make_trace(record.coordinates).headers.items()
        own = tuple((name, value) for name, value in own if name.lower() not in TRACE_HEADERS)
        own += tuple((name, value.encode()) for name, value in made)
    marks: Headers = (
        (REPLAY_FOR, group.encode()),
        (REPLAY_OF, record.coordinates.encode()),
        (REPLAY_COUNT, str(count).encode()),
    )
    marks += edit.headers if edit is not None else ()
    return own + marks + (((REPLAY_TRACKED, b"yes"),) if tracked else ())
