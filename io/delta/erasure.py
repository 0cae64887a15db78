"""Rows deleted for good, beside the jobs that write their table.

Nothing that was decided on before :func:`announce` can be committed after it, so that a :func:`delete_rows` that
follows meets every row there will ever be of what is on the list. What was deleted is in older versions until they are
vacuumed. Both may be cut off and repeated at any time.
"""

from __future__ import annotations

import random as _random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
from deltalake import CommitProperties, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from itel_cabinet.io.delta.features import check_features
from itel_cabinet.io.delta.inspect import STATISTICS, at_once, error_text, is_outage, literal, open_table
from itel_cabinet.io.delta.maintenance import PARQUET
from itel_cabinet.io.delta.spec import Pairs, Row, TableSpec, Upsert
from itel_cabinet.io.delta.suppressions import ANNOUNCED
from itel_cabinet.io.worker import OutageError, crash_points, describe_error, full_jitter, retry_outage

__all__ = ["Deleted", "announce", "append_rows", "delete_rows", "find_rows"]

T = TypeVar("T")

_CONFLICT_WAITS = (0.02, 1.0)  # seconds: the first and the longest, before jitter
_MOST_PARTITIONS = 100  # that a condition names


@dataclass(frozen=True)
class Deleted:
    """How many rows one commit deleted, or a dry run would; ``version`` is the table's after it, None without one.

    ``conflicts`` counts the tries that another writer has ruined.
    """

    rows: int
    version: int | None
    conflicts: int = 0


def announce(spec: TableSpec, version: int) -> None:
    """Have all writers of a table know the list of what was erased at this version of it, before they commit again.

    A table that keeps least and greatest values of columns beyond ``spec.statistics`` in its log stops that. Raises
    TableError, and OutageError after ``spec.outage_seconds`` against other writers, or at once if the store fails.
    """

    def attempt() -> None:
        table = open_table(spec)
        check_features(spec, table)
        there = table.metadata().configuration
        wanted = {STATISTICS: ",".join(spec.statistics)} if spec.statistics and STATISTICS not in there else {}
        if int(there.get(ANNOUNCED, -1)) < version:
            wanted[ANNOUNCED] = str(version)
        if wanted:
            table.alter.set_table_properties(wanted, raise_if_not_exists=False)

    _against_others(spec, attempt)


def find_rows(spec: TableSpec, columns: Iterable[str], where: str) -> list[Row]:
    """Some columns of the rows that meet a condition in SQL. Raises OutageError at once if the store fails."""

    def look() -> list[Row]:
        rows: list[Row] = pa.table(open_table(spec).scan(columns=list(columns), predicate=where)).to_pylist()
        return rows

    return at_once(spec, look)


def append_rows(uri: str, rows: pa.Table, storage_options: Pairs) -> None:
    """Add rows to a table that nothing else writes, without fences; it is made where it is missing. Raises OutageError
    at once if the store fails.
    """
    retry_outage(
        lambda: write_deltalake(uri, rows, mode="append", storage_options=dict(storage_options)),
        what=f"Delta table {uri}",
        seconds=0,
        is_outage=is_outage,
        describe=describe_error,
    )


def delete_rows(
    spec: TableSpec,
    where: str,
    *,
    dry_run: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    random: Callable[[], float] = _random.random,
) -> Deleted:
    """Delete the rows that meet a condition in SQL, in one commit; no fence of a partition moves. Idempotent.

    Files without such rows stay as they are. Safe beside writers: the one that commits second does its work again.
    Raises TableError, and OutageError after ``spec.outage_seconds`` against other writers, or at once if the store
    fails.
    """

    def attempt() -> Deleted:
        table = open_table(spec)
        check_features(spec, table)
        partitions = list(table.metadata().partition_columns)
        number, met = 0, set[tuple[Any, ...]]()
        scan = table.scan(columns=partitions or [spec.source[2]], predicate=where)
        for batch in pa.RecordBatchReader.from_stream(scan):
            number += batch.num_rows
            if partitions:
                met.update(zip(*(column.to_pylist() for column in batch.columns), strict=True))
        if not number or dry_run:
            return Deleted(number, None)
        crash_points.maybe_crash(f"before-delete:{spec.name}")
        mode, upserts = spec.mode, f"{spec.fence_prefix}/upsert"
        fence = [Transaction(upserts, table.version() + 1)] if isinstance(mode, Upsert) else []
        done = table.delete(
            # Of a table with partitions only these can conflict with what others write meanwhile.
            _within([dict(zip(partitions, values, strict=True)) for values in met], where),
            writer_properties=PARQUET,
            commit_properties=CommitProperties(app_transactions=fence),
        )
        crash_points.maybe_crash(f"after-delete:{spec.name}")
        return Deleted(int(done["num_deleted_rows"] or 0), table.version())

    done, conflicts = _against_others(spec, attempt, sleep, random)
    return Deleted(done.rows, done.version, conflicts)


def _within(partitions: Sequence[Mapping[str, Any]], where: str) -> str:
    if not 0 < len(partitions) <= _MOST_PARTITIONS:
        return where
    return f"({' OR '.join(_all_equal(one) for one in partitions)}) AND ({where})"


def _all_equal(values: Mapping[str, Any]) -> str:
    return "(" + " AND ".join(
        f"`{column}` IS NULL"
        if value is None
        else f"`{column}` = {literal(value if isinstance(value, int) else str(value))}"
        for column, value in values.items()
    ) + ")"  # fmt: skip


def _against_others(
    spec: TableSpec,
    attempt: Callable[[], T],
    sleep: Callable[[float], None] = time.sleep,
    random: Callable[[], float] = _random.random,
) -> tuple[T, int]:
    """What an attempt returns that no other writer has ruined, and how many were."""
    deadline = time.monotonic() + spec.outage_seconds
    conflicts = 0
    for wait in full_jitter(*_CONFLICT_WAITS, random):
        try:
            # In it, since for `at_once` a lost race is an outage too.
            return at_once(spec, lambda: _tried(attempt)), conflicts
        except _LostRaceError as error:
            conflicts += 1
            if time.monotonic() >= deadline:
                raise OutageError(
                    f"{spec}: lost against other writers for {spec.outage_seconds:.0f} s ({error_text(spec, error)}); "
                    "what was done stays: try again when less is written"
                ) from None
            sleep(wait)
    raise AssertionError("the waits never end")


class _LostRaceError(Exception):
    pass


def _tried(attempt: Callable[[], T]) -> T:
    try:
        return attempt()
    except CommitFailedError as error:
        raise _LostRaceError(str(error)) from None
