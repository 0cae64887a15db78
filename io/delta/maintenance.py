"""Upkeep of Delta tables beside the jobs that write them: fewer and larger files, and old ones deleted.

Neither touches a row or a fence, and both may be cut off and repeated at any time.
"""

from __future__ import annotations

import functools
import random as _random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
from deltalake import DeltaTable, WriterProperties
from deltalake.exceptions import CommitFailedError
from pyarrow.fs import FileSelector

from itel_cabinet.io.delta.features import check_features
from itel_cabinet.io.delta.files import KeyedFiles, can_be_rewritten
from itel_cabinet.io.delta.inspect import at_once, error_text, file_sizes, open_table, storage
from itel_cabinet.io.delta.spec import TableError, TableSpec
from itel_cabinet.io.worker import full_jitter

__all__ = ["PARQUET", "SAFE_RETENTION_HOURS", "Optimized", "Vacuumed", "optimize", "read_hours", "vacuum"]

T = TypeVar("T")

SAFE_RETENTION_HOURS = 168
"""Readers of an older version, time travel and writers that have not committed yet are safe for so long."""

_TRIES = 10
_CONFLICT_WAITS = (0.2, 5.0)  # seconds: the first and the longest, before jitter
# A row may hold a whole answer of ClaimX's size; of the usual million such rows a row group would be gigabytes.
PARQUET = WriterProperties(max_row_group_size=32_768, compression="SNAPPY")
_TARGET_BYTES = 100 * 1024 * 1024  # delta-rs's own, where a table has no delta.targetFileSize
_HOURS = {"week": 168.0, "day": 24.0, "hour": 1.0, "minute": 1 / 60, "second": 1 / 3600}


@dataclass(frozen=True)
class Optimized:
    """Number and bytes of a table's files, before and after; ``rewritten`` is how many of those before went into new
    ones.

    For a dry run there is no ``after``, and ``version`` is None as where nothing was to be done. Under load, what
    others added meanwhile is in ``after``. ``conflicts`` counts the tries that another writer has ruined.
    """

    before: tuple[int, int]
    after: tuple[int, int] | None
    rewritten: int
    version: int | None
    conflicts: int = 0


def optimize(
    spec: TableSpec,
    *,
    target_bytes: int | None = None,
    z_order: Sequence[str] = (),
    dry_run: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    random: Callable[[], float] = _random.random,
) -> Optimized:
    """Put small files together up to ``target_bytes`` (default: the table's property, else 100 MB); those of an
    upserted table in the order of their keys, by which upserts find them.

    With ``z_order`` all files are rewritten, rows alike in those columns side by side. Safe while jobs write: the
    writer that commits second does its work again. Raises TableError for columns that cannot be sorted by, or if other
    writers have won ten times; OutageError if the store fails.
    """

    def work() -> Optimized:
        table = open_table(spec)
        check_features(spec, table)
        _check_columns(spec, table, z_order)
        before = file_sizes(table)
        if dry_run:
            rewritten = len(before) if z_order else _small_files(spec, table, _target(table, target_bytes))
            return Optimized((len(before), sum(before)), None, rewritten, None)

        def attempt() -> tuple[DeltaTable, int, int]:
            table = open_table(spec)
            start = table.version()
            if not z_order and can_be_rewritten(spec, table):
                return table, start, KeyedFiles(spec, table).compact(_target(table, target_bytes))
            act = functools.partial(table.optimize.z_order, z_order) if z_order else table.optimize.compact
            return table, start, int(act(target_size=target_bytes, writer_properties=PARQUET)["numFilesRemoved"])

        (table, start, rewritten), conflicts = _against_others(spec, attempt, sleep, random)
        after = file_sizes(table)
        version = table.version() if table.version() > start else None
        return Optimized((len(before), sum(before)), (len(after), sum(after)), rewritten, version, conflicts)

    return at_once(spec, work)


def _against_others(
    spec: TableSpec, attempt: Callable[[], T], sleep: Callable[[float], None], random: Callable[[], float]
) -> tuple[T, int]:
    """What an attempt returns that no other writer has ruined, and how many were."""
    waits = full_jitter(*_CONFLICT_WAITS, random)
    for conflicts in range(_TRIES):
        try:
            return attempt(), conflicts
        except CommitFailedError as error:
            lost = error_text(spec, error)
            sleep(next(waits))
    raise TableError(
        f"{spec}: other writers were faster {_TRIES} times ({lost}); no row is touched: try again when less is written"
    )


def _check_columns(spec: TableSpec, table: DeltaTable, columns: Sequence[str]) -> None:
    there, partitions = {f.name for f in table.schema().fields}, set(table.metadata().partition_columns)
    for column in columns:
        if column not in there:
            raise TableError(f"{spec} has no column {column!r}")
        if column in partitions:
            raise TableError(f"{spec} is partitioned by {column!r}, so its files are sorted by it already")


def _target(table: DeltaTable, target_bytes: int | None) -> int:
    return target_bytes or int(table.metadata().configuration.get("delta.targetFileSize", _TARGET_BYTES))


def _small_files(spec: TableSpec, table: DeltaTable, target: int) -> int:
    """How many files a compaction would put together: those below the target that are not alone in their partition."""
    if can_be_rewritten(spec, table):
        return len(KeyedFiles(spec, table).small(target))
    actions = pa.table(table.get_add_actions(flatten=True))
    partitions = [actions[f"partition.{column}"].to_pylist() for column in table.metadata().partition_columns]
    small: dict[tuple[object, ...], int] = defaultdict(int)
    for size, *partition in zip(actions["size_bytes"].to_pylist(), *partitions, strict=True):
        small[tuple(partition)] += size < target
    return sum(number for number in small.values() if number > 1)


@dataclass(frozen=True)
class Vacuumed:
    """Files that were deleted, or in a dry run would be, and their bytes."""

    files: int
    bytes: int


def vacuum(
    spec: TableSpec,
    *,
    retention_hours: int = SAFE_RETENTION_HOURS,
    dry_run: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    random: Callable[[], float] = _random.random,
) -> Vacuumed:
    """Delete files that no version of the last ``retention_hours`` needs, and the log from before
    ``delta.logRetentionDuration``. May run beside jobs, and be repeated.

    From SAFE_RETENTION_HOURS on also those that no version mentions: left by writers that were killed before their
    commit, or forgotten by the log (delta-rs drops removed files from its checkpoints after
    ``delta.deletedFileRetentionDuration``). Below it those may be a running writer's, so that only files go that the
    log says were removed. Raises TableError if the log does not reach back so far, or if other writers have won ten
    times against the two commits that record a vacuum; OutageError if the store fails.
    """

    def work() -> Vacuumed:
        table = open_table(spec)
        check_features(spec, table)
        remembered = _remembered_hours(table)
        if retention_hours > remembered:
            raise TableError(
                f"{spec} remembers for {remembered:g} h which files were removed, and cannot keep them longer: set its "
                f"property delta.deletedFileRetentionDuration to 'interval {retention_hours} hours' first"
            )
        sizes = {f.path: f.size for f in storage(spec).get_file_info(FileSelector("", recursive=True)) if f.is_file}
        gone = set[str]()

        def attempt() -> None:
            act = functools.partial(
                open_table(spec).vacuum,
                retention_hours,
                enforce_retention_duration=False,  # who calls this knows
                full=retention_hours >= SAFE_RETENTION_HOURS,
            )
            gone.update(act(dry_run=True))
            if not dry_run:
                act(dry_run=False)  # in a conflict after the deletion, the next attempt finds less
                table = open_table(spec)
                # The log of before, which may name what was deleted since; a job does this every 100 commits.
                table.create_checkpoint()
                table.cleanup_metadata()

        _against_others(spec, attempt, sleep, random)
        # What an earlier vacuum has deleted is named again.
        deleted = [sizes[path] for path in gone if path in sizes]
        return Vacuumed(len(deleted), sum(deleted))

    return at_once(spec, work)


def _remembered_hours(table: DeltaTable) -> float:
    return read_hours(table.metadata().configuration, "delta.deletedFileRetentionDuration", "interval 1 week")


def read_hours(properties: Mapping[str, str], name: str, default: str) -> float:
    """A duration among a table's properties, in hours; a week for one that cannot be read."""
    duration = properties.get(name, default)
    parts = re.fullmatch(r"interval\s+(\d+)\s+(week|day|hour|minute|second)s?", duration.strip())
    return int(parts[1]) * _HOURS[parts[2]] if parts else float(SAFE_RETENTION_HOURS)
