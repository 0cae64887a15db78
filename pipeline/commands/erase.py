"""The command `itel-cabinet erase`: see docs/erasure.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from itel_cabinet.pipeline.commands.printing import print_json, some
from itel_cabinet.pipeline.commands.shared import (
    PROGRAM,
    AsJson,
    CommandError,
    DryRun,
    KafkaConfig,
    StorageOptions,
    TablesRoot,
    open_cluster,
    table_settings,
    tables_at,
)
from itel_cabinet.pipeline.commands.table_choice import sized, working

if TYPE_CHECKING:
    from itel_cabinet.io.objects import Objects
    from itel_cabinet.pipeline.operate import Receipt

__all__ = ["MediaRoots", "MediaStorageOptions", "erase", "erasing", "open_media"]

_INT64_MAX = 2**63 - 1

MediaRoots = Annotated[
    list[str] | None,
    typer.Option("--media_root", metavar="URI", help="Where the jobs store photos; again for each other root."),
]
MediaStorageOptions = Annotated[
    str,
    typer.Option("--media_storage_options", metavar="JSON", help="Options of obstore for --media_root, as the jobs'."),
]


def erase(
    tables_root: TablesRoot,
    assignment_id: Annotated[
        list[str] | None, typer.Option("--assignment_id", metavar="ID[,ID]", help="Whom: by assignment. Repeatable.")
    ] = None,
    project_id: Annotated[
        list[str] | None, typer.Option("--project_id", metavar="ID[,ID]", help="Whom: by project. Repeatable.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="All who were erased before and are back, by a restore or from a backup.")
    ] = False,
    media_root: MediaRoots = None,
    media_storage_options: MediaStorageOptions = "{}",
    itel_url: Annotated[
        str, typer.Option("--itel_url", metavar="URL", help="As the jobs have it: of file:DIR the payloads go too.")
    ] = "",
    bootstrap_servers: Annotated[
        str | None,
        typer.Option(
            "--bootstrap_servers",
            envvar="KAFKA_BOOTSTRAP_SERVERS",
            metavar="HOST:PORT[,HOST:PORT]",
            help="Kafka brokers, which are asked how long each topic keeps its records.",
        ),
    ] = None,
    topic: Annotated[
        list[str] | None, typer.Option("--topic", metavar="NAME", help="Of the jobs, by another name. Repeatable.")
    ] = None,
    storage_options: StorageOptions = "{}",
    kafka_config: KafkaConfig = "{}",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Erase people from the tables, the bodies, the photos and the payload files, and keep them out: what comes again
    of them, by a replay or a late event, is skipped.

    May run beside the jobs, be interrupted and repeated. What it cannot erase is listed, with the date of its end and
    the command that finishes it.
    """
    from itel_cabinet.io.delta import get_suppressions
    from itel_cabinet.io.itel import folder_of
    from itel_cabinet.io.worker import SettingError, prepare
    from itel_cabinet.pipeline.operate import Erasure, People, find_listed
    from itel_cabinet.pipeline.tables import suppression_list

    people = People(tuple(_read_assignments(assignment_id)), tuple(dict.fromkeys(_split(project_id))))
    if bool(people.ids) == again:
        raise CommandError("give --assignment_id or --project_id, or --again alone", wrong_use=True)
    try:
        folder = folder_of(itel_url)
    except SettingError as error:
        raise CommandError(f"--itel_url: {error}", wrong_use=True) from None
    roots = open_media(media_root, media_storage_options)
    prepare()
    specs = tables_at(tables_root, storage_options)
    place = suppression_list(table_settings(tables_root=tables_root, storage_options=storage_options))
    erasure = Erasure(specs, get_suppressions(place.uri, place.storage_options, place.ids), roots, folder)
    topics = _look_at_topics(bootstrap_servers, kafka_config, topic or [])
    with erasing():
        _check_tables(specs)
        if again:
            people = find_listed(specs, erasure.people)
        if people.ids:
            receipt = erasure.erase(people, now=datetime.now(UTC), dry_run=dry_run)
            if not dry_run:
                erasure.keep(receipt, datetime.now(UTC))
    if not people.ids:
        _print_nothing(as_json)
        return
    document = _document(receipt, topics, tables_root, media=bool(roots))
    if as_json:
        print_json(document)
    else:
        _print(document)


def open_media(roots: Sequence[str] | None, storage_options: str) -> list[Objects]:
    """The stores of photos that the options name, which can be listed."""
    from pydantic import TypeAdapter, ValidationError

    from itel_cabinet.io.objects import ObjectStoreSettings, get_objects
    from itel_cabinet.io.worker import SettingError
    from itel_cabinet.pipeline.options import StoreOptions

    try:
        options: dict[str, str] = TypeAdapter(StoreOptions).validate_python(storage_options)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise CommandError(f"--media_storage_options: {reason}", wrong_use=True) from None
    opened = []
    for root in roots or ():
        try:
            settings = ObjectStoreSettings(root, options)
        except SettingError as error:
            raise CommandError(f"--media_root: {error}", wrong_use=True) from None
        if settings.folder is not None and not settings.folder.is_dir():
            raise CommandError(f"--media_root: there is no folder {root}: give the one that the jobs store photos in")
        opened.append(get_objects(settings))
    return opened


@contextmanager
def erasing() -> Iterator[None]:
    """What a table or a store of photos refuses in here, as one line."""
    from itel_cabinet.io.objects import ObjectStoreError
    from itel_cabinet.io.worker import RefusedError

    try:
        with working():
            yield
    except ObjectStoreError as error:
        raise CommandError(f"--media_root: {error}; what was done stays done: run it again") from None
    except RefusedError as error:
        raise CommandError(f"--media_root: {error}" if error.field == "root" else str(error)) from None
    except OSError as error:
        raise CommandError(f"--itel_url: {error.strerror}; what was done stays done: run it again") from None


def _split(given: Sequence[str] | None) -> list[str]:
    return [part.strip() for one in given or () for part in one.split(",") if part.strip()]


def _read_assignments(given: Sequence[str] | None) -> list[int]:
    ids = []
    for text in _split(given):
        if not text.isascii() or not text.isdigit() or int(text) > _INT64_MAX:
            raise CommandError("--assignment_id: must be whole numbers such as 4711", wrong_use=True)
        ids.append(int(text))
    return list(dict.fromkeys(ids))


def _check_tables(specs: dict[str, Any]) -> None:
    from itel_cabinet.io.delta import table_exists

    if not any(table_exists(spec) for spec in specs.values()):
        place = next(iter(specs.values())).uri
        raise CommandError(f"--tables_root: there is no table {place}: give the root that the jobs write to")


def _look_at_topics(servers: str | None, kafka_config: str, others: Sequence[str]) -> list[dict[str, Any]]:
    """Each topic that has their data, and for how many days it keeps a record: None for ever, or not known."""
    from itel_cabinet.pipeline.operate import describe_topics
    from itel_cabinet.pipeline.topics import DAY_MS, TOPICS, TopicSpec

    wanted = [*TOPICS, *(TopicSpec(name, 1) for name in dict.fromkeys(others) if name not in {t.name for t in TOPICS})]
    if servers is None:
        return [{"topic": one.name, "state": "not_asked"} for one in wanted]
    found = []
    with open_cluster(servers, kafka_config) as cluster:
        for state in describe_topics(cluster, topics=wanted):
            if isinstance(state, TopicSpec):
                if state.name in others:
                    raise CommandError(f"--topic: topic {state.name} does not exist at {servers}")
                continue
            days = None if state.retention_ms < 0 else state.retention_ms / DAY_MS
            found.append({"topic": state.name, "state": "kept", "kept_days": days})
    return found


def _document(receipt: Receipt, topics: Sequence[dict[str, Any]], tables_root: str, *, media: bool) -> dict[str, Any]:
    """The receipt for programs."""
    remainders = receipt.remainders
    finish = []
    if remainders and not receipt.dry_run:
        command = f"{PROGRAM} tables vacuum --tables_root={tables_root}"
        dates = {max(one.vacuum_at for one in remainders), max(one.log_until for one in remainders)}
        finish = [{"not_before": _second(at), "command": command} for at in sorted(dates)]
    left = []
    for one in topics:
        until = None
        if one.get("kept_days") is not None:
            until = _second(receipt.started_at + timedelta(days=one["kept_days"]))
        left.append({**one, "until": until})
    return {
        "dry_run": receipt.dry_run,
        "started_at": _second(receipt.started_at),
        "assignments": list(receipt.people.assignments),
        "projects": list(receipt.people.projects),
        "newly_suppressed": receipt.new,
        "not_found": receipt.unknown,
        "rows": receipt.rows,
        "photos": {"looked_for": media, "files": receipt.photos.number, "bytes": receipt.photos.bytes},
        "payloads": {"files": receipt.payloads.number, "bytes": receipt.payloads.bytes},
        "left": {
            "topics": left,
            "tables": [
                {
                    "table": one.table,
                    "old_versions": "until a vacuum at " + _second(one.vacuum_at) + " or later",
                    "ids_in_log_until": _second(one.log_until),
                    "change_data": one.change_data,
                }
                for one in remainders
            ],
            "itel": {"submissions": receipt.submissions, "ids": receipt.itel_ids},
        },
        "to_finish": finish,
    }


def _second(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _print(document: dict[str, Any]) -> None:
    would = "would be " if document["dry_run"] else ""
    people = f"{some(len(document['assignments']), 'assignment')} and {some(len(document['projects']), 'project')}"
    typer.echo(f"{people} {would}erased; {document['newly_suppressed']} of them are new on the list of who stays out")
    for one in document["not_found"]:
        typer.echo(f"  {one}: nothing was found")
    for table, rows in document["rows"].items():
        typer.echo(f"  {table}: {some(rows, 'row')} {would}deleted")
    photos, payloads = document["photos"], document["payloads"]
    if photos["looked_for"]:
        typer.echo(f"  photos: {sized(photos['files'], photos['bytes'])} {would}deleted")
    else:
        typer.echo("  photos: not looked for, since no --media_root is given")
    if payloads["files"]:
        typer.echo(f"  payloads: {sized(payloads['files'], payloads['bytes'])} {would}deleted")
    left = document["left"]
    typer.echo("left, and not to be erased from here:")
    for topic in left["topics"]:
        typer.echo(f"  topic {topic['topic']}: {_kept(topic)}")
    for table in left["tables"]:
        change = ", its change data too" if table["change_data"] else ""
        typer.echo(
            f"  {table['table']}: older versions {table['old_versions']}{change}; ids in its log until "
            f"{table['ids_in_log_until']}"
        )
    itel = left["itel"]
    ids = f", as {', '.join(itel['ids'])}" if itel["ids"] else ""
    typer.echo(f"  iTel: {some(itel['submissions'], 'submission')}{ids}; ClaimX: the tasks themselves")
    for step in document["to_finish"]:
        typer.echo(f"to finish, at {step['not_before']} or later: {step['command']}")


def _kept(topic: dict[str, Any]) -> str:
    if topic["state"] == "not_asked":
        return "as long as it keeps its records (--bootstrap_servers says how long)"
    if topic["until"] is None:
        return "for ever, since it keeps its records so: delete them with Kafka's own tool"
    return f"at least until {topic['until']} ({topic['kept_days']:g} days)"


def _print_nothing(as_json: bool) -> None:
    if as_json:
        print_json({"assignments": [], "projects": []})
    else:
        typer.echo("nobody who was erased is in a table")
