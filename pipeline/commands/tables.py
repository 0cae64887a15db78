"""The commands `itel-cabinet tables ...`: see docs/maintenance.md."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from itel_cabinet.pipeline.commands.contract_choice import DEFAULT_CONTRACT, ContractName
from itel_cabinet.pipeline.commands.contract_choice import load as load_contract
from itel_cabinet.pipeline.commands.erase import MediaRoots, MediaStorageOptions, erasing, open_media
from itel_cabinet.pipeline.commands.fences import fence_app, restore_table
from itel_cabinet.pipeline.commands.printing import print_json, print_rows
from itel_cabinet.pipeline.commands.shared import (
    PROGRAM,
    AsJson,
    CommandError,
    DryRun,
    StorageOptions,
    TablesRoot,
    storing,
    table_settings,
    tables_at,
)
from itel_cabinet.pipeline.commands.table_choice import OneTable, chosen, sized, working

if TYPE_CHECKING:
    from itel_cabinet.io.delta import TableState

__all__ = ["tables_app"]

_LEAST_BYTES = 1_000_000

tables_app = typer.Typer(help="The Delta tables that the jobs write.")


@tables_app.command("create")
def create_tables(
    tables_root: TablesRoot,
    partition_by: Annotated[
        str, typer.Option("--partition_by", metavar="COLUMNS", help="Partition columns of the tracking table.")
    ] = "year,month,day",
    table_properties: Annotated[
        str,
        typer.Option(
            "--table_properties",
            metavar="JSON",
            help="Delta properties of those that are made, such as delta.enableChangeDataFeed, as a JSON object.",
        ),
    ] = "{}",
    storage_options: StorageOptions = "{}",
    dry_run: DryRun = False,
) -> None:
    """Make the tables that are missing; those that exist are checked and left alone. Needs no broker; may be
    repeated.
    """
    from itel_cabinet.io.delta import create_table, differing_properties
    from itel_cabinet.pipeline.tables import table_specs

    settings = table_settings(
        tables_root=tables_root,
        partition_by=partition_by,
        table_properties=table_properties,
        storage_options=storage_options,
    )
    try:
        specs = table_specs(settings)
    except ValueError as error:
        raise CommandError(f"--partition_by: {error}", wrong_use=True) from None
    for spec in specs.values():
        with storing():
            state = create_table(spec, dry_run=dry_run)
        partitions = f", partitioned by {', '.join(state.partition_by)}" if state.partition_by else ""
        shape = f"{len(state.schema)} columns{partitions}"
        if state.version is None:
            typer.echo(f"{state.uri}: would be created ({shape})")
        else:
            typer.echo(f"{state.uri}: {f'created ({shape})' if state.created else 'exists, left alone'}")
        for name, value in differing_properties(spec, state).items():
            typer.echo(f"  --table_properties: it has {name} = {value}, which is left as it is")


@tables_app.command("rederive")
def rederive_tables(
    tables_root: TablesRoot,
    contract: ContractName = DEFAULT_CONTRACT,
    storage_options: StorageOptions = "{}",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make the forms and photo lists again from ClaimX's answers in the tracking table: a column that a contract has
    new is filled for the past, and what it reads otherwise is put right.

    One commit a table. May run beside the jobs, whose newer rows win; interrupted or repeated it ends the same.
    """
    from rich.console import Console
    from rich.progress import Progress

    from itel_cabinet.io.delta import create_table, table_exists
    from itel_cabinet.io.worker import prepare
    from itel_cabinet.pipeline.operate import rederive
    from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS, TRACKING

    prepare()
    loaded = load_contract(contract, {}, complete=False)
    every = tables_at(tables_root, storage_options, loaded)
    specs = {name: every[name] for name in (TRACKING, FORMS, ATTACHMENTS)}
    console = Console(stderr=True)
    with working():
        for spec in specs.values():
            if not table_exists(spec):
                raise CommandError(f"--tables_root: there is no table {spec.uri}: give the root that the jobs write to")
            create_table(spec, dry_run=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("assignments", total=None)
            *revisions, unreadable = rederive(
                specs,
                loaded,
                now=datetime.now(UTC),
                dry_run=dry_run,
                advance=lambda done, total: bar.update(task, completed=done, total=total),
            )
    found: list[dict[str, Any]] = [
        {
            "table": one.table,
            "rows": one.rows,
            "changed": one.changed,
            "added": one.added,
            "removed": one.removed,
            "left_alone": one.newer,
            "columns": dict(one.columns.most_common()),
            "committed": one.committed,
        }
        for one in revisions
    ]
    if as_json:
        print_json({"contract": loaded.label, "sha256": loaded.sha256, "unreadable": unreadable, "tables": found})
        return
    for one in found:
        would = "would be " if dry_run else ""
        typer.echo(
            f"{one['table']}: of {one['rows']} rows made again, {one['changed']} {would}changed, {one['added']} "
            f"{would}added and {one['removed']} {would}removed"
        )
        typer.echo("".join(f"  {column}: {count} rows\n" for column, count in one["columns"].items()), nl=False)
        if one["left_alone"]:
            typer.echo(f"  {one['left_alone']} rows are left: they are of events whose answer the history lacks")
    if unreadable:
        typer.echo(f"{unreadable} answers in the history are no ClaimX answers about a task")


@tables_app.command("describe")
def describe_tables(tables_root: TablesRoot, storage_options: StorageOptions = "{}", as_json: AsJson = False) -> None:
    """Show each table's version, files, columns, latest commits and fences (how far each partition of a topic is in
    the table).
    """
    from deltalake.exceptions import TableNotFoundError

    from itel_cabinet.io.delta import describe_table

    found, missing = [], []
    for spec in tables_at(tables_root, storage_options).values():
        try:
            with storing():
                found.append(describe_table(spec.uri, spec.storage_options))
        except CommandError as refused:
            outage = refused.__cause__
            if outage is None or not isinstance(outage.__cause__, TableNotFoundError):
                raise
            missing.append(spec.name)
    if as_json:
        print_json({"tables": [_described(state) for state in found], "missing": missing})
        return
    for state in found:
        _print_table(state)
    if missing:
        typer.echo(f"missing: {', '.join(missing)}; `{PROGRAM} tables create` makes them")


def _described(state: TableState) -> dict[str, Any]:
    return {
        "uri": state.uri,
        "version": state.version,
        "files": state.files,
        "bytes": state.bytes,
        "partition_by": state.partition_by,
        "properties": dict(state.properties),
        "columns": [{"name": f.name, "type": str(f.type), "nullable": f.nullable} for f in state.schema],
        "commits": [
            {"version": version, "at": moment.isoformat(timespec="milliseconds"), "operation": operation}
            for version, moment, operation in state.history
        ],
        "fences": dict(state.fences),
    }


def _print_table(state: TableState) -> None:
    partitions = f", partitioned by {', '.join(state.partition_by)}" if state.partition_by else ""
    typer.echo(f"{state.uri}: version {state.version}, {sized(state.files, state.bytes)}{partitions}")
    for name, value in sorted(state.properties.items()):
        typer.echo(f"  {name} = {value}")
    columns = [{"column": f.name, "type": str(f.type), "": "" if f.nullable else "not null"} for f in state.schema]
    print_rows({"column": "column", "type": "type", "": ""}, columns)
    for version, moment, operation in state.history:
        typer.echo(f"  version {version} at {moment:%Y-%m-%d %H:%M:%S} UTC: {operation}")
    for application, at in state.fences.items():
        typer.echo(f"  fence {application}: {at}")


@tables_app.command("optimize")
def optimize_tables(
    tables_root: TablesRoot,
    table: OneTable = None,
    target_size: Annotated[
        str | None,
        typer.Option("--target_size", metavar="SIZE", help="Of a file, such as 64MB; default: the table's, or 100MB."),
    ] = None,
    z_order: Annotated[
        str | None,
        typer.Option("--z_order", metavar="COLUMNS", help="Sort the rows by these, such as task_id,assignment_id."),
    ] = None,
    storage_options: StorageOptions = "{}",
    dry_run: DryRun = False,
) -> None:
    """Put small files together. May run beside the jobs, whose commits it makes try again now and then; touches no
    fence.

    --z_order needs --table, and rewrites every file. The files that this replaces stay until `vacuum`.
    """
    from itel_cabinet.io.delta import optimize

    columns = [name.strip() for name in z_order.split(",")] if z_order else []
    if columns and table is None:
        raise CommandError("--z_order: needs --table, since each table has other columns", wrong_use=True)
    target_bytes = _bytes(target_size) if target_size else None
    for spec in chosen(tables_root, storage_options, table):
        with working():
            done = optimize(spec, target_bytes=target_bytes, z_order=columns, dry_run=dry_run)
        if done.after is None:
            typer.echo(f"{spec.name}: {sized(*done.before)}, {done.rewritten} of them would be rewritten")
        elif done.version is None:
            typer.echo(f"{spec.name}: {sized(*done.before)}, nothing to be done")
        else:
            tried = f", after {done.conflicts} conflicts with other writers" if done.conflicts else ""
            typer.echo(
                f"{spec.name}: {sized(*done.before)} before, {sized(*done.after)} in version {done.version}{tried}"
            )


def _bytes(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        size = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        raise CommandError(
            f"--target_size: must be a number of bytes or such as 64MB: got {text!r}", wrong_use=True
        ) from None
    if size < _LEAST_BYTES:
        raise CommandError(f"--target_size: must be 1MB or more, got {text}", wrong_use=True)
    return size


@tables_app.command("vacuum")
def vacuum_tables(
    tables_root: TablesRoot,
    table: OneTable = None,
    retention_hours: Annotated[
        int, typer.Option("--retention_hours", min=0, help="Keep what versions of so many last hours need.")
    ] = 168,
    allow_short_retention: Annotated[
        bool,
        typer.Option("--allow_short_retention", help="Below 168 h: readers of older versions and `restore` break."),
    ] = False,
    storage_options: StorageOptions = "{}",
    dry_run: DryRun = False,
) -> None:
    """Delete files that no version of the last days needs. May run beside the jobs.

    Also what killed jobs have written and not committed, from 168 h on; below that only files that the log says were
    replaced, since others may be a running job's.
    """
    from itel_cabinet.io.delta import SAFE_RETENTION_HOURS, vacuum

    if retention_hours < SAFE_RETENTION_HOURS and not allow_short_retention:
        raise CommandError(
            f"--retention_hours: below {SAFE_RETENTION_HOURS} h, queries that still read an older version fail, and "
            "neither time travel nor `tables restore` reaches further back: --allow_short_retention says that you know",
            wrong_use=True,
        )
    for spec in chosen(tables_root, storage_options, table):
        with working():
            gone = vacuum(spec, retention_hours=retention_hours, dry_run=dry_run)
        typer.echo(f"{spec.name}: {sized(gone.files, gone.bytes)} {'would be deleted' if dry_run else 'deleted'}")


@tables_app.command("purge")
def purge_tables(
    tables_root: TablesRoot,
    older_than: Annotated[
        str, typer.Option("--older_than", metavar="AGE", help="By the event's time, such as 400d, 60w or 36h.")
    ],
    table: OneTable = None,
    media_root: MediaRoots = None,
    media_storage_options: MediaStorageOptions = "{}",
    storage_options: StorageOptions = "{}",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Delete the rows of old events, and the photos that only they name. May run beside the jobs, be interrupted and
    repeated.

    Each table can have an age of its own: --table. What was deleted stays in older versions until `vacuum`. Unlike
    `erase` it puts nobody on the list of who stays out: an age below what the topics keep is undone by a reset of
    offsets.
    """
    from itel_cabinet.io.worker import prepare
    from itel_cabinet.pipeline.operate import purge

    before = datetime.now(UTC) - _age(older_than)
    roots = open_media(media_root, media_storage_options)
    prepare()
    with erasing():
        purged = purge(chosen(tables_root, storage_options, table), before, media=roots, dry_run=dry_run)
    if as_json:
        photos = {"files": purged.photos, "bytes": purged.photo_bytes}
        print_json({"dry_run": dry_run, "before": before.isoformat(), "rows": purged.rows, "photos": photos})
        return
    verb = "would be deleted" if dry_run else "deleted"
    for name, rows in purged.rows.items():
        typer.echo(f"{name}: {rows} rows of events before {before:%Y-%m-%d %H:%M} UTC {verb}")
    if roots:
        typer.echo(f"photos: {sized(purged.photos, purged.photo_bytes)} {verb}")


_UNITS = {"h": 1, "d": 24, "w": 168}


def _age(text: str) -> timedelta:
    found = re.fullmatch(r"([1-9][0-9]{0,3})([hdw])", text.strip())
    if found is None:
        raise CommandError(f"--older_than: must be an age such as 400d, 60w or 36h: got {text!r}", wrong_use=True)
    return timedelta(hours=int(found[1]) * _UNITS[found[2]])


tables_app.command("restore")(restore_table)
tables_app.add_typer(fence_app, name="fence")
