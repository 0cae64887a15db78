"""The fences of a Delta table (see :mod:`itel_cabinet.io.delta.table`) for tools: looked at, moved, and moved back with
the rows by a RESTORE.

Delta undoes no ``txn`` action. The fences of a table that was restored, emptied or overwritten therefore still lie
beyond the rows that are gone; each of those costs the sink a look into the table when it comes again, until the fences
are lowered. Of several ``txn`` actions of one
id the latest counts, be it the lowest.

A change is decided at a version and committed through a handle at that version: a commit that moves one of the same
fences in between makes it fail, and any commit at all makes a restore fail. That a job runs which has nothing to write
is nowhere to be seen: stop it first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from pyarrow.fs import FileSelector, FileType

from itel_cabinet.io.delta.features import check_features
from itel_cabinet.io.delta.inspect import all_fences, among_records, at_once, open_table, storage
from itel_cabinet.io.delta.spec import TableError, TableSpec

__all__ = ["Change", "Move", "carry_out", "fences_at", "plan_fences", "plan_restore", "rows_from"]

Fences = Mapping[tuple[str, int], int]


@dataclass(frozen=True, slots=True)
class Move:
    """A partition's fence, the first offset that counts as not written, and what becomes of it; 0 is none."""

    topic_id: str
    partition: int
    before: int
    after: int


@dataclass(frozen=True)
class Change:
    """What is to be done to a table that stands at ``version``: fences moved, after its rows were restored as they
    were at ``restore``, if that is not None.
    """

    version: int
    moves: tuple[Move, ...]
    restore: int | None = None


def fences_at(spec: TableSpec, version: int | None = None) -> tuple[int, Fences]:
    """A version, by default the newest, and the fences by topic id and partition, as they were then.

    Raises TableError if the log does not have it (any more), OutageError if the table cannot be read.
    """

    def look() -> tuple[int, Fences]:
        table = _at(spec, version)
        return table.version(), _parsed(spec, all_fences(spec, table))

    return at_once(spec, look)


def plan_fences(spec: TableSpec, to: Callable[[Fences], Fences]) -> Change:
    """The change that moves fences to where ``to`` says, which is given where they are."""
    version, now = fences_at(spec)
    wanted = to(now)
    return Change(version, tuple(Move(*at, now.get(at, 0), wanted[at]) for at in sorted(wanted)))


def plan_restore(spec: TableSpec, version: int) -> Change:
    """The change that brings back rows and fences of ``version``; fences unknown then are lowered to 0.

    Raises TableError if there is nothing to go back to, or files of that version were deleted by a vacuum.
    """

    def look() -> Change:
        table = open_table(spec)
        if version >= table.version():
            raise TableError(f"{spec} is at version {table.version()}: give an older one than that, not {version}")
        then = _at(spec, version)
        paths = sorted(unquote(path) for path in _paths(then) - _paths(table))
        missing = [f.path for f in storage(spec).get_file_info(paths) if f.type == FileType.NotFound]
        if missing:
            raise TableError(
                f"{spec}: {len(missing)} files of version {version} are gone, deleted by a vacuum: give a later one"
            )
        now, back = (_parsed(spec, all_fences(spec, one)) for one in (table, then))
        moves = (Move(*at, now.get(at, 0), back.get(at, 0)) for at in sorted(now.keys() | back.keys()))
        return Change(table.version(), tuple(moves), restore=version)

    return at_once(spec, look)


def rows_from(spec: TableSpec, version: int, topic_id: str, partition: int, offsets: range) -> int:
    """How many rows of a version come from these records. Raises OutageError if the table cannot be read."""
    condition = among_records(spec, topic_id, partition, offsets)

    def look() -> int:
        found = pa.table(open_table(spec, version).scan(columns=[spec.source[2]], predicate=condition))
        return int(found.num_rows)

    return at_once(spec, look)


def carry_out(
    spec: TableSpec, change: Change, *, watch_seconds: float = 5.0, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Make a change, in one commit; the table's new version.

    Raises TableError with nothing changed if the table has left the version that the change was decided at, by now,
    within ``watch_seconds`` or at the moment of the commit; OutageError if the store fails, when it may have been made.
    """

    def work() -> int:
        table = open_table(spec, change.version)
        check_features(spec, table)
        sleep(watch_seconds)
        newest = open_table(spec).version()
        if newest != change.version:
            raise _written(spec, f"went from version {change.version} to {newest} within {watch_seconds:g} s")
        # All of them, moved or not: a writer that has decided on any of them must decide again.
        fences = {spec.fence_id(m.topic_id, m.partition): m.after for m in change.moves}
        upserts = f"{spec.fence_prefix}/upsert"
        if change.restore is not None and table.transaction_version(upserts) is not None:
            fences[upserts] = change.version + 1
        commit = CommitProperties(app_transactions=[Transaction(app, at) for app, at in fences.items()])
        try:
            if change.restore is None:
                table.create_write_transaction([], "append", table.schema(), commit_properties=commit)
                table.update_incremental()
            else:
                table.restore(change.restore, commit_properties=commit)
        except CommitFailedError:
            raise _written(spec, f"was written to after version {change.version}") from None
        return int(table.version())

    return at_once(spec, work)


def _written(spec: TableSpec, how: str) -> TableError:
    return TableError(f"{spec} {how}, so a job or command writes to it: stop it first; nothing was changed")


def _at(spec: TableSpec, version: int | None) -> DeltaTable:
    if version is None:
        return open_table(spec)
    newest = open_table(spec).version()
    try:
        return open_table(spec, version)
    except DeltaError:
        raise TableError(f"{spec} has no version {version}: its log goes from {_oldest(spec)} to {newest}") from None


def _oldest(spec: TableSpec) -> int:
    """The oldest version that can be had: the first one, or that of the oldest checkpoint left."""
    names = {info.base_name for info in storage(spec).get_file_info(FileSelector("_delta_log"))}
    if f"{0:020}.json" in names:
        return 0
    return min(int(name[:20]) for name in names if ".checkpoint" in name and name[:20].isdigit())


def _paths(table: DeltaTable) -> set[str]:
    return {*pa.table(table.get_add_actions())["path"].to_pylist()}


def _parsed(spec: TableSpec, ids: Mapping[str, int]) -> Fences:
    """The fences among a table's ``txn`` ids: not the one of all upserts, and no other writer's."""
    fences = {}
    for app, at in ids.items():
        topic_id, _, partition = app.removeprefix(f"{spec.fence_prefix}/").rpartition("/")
        if app.startswith(f"{spec.fence_prefix}/") and topic_id and partition.isdigit():
            fences[topic_id, int(partition)] = at
    return fences
