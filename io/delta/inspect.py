"""Delta tables as a whole: made, opened, described, and what an error about one means.

What the sink writes by, and tools look at tables with. Knows nothing of what the rows are about.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, Field, PostCommitHookProperties
from deltalake.exceptions import DeltaError, DeltaProtocolError, SchemaMismatchError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from pyarrow import parquet
from pyarrow.fs import FileSelector, PyFileSystem

from itel_cabinet.io.delta.decisions import marked_schema, missing_columns
from itel_cabinet.io.delta.features import check_features
from itel_cabinet.io.delta.spec import (
    RETENTION,
    Append,
    Pairs,
    TableError,
    TableGlance,
    TableSpec,
    TableState,
    Upsert,
)
from itel_cabinet.io.worker import describe_error, retry_outage

__all__ = [
    "AFTER_COMMIT",
    "STATISTICS",
    "UPSERT_FILE_BYTES",
    "all_fences",
    "among_records",
    "at_once",
    "check_writable",
    "create_table",
    "describe_table",
    "differing_properties",
    "error_text",
    "file_sizes",
    "glance_at_table",
    "is_outage",
    "literal",
    "open_or_create",
    "open_table",
    "records_written",
    "refusal",
    "storage",
    "table_exists",
]

T = TypeVar("T")

_DEFAULT_PROPERTIES = {
    "delta.checkpointInterval": "100",
    # A streaming job makes tens of thousands of versions a day: a month of them, the usual default, slows every
    # listing.
    "delta.logRetentionDuration": "interval 7 days",
}
# To look for expired entries at each commit costs as much as all the rest of it where the log has thousands.
AFTER_COMMIT = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)
STATISTICS = "delta.dataSkippingStatsColumns"
# An upsert rewrites every file that it meets a row in; each file costs every commit some microseconds (see
# docs/performance.md).
UPSERT_FILE_BYTES = 256 * 1024
_RECENT = 5
# For a look that nobody wants to wait minutes for.
_IMPATIENT = {"connect_timeout": "3s", "timeout": "10s", "max_retries": "1", "retry_timeout": "10s"}


def _properties(spec: TableSpec) -> dict[str, str]:
    upsert = {"delta.targetFileSize": str(UPSERT_FILE_BYTES)} if isinstance(spec.mode, Upsert) else {}
    statistics = {STATISTICS: ",".join(spec.statistics)} if spec.statistics else {}
    return _DEFAULT_PROPERTIES | upsert | statistics | dict(spec.properties)


def open_table(spec: TableSpec, version: int | None = None) -> DeltaTable:
    """A handle of its own, at a version or the newest one. Raises what delta-rs raises."""
    return DeltaTable(spec.uri, version=version, storage_options=dict(spec.storage_options))


def table_exists(spec: TableSpec) -> bool:
    """Whether there is a table at the place. Raises OutageError at once if the store does not answer."""
    return at_once(spec, lambda: DeltaTable.is_deltatable(spec.uri, dict(spec.storage_options)))


def open_or_create(spec: TableSpec) -> tuple[DeltaTable, bool]:
    """The table, and whether this call made it. Of two creators at once one makes it and the other opens it."""
    _check_store(spec)
    try:
        return open_table(spec), False
    except TableNotFoundError:
        DeltaTable.create(
            spec.uri,
            schema=marked_schema(spec),
            mode="ignore",
            partition_by=list(spec.partition_by),
            configuration=_properties(spec),
            storage_options=dict(spec.storage_options),
        )
        return open_table(spec), True


def check_writable(spec: TableSpec, table: DeltaTable) -> list[Field]:
    """The columns still to be added. Raises TableError if the table cannot be written exactly once, or not at all."""
    check_features(spec, table)
    metadata = table.metadata()
    if RETENTION in metadata.configuration:
        raise TableError(
            f"{spec}: its property {RETENTION} lets the fences of idle partitions expire, and replays would be "
            f"written twice: ALTER TABLE ... UNSET TBLPROPERTIES ('{RETENTION}')"
        )
    return missing_columns(spec, table.schema(), metadata.partition_columns)


def _check_store(spec: TableSpec) -> None:
    """Refuse options under which a commit to S3 is not atomic. Without any, delta-rs commits by ``If-None-Match``."""
    if not spec.uri.startswith(("s3://", "s3a://")):
        return
    options = {k.lower().removeprefix("aws_"): v for k, v in {**os.environ, **dict(spec.storage_options)}.items()}
    if options.get("s3_allow_unsafe_rename", "").lower() in ("true", "1"):
        raise TableError(
            f"{spec}: AWS_S3_ALLOW_UNSAFE_RENAME lets two writers overwrite each other's commits; unset it"
        )
    if options.get("s3_locking_provider"):
        raise TableError(f"{spec}: delta-rs has no lock in DynamoDB any more; unset AWS_S3_LOCKING_PROVIDER")
    if options.get("conditional_put", "etag") != "etag":
        raise TableError(
            f"{spec}: the storage option conditional_put must be etag, or left out: without it two writers overwrite "
            "each other's commits"
        )


def create_table(spec: TableSpec, *, dry_run: bool = False) -> TableState:
    """Make the table where it is missing, check it where it exists, and describe it. May be repeated; adds no columns.

    With ``dry_run`` nothing is made. Raises TableError, and OutageError at once if the store does not answer.
    """

    def look() -> TableState:
        try:
            if dry_run:
                _check_store(spec)
                table, created = open_table(spec), False
            else:
                table, created = open_or_create(spec)
        except TableNotFoundError:
            if not dry_run:
                raise
            properties = _properties(spec)
            return TableState(spec.uri, None, spec.schema, spec.partition_by, 0, {}, properties)
        check_writable(spec, table)
        return _state(spec, table, created)

    return at_once(spec, look)


def differing_properties(spec: TableSpec, state: TableState) -> dict[str, str | None]:
    """The properties that a specification gives and a table, which was there before, has otherwise: as it has them."""
    return {
        name: state.properties.get(name)
        for name, value in dict(spec.properties).items()
        if state.properties.get(name) != value
    }


def describe_table(uri: str, storage_options: Pairs = ()) -> TableState:
    """Describe an existing table; ``fences`` are all its ``txn`` ids. Raises OutageError at once if unreadable."""
    spec = _unspecified(uri, storage_options)

    def look() -> TableState:
        table = open_table(spec)
        history = tuple(
            (entry["version"], datetime.fromtimestamp(entry["timestamp"] / 1000, UTC), str(entry["operation"]))
            for entry in table.history(_RECENT)
        )
        return replace(_state(spec, table, False), history=history)

    return at_once(spec, look)


def glance_at_table(
    uri: str, storage_options: Pairs = (), *, newest: Sequence[str] = (), fences: Iterable[str] = ()
) -> TableGlance | None:
    """What a table's log says at little cost; ``newest`` names columns of instants. None if there is no table.

    Raises OutageError within some seconds if it is unreadable.
    """
    spec = _unspecified(uri, {**_IMPATIENT, **dict(storage_options)})

    def look() -> TableGlance | None:
        try:
            table = open_table(spec)
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

    return at_once(spec, look)


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

    Raises OutageError at once if the table is unreadable or not there.
    """
    wanted = set(records)
    found: set[tuple[str, int, int]] = set()

    def look() -> set[tuple[str, int, int]]:
        table = open_table(spec)
        topic, _, offset = spec.source
        for topic_id in sorted({one[0] for one in wanted}):
            offsets = sorted(one[2] for one in wanted if one[0] == topic_id)
            within = f"`{topic}` = {literal(topic_id)} AND `{offset}` BETWEEN {offsets[0]} AND {offsets[-1]}"
            for batch in pa.RecordBatchReader.from_stream(table.scan(columns=list(spec.source), predicate=within)):
                found.update(wanted.intersection(zip(*(column.to_pylist() for column in batch.columns), strict=True)))
        return found

    return at_once(spec, look)


def literal(value: str | int) -> str:
    """A value as SQL has it."""
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def among_records(spec: TableSpec, topic_id: str, partition: int, offsets: range) -> str:
    """The condition in SQL that holds for the rows of these records."""
    topic_column, partition_column, offset_column = spec.source
    return (
        f"`{topic_column}` = {literal(topic_id)} AND `{partition_column}` = {partition} AND "
        f"`{offset_column}` BETWEEN {offsets.start} AND {offsets.stop - 1}"
    )


def at_once(spec: TableSpec, look: Callable[[], T]) -> T:
    """What ``look`` returns; an outage is raised as OutageError, without a second try."""
    return retry_outage(
        look, what=str(spec), seconds=0, is_outage=is_outage, describe=functools.partial(error_text, spec)
    )


def _state(spec: TableSpec, table: DeltaTable, created: bool) -> TableState:
    metadata = table.metadata()
    sizes = file_sizes(table)
    return TableState(
        uri=spec.uri,
        version=table.version(),
        schema=pa.schema(table.schema().to_arrow()),
        partition_by=tuple(metadata.partition_columns),
        files=len(sizes),
        bytes=sum(sizes),
        fences=all_fences(spec, table),
        properties=dict(metadata.configuration),
        created=created,
    )


def file_sizes(table: DeltaTable) -> list[int]:
    """The size in bytes of each file that is part of the table at the handle's version."""
    sizes: list[int] = pa.table(table.get_add_actions())["size_bytes"].to_pylist()
    return sizes


def storage(spec: TableSpec) -> PyFileSystem:
    """The table's folder as a file system, its log included."""
    return PyFileSystem(DeltaStorageHandler(spec.uri, dict(spec.storage_options)))


def all_fences(spec: TableSpec, table: DeltaTable) -> dict[str, int]:
    """All ``txn`` ids of a table and their versions; delta-rs itself answers only for ids that one knows.

    Checkpoints of all kinds are read: classic ones, in one file or in parts, and those of the v2 specification, in
    Parquet or JSON (their sidecars hold no ``txn``). Raises TableError if the log is not whole: a fence that is
    overlooked would let rows be written twice.
    """
    log = storage(spec)
    files = {info.base_name: info.path for info in log.get_file_info(FileSelector("_delta_log"))}
    version = table.version()
    newest, checkpoint = _newest_checkpoint(files, version)
    commits = [f"{number:020}.json" for number in range(newest + 1, version + 1)]
    missing = next((name for name in commits if name not in files), None)
    if missing is not None:
        raise TableError(f"{spec}: {missing} is not in its log, and no checkpoint that is whole stands for it")
    apps: set[str] = set()
    for name in (*checkpoint, *commits):
        apps |= {txn["appId"] for txn in _transactions(log, files[name]) if txn}
    return {app: at for app in sorted(apps) if (at := table.transaction_version(app)) is not None}


_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.(\d{10})\.(\d{10})|\.[0-9a-fA-F-]{36})?\.(?:parquet|json)")


def _newest_checkpoint(files: Iterable[str], most: int) -> tuple[int, list[str]]:
    """The version, -1 for none, and the files of the newest checkpoint that is whole, up to a version."""
    found: dict[tuple[int, int], list[str]] = {}  # by version and number of parts
    for name in files:
        if (parts := _CHECKPOINT.fullmatch(name)) and int(parts[1]) <= most:
            found.setdefault((int(parts[1]), int(parts[3] or 1)), []).append(name)
    whole = {(version, parts): names for (version, parts), names in found.items() if len(names) >= parts}
    newest = max(whole, default=None)
    if newest is None:
        return -1, []
    # Of several in one file (v2 has one for each writer) any will do.
    return newest[0], sorted(whole[newest])[: newest[1]]


def _transactions(log: PyFileSystem, path: str) -> list[dict[str, Any] | None]:
    """The ``txn`` actions of a commit or a checkpoint."""
    if path.endswith(".json"):
        with log.open_input_stream(path) as lines:
            return [json.loads(line).get("txn") for line in lines.read().splitlines() if line.strip()]
    file = parquet.ParquetFile(log.open_input_file(path))
    if "txn" not in file.schema_arrow.names:
        return []
    actions: list[dict[str, Any] | None] = file.read(columns=["txn"])["txn"].to_pylist()
    return actions


def is_outage(error: Exception) -> bool:
    """Whether an error is the table store's, and so worth waiting for."""
    return isinstance(error, DeltaError | OSError)


def refusal(spec: TableSpec, error: Exception) -> TableError | None:
    """What an error of delta-rs means if waiting cannot help."""
    if isinstance(error, SchemaMismatchError | DeltaProtocolError):
        return TableError(f"{spec}: {error_text(spec, error)}")
    if isinstance(error, DeltaError) and "Invalid data found" in str(error):  # goes on to show the rows: not repeated
        return TableError(f"{spec}: a row breaks one of the table's CHECK constraints: drop it, or fix the rows")
    return None


def error_text(spec: TableSpec, error: Exception) -> str:
    """One line of an error, with nothing of the storage options in it."""
    text = describe_error(error)
    for value in dict(spec.storage_options).values():
        if len(value) > 3:
            text = text.replace(value, "***")
    return text
