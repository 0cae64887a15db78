"""What the ledger has settled: looked up before anything is sent, at next to no cost where a day is known already."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from itel_cabinet.io.delta import PartitionFollower, TableSpec
from itel_cabinet.io.digests import DigestsByDay
from itel_cabinet.io.worker import once_per_process
from itel_cabinet.transforms.events import TaskEvent
from itel_cabinet.transforms.ledger import Outcome, Resubmission
from itel_cabinet.transforms.submitting import CREATED, NewestContents, digest_event

__all__ = ["DAYS_BACK", "SettledSubmissions", "get_settled"]

DAYS_BACK = 7
"""How many days before an event's own the ledger is looked at, for another event with the same content."""

_EVENTS_HELD = 500_000  # some 25 MB of disk
_ROWS_AT_ONCE = 10_000  # that become objects of Python
_COLUMNS = (
    *("event_id", "assignment_id", "settled", "outcome", "status", "idempotency_key", "content_sha256"),
    *("resubmission", "answered_at"),
)
_BATCH_KEY = "batch-[0-9a-f]{64}"


class SettledSubmissions:
    """The ledger, as the process has read it: which events are settled, day by day, and what iTel has of an assignment.

    The rows of a day are read when an event of it first comes, with those of the :data:`DAYS_BACK` days before; then
    only files that are new. Of an event a digest is held, of ``most`` events in all; days that were not asked for the
    longest go first. Without ``compare`` no content is held to be unchanged. Thread-safe. Methods raise OutageError
    when the table store has been away for too long, and as :class:`DigestsByDay` does.
    """

    def __init__(self, spec: TableSpec, *, compare: bool = True, most: int = _EVENTS_HELD) -> None:
        self.newest = NewestContents(math.inf if compare else 0.0)
        self._compare = compare
        self._follower = PartitionFollower(spec, _COLUMNS)
        self._most = most
        self._digests = DigestsByDay()
        self._days: dict[date, None] = {}  # the one that was asked for last is the last
        self._lock = threading.Lock()

    def find_settled(self, events: Sequence[TaskEvent], resubmission: Resubmission | None = None) -> set[str]:
        """See Ledger. What was committed before the call counts, no matter by which process."""
        with self._lock:
            self._read(dict.fromkeys(event.timestamp.astimezone(UTC).date() for event in events))
            wanted: dict[str, str] = {}
            for event in events:
                name = resubmission.name if resubmission and resubmission.covers(event.assignment_id) else None
                wanted[_digest(event.event_id, name)] = event.event_id
            # Any day will do: an event that was published twice may bear the time of the day before.
            return {wanted[digest] for digest in self._digests.find(wanted)}

    def _read(self, days: dict[date, None]) -> None:
        self._follower.refresh()
        new = days.keys() - self._days.keys()
        there = {date(int(y), int(m), int(d)) for y, m, d in self._follower.partitions()} if new else set()
        before = (_days_before(new) & there) | (_days_before(days) & self._days.keys())
        for day in (*sorted(before - days.keys()), *sorted(days)):
            self._days[day] = self._days.pop(day, None)
            try:
                self._take_in_changes(day)
            except BaseException:
                self._forget(day)  # some of it may be missing
                raise
        self._make_room(days)

    def _take_in_changes(self, day: date) -> None:
        change = self._follower.read((day.year, day.month, day.day))
        if change is not None:
            rows, whole = change
            if whole:
                self._digests.forget(day)
            for few in rows.to_batches(max_chunksize=_ROWS_AT_ONCE):
                self._take_in(day, pa.Table.from_batches([few]))

    def _take_in(self, day: date, rows: pa.Table) -> None:
        settled = rows.filter(rows["settled"])
        events, names = settled["event_id"].to_pylist(), settled["resubmission"].to_pylist()
        again = (_digest(event, name) for event, name in zip(events, names, strict=True) if name is not None)
        self._digests.add(day, itertools.chain(map(_digest, events), again))
        if self._compare:
            self.newest.take(_contents(rows))

    def _make_room(self, days: dict[date, None]) -> None:
        for day in [day for day in self._days if day not in days]:
            if len(self._digests) <= self._most:
                return
            self._digests.forget(day)
            self._forget(day)

    def _forget(self, day: date) -> None:
        """Have the day read whole when it is asked for again."""
        del self._days[day]
        self._follower.forget((day.year, day.month, day.day))


def _days_before(days: Iterable[date]) -> set[date]:
    return {day - timedelta(back) for day in days for back in range(1, DAYS_BACK + 1)}


def _contents(rows: pa.Table) -> Iterator[tuple[int, float, str, bytes | None]]:
    """What iTel has of an assignment by each call: that content, or one that is not known."""
    asked = rows.filter(pc.or_(pc.is_valid(rows["idempotency_key"]), pc.equal(rows["outcome"], Outcome.UNCHANGED)))
    asked = asked.sort_by("answered_at")
    if not asked.num_rows:
        return
    keys, outcomes = asked["idempotency_key"], asked["outcome"]
    alone = pc.invert(pc.fill_null(pc.match_substring_regex(keys, f"^{_BATCH_KEY}$"), False))
    is_created = pc.fill_null(pc.equal(asked["status"], CREATED), False)
    is_new = pc.and_(pc.and_(pc.equal(outcomes, Outcome.ACCEPTED), is_created), alone)
    is_known = pc.or_(is_new, pc.equal(outcomes, Outcome.UNCHANGED))
    contents = pc.if_else(is_known, asked["content_sha256"], pa.scalar(None, pa.string()))
    at = asked["answered_at"].cast(pa.int64())  # to make datetimes costs more than all else
    columns = (asked["assignment_id"], at, asked["event_id"], contents)
    for assignment_id, moment, event_id, content in zip(*(column.to_pylist() for column in columns), strict=True):
        yield assignment_id, moment / 1_000_000, event_id, bytes.fromhex(content) if content else None


def _digest(event_id: str, resubmission: str | None = None) -> str:
    text = event_id if resubmission is None else f"{event_id}\0{resubmission}"
    return digest_event(text).hex()


@once_per_process
def get_settled(spec: TableSpec, *, compare: bool = True) -> SettledSubmissions:
    """This process's one view of a ledger; without ``compare`` no content is held to be unchanged."""
    return SettledSubmissions(spec, compare=compare)
