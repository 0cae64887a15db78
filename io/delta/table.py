"""A Delta table whose commits carry fences, so that each record's rows are written once. Needs no Beam.

Every commit carries, for each partition in it, a Delta ``txn`` action: application id ``{prefix}/{topic
id}/{partition}``, version = highest offset + 1. Before a commit the sink brings its handle up to date, reads the
fences, drops of the rows below them those that the table has, and commits the rest *through that same handle*, with the
fences in the same commit. If anyone committed a fence of the same id after the version that the decision was based on,
delta-rs refuses the commit, and the sink decides again. Without the same handle this does not hold: a fresh one is
newer than the decision, and the commit would be let through.

What is asked of the source: within a partition, offsets grow, and a record's rows are all in one bundle. Gaps are
welcome. Above a fence nothing is looked up; below it the table's own rows decide. So what failed at first, what was
deleted or lost to a RESTORE, and what lies at old offsets of a log that was brought back from a backup, is written when
it is read (again), and counted as late.

Upserts (:class:`Upsert`) are decided likewise: the rows of the table that they meet are read at the handle's version, a
pure function (:func:`~itel_cabinet.io.delta.decisions.decide`) says what changes, and one merge makes it so. All
upserts of a table share one more id, ``{prefix}/upsert``, so that of two at once one always decides again, no matter
what delta-rs knows of the files they touch.
"""

from __future__ import annotations

import functools
import logging
import random as _random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.table import TableMerger

from itel_cabinet.io.delta.decisions import (
    columns_of_other_versions,
    decide,
    leave_newer,
    offsets_of,
    split_by_fence,
)
from itel_cabinet.io.delta.files import FILE, KeyedFiles, can_be_rewritten
from itel_cabinet.io.delta.inspect import (
    AFTER_COMMIT,
    UPSERT_FILE_BYTES,
    among_records,
    check_writable,
    error_text,
    is_outage,
    literal,
    open_or_create,
    open_table,
    refusal,
)
from itel_cabinet.io.delta.rows import Rows, complete, gather, last_of_each, number_rows, rows_in
from itel_cabinet.io.delta.spec import (
    Append,
    Given,
    Row,
    TableSpec,
    Upsert,
    WriteResult,
)
from itel_cabinet.io.delta.suppressions import ANNOUNCED, Suppressions, get_suppressions
from itel_cabinet.io.worker import OutageError, crash_points, full_jitter, metrics, once_per_process, retry_outage

__all__ = [
    "FencedTable",
    "get_table",
]

_LOGGER = logging.getLogger(__name__)

T = TypeVar("T")

_CONFLICT_WAITS = (0.02, 1.0)  # seconds: the first and the longest, before jitter; a commit takes about 0.02
_MOST_LITERALS = 100
# Each file costs delta-rs time and memory at every commit (0.2 ms of CPU), so small ones are put together; in files
# that a worker can hold, not in the large ones that `optimize` makes.
_APPEND_FILE_BYTES = 8 * 1024 * 1024
# The writer holds a row group until it is full; of the usual million rows that is the worker's memory.
_PARQUET = WriterProperties(max_row_group_size=4_096, compression="SNAPPY")
_GONE = "__gone"  # column of a revision's source: this row is removed
_TOUCH = "__touch"  # column of the merge's source: this row only leaves its set


class FencedTable:
    """One table's handle, and the lock under which this process commits to it. Usable without Beam.

    Thread-safe. Two instances for one table behave like two processes. ``clock``, ``sleep`` and ``random`` are for
    tests.
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self.spec = spec
        self._clock, self._sleep, self._random = clock, sleep, random
        self._lock = threading.Lock()
        self._handle: DeltaTable | None = None
        self._seen = False  # the table was there once: never made again by this process
        self._fences: dict[str, int | None] = {}  # at self._fences_version; saves reading the log for each partition
        self._fences_version = -1
        self._commits = 0

    def write(self, rows: Given) -> WriteResult:
        """Commit those of ``rows`` that are not committed yet, all in one version, and say which were which.

        A batch's columns have the specification's types; those that it lacks are null. Idempotent: after an exception
        or a crash, even if the commit was made, write the same rows again. Raises RowError and TableError with nothing
        written, and OutageError after ``outage_seconds``.
        """
        if not len(rows):
            return WriteResult(self.spec.name, None, [], [])
        gathered = functools.cache(functools.partial(gather, self.spec, rows))  # once the table is known to fit
        return self._patiently(lambda conflicts: replace(self._attempt(gathered), conflicts=conflicts))

    def add_columns(self) -> None:
        """Give the table the columns of the specification that it lacks, as nullable. Idempotent; :meth:`write` does so
        too. Raises as that does."""
        self._patiently(lambda _: self._refreshed())

    def select(self, columns: Sequence[str], where: str) -> list[Row]:
        """Some columns of the rows that meet a condition in SQL, as of now. Raises as :meth:`write` does."""

        def read(_: int) -> list[Row]:
            rows: list[Row] = pa.table(self._refreshed().scan(columns=list(columns), predicate=where)).to_pylist()
            return rows

        return self._patiently(read)

    def fill(self, rows: Sequence[Row], column: str) -> int:
        """Give rows of an upserted table what was not known when they were written; how many rows have it now.

        ``rows`` hold the keys, ``column`` and what else is to be set. A row of the table takes them if it still has no
        ``column``; it keeps its place in the order, so what is newer still wins. Rows that are not there are not made,
        and no partition's fence moves: a fill has no source. Beside upserts it is safe: of two at once one decides
        again. Idempotent. Raises as :meth:`write` does.
        """
        return self._patiently(lambda _: self._fill(rows, column)) if rows else 0

    def read(self, where: str) -> list[Row]:
        """The rows that meet a condition in SQL, as of now, with all that the specification has, and what this
        program's other versions have written into columns that it lacks. Raises as :meth:`write` does."""

        def read(_: int) -> list[Row]:
            table = self._refreshed()
            columns = [*self.spec.schema.names, *columns_of_other_versions(self.spec, table.schema())]
            rows: list[Row] = pa.table(table.scan(columns=columns, predicate=where)).to_pylist()
            return rows

        return self._patiently(read)

    def revise(self, rows: Sequence[Row], gone: Sequence[Row], columns: Sequence[str]) -> int:
        """Put rows of an upserted table right, in one commit; how many were changed, made or removed.

        No partition's fence moves: nothing was read. A group (what agrees on ``members_of``, or a row) is left alone if
        the table has it newer by now. Beside upserts it is safe: of two at once one decides again. Idempotent. Raises
        as :meth:`write` does.

        Args:
            rows: as they should be, with their keys and order; new ones complete.
            gone: keys and order of rows that should not be there.
            columns: what is set in rows that are there already.
        """
        return self._patiently(lambda _: self._revise(rows, gone, columns)) if rows or gone else 0

    def _patiently(self, attempt: Callable[[int], T]) -> T:
        """The outcome of an attempt that neither an outage nor another writer has ruined; it counts its conflicts."""
        with self._lock:
            return retry_outage(
                lambda: self._until_decided(attempt),
                what=str(self.spec),
                seconds=self.spec.outage_seconds,
                is_outage=is_outage,
                describe=functools.partial(error_text, self.spec),
                clock=self._clock,
                sleep=self._sleep,
                random=self._random,
            )

    def _until_decided(self, attempt: Callable[[int], T]) -> T:
        deadline = self._clock() + self.spec.outage_seconds
        for conflicts, wait in enumerate(full_jitter(*_CONFLICT_WAITS, self._random)):
            try:
                return attempt(conflicts)
            except CommitFailedError as error:
                metrics.COMMIT_CONFLICTS.labels(self.spec.name).inc()
                _LOGGER.debug("%s: %s; deciding again", self.spec, error_text(self.spec, error))
                if self._clock() >= deadline:
                    raise OutageError(
                        f"{self.spec}: lost against other writers for {self.spec.outage_seconds:.0f} s "
                        f"({error_text(self.spec, error)}); run fewer of them, with larger bundles"
                    ) from error
                self._sleep(wait)
            except Exception as error:
                # Opened again by the next attempt, with fresh credentials and the newest version.
                self._handle = None
                metrics.COMMIT_FAILURES.labels(self.spec.name).inc()
                refused = refusal(self.spec, error)
                if refused is not None:
                    raise refused from None
                raise
        raise AssertionError("the waits never end")

    def _attempt(self, gathered: Callable[[], pa.Table]) -> WriteResult:
        table, given = self._refreshed(), gathered()
        rows = self._keep_others(given)
        unwanted = given.num_rows - rows.num_rows
        fence = functools.partial(self._fence, table)
        fresh, replayed, offsets = split_by_fence(self.spec, rows, fence)
        late = _late_records(self.spec, table, replayed.table)
        if late.num_rows:
            _LOGGER.warning(
                "%s: %d rows below the fence are not in the table, and are written now; the first is of %s/%d/%d",
                self.spec, late.num_rows, *min(zip(*late.select(self.spec.source).to_pydict().values(), strict=True)),
            )  # fmt: skip
            fresh, replayed, offsets = split_by_fence(self.spec, rows, fence, late)
        fences = {self.spec.fence_id(*at): offset for at, offset in offsets.items()}
        write = self._plan(table, fresh.table) if fresh else None
        if write is None:
            return WriteResult(self.spec.name, None, fresh, replayed, suppressed=unwanted)

        version = table.version()
        if isinstance(self.spec.mode, Upsert):
            fences[_upsert_fence(self.spec)] = version + 1
        crash_points.maybe_crash(f"before-commit:{self.spec.name}")
        # delta-rs's own retries stay on: they re-base over commits that share no fence with this one, and only those.
        write(CommitProperties(app_transactions=[Transaction(app, at) for app, at in fences.items()]))
        crash_points.maybe_crash(f"after-commit:{self.spec.name}")
        if table.version() == version + 1:  # else others' commits lie between, with fences that were not read
            self._fences |= fences
            self._fences_version = table.version()
        result = WriteResult(self.spec.name, table.version(), fresh, replayed, late=late.num_rows, suppressed=unwanted)
        self._compact(table)
        return result

    def _fill(self, rows: Sequence[Row], column: str) -> int:
        table, mode = self._refreshed(), self.spec.mode
        assert isinstance(mode, Upsert)
        given = dict.fromkeys((*mode.keys, column, *(c for row in rows for c in row)))
        source = gather(self.spec, rows)
        source = complete(self.spec, source, pa.schema([self.spec.schema.field(c).with_nullable(True) for c in given]))
        merger = _merger(self.spec, table, source, source[_first_key(mode)]).when_matched_update(
            {f"`{c}`": f"s.`{c}`" for c in given if c not in mode.keys}, predicate=f"t.`{column}` IS NULL"
        )
        crash_points.maybe_crash(f"before-commit:{self.spec.name}")
        return int(merger.execute()["num_target_rows_updated"])

    def _revise(self, rows: Sequence[Row], gone: Sequence[Row], columns: Sequence[str]) -> int:
        table, mode = self._refreshed(), self.spec.mode
        assert isinstance(mode, Upsert)
        schema = pa.schema([f.with_nullable(True) for f in self.spec.schema])
        revised, removed = (complete(self.spec, gather(self.spec, part), schema) for part in (rows, gone))
        revised = self._keep_others(revised)
        existing = _rows_met(self.spec, table, pa.concat_tables([revised, removed]))
        kept, left = leave_newer(self.spec, revised, removed, existing)
        source = pa.concat_tables([kept, left])
        if not source.num_rows:
            return 0
        flags = pa.concat_arrays([pa.repeat(False, kept.num_rows), pa.repeat(True, left.num_rows)])
        taken = [column for column in columns if column not in mode.keys]
        updates = {f"`{c}`": _newer(mode, c) for c in taken if c in self.spec.schema.names}
        updates |= {f"`{c}`": "NULL" for c in columns_of_other_versions(self.spec, table.schema())}
        merger = _merger(self.spec, table, source.append_column(_GONE, flags), source[_first_key(mode)])
        merger = merger.when_matched_delete(predicate=f"s.`{_GONE}`")
        if updates:
            merger = merger.when_matched_update(updates, predicate=f"NOT s.`{_GONE}`")
        merger = merger.when_not_matched_insert(
            {f"`{c}`": f"s.`{c}`" for c in self.spec.schema.names}, predicate=f"NOT s.`{_GONE}`"
        )
        crash_points.maybe_crash(f"before-commit:{self.spec.name}")
        merger.execute()
        crash_points.maybe_crash(f"after-commit:{self.spec.name}")
        return int(source.num_rows)

    def _refreshed(self) -> DeltaTable:
        """The handle at the newest version, checked against the specification, with all its columns."""
        opened = self._handle is None
        if self._handle is None:
            self._handle = open_table(self.spec) if self._seen else open_or_create(self.spec)[0]
            self._seen, self._fences_version = True, -1
        table = self._handle
        table.update_incremental()
        missing = check_writable(self.spec, table)
        if self._suppressions is not None:
            announced = int(table.metadata().configuration.get(ANNOUNCED, -1))
            # A new table has nothing announced in it; what was on the list before it was made counts all the same.
            if opened or announced > self._suppressions.version:
                self._suppressions.refresh(at_least=announced)
        if missing:
            table.alter.add_columns(missing)
        if table.version() != self._fences_version:
            self._fences, self._fences_version = {}, table.version()
        return table

    @functools.cached_property
    def _suppressions(self) -> Suppressions | None:
        place = self.spec.suppressed
        return None if place is None else get_suppressions(place.uri, place.storage_options, place.ids)

    def _keep_others(self, rows: pa.Table) -> pa.Table:
        """The rows that may be written, as of the version that the handle is at."""
        return rows if self._suppressions is None else self._suppressions.keep_others(rows)

    def _fence(self, table: DeltaTable, topic_id: str, partition: int) -> int | None:
        app = self.spec.fence_id(topic_id, partition)
        if app not in self._fences:
            self._fences[app] = table.transaction_version(app)
        return self._fences[app]

    def _plan(self, table: DeltaTable, rows: pa.Table) -> Callable[[CommitProperties], None] | None:
        """The commit that brings ``rows`` into the table, or None where they change nothing."""
        required = {f.name for f in table.schema().fields if not f.nullable}
        required |= {f.name for f in self.spec.schema if not f.nullable}
        # Nullability as in the table, where delta-rs would quietly drop a NOT NULL.
        schema = pa.schema([f.with_nullable(f.name not in required) for f in self.spec.schema])
        if isinstance(self.spec.mode, Append):
            return functools.partial(_append, table, complete(self.spec, rows, schema))
        keys = list(self.spec.mode.keys)
        files = KeyedFiles(self.spec, table) if can_be_rewritten(self.spec, table) else None
        existing = _rows_met(self.spec, table, rows, files)
        decision = decide(self.spec, rows, existing.select([c for c in existing.column_names if c != FILE]))
        put, touch = _table_of(decision.put), _table_of(decision.touch)
        if not put.num_rows and not touch.num_rows:
            return None
        put = complete(self.spec, put, schema)
        nullable = pa.schema([f.with_nullable(True) for f in schema])  # touched rows hold only what they take
        source = pa.concat_tables([put.cast(nullable), complete(self.spec, touch, nullable)])
        met = existing.filter(rows_in(existing, source, keys))
        if not met.num_rows:  # nothing to update: an append costs the same at any size of the table
            return functools.partial(_append, table, put.sort_by([(key, "ascending") for key in keys]))
        flags = pa.concat_arrays([pa.repeat(False, put.num_rows), pa.repeat(True, touch.num_rows)])
        if files is not None and files.can_replace(numbers := met[FILE].unique().to_pylist()):
            new = put.filter(pc.invert(rows_in(put.cast(nullable), existing, keys)))
            new = new.sort_by([(key, "ascending") for key in keys])
            return functools.partial(files.replace, numbers, source, flags, new)
        first = met[_first_key(self.spec.mode)]
        return functools.partial(_merge, self.spec, table, source.append_column(_TOUCH, flags), first)

    def _compact(self, table: DeltaTable) -> None:
        self._commits += 1
        every = self.spec.compact_every
        if not every or self._commits < every:
            return
        self._commits = 0
        size = _APPEND_FILE_BYTES if isinstance(self.spec.mode, Append) else UPSERT_FILE_BYTES
        try:
            if can_be_rewritten(self.spec, table):
                KeyedFiles(self.spec, table).compact(size)
            else:
                table.optimize.compact(target_size=size, max_concurrent_tasks=1, writer_properties=_PARQUET)
            if table.metadata().configuration.get("delta.enableExpiredLogCleanup", "true") == "true":
                table.cleanup_metadata()
        except (DeltaError, OSError) as error:  # the rows are committed; files can wait
            self._handle = None
            self._commits = every - every // 10 - 1
            _LOGGER.info("%s: not compacted: %s", self.spec, error_text(self.spec, error))


def _append(table: DeltaTable, data: pa.Table, commit: CommitProperties) -> None:
    write_deltalake(
        table,
        data,
        mode="append",
        schema_mode="merge",
        commit_properties=commit,
        post_commithook_properties=AFTER_COMMIT,
    )


def _first_key(mode: Upsert) -> str:
    """The key column by which rows are looked for: if its value is not in the table, the row is not."""
    return (mode.members_of or mode.keys)[0]


def _upsert_fence(spec: TableSpec) -> str:
    """The id that all upserts of a table share, so that of two at once one decides again."""
    return f"{spec.fence_prefix}/upsert"


def _table_of(rows: Sequence[Row]) -> pa.Table:
    assert isinstance(rows, Rows)
    return rows.table


def _late_records(spec: TableSpec, table: DeltaTable, below: pa.Table) -> pa.Table:
    """Of the rows below the fence those that the table does not have: by their coordinates and what else tells rows
    apart, of which a table is returned; or the coordinates of those of an upsert that would change it.
    """
    if not below.num_rows:
        return below.select(spec.source)
    if isinstance(spec.mode, Upsert):
        keys = spec.mode.members_of or spec.mode.keys
        decision = decide(spec, below, _rows_met(spec, table, below))
        changed = pa.concat_tables([_table_of(part).select(keys) for part in (decision.put, decision.touch)])
        late = below.filter(rows_in(below, changed, keys))
    else:
        columns = [*spec.source, *spec.mode.identity]
        schema = below.select(columns).schema
        found = [
            pa.table(table.scan(columns=columns, predicate=among_records(spec, topic_id, partition, offsets)))
            for topic_id, partition, offsets in offsets_of(spec, below)
        ]
        there = pa.concat_tables([part.cast(schema) for part in found])
        late = below.filter(pc.invert(rows_in(below, there, columns))).select(columns)
        return late.take(last_of_each(number_rows(late, columns)))
    late = late.select(spec.source)
    return late.take(last_of_each(number_rows(late, spec.source)))


def _rows_met(spec: TableSpec, table: DeltaTable, incoming: pa.Table, files: KeyedFiles | None = None) -> pa.Table:
    """Keys and order of the table's rows that ``incoming`` may meet, found by the first key alone; with ``files`` also
    the number of their file."""
    assert isinstance(spec.mode, Upsert)
    key = _first_key(spec.mode)
    names = dict.fromkeys((*spec.mode.keys, *spec.mode.order))
    columns = pa.schema([spec.schema.field(c).with_nullable(True) for c in names])
    wanted = incoming[key].unique().drop_null()
    if not len(wanted):
        return columns.append(pa.field(FILE, pa.int64())).empty_table()
    if files is not None:
        return files.find(wanted, columns)
    try:
        met = pa.table(table.scan(columns=columns.names, predicate=_among(key, wanted))).cast(columns)
    except pa.ArrowInvalid as error:
        raise OSError(str(error)) from error  # how delta-rs tells that a file cannot be read
    return met.filter(pc.is_in(met[key], value_set=wanted))


def _among(column: str, values: pa.Array | pa.ChunkedArray, alias: str = "") -> str:
    """A condition that holds for these values, and perhaps for some between them; delta-rs skips files by it."""
    distinct = values.unique()
    # A long list costs delta-rs more, for each file of the table, than reading the range between.
    if len(distinct) <= _MOST_LITERALS:
        return f"{alias}`{column}` IN ({', '.join(map(literal, sorted(distinct.to_pylist())))})"
    first, last = (literal(bound.as_py()) for bound in pc.min_max(distinct).values())
    return f"{alias}`{column}` BETWEEN {first} AND {last}"


def _merger(
    spec: TableSpec, table: DeltaTable, source: pa.Table, met: pa.ChunkedArray, commit: CommitProperties | None = None
) -> TableMerger:
    """A merge of ``source`` (``s``) into the table (``t``) by the keys, decided on at the handle's version.

    ``met``: values of the first key by which rows of the table are met; all other rows are new.
    """
    mode = spec.mode
    assert isinstance(mode, Upsert)
    return table.merge(
        source,
        " AND ".join([*(f"t.`{k}` = s.`{k}`" for k in mode.keys), _among(_first_key(mode), met, "t.")]),
        source_alias="s",
        target_alias="t",
        writer_properties=_PARQUET,
        streamed_exec=False,  # lets delta-rs skip files by the source's ranges of keys
        post_commithook_properties=AFTER_COMMIT,
        commit_properties=commit
        or CommitProperties(app_transactions=[Transaction(_upsert_fence(spec), table.version() + 1)]),
    )


def _newer(mode: Upsert, column: str) -> str:
    """What a column of a row is set to by a newer one."""
    if column in mode.insert_only:
        return f"coalesce(t.`{column}`, s.`{column}`)"
    return f"coalesce(s.`{column}`, t.`{column}`)" if column in mode.keep_if_null else f"s.`{column}`"


def _merge(
    spec: TableSpec, table: DeltaTable, source: pa.Table, met: pa.ChunkedArray, commit: CommitProperties
) -> None:
    """Update and insert what ``source`` holds."""
    mode = spec.mode
    assert isinstance(mode, Upsert)
    newest = {f"`{c}`": _newer(mode, c) for c in spec.schema.names if c not in mode.keys}
    newest |= {f"`{c}`": "NULL" for c in columns_of_other_versions(spec, table.schema())}
    merger = _merger(spec, table, source, met, commit).when_matched_update(newest, predicate=f"NOT s.`{_TOUCH}`")
    if mode.members_of:
        taken = dict.fromkeys((*mode.order, *spec.source, *mode.touch, mode.active))
        merger = merger.when_matched_update(
            {f"`{c}`": f"s.`{c}`" for c in taken if c not in mode.keys}, predicate=f"s.`{_TOUCH}`"
        )
    merger.when_not_matched_insert({f"`{c}`": f"s.`{c}`" for c in spec.schema.names}).execute()


@once_per_process
def get_table(spec: TableSpec) -> FencedTable:
    """This process's one :class:`FencedTable` for a specification: runners make many copies of a DoFn."""
    return FencedTable(spec)
