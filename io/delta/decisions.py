"""What a commit to a Delta table is to hold: pure functions, on which :mod:`itel_cabinet.io.delta.table` acts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from deltalake import Field, Schema
from deltalake.schema import PrimitiveType

from itel_cabinet.io.delta.spec import Row, RowError, TableError, TableSpec, Upsert

__all__ = [
    "Coordinates",
    "Decision",
    "columns_of_other_versions",
    "coordinates",
    "decide",
    "leave_newer",
    "marked_schema",
    "missing_columns",
    "split_by_fence",
    "to_arrow",
]

Values = tuple[Any, ...]
Coordinates = tuple[str, int, int]


def coordinates(spec: TableSpec, row: Row) -> Coordinates:
    """Topic id, partition and offset of the record that a row comes from. Raises RowError."""
    try:
        topic_id, partition, offset = (row[column] for column in spec.source)
        return str(topic_id), partition + 0, offset + 0
    except (KeyError, TypeError):
        raise RowError(f"a row lacks its source: {', '.join(spec.source)} must be a text and two integers") from None


def split_by_fence(
    spec: TableSpec,
    rows: Sequence[Row],
    fence: Callable[[str, int], int | None],
    late: Collection[Coordinates] = (),
) -> tuple[list[Row], list[Row], dict[tuple[str, int], int]]:
    """Split rows into those to write and those written before, and say where the fences must then stand.

    ``fence(topic_id, partition)`` is the first offset not yet committed, or None; records that are ``late`` are written
    though they lie below it. Only partitions with rows to write have a new fence: their highest offset + 1, never below
    the old one. Order is kept.
    """
    fresh: list[Row] = []
    replayed: list[Row] = []
    old: dict[tuple[str, int], int] = {}
    new: dict[tuple[str, int], int] = {}
    for row in rows:
        record = topic_id, partition, offset = coordinates(spec, row)
        at = topic_id, partition
        if at not in old:
            old[at] = fence(*at) or 0
        if offset < old[at] and record not in late:
            replayed.append(row)
            continue
        new[at] = max(new.get(at, old[at]), offset + 1)
        fresh.append(row)
    return fresh, replayed, new


@dataclass(frozen=True)
class Decision:
    """What an upsert changes: rows to ``put`` (insert or update), and rows to ``touch``: those that leave their set."""

    put: list[Row]
    touch: list[Row]


def decide(spec: TableSpec, incoming: Sequence[Row], existing: Sequence[Row]) -> Decision:
    """Say what ``incoming`` rows change in a table that holds ``existing`` ones.

    ``existing`` need only hold the keys and the order, and may hold rows that ``incoming`` does not meet. Values must
    be comparable as they are: both sides come from Arrow.
    """
    assert isinstance(spec.mode, Upsert)
    return (_decide_sets if spec.mode.members_of else _decide_rows)(spec, spec.mode, incoming, existing)


def leave_newer(
    spec: TableSpec, revised: Sequence[Row], gone: Sequence[Row], existing: Sequence[Row]
) -> tuple[list[Row], list[Row]]:
    """Of rows that were ``revised`` and those that are to be ``gone``, those whose group the table does not have newer.

    A group are the rows that agree on ``members_of``, or on the keys. ``existing`` need only hold the keys and the
    order.
    """
    mode = spec.mode
    assert isinstance(mode, Upsert)
    by = mode.members_of or mode.keys
    stored, groups = _grouped(existing, by), _grouped((*revised, *gone), by)
    newer = {key for key, rows in groups.items() if key in stored and _rank(stored[key], mode) > _rank(rows, mode)}
    kept = [row for row in revised if _values(row, by) not in newer]
    return kept, [row for row in gone if _values(row, by) not in newer]


def _decide_rows(spec: TableSpec, mode: Upsert, incoming: Sequence[Row], existing: Sequence[Row]) -> Decision:
    stored = _grouped(existing, mode.keys)
    newest: dict[Values, Row] = {}
    for row in incoming:
        key = _key(spec, row, mode.keys)
        if key not in newest or _rank([row], mode) >= _rank([newest[key]], mode):
            newest[key] = row
    return Decision(
        put=[row for key, row in newest.items() if key not in stored or _rank([row], mode) > _rank(stored[key], mode)],
        touch=[],
    )


def _decide_sets(spec: TableSpec, mode: Upsert, incoming: Sequence[Row], existing: Sequence[Row]) -> Decision:
    assert mode.active is not None
    own_keys = [k for k in mode.keys if k not in mode.members_of]
    stored = _grouped(existing, mode.members_of)
    newest: dict[Values, list[Row]] = {}
    for rows in _grouped(incoming, (*mode.members_of, *spec.source)).values():
        group = _key(spec, rows[0], mode.members_of)
        if group not in newest or _rank(rows, mode) >= _rank(newest[group], mode):
            newest[group] = rows

    put: list[Row] = []
    touch: list[Row] = []
    for group, rows in newest.items():
        there = stored.get(group, [])
        if there and _rank(rows, mode) <= _rank(there, mode):
            continue
        members = {_key(spec, r, mode.keys): r for r in rows if any(r[k] is not None for k in own_keys)}
        put += members.values()
        if not members and not there:
            put.append({**rows[0], **{k: _blank(spec, k) for k in own_keys}, mode.active: False})
        taken = {c: rows[0][c] for c in (*mode.order, *spec.source, *mode.touch)} | {mode.active: False}
        left = dict.fromkeys(key for row in there if (key := _values(row, mode.keys)) not in members)
        touch += [taken | dict(zip(mode.keys, key, strict=True)) for key in left]
    return Decision(put, touch)


def _grouped(rows: Iterable[Row], columns: Sequence[str]) -> dict[Values, list[Row]]:
    groups: dict[Values, list[Row]] = {}
    for row in rows:
        groups.setdefault(_values(row, columns), []).append(row)
    return groups


def _values(row: Row, columns: Iterable[str]) -> Values:
    return tuple(row[c] for c in columns)


def _key(spec: TableSpec, row: Row, columns: Sequence[str]) -> Values:
    key = _values(row, columns)
    if None in key:
        raise RowError(f"{spec}: the key column {columns[key.index(None)]!r} is null in a row")
    return key


def _rank(rows: Iterable[Row], mode: Upsert) -> Values:
    """The place in the order of the newest of ``rows``, comparable; a null is the oldest."""
    return max(tuple((False,) if row[c] is None else (True, row[c]) for c in mode.order) for row in rows)


def _blank(spec: TableSpec, column: str) -> Any:
    return 0 if pa.types.is_integer(spec.schema.field(column).type) else ""


_WRITER = "writer"  # in a column's metadata: the fence prefix of who writes it


def missing_columns(spec: TableSpec, table: Schema, partition_by: Sequence[str]) -> list[Field]:
    """The columns of the specification that a table lacks, as nullable. Raises TableError if the two do not match."""
    if tuple(partition_by) != spec.partition_by:
        raise TableError(
            f"{spec} is partitioned by ({', '.join(partition_by)}), the job by ({', '.join(spec.partition_by)}): "
            "set the job's partitioning to the table's, or write to another table"
        )
    there = {f.name.lower(): f for f in table.fields}
    missing = []
    for wanted in Schema.from_arrow(spec.schema).fields:
        found = there.pop(wanted.name.lower(), None)
        if found is None:
            missing.append(Field(wanted.name, wanted.type, nullable=True, metadata=_mark(spec)))
        elif (found.name, found.type) != (wanted.name, wanted.type):
            raise TableError(
                f"{spec}: column {found.name!r} is {_type_name(found)} in the table, and {wanted.name!r} is "
                f"{_type_name(wanted)} in the job: rewrite the column, or write to another table"
            )
    for left in there.values():
        if not left.nullable:
            raise TableError(
                f"{spec}: column {left.name!r} ({_type_name(left)}) is NOT NULL in the table, and the job does not "
                f"write it: ALTER TABLE ... ALTER COLUMN {left.name} DROP NOT NULL, or write to another table"
            )
    return missing


def marked_schema(spec: TableSpec) -> Schema:
    """The schema of a new table; each column says whose it is, for :func:`columns_of_other_versions`."""
    columns = Schema.from_arrow(spec.schema).fields
    return Schema([Field(c.name, c.type, nullable=c.nullable, metadata=_mark(spec)) for c in columns])


def columns_of_other_versions(spec: TableSpec, table: Schema) -> list[str]:
    """Columns that this program's other versions write, and this one does not know: in a row that it replaces they
    would be of the row before. Columns that someone else has added are not among them.
    """
    known = {name.lower() for name in spec.schema.names}
    return [
        c.name for c in table.fields if c.metadata.get(_WRITER) == spec.fence_prefix and c.name.lower() not in known
    ]


def _mark(spec: TableSpec) -> dict[str, str]:
    return {_WRITER: spec.fence_prefix}


def _type_name(column: Field) -> str:
    return str(column.type.type) if isinstance(column.type, PrimitiveType) else str(column.type.to_json())


def to_arrow(spec: TableSpec, rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Rows as a table of ``schema``; a key that a row lacks is null. Raises RowError."""
    unknown = set[str]().union(*rows) - set(spec.schema.names)
    if unknown:
        raise RowError(f"{spec}: a row has the column {min(unknown)!r}, which the schema lacks")
    return pa.table([_column(spec, [row.get(f.name) for row in rows], f) for f in schema], schema=schema)


def _column(spec: TableSpec, values: list[Any], column: pa.Field) -> pa.Array:
    def refused(what: str) -> RowError:
        return RowError(f"{spec}: column {column.name!r} is {column.type}, which {what} does not fit")

    if not column.nullable and None in values:
        raise RowError(f"{spec}: column {column.name!r} is NOT NULL, and a row has no value for it")
    try:
        return pa.array(values, type=column.type)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        for value in values:
            try:
                pa.array([value], type=column.type)
            except (pa.ArrowException, OverflowError, TypeError, ValueError):
                raise refused(f"a value of type {type(value).__name__}") from None
        raise refused("the whole of its values") from None
