"""A bundle's rows as columns: gathered from mappings and Arrow batches, compared and completed without rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc

from itel_cabinet.io.delta.spec import Given, Row, RowError, TableSpec, Upsert

__all__ = ["Rows", "complete", "gather", "last_of_each", "missing_source", "number_rows", "rows_in"]


class Rows(Sequence[Row]):
    """Rows of an Arrow table, each made when it is looked at; equal to a list of the same rows."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        if isinstance(at, slice):
            return list(self)[at]
        row: Row = self.table.take([at if at >= 0 else at + len(self)]).to_pylist()[0]
        return row

    def __iter__(self) -> Iterator[Row]:
        for batch in self.table.to_batches():
            yield from batch.to_pylist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Rows({list(self)})"


def gather(spec: TableSpec, given: Given) -> pa.Table:
    """One table of mappings and batches, in their order; batches are not copied.

    It has the columns that any of them has, and those that decisions are made on, in the specification's order. Raises
    RowError, which names columns and types, never values.
    """
    if isinstance(given, Rows):
        given = given.table
    if isinstance(given, pa.Table | pa.RecordBatch):
        given = [given]
    parts: list[pa.Table] = []
    mappings: list[Row] = []
    for element in given:
        if isinstance(element, Mapping):
            mappings.append(element)
            continue
        if mappings:
            parts.append(_from_mappings(spec, mappings))
            mappings = []
        if element.num_rows:
            parts.append(_from_batch(spec, element))
    if mappings or not parts:
        parts.append(_from_mappings(spec, mappings))
    table = pa.concat_tables(parts, promote_options="default") if len(parts) > 1 else parts[0]
    present = {*table.column_names, *_needed(spec)}
    return complete(spec, table, pa.schema([f.with_nullable(True) for f in spec.schema if f.name in present]))


def complete(spec: TableSpec, table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns of ``schema``; those that it lacks are null. Raises RowError for a null where the schema
    has NOT NULL."""
    present = {*table.column_names}
    columns = []
    for field in schema:
        column = table[field.name] if field.name in present else pa.nulls(table.num_rows, field.type)
        if not field.nullable and column.null_count:
            raise RowError(f"{spec}: column {field.name!r} is NOT NULL, and a row has no value for it")
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def number_rows(table: pa.Table, columns: Sequence[str]) -> pa.Array:
    """A number for each row: equal where rows agree in all ``columns`` (nulls agree), counted from 0 by first
    appearance."""
    numbers: pa.Array | None = None
    for name in columns:
        encoded = table[name].combine_chunks().dictionary_encode(null_encoding="encode")
        codes = encoded.indices.cast(pa.int64())
        if numbers is not None:
            pairs = pc.add(pc.multiply(numbers, max(len(encoded.dictionary), 1)), codes)
            codes = pairs.dictionary_encode().indices.cast(pa.int64())
        numbers = codes
    assert numbers is not None
    return numbers


def rows_in(left: pa.Table, right: pa.Table, columns: Sequence[str]) -> pa.Array:
    """For each row of ``left`` whether ``right`` has one that agrees in ``columns``, which have the same types."""
    both = number_rows(pa.concat_tables([left.select(columns), right.select(columns)]), columns)
    return pc.is_in(both.slice(0, left.num_rows), value_set=both.slice(left.num_rows))


def last_of_each(numbers: pa.Array) -> pa.Array:
    """The positions at which the numbers stand for the last time, ascending."""
    last = (
        pa.table({"n": numbers, "at": pa.arange(0, len(numbers))})
        .group_by("n", use_threads=False)
        .aggregate([("at", "max")])
    )
    return last["at_max"].combine_chunks().sort()


def _needed(spec: TableSpec) -> tuple[str, ...]:
    """The columns that decisions are made on; without its source a row is refused anyway."""
    listed = tuple(column for _, column in spec.suppressed.ids) if spec.suppressed else ()
    if isinstance(spec.mode, Upsert):
        active = (spec.mode.active,) if spec.mode.active else ()
        return (*listed, *spec.source, *spec.mode.keys, *spec.mode.order, *spec.mode.touch, *active)
    return (*listed, *spec.mode.identity)


def _from_batch(spec: TableSpec, batch: pa.Table | pa.RecordBatch) -> pa.Table:
    for field in batch.schema:
        if field.name not in spec.schema.names:
            raise RowError(f"{spec}: a batch has the column {field.name!r}, which the schema lacks")
        wanted = spec.schema.field(field.name).type
        if field.type != wanted:
            raise RowError(f"{spec}: column {field.name!r} is {wanted}, and {field.type} in a batch")
    table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
    return table.cast(pa.schema([f.with_nullable(True).remove_metadata() for f in table.schema]))


def _from_mappings(spec: TableSpec, rows: Sequence[Row]) -> pa.Table:
    given = set[str]().union(*rows)
    unknown = given - set(spec.schema.names)
    if unknown:
        raise RowError(f"{spec}: a row has the column {min(unknown)!r}, which the schema lacks")
    fields = [f.with_nullable(True) for f in spec.schema if f.name in given]
    if rows and not fields:
        raise missing_source(spec)
    return pa.table([_column(spec, [row.get(f.name) for row in rows], f) for f in fields], schema=pa.schema(fields))


def missing_source(spec: TableSpec) -> RowError:
    """What is raised where a row does not say which record it comes from."""
    return RowError(f"a row lacks its source: {', '.join(spec.source)} must be a text and two integers")


def _column(spec: TableSpec, values: list[Any], column: pa.Field) -> pa.Array:
    def refused(what: str) -> RowError:
        return RowError(f"{spec}: column {column.name!r} is {column.type}, which {what} does not fit")

    try:
        return pa.array(values, type=column.type)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        for value in values:
            try:
                pa.array([value], type=column.type)
            except (pa.ArrowException, OverflowError, TypeError, ValueError):
                if column.name in spec.source and not isinstance(
                    value, int if pa.types.is_integer(column.type) else str
                ):
                    raise missing_source(spec) from None
                raise refused(f"a value of type {type(value).__name__}") from None
        raise refused("the whole of its values") from None
