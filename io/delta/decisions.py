"""What a commit to a Delta table is to hold: pure functions, on which :mod:`itel_cabinet.io.delta.table` acts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import Field, Schema
from deltalake.schema import PrimitiveType

from itel_cabinet.io.delta.rows import Rows, gather, last_of_each, missing_source, number_rows, rows_in
from itel_cabinet.io.delta.spec import Given, Row, RowError, TableError, TableSpec, Upsert

__all__ = [
    "Decision",
    "columns_of_other_versions",
    "decide",
    "leave_newer",
    "marked_schema",
    "missing_columns",
    "offsets_of",
    "split_by_fence",
]


def split_by_fence(
    spec: TableSpec,
    rows: Given,
    fence: Callable[[str, int], int | None],
    late: pa.Table | None = None,
) -> tuple[Rows, Rows, dict[tuple[str, int], int]]:
    """Split rows into those to write and those written before, and say where the fences must then stand.

    ``fence(topic_id, partition)`` is the first offset not yet committed, or None; rows that agree with one of ``late``
    in its columns are written though they lie below it. Only partitions with rows to write have a new fence: their
    highest offset + 1, never below the old one. Order is kept. Raises RowError for rows without a source.
    """
    table = gather(spec, rows)
    old: dict[tuple[str, int], int] = {}
    new: dict[tuple[str, int], int] = {}
    below = None
    for topic_id, partition, offsets in offsets_of(spec, table):
        at = topic_id, partition
        old[at], new[at] = fence(*at) or 0, offsets.stop
        if offsets.start < old[at]:
            of_partition = _below(spec, table, topic_id, partition, old[at])
            below = of_partition if below is None else pc.or_(below, of_partition)
    if below is None:
        return Rows(table), Rows(table.slice(0, 0)), new
    if late is not None and late.num_rows:
        below = pc.and_not(below, rows_in(table, late, late.column_names))
    fresh, replayed = table.filter(pc.invert(below)), table.filter(below)
    new = {(t, p): max(offsets.stop, old[t, p]) for t, p, offsets in offsets_of(spec, fresh)}
    return Rows(fresh), Rows(replayed), new


def offsets_of(spec: TableSpec, table: pa.Table) -> list[tuple[str, int, range]]:
    """Topic ids and partitions of the rows, with the span from the first to the last offset. Raises RowError."""
    topic, partition, offset = spec.source
    if not table.num_rows:
        return []
    if {*spec.source} - {*table.column_names} or any(table[column].null_count for column in spec.source):
        raise missing_source(spec)
    spans = table.select(spec.source).group_by([topic, partition], use_threads=False)
    spans = spans.aggregate([(offset, "min"), (offset, "max")])
    columns = (topic, partition, f"{offset}_min", f"{offset}_max")
    return [
        (topic_id, number, range(first, last + 1))
        for topic_id, number, first, last in zip(*(spans[c].to_pylist() for c in columns), strict=True)
    ]


def _below(spec: TableSpec, table: pa.Table, topic_id: str, partition: int, fence: int) -> pa.ChunkedArray:
    topic_column, partition_column, offset_column = (table[column] for column in spec.source)
    of_topic, of_partition = pc.equal(topic_column, topic_id), pc.equal(partition_column, partition)
    return pc.and_(pc.and_(of_topic, of_partition), pc.less(offset_column, fence))


@dataclass(frozen=True)
class Decision:
    """What an upsert changes: rows to ``put`` (insert or update), and rows to ``touch``: those that leave their set,
    with the columns that they take."""

    put: Sequence[Row]
    touch: Sequence[Row]


def decide(spec: TableSpec, incoming: Given, existing: Given) -> Decision:
    """Say what ``incoming`` rows change in a table that holds ``existing`` ones.

    ``existing`` need only hold the keys and the order, and may hold rows that ``incoming`` does not meet. Raises
    RowError for a null key.
    """
    mode = spec.mode
    assert isinstance(mode, Upsert)
    new, there = gather(spec, incoming), gather(spec, existing).select([*dict.fromkeys((*mode.keys, *mode.order))])
    if not mode.members_of:
        _check_keys(spec, new, mode.keys)
        return Decision(Rows(new.take(_winners(mode, new, there, mode.keys))), Rows(there.slice(0, 0)))
    return _decide_sets(spec, mode, new, there)


def leave_newer(spec: TableSpec, revised: pa.Table, gone: pa.Table, existing: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Of rows that were ``revised`` and those that are to be ``gone``, those whose group the table does not have newer.

    A group are the rows that agree on ``members_of``, or on the keys. ``existing`` need only hold the keys and the
    order.
    """
    mode = spec.mode
    assert isinstance(mode, Upsert)
    by = mode.members_of or mode.keys
    columns = [*dict.fromkeys((*mode.keys, *mode.order))]
    given = pa.concat_tables([revised.select(columns), gone.select(columns)])
    newer = existing.take(_winners(mode, existing, given, by))
    kept, left = (rows.filter(pc.invert(rows_in(rows, newer, by))) for rows in (revised, gone))
    return kept, left


def _winners(mode: Upsert, ours: pa.Table, theirs: pa.Table, by: Sequence[str]) -> pa.Array:
    """Positions in ``ours``, ascending: of each group, those of ``by``, its newest row, the last of equals, where it is
    newer than all of ``theirs``. A null is the oldest.
    """
    columns = [*dict.fromkeys((*by, *mode.order))]
    both = pa.concat_tables([ours.select(columns), theirs.select(columns)])
    ranks = both.select([*dict.fromkeys(mode.order)])
    ranks = ranks.append_column(_GROUP, number_rows(both, by)).append_column(_PLACE, pa.arange(0, both.num_rows))
    keys = [(name, "ascending", "at_start") for name in (_GROUP, *mode.order, _PLACE)]
    ordered = pc.sort_indices(ranks, sort_keys=keys)
    newest = ordered.take(last_of_each(ranks[_GROUP].combine_chunks().take(ordered)))
    return newest.filter(pc.less(newest, ours.num_rows)).sort()


def _decide_sets(spec: TableSpec, mode: Upsert, incoming: pa.Table, existing: pa.Table) -> Decision:
    assert mode.active is not None
    own_keys = [k for k in mode.keys if k not in mode.members_of]
    _check_keys(spec, incoming, mode.members_of)
    # A set's place in a tie is that of its first row, so sets are gathered before they are compared.
    set_of = number_rows(incoming, (*mode.members_of, *spec.source))
    incoming = incoming.take(pc.sort_indices(set_of))
    set_of = set_of.sort()
    winners = _winners(mode, incoming, existing, mode.members_of)
    of_winners = pc.is_in(set_of, value_set=set_of.take(winners))
    rows = incoming.filter(of_winners)
    first = rows.take(_first_of_each(number_rows(rows, mode.members_of)))

    blank = pc.is_null(rows[own_keys[0]])
    for key in own_keys[1:]:
        blank = pc.and_(blank, pc.is_null(rows[key]))
    members = rows.filter(pc.invert(blank))
    _check_keys(spec, members, mode.keys)
    members = members.take(last_of_each(number_rows(members, mode.keys)))

    unknown = pc.invert(pc.or_(rows_in(first, members, mode.members_of), rows_in(first, existing, mode.members_of)))
    markers = first.filter(unknown)
    for key in own_keys:
        markers = _set(markers, key, _blank(spec, key))
    put = pa.concat_tables([members, _set(markers, mode.active, False)])

    left = existing.select(mode.keys).filter(rows_in(existing, first, mode.members_of))
    left = left.filter(pc.invert(rows_in(left, members, mode.keys)))
    left = left.take(last_of_each(number_rows(left, mode.keys)))
    both = number_rows(pa.concat_tables([first.select(mode.members_of), left.select(mode.members_of)]), mode.members_of)
    of_set = pc.index_in(both.slice(first.num_rows), value_set=both.slice(0, first.num_rows))
    taken = [c for c in dict.fromkeys((*mode.order, *spec.source, *mode.touch)) if c not in (*mode.keys, mode.active)]
    touch = first.select(taken).take(of_set)
    for key in mode.keys:
        touch = touch.append_column(key, left[key])
    return Decision(Rows(put), Rows(touch.append_column(mode.active, pa.repeat(False, touch.num_rows))))


def _first_of_each(numbers: pa.Array) -> pa.Array:
    last = last_of_each(numbers[::-1])
    return pc.subtract(len(numbers) - 1, last).sort()


def _set(table: pa.Table, column: str, value: object) -> pa.Table:
    field = table.schema.field(column)
    values = pa.repeat(pa.scalar(value, type=field.type), table.num_rows)
    return table.set_column(table.column_names.index(column), field, values)


def _check_keys(spec: TableSpec, rows: pa.Table, keys: Sequence[str]) -> None:
    for key in keys:
        if rows[key].null_count:
            raise RowError(f"{spec}: the key column {key!r} is null in a row")


def _blank(spec: TableSpec, column: str) -> object:
    return 0 if pa.types.is_integer(spec.schema.field(column).type) else ""


_GROUP, _PLACE = "__group", "__place"  # beside a decision's columns: which rows belong together, and their order

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
