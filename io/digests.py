"""Digests by day in a temporary database, so that a process's memory stays as it is however many they become."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date

from itel_cabinet.io.worker import RefusedError

__all__ = ["DigestsByDay"]

_AT_ONCE = 10_000


class DigestsByDay:
    """Digests as texts, each taken in for one or more days. Not thread-safe.

    Two megabytes lie in memory, the rest in a file without a name in SQLite's folder for temporary files
    (``SQLITE_TMPDIR``, else ``TMPDIR``). Methods raise RefusedError when that cannot be written.
    """

    def __init__(self) -> None:
        # Each call is one statement: SQLite's steps hand Python's lock over, and it is milliseconds until it is back.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._count = 0
        with _failing():
            self._database.execute("CREATE TABLE held (digest TEXT, day INT, PRIMARY KEY (digest, day)) WITHOUT ROWID")

    def __len__(self) -> int:
        return self._count

    def find(self, digests: Iterable[str]) -> set[str]:
        """Those of ``digests`` that are held, for any day."""
        there = (
            "SELECT json_group_array(value) FROM json_each(?) WHERE EXISTS (SELECT 1 FROM held WHERE digest = value)"
        )
        with _failing():
            (found,) = self._database.execute(there, (json.dumps([*digests]),)).fetchone()
        return set(json.loads(found))

    def add(self, day: date, digests: Iterable[str]) -> None:
        """Take in digests; what is there already changes nothing."""
        rest = iter(digests)
        while some := sorted(itertools.islice(rest, _AT_ONCE)):  # neighbours share pages
            insert = "INSERT OR IGNORE INTO held SELECT value, ? FROM json_each(?)"
            with _failing():
                self._count += self._database.execute(insert, (day.toordinal(), json.dumps(some))).rowcount

    def forget(self, day: date) -> None:
        """Hold nothing for a day."""
        with _failing():
            self._count -= self._database.execute("DELETE FROM held WHERE day = ?", (day.toordinal(),)).rowcount


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise RefusedError(
            f"the events that are settled cannot be kept in a temporary file: {error}: "
            "free some space, or set SQLITE_TMPDIR to a folder that has it"
        ) from None
