"""Exactly-once writes from Apache Beam into Delta tables. Knows nothing of what the rows are about.

:class:`WriteToDelta` takes rows that carry the coordinates of the record they come from (a topic's id, a partition, an
offset), and commits each bundle's rows as one version of a table. However often a bundle is repeated, by a retry, a
restart, an offset reset or a second live copy of the job, each record's rows are in the table once::

    import pyarrow as pa
    import apache_beam as beam
    from itel_cabinet.io.delta import Append, TableSpec, WriteToDelta

    readings = TableSpec(
        uri="readings",
        schema=pa.schema(
            [
                ("sensor", pa.string()),
                ("celsius", pa.float64()),
                ("kafka_topic_id", pa.string()),
                ("kafka_partition", pa.int32()),
                ("kafka_offset", pa.int64()),
            ]
        ),
        mode=Append(),
    )
    source = {"kafka_topic_id": "Zx3kQ", "kafka_partition": 0}
    rows = [
        {"sensor": "attic", "celsius": 31.5, "kafka_offset": 0, **source},
        {"sensor": "cellar", "celsius": 12.0, "kafka_offset": 1, **source},
    ]
    for run in range(2):  # the second run adds nothing: its rows are recognised as written
        with beam.Pipeline("BundleBasedDirectRunner") as pipeline:
            pipeline | beam.Create([rows]) | WriteToDelta(readings)

The fence
---------
Every commit carries, for each partition in it, a Delta ``txn`` action: application id ``{prefix}/{topic
id}/{partition}``, version = highest offset + 1. Before a commit the sink brings its handle up to date, reads the
fences, drops the rows below them and commits the rest *through that same handle*, with the new fences in the same
commit. If anyone committed a fence of the same id after the version that the decision was based on, delta-rs refuses
the commit, and the sink decides again. Without the same handle this does not hold: a fresh one is newer than the
decision, and the commit would be let through.

What is asked of the source: within a partition, offsets grow, and a record's rows are all in one bundle. Gaps are
welcome. RESTORE, DELETE and overwrites of the table do not lower its fences: rows so removed are not written again.

Upserts (:class:`Upsert`) are decided likewise: the rows of the table that they meet are read at the handle's version, a
pure function (:func:`~itel_cabinet.io.delta_decisions.decide`) says what changes, and one merge makes it so. All
upserts of a table share one more id, ``{prefix}/upsert``, so that of two at once one always decides again, whatever
delta-rs can tell of the files they touch.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import random as _random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.coders import registry
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue
from deltalake import CommitProperties, DeltaTable, Field, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import (
    CommitFailedError,
    DeltaError,
    DeltaProtocolError,
    SchemaMismatchError,
    TableNotFoundError,
)
from deltalake.fs import DeltaStorageHandler
from pyarrow import parquet
from pyarrow.fs import FileSelector, PyFileSystem

from itel_cabinet.io import crash_points
from itel_cabinet.io.delta_decisions import Decision, decide, missing_columns, split_by_fence, to_arrow
from itel_cabinet.io.delta_spec import (
    RETENTION,
    Append,
    Pairs,
    Row,
    RowRefused,
    TableGlance,
    TableRefused,
    TableSpec,
    TableState,
    Upsert,
    WriteResult,
)
from itel_cabinet.io.health import beat
from itel_cabinet.io.process import once_per_process
from itel_cabinet.io.world import WorldError, full_jitter, one_line, retry_world
from itel_cabinet.transforms import metrics
from itel_cabinet.transforms.batches import UnweighedCoder

__all__ = [
    "Append",
    "FencedTable",
    "Row",
    "RowRefused",
    "TableGlance",
    "TableRefused",
    "TableSpec",
    "TableState",
    "Upsert",
    "WriteResult",
    "WriteToDelta",
    "create_table",
    "describe_table",
    "glance_at_table",
    "records_written",
    "table_for",
]

_LOGGER = logging.getLogger(__name__)

T = TypeVar("T")

_DEFAULT_PROPERTIES = {
    "delta.checkpointInterval": "100",
    # A streaming job makes tens of thousands of versions a day: a month of them, the usual default, slows every
    # listing.
    "delta.logRetentionDuration": "interval 7 days",
}
_CONFLICT_WAITS = (0.02, 1.0)  # seconds: the first and the longest, before jitter; a commit takes about 0.02
_MOST_LITERALS = 100
# A merge holds and rewrites every file it meets a row in, and left alone it makes one large file of them. (m: with
# 18,000 forms 140 ms of CPU a merge instead of 345, and no more as the table grows.)
_UPSERT_FILE_BYTES = 1024 * 1024
# Each file costs delta-rs time and memory at every commit (m: 0.2 ms of CPU), so small ones are put together; in files
# that a worker can hold, not in the large ones that `optimize` makes.
_APPEND_FILE_BYTES = 8 * 1024 * 1024
# The writer holds a row group until it is full; of the usual million rows that is the worker's memory.
_PARQUET = WriterProperties(max_row_group_size=4_096, compression="SNAPPY")
# For a look that nobody wants to wait minutes for.
_IMPATIENT = {"connect_timeout": "3s", "timeout": "10s", "max_retries": "1", "retry_timeout": "10s"}
_TOUCH = "__touch"  # column of the merge's source: this row only leaves its set


# ---------------------------------------------------------------------------------------------------------------------
# The table


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

    def write(self, rows: Sequence[Row]) -> WriteResult:
        """Commit those of ``rows`` that are not committed yet, all in one version, and say which were which.

        Idempotent: after an exception or a crash, whatever became of the commit, write the same rows again.
        Raises RowRefused and TableRefused with nothing written, and WorldError after ``world_seconds``.
        """
        if not rows:
            return WriteResult(self.spec.name, None, [], [])
        return self._patiently(lambda conflicts: replace(self._attempt(rows), conflicts=conflicts))

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

    def _patiently(self, attempt: Callable[[int], T]) -> T:
        """The outcome of an attempt that neither an outage nor another writer has ruined; it is told its conflicts."""
        with self._lock:
            return retry_world(
                lambda: self._until_decided(attempt),
                what=str(self.spec),
                seconds=self.spec.world_seconds,
                is_world=_is_world,
                describe=functools.partial(_describe, self.spec),
                clock=self._clock,
                sleep=self._sleep,
                random=self._random,
            )

    def _until_decided(self, attempt: Callable[[int], T]) -> T:
        deadline = self._clock() + self.spec.world_seconds
        for conflicts, wait in enumerate(full_jitter(*_CONFLICT_WAITS, self._random)):
            try:
                return attempt(conflicts)
            except CommitFailedError as error:
                metrics.COMMIT_CONFLICTS.labels(self.spec.name).inc()
                _LOGGER.debug("%s: %s; deciding again", self.spec, _describe(self.spec, error))
                if self._clock() >= deadline:
                    raise WorldError(
                        f"{self.spec}: lost against other writers for {self.spec.world_seconds:.0f} s "
                        f"({_describe(self.spec, error)}); run fewer of them, with larger bundles"
                    ) from error
                self._sleep(wait)
            except Exception as error:
                # Opened anew by the next attempt, with fresh credentials and whatever is there then.
                self._handle = None
                metrics.COMMIT_FAILURES.labels(self.spec.name).inc()
                refusal = _refusal(self.spec, error)
                if refusal is not None:
                    raise refusal from None
                raise
        raise AssertionError("the waits never end")

    def _attempt(self, rows: Sequence[Row]) -> WriteResult:
        table = self._refreshed()
        fresh, replayed, offsets = split_by_fence(rows, self.spec.source, functools.partial(self._fence, table))
        fences = {self.spec.fence_id(*at): offset for at, offset in offsets.items()}
        write = self._plan(table, fresh) if fresh else None
        if write is None:
            return WriteResult(self.spec.name, None, fresh, replayed)

        version = table.version()
        if isinstance(self.spec.mode, Upsert):
            fences[f"{self.spec.fence_prefix}/upsert"] = version + 1
        crash_points.reached(f"before-commit:{self.spec.name}")
        # delta-rs's own retries stay on: they re-base over commits that share no fence with this one, and only those.
        write(CommitProperties(app_transactions=[Transaction(app, at) for app, at in fences.items()]))
        crash_points.reached(f"after-commit:{self.spec.name}")
        if table.version() == version + 1:  # else others' commits lie between, with fences that were not read
            self._fences |= fences
            self._fences_version = table.version()
        result = WriteResult(self.spec.name, table.version(), fresh, replayed)
        self._compact(table)
        return result

    def _fill(self, rows: Sequence[Row], column: str) -> int:
        table, mode = self._refreshed(), self.spec.mode
        assert isinstance(mode, Upsert)
        given = dict.fromkeys((*mode.keys, column, *(c for row in rows for c in row)))
        source = to_arrow(self.spec, rows, pa.schema([self.spec.schema.field(c).with_nullable(True) for c in given]))
        key = _first_key(mode)
        merger = table.merge(
            source,
            " AND ".join([*(f"t.`{k}` = s.`{k}`" for k in mode.keys), _among(key, {row[key] for row in rows}, "t.")]),
            source_alias="s",
            target_alias="t",
            writer_properties=_PARQUET,
            streamed_exec=False,
            commit_properties=CommitProperties(
                app_transactions=[Transaction(f"{self.spec.fence_prefix}/upsert", table.version() + 1)]
            ),
        ).when_matched_update(
            {f"`{c}`": f"s.`{c}`" for c in given if c not in mode.keys}, predicate=f"t.`{column}` IS NULL"
        )
        crash_points.reached(f"before-commit:{self.spec.name}")
        return int(merger.execute()["num_target_rows_updated"])

    def _refreshed(self) -> DeltaTable:
        """The handle at the newest version, checked against the specification, with all its columns."""
        if self._handle is None:
            self._handle = _open(self.spec) if self._seen else _open_or_create(self.spec)[0]
            self._seen, self._fences_version = True, -1
        table = self._handle
        table.update_incremental()
        missing = _checked(self.spec, table)
        if missing:
            table.alter.add_columns(missing)
        if table.version() != self._fences_version:
            self._fences, self._fences_version = {}, table.version()
        return table

    def _fence(self, table: DeltaTable, topic_id: str, partition: int) -> int | None:
        app = self.spec.fence_id(topic_id, partition)
        if app not in self._fences:
            self._fences[app] = table.transaction_version(app)
        return self._fences[app]

    def _plan(self, table: DeltaTable, rows: list[Row]) -> Callable[[CommitProperties], None] | None:
        """The commit that brings ``rows`` into the table, or None where they change nothing."""
        required = {f.name for f in table.schema().fields if not f.nullable}
        required |= {f.name for f in self.spec.schema if not f.nullable}
        # Nullability as in the table, where delta-rs would quietly drop a NOT NULL.
        schema = pa.schema([f.with_nullable(f.name not in required) for f in self.spec.schema])
        if isinstance(self.spec.mode, Append):
            return functools.partial(_append, table, to_arrow(self.spec, rows, schema))
        # Through Arrow, so that both sides of a comparison have the same types; null keys mark empty sets here.
        incoming = to_arrow(self.spec, rows, pa.schema([f.with_nullable(True) for f in schema])).to_pylist()
        key = _first_key(self.spec.mode)
        existing = _rows_met(self.spec, key, table, incoming)
        decision = decide(self.spec, incoming, existing)
        if not decision.put and not decision.touch:
            return None
        met = {row[key] for row in existing} & {row[key] for row in (*decision.put, *decision.touch)}
        if not met:  # nothing to update: an append costs the same whatever the table's size
            return functools.partial(_append, table, to_arrow(self.spec, decision.put, schema))
        source = _merge_source(self.spec, decision, schema)
        return functools.partial(_merge, self.spec, table, source, _among(key, met, "t."))

    def _compact(self, table: DeltaTable) -> None:
        self._commits += 1
        every = self.spec.compact_every
        if not every or self._commits % every:
            return
        size = _APPEND_FILE_BYTES if isinstance(self.spec.mode, Append) else _UPSERT_FILE_BYTES
        try:
            table.optimize.compact(target_size=size, max_concurrent_tasks=1, writer_properties=_PARQUET)
        except (DeltaError, OSError) as error:  # the rows are committed; the next round compacts
            self._handle = None
            _LOGGER.info("%s: not compacted: %s", self.spec, _describe(self.spec, error))


def _append(table: DeltaTable, data: pa.Table, commit: CommitProperties) -> None:
    write_deltalake(table, data, mode="append", schema_mode="merge", commit_properties=commit)


def _first_key(mode: Upsert) -> str:
    """The key column by which rows are looked for: if its value is not in the table, the row is not."""
    return (mode.members_of or mode.keys)[0]


def _rows_met(spec: TableSpec, key: str, table: DeltaTable, incoming: Sequence[Row]) -> list[Row]:
    """Keys and order of the table's rows that ``incoming`` may meet, found by the first key alone."""
    assert isinstance(spec.mode, Upsert)
    values = {row[key] for row in incoming} - {None}
    if not values:
        return []
    columns = pa.schema([spec.schema.field(c) for c in dict.fromkeys((*spec.mode.keys, *spec.mode.order))])
    try:
        met = pa.table(table.scan(columns=columns.names, predicate=_among(key, values))).cast(columns)
    except pa.ArrowInvalid as error:
        raise OSError(str(error)) from error  # how delta-rs tells that a file cannot be read
    wanted = pa.array(list(values), type=spec.schema.field(key).type)
    rows: list[Row] = met.filter(pc.is_in(met[key], wanted)).to_pylist()
    return rows


def _among(column: str, values: Iterable[Any], alias: str = "") -> str:
    """A condition that holds for these values, and perhaps for some between them; delta-rs skips files by it."""
    ordered = sorted(values)
    # A long list costs delta-rs more, for each file of the table, than reading the range between.
    if len(ordered) <= _MOST_LITERALS:
        return f"{alias}`{column}` IN ({', '.join(map(_literal, ordered))})"
    return f"{alias}`{column}` BETWEEN {_literal(ordered[0])} AND {_literal(ordered[-1])}"


def _literal(value: str | int) -> str:
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def _merge_source(spec: TableSpec, decision: Decision, schema: pa.Schema) -> pa.Table:
    put = to_arrow(spec, decision.put, schema)
    nullable = pa.schema([f.with_nullable(True) for f in schema])  # touched rows hold only what they take
    data = pa.concat_tables([put.cast(nullable), to_arrow(spec, decision.touch, nullable)])
    flags = [False] * len(decision.put) + [True] * len(decision.touch)
    return data.append_column(_TOUCH, pa.array(flags, type=pa.bool_()))


def _merge(spec: TableSpec, table: DeltaTable, source: pa.Table, among: str, commit: CommitProperties) -> None:
    """Update and insert what ``source`` holds. ``among``: where in the table its rows are met; all others are new."""
    mode = spec.mode
    assert isinstance(mode, Upsert)

    def newer(column: str) -> str:
        if column in mode.insert_only:
            return f"coalesce(t.`{column}`, s.`{column}`)"
        return f"coalesce(s.`{column}`, t.`{column}`)" if column in mode.keep_if_null else f"s.`{column}`"

    merger = table.merge(
        source,
        " AND ".join([*(f"t.`{k}` = s.`{k}`" for k in mode.keys), among]),
        source_alias="s",
        target_alias="t",
        writer_properties=_PARQUET,
        streamed_exec=False,  # lets delta-rs skip files by the source's ranges of keys
        commit_properties=commit,
    ).when_matched_update(
        {f"`{c}`": newer(c) for c in spec.schema.names if c not in mode.keys}, predicate=f"NOT s.`{_TOUCH}`"
    )
    if mode.members_of:
        taken = dict.fromkeys((*mode.order, *spec.source, *mode.touch, mode.active))
        merger = merger.when_matched_update(
            {f"`{c}`": f"s.`{c}`" for c in taken if c not in mode.keys}, predicate=f"s.`{_TOUCH}`"
        )
    merger.when_not_matched_insert({f"`{c}`": f"s.`{c}`" for c in spec.schema.names}).execute()


def _properties(spec: TableSpec) -> dict[str, str]:
    upsert = {"delta.targetFileSize": str(_UPSERT_FILE_BYTES)} if isinstance(spec.mode, Upsert) else {}
    return _DEFAULT_PROPERTIES | upsert | dict(spec.properties)


def _open(spec: TableSpec) -> DeltaTable:
    return DeltaTable(spec.uri, storage_options=dict(spec.storage_options))


def _open_or_create(spec: TableSpec) -> tuple[DeltaTable, bool]:
    """The table, and whether this call made it. Of two creators at once one makes it and the other opens it."""
    _check_store(spec)
    try:
        return _open(spec), False
    except TableNotFoundError:
        DeltaTable.create(
            spec.uri,
            schema=spec.schema,
            mode="ignore",
            partition_by=list(spec.partition_by),
            configuration=_properties(spec),
            storage_options=dict(spec.storage_options),
        )
        return _open(spec), True


def _checked(spec: TableSpec, table: DeltaTable) -> list[Field]:
    """The columns still to be added. Raises TableRefused if the table cannot be written exactly once, or not at all."""
    metadata = table.metadata()
    if RETENTION in metadata.configuration:
        raise TableRefused(
            f"{spec}: its property {RETENTION} lets the fences of idle partitions expire, and replays would be "
            f"written twice: ALTER TABLE ... UNSET TBLPROPERTIES ('{RETENTION}')"
        )
    return missing_columns(spec, table.schema(), metadata.partition_columns)


def _check_store(spec: TableSpec) -> None:
    """Refuse S3 unless it is told how to make a commit atomic: two writers could otherwise both make one version."""
    if not spec.uri.startswith(("s3://", "s3a://")):
        return
    options = {k.lower().removeprefix("aws_"): v for k, v in {**os.environ, **dict(spec.storage_options)}.items()}
    if options.get("s3_allow_unsafe_rename", "").lower() in ("true", "1"):
        raise TableRefused(
            f"{spec}: AWS_S3_ALLOW_UNSAFE_RENAME lets two writers overwrite each other's commits; unset it"
        )
    if not options.get("s3_locking_provider") and not options.get("conditional_put"):
        raise TableRefused(
            f"{spec}: S3 needs an atomic commit: set the storage option conditional_put=etag "
            "(AWS, MinIO, R2), or AWS_S3_LOCKING_PROVIDER=dynamodb"
        )


def _is_world(error: Exception) -> bool:
    return isinstance(error, DeltaError | OSError)


def _refusal(spec: TableSpec, error: Exception) -> TableRefused | None:
    """What an error of delta-rs means if waiting cannot mend it."""
    if isinstance(error, SchemaMismatchError | DeltaProtocolError):
        return TableRefused(f"{spec}: {_describe(spec, error)}")
    if isinstance(error, DeltaError) and "Invalid data found" in str(error):  # goes on to show the rows: not repeated
        return TableRefused(f"{spec}: a row breaks one of the table's CHECK constraints: drop it, or mend the rows")
    return None


def _describe(spec: TableSpec, error: Exception) -> str:
    """One line of an error, with nothing of the storage options in it."""
    text = one_line(error)
    for value in dict(spec.storage_options).values():
        if len(value) > 3:
            text = text.replace(value, "***")
    return text


@once_per_process
def table_for(spec: TableSpec) -> FencedTable:
    """This process's one :class:`FencedTable` for a specification: runners make many copies of a DoFn."""
    return FencedTable(spec)


def create_table(spec: TableSpec, *, dry_run: bool = False) -> TableState:
    """Make the table where it is missing, check it where it exists, and describe it. May be repeated; adds no columns.

    With ``dry_run`` nothing is made. Raises TableRefused, and WorldError at once if the store does not answer.
    """

    def look() -> TableState:
        try:
            if dry_run:
                _check_store(spec)
                table, created = _open(spec), False
            else:
                table, created = _open_or_create(spec)
        except TableNotFoundError:
            if not dry_run:
                raise
            properties = _properties(spec)
            return TableState(spec.uri, None, spec.schema, spec.partition_by, 0, {}, properties)
        _checked(spec, table)
        return _state(spec, table, created)

    return _now(spec, look)


def describe_table(uri: str, storage_options: Pairs = ()) -> TableState:
    """Describe an existing table; ``fences`` are all its ``txn`` ids. Raises WorldError at once if unreadable."""
    spec = _unspecified(uri, storage_options)
    return _now(spec, lambda: _state(spec, _open(spec), False))


def glance_at_table(
    uri: str, storage_options: Pairs = (), *, newest: Sequence[str] = (), fences: Iterable[str] = ()
) -> TableGlance | None:
    """What is cheaply told of a table by its log; ``newest`` names columns of instants. None if there is no table.

    Raises WorldError within some seconds if it is unreadable.
    """
    spec = _unspecified(uri, {**_IMPATIENT, **dict(storage_options)})

    def look() -> TableGlance | None:
        try:
            table = _open(spec)
        except TableNotFoundError:
            return None
        files = pa.table(table.get_add_actions(flatten=True))
        found = {app: table.transaction_version(app) for app in fences}
        return TableGlance(
            version=table.version(),
            committed_at=_commit_time(table),
            newest={c: _greatest(files, f"max.{c}") for c in newest},
            fences={app: version for app, version in found.items() if version is not None},
        )

    return _now(spec, look)


def _commit_time(table: DeltaTable) -> datetime | None:
    for commit in table.history(1):
        return datetime.fromtimestamp(commit["timestamp"] / 1000, UTC) if "timestamp" in commit else None
    return None


def _greatest(files: pa.Table, column: str) -> datetime | None:
    greatest = pc.max(files[column]).as_py() if column in files.column_names else None
    return greatest if isinstance(greatest, datetime) else None


def _unspecified(uri: str, storage_options: Pairs) -> TableSpec:
    """A specification for only looking at a table."""
    return TableSpec(
        uri, pa.schema([(c, pa.string()) for c in "tpo"]), Append(), (), storage_options, source=("t", "p", "o")
    )


def records_written(spec: TableSpec, records: Iterable[tuple[str, int, int]]) -> set[tuple[str, int, int]]:
    """Those of ``records`` (topic id, partition, offset) that the table has a row of.

    Raises WorldError at once if the table is unreadable or not there.
    """
    wanted = set(records)
    found: set[tuple[str, int, int]] = set()

    def look() -> set[tuple[str, int, int]]:
        table = _open(spec)
        topic, _, offset = spec.source
        for topic_id in sorted({one[0] for one in wanted}):
            offsets = sorted(one[2] for one in wanted if one[0] == topic_id)
            within = f"`{topic}` = {_literal(topic_id)} AND `{offset}` BETWEEN {offsets[0]} AND {offsets[-1]}"
            for batch in pa.RecordBatchReader.from_stream(table.scan(columns=list(spec.source), predicate=within)):
                found.update(wanted.intersection(zip(*(column.to_pylist() for column in batch.columns), strict=True)))
        return found

    return _now(spec, look)


def _now(spec: TableSpec, look: Callable[[], T]) -> T:
    return retry_world(look, what=str(spec), seconds=0, is_world=_is_world, describe=functools.partial(_describe, spec))


def _state(spec: TableSpec, table: DeltaTable, created: bool) -> TableState:
    metadata = table.metadata()
    return TableState(
        uri=spec.uri,
        version=table.version(),
        schema=pa.schema(table.schema().to_arrow()),
        partition_by=tuple(metadata.partition_columns),
        files=len(table.file_uris()),
        fences=_all_fences(spec, table),
        properties=dict(metadata.configuration),
        created=created,
    )


def _all_fences(spec: TableSpec, table: DeltaTable) -> dict[str, int]:
    """All ``txn`` ids of a table and their versions; delta-rs itself answers only for ids that one knows."""
    log = PyFileSystem(DeltaStorageHandler(spec.uri, dict(spec.storage_options)))
    files = {info.base_name: info.path for info in log.get_file_info(FileSelector("_delta_log"))}
    numbers = {name: int(name[:20]) for name in files if name[:20].isdigit() and int(name[:20]) <= table.version()}
    checkpoints = {name: n for name, n in numbers.items() if ".checkpoint" in name and name.endswith(".parquet")}
    newest = max(checkpoints.values(), default=-1)
    apps: set[str] = set()
    for name, number in numbers.items():
        if checkpoints.get(name) == newest:
            actions = parquet.read_table(log.open_input_file(files[name]), columns=["txn"])["txn"].to_pylist()
        elif name == f"{number:020}.json" and number > newest:
            with log.open_input_stream(files[name]) as lines:
                actions = [json.loads(line).get("txn") for line in lines.read().splitlines()]
        else:
            continue
        apps |= {txn["appId"] for txn in actions if txn}
    return {app: version for app in sorted(apps) if (version := table.transaction_version(app)) is not None}


# ---------------------------------------------------------------------------------------------------------------------
# Beam

registry.register_coder(WriteResult, UnweighedCoder)


@dataclass(eq=False)
class WriteToDelta(beam.PTransform):  # type: ignore[misc]
    """PCollection of rows, or better of sequences of rows -> PCollection of :class:`WriteResult`, one a bundle with
    rows.

    All rows of a bundle are one commit. Nothing is shuffled: where the source confirms its records when a bundle ends,
    they are durable by then. Exceptions of :meth:`FencedTable.write` fail the bundle. Results are in the global window
    and bear the bundle's latest timestamp. Counters, in the namespace ``delta``: ``rows_written``, ``rows_replayed``,
    ``commits``, ``conflicts``.
    """

    spec: TableSpec

    def __post_init__(self) -> None:
        super().__init__()

    def default_label(self) -> str:
        return f"WriteToDelta({self.spec.name})"

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        if not isinstance(rows.windowing.windowfn, GlobalWindows):
            rows |= "One window" >> beam.WindowInto(GlobalWindows())
        return rows | "Commit" >> beam.ParDo(_CommitBundle(self.spec)).with_output_types(WriteResult)


class _CommitBundle(beam.DoFn):  # type: ignore[misc]
    """Gathers a bundle's rows and commits them when it ends."""

    def __init__(self, spec: TableSpec) -> None:
        self._spec = spec
        names = ("rows_written", "rows_replayed", "commits", "conflicts")
        self._counters = {name: Metrics.counter("delta", name) for name in names}

    def start_bundle(self) -> None:
        self._rows: list[Row] = []
        self._earliest, self._latest = MAX_TIMESTAMP, MIN_TIMESTAMP

    def process(self, element: Row | Sequence[Row], timestamp: Timestamp = beam.DoFn.TimestampParam) -> None:
        self._earliest, self._latest = min(self._earliest, timestamp), max(self._latest, timestamp)
        if isinstance(element, Mapping):
            self._rows.append(element)
        else:
            self._rows.extend(element)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        rows, self._rows = self._rows, []
        if not rows:
            return
        with metrics.timed(metrics.COMMIT_SECONDS.labels(self._spec.name)):
            result = table_for(self._spec).write(rows)
        beat()
        self._measure(result)
        self._counters["rows_written"].inc(len(result.written))
        self._counters["rows_replayed"].inc(len(result.replayed))
        self._counters["commits"].inc(result.version is not None)
        self._counters["conflicts"].inc(result.conflicts)
        yield WindowedValue(result, self._latest, (GlobalWindow(),))

    def _measure(self, result: WriteResult) -> None:
        table = self._spec.name
        metrics.ROWS_WRITTEN.labels(table).inc(len(result.written))
        metrics.ROWS_REPLAYED.labels(table).inc(len(result.replayed))
        if result.version is not None:
            metrics.COMMITS.labels(table).inc()
        if result.written and self._earliest > MIN_TIMESTAMP:  # without timestamps nothing is known of age
            metrics.observe_freshness(table, self._earliest.micros / 1_000_000)
