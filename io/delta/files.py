"""The files of an upserted table: found by their range of keys, and each rewritten by itself.

A merge reads all the files it meets as one, and makes others of them in which keys lie anywhere. Here the rows of a
file stay together: what replaces a row goes where the row was. So ranges of keys stay narrow, and a commit reads the
keys of those files that can hold what it looks for, and rewrites those that do.

Nothing is ever deleted here: a commit that seems to have failed may have been made.
"""

from __future__ import annotations

import bisect
import functools
import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake._internal import DeltaFileSystemHandler
from deltalake.transaction import AddAction, RemoveAction
from pyarrow import parquet

from itel_cabinet.io.delta.decisions import columns_of_other_versions
from itel_cabinet.io.delta.inspect import AFTER_COMMIT, STATISTICS
from itel_cabinet.io.delta.rows import number_rows
from itel_cabinet.io.delta.spec import TableSpec, Upsert
from itel_cabinet.io.worker import crash_points

__all__ = ["FILE", "KeyedFiles", "can_be_rewritten"]

T = TypeVar("T")

FILE = "__file"  # column of the rows that were met: the number of their file

# That read and write files: in a folder there is nothing to wait for, and each thread has buffers of its own.
_THREADS_IN_FOLDER, _THREADS_AT_STORE = 2, 8
_WHOLE_BYTES = 4 * 1024 * 1024  # a file up to this size is fetched by one request
_HELD_BYTES = 16 * 1024 * 1024  # of files that are rewritten at the same time; in memory they are ten times that
_HELD_IN_MEMORY = 16 * 1024 * 1024  # of the rows that a compaction sorts and writes
_NEW_ROWS = 1_000  # in a file of new rows beside rewritten ones
_FEATURES = frozenset({"appendOnly", "invariants", "timestampNtz", "v2Checkpoint"})
# A file is small, so a dictionary of a column saves little of it, and costs a quarter of the time (measured: 1,000
# forms 4.5 ms to write and 3.3 to read with dictionaries, 3.2 and 2.4 without, 374 and 382 KB).
_PARQUET: dict[str, Any] = {
    "compression": "snappy",
    "use_dictionary": False,
    "store_schema": False,
    "row_group_size": 4_096,
}
_KEPT_BY_WRITERS = ("delta.generationExpression", "delta.invariants", "delta.identity")


def can_be_rewritten(spec: TableSpec, table: DeltaTable) -> bool:
    """Whether a table's rows need nothing but to be in its files: no partitions, deletion vectors, change feed,
    constraints or made-up columns, which delta-rs sees to when it merges."""
    metadata, protocol = table.metadata(), table.protocol()
    there = metadata.configuration
    return (
        isinstance(spec.mode, Upsert)
        and not metadata.partition_columns
        and {*(protocol.writer_features or ())} <= _FEATURES
        and there.get("delta.enableChangeDataFeed", "false") == "false"
        and there.get("delta.appendOnly", "false") == "false"
        and not any(name.startswith("delta.constraints.") for name in there)
        and not any(key.startswith(_KEPT_BY_WRITERS) for f in table.schema().fields for key in f.metadata)
    )


@dataclass(frozen=True)
class _File:
    path: str
    size: int


class KeyedFiles:
    """The files of a table at the handle's version. Not thread-safe."""

    def __init__(self, spec: TableSpec, table: DeltaTable) -> None:
        assert isinstance(spec.mode, Upsert)
        self._spec, self._table, self._mode = spec, table, spec.mode
        self._key = (spec.mode.members_of or spec.mode.keys)[0]
        self._store = DeltaFileSystemHandler(spec.uri, dict(spec.storage_options))
        self._schema = pa.schema(table.schema().to_arrow())
        self._lost = {*columns_of_other_versions(spec, table.schema())}
        kept = table.metadata().configuration.get(STATISTICS)
        names = kept.split(",") if kept is not None else [*self._mode.keys, *_measured(self._schema)]
        self._measured = [name for name in dict.fromkeys((*names, self._key)) if name in self._schema.names]
        self._actions = pa.table(table.get_add_actions(flatten=True))

    def find(self, wanted: pa.Array, columns: pa.Schema) -> pa.Table:
        """``columns`` of the rows whose first key is among ``wanted`` (no nulls), and the number of their file."""
        values = sorted(wanted.to_pylist())
        ranges = [self._bounds(bound) for bound in ("min", "max")]
        candidates = [
            at
            for at, (least, greatest) in enumerate(zip(*ranges, strict=True))
            if least is None
            or greatest is None
            or bisect.bisect_left(values, least) < bisect.bisect_right(values, greatest)
        ]
        try:
            found = self._each(functools.partial(self._find_in, wanted=wanted, columns=columns), candidates)
        except pa.ArrowInvalid as error:
            raise OSError(str(error)) from error  # how delta-rs reports a file that cannot be read
        return pa.concat_tables([columns.append(pa.field(FILE, pa.int64())).empty_table(), *found])

    def replace(
        self, numbers: Sequence[int], source: pa.Table, touched: pa.Array, new: pa.Table, commit: CommitProperties
    ) -> None:
        """Commit the files of these ``numbers`` again, with their rows as ``source`` has them, and ``new`` rows.

        Args:
            source: nullable columns of the specification, by the keys.
            touched: for each row of ``source``, whether it only leaves its set.
            new: rows that the table does not have.
        """
        rewrite = functools.partial(self._rewritten, source=source, touched=touched)
        largest = max(self._file(number).size for number in numbers)
        added = self._each(rewrite, numbers, max(1, _HELD_BYTES // largest))
        added += self._write_all(new, _NEW_ROWS)
        crash_points.maybe_crash(f"after-files:{self._spec.name}")
        self._commit(numbers, added, commit.app_transactions or [])

    def compact(self, target_bytes: int) -> int:
        """Put files below half of ``target_bytes`` together, in the order of keys, in one commit that changes no row;
        how many there were."""
        gone: list[int] = []
        added: list[AddAction] = []
        for part, rows in self._in_parts(self.small(target_bytes)):
            if self._become_fewer(part, target_bytes):
                rows = rows.sort_by([(key, "ascending") for key in self._mode.keys])
                rows_a_file = rows.num_rows * target_bytes // sum(self._file(n).size for n in part)
                added += self._write_all(rows, max(1, rows_a_file))
                gone += part
        if gone:
            crash_points.maybe_crash(f"before-compaction:{self._spec.name}")
            self._commit(gone, added, [])
        return len(gone)

    def small(self, target_bytes: int) -> list[int]:
        """Numbers of the files that :meth:`compact` puts together, by keys; none if they become no fewer."""
        sizes: list[int] = self._actions["size_bytes"].to_pylist()
        least = self._bounds("min")
        ordered = sorted(range(len(sizes)), key=lambda n: (False,) if least[n] is None else (True, least[n]))
        small = [number for number in ordered if sizes[number] < target_bytes // 2]
        return small if self._become_fewer(small, target_bytes) else []

    def _become_fewer(self, numbers: Sequence[int], target_bytes: int) -> bool:
        return -(-sum(self._file(n).size for n in numbers) // target_bytes) < len(numbers)

    def _in_parts(self, numbers: Sequence[int]) -> Iterator[tuple[list[int], pa.Table]]:
        """The rows of these files, as many at a time as fit in memory: texts that are much alike take fifty times the
        bytes that their file has."""
        part: list[int] = []
        tables: list[pa.Table] = []
        for start in range(0, len(numbers), _THREADS_AT_STORE):
            some = numbers[start : start + _THREADS_AT_STORE]
            part += some
            tables += self._each(self._read, some)
            if sum(rows.nbytes for rows in tables) > _HELD_IN_MEMORY:
                yield part, pa.concat_tables(tables)
                part, tables = [], []
        if part:
            yield part, pa.concat_tables(tables)

    def _commit(self, gone: Sequence[int], added: Sequence[AddAction], fences: Sequence[Transaction]) -> None:
        """Commit at the version after the handle's, or raise CommitFailedError.

        delta-rs does not see that a file which is removed here was removed by an OPTIMIZE meanwhile, so a commit is
        never re-based over another. It would not see either that an OPTIMIZE has lost its files to a compaction which
        says that it changes no data, so that is not said.
        """
        now = int(time.time() * 1000)
        removed = [RemoveAction(f.path, True, now, f.size, {}) for f in map(self._file, gone)]
        self._table.create_write_transaction(
            [*removed, *added],
            "append",
            self._table.schema(),
            commit_properties=CommitProperties(max_commit_retries=0, app_transactions=list(fences)),
            post_commithook_properties=AFTER_COMMIT,
        )
        self._table.update_incremental()  # as after delta-rs's own commits

    def _bounds(self, bound: str) -> list[Any]:
        column = f"{bound}.{self._key}"
        if column not in self._actions.column_names:
            return [None] * int(self._actions.num_rows)
        values: list[Any] = self._actions[column].to_pylist()
        return values

    def _file(self, number: int) -> _File:
        return _File(self._actions["path"][number].as_py(), self._actions["size_bytes"][number].as_py())

    def can_replace(self, numbers: Sequence[int]) -> bool:
        """Whether each of these files can be held in memory."""
        return all(self._file(number).size <= _HELD_BYTES for number in numbers)

    def _each(self, act: Callable[[int], T], numbers: Sequence[int], most: int = _THREADS_AT_STORE) -> list[T]:
        threads = min(_THREADS_AT_STORE if "://" in self._spec.uri else _THREADS_IN_FOLDER, most, len(numbers))
        if threads < 2:
            return [act(number) for number in numbers]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(act, numbers))

    def _open(self, number: int) -> parquet.ParquetFile:
        file = self._file(number)
        source = self._store.open_input_file(file.path)
        whole = file.size <= _WHOLE_BYTES
        return parquet.ParquetFile(pa.BufferReader(source.read(file.size)) if whole else pa.PythonFile(source))

    def _read(self, number: int) -> pa.Table:
        return _conform(self._open(number).read(use_threads=False), self._schema)

    def _find_in(self, number: int, *, wanted: pa.Array, columns: pa.Schema) -> pa.Table:
        file = self._open(number)
        names = {*file.schema_arrow.names}
        rows = file.read(columns=[c for c in columns.names if c in names], use_threads=False)
        rows = _conform(rows, columns)
        rows = rows.filter(pc.is_in(rows[self._key], value_set=wanted))
        return rows.append_column(FILE, pa.repeat(number, rows.num_rows))

    def _rewritten(self, number: int, *, source: pa.Table, touched: pa.Array) -> AddAction:
        rows = self._read(number)
        keys = list(self._mode.keys)
        there = rows.select(keys)
        both = number_rows(pa.concat_tables([there, source.select(keys).cast(there.schema)]), keys)
        at = pc.index_in(both.slice(0, rows.num_rows), value_set=both.slice(rows.num_rows))
        met = at.drop_null()
        given = {*source.column_names}
        after = _conform(source.take(met), pa.schema([f for f in self._schema if f.name in given]))
        before = rows.filter(pc.is_valid(at))
        changed = self._changed(before, after, touched.take(met))
        return self._write(pa.concat_tables([rows.filter(pc.is_null(at)), changed]))

    def _changed(self, before: pa.Table, after: pa.Table, touched: pa.Array) -> pa.Table:
        mode, given = self._mode, {*after.column_names}
        taken = {*mode.order, *self._spec.source, *mode.touch, mode.active}
        some_touched = pc.any(touched).as_py()
        columns = []
        for field in self._schema:
            old = before[field.name]
            if field.name in mode.keys or field.name not in given | self._lost:
                columns.append(old)
                continue
            new = after[field.name] if field.name in given else pa.nulls(len(old), field.type)
            for_touched = new if field.name in taken else old
            if field.name in mode.insert_only:
                new = pc.coalesce(old, new)
            elif field.name in mode.keep_if_null:
                new = pc.coalesce(new, old)
            columns.append(pc.if_else(touched, for_touched, new) if some_touched else new)
        return pa.Table.from_arrays(columns, schema=self._schema)

    def _write_all(self, rows: pa.Table, rows_a_file: int) -> list[AddAction]:
        parts = (rows.slice(start, rows_a_file) for start in range(0, rows.num_rows, rows_a_file))
        return [self._write(part) for part in parts]

    def _write(self, rows: pa.Table) -> AddAction:
        rows = _conform(rows, self._schema)
        name = f"part-00000-{uuid.uuid4()}-c000.snappy.parquet"
        buffer = pa.BufferOutputStream()
        parquet.write_table(rows, buffer, write_statistics=self._measured, **_PARQUET)
        content = buffer.getvalue().to_pybytes()
        sink: Any = self._store.open_output_stream(name, None)
        sink.write(content)
        sink.close()
        now = int(time.time() * 1000)
        return AddAction(name, len(content), {}, now, True, json.dumps(self._statistics(rows)))

    def _statistics(self, rows: pa.Table) -> dict[str, Any]:
        least, greatest, nulls = {}, {}, {}
        for name in self._measured:
            if pa.types.is_nested(rows[name].type):
                continue
            bounds = pc.min_max(rows[name]).as_py()
            nulls[name] = rows[name].null_count
            if bounds["min"] is not None and not isinstance(bounds["min"], bytes):
                least[name], greatest[name] = map(_json_value, (bounds["min"], bounds["max"]))
        return {"numRecords": rows.num_rows, "minValues": least, "maxValues": greatest, "nullCount": nulls}


def _measured(schema: pa.Schema) -> list[str]:
    """The columns whose bounds are worth keeping where the table does not name any: numbers and instants."""
    kinds = (pa.types.is_integer, pa.types.is_timestamp, pa.types.is_date)
    return [f.name for f in schema if any(is_kind(f.type) for is_kind in kinds)]


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        value = value.astimezone(UTC) if value.tzinfo else value
        return value.strftime("%Y-%m-%dT%H:%M:%S.%f") + ("Z" if value.tzinfo else "")
    return value if isinstance(value, int | float | str | bool) else str(value)


def _conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows of a file with the columns of ``schema``: an older file lacks what was added later."""
    there = {*rows.column_names}
    columns = []
    for field in schema:
        column = rows[field.name] if field.name in there else pa.nulls(rows.num_rows, field.type)
        columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)
