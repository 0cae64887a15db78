"""The commands `itel-cabinet query` and `itel-cabinet report`: see docs/queries.md."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.table import Table

from itel_cabinet.pipeline.commands.letter_topics import (
    DeadLetterTopic,
    ItelErrorsTopic,
    error_topics,
    warn_of,
)
from itel_cabinet.pipeline.commands.printing import make_console
from itel_cabinet.pipeline.commands.shared import CommandError, KafkaConfig, StorageOptions, TablesRoot, tables_at
from itel_cabinet.pipeline.topics import ITEL_ERRORS, TASK_ERRORS

if TYPE_CHECKING:
    from rich.text import Text

    from itel_cabinet.io.delta import TableSpec
    from itel_cabinet.pipeline.operate import FailureCount
    from itel_cabinet.pipeline.queries import Query

__all__ = ["query", "questions", "report"]


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


# A spreadsheet takes a cell that begins so for a formula, and runs it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def query(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A query's name or number; without, they are listed.")
    ] = None,
    tables_root: Annotated[
        str | None,
        typer.Option("--tables_root", metavar="URI", help="Folder or object-store URI that holds the tables."),
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", metavar="NAME=VALUE", help="A parameter's value; may be repeated.")
    ] = None,
    form: Annotated[
        Format,
        typer.Option("--format", help="JSON is exact; CSV puts ' before a text that a spreadsheet would run."),
    ] = Format.TABLE,
    storage_options: StorageOptions = "{}",
) -> None:
    """Ask the tables one of the twelve questions, each event counted once; without NAME, list them."""
    from itel_cabinet.pipeline.queries import QueryError, Session, bind, catalogue, find

    if name is None:
        listed = [(one.number, one.name, one.purpose, _usage(one)) for one in catalogue()]
        _print(("number", "query", "tells", "parameters"), listed, form)
        return
    try:
        wanted = find(name)
        values = bind(wanted, _given(param or ()), now=datetime.now(UTC))
    except QueryError as error:
        raise CommandError(str(error), wrong_use=True) from None
    specs = table_specs_of(tables_root, storage_options)
    version = next((values[p.name] for p in wanted.parameters if p.kind == "version"), None)
    assert version is None or isinstance(version, int)
    with reading(), Session(specs, version=version) as session:
        result = session.run(wanted, values)
        _print(result.columns, result.rows, form)


def questions(
    tables_root: TablesRoot,
    form: Annotated[Format, typer.Option("--format", help="JSON is exact.")] = Format.TABLE,
    storage_options: StorageOptions = "{}",
) -> None:
    """Rank the questions of the kept forms that no column takes, with examples; exit status 1 if there are any.

    The form's owners may have added them, or changed their words. Their answers are in the column raw_data.
    """
    from itel_cabinet.pipeline.operate import rank_unknown_questions
    from itel_cabinet.pipeline.queries import Session, find

    with reading(), Session(table_specs_of(tables_root, storage_options)) as session:
        found = rank_unknown_questions(session.run(find("drifted-forms"), {}).rows)
    rows = [
        (one.forms, one.question, one.group, one.first_at, one.last_at, " ".join(map(str, one.examples)))
        for one in found
    ]
    _print(("forms", "question", "group", "first_at", "last_at", "assignments"), rows, form)
    if found:
        raise typer.Exit(1)


def _usage(query: Query) -> str:
    return ", ".join(parameter.usage for parameter in query.parameters)


def _given(params: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for param in params:
        name, equals, value = param.partition("=")
        if not equals:
            raise CommandError(f"--param: must be NAME=VALUE, got {param[:100]!r}", wrong_use=True)
        if name in given:
            raise CommandError(f"--param: {name} is given twice", wrong_use=True)
        given[name] = value
    return given


def table_specs_of(tables_root: str | None, storage_options: str) -> dict[str, TableSpec]:
    """The tables' specifications by name. Raises Refused."""
    if not tables_root:
        raise CommandError(
            "--tables_root is missing: give the folder or object-store URI of the tables", wrong_use=True
        )
    return tables_at(tables_root, storage_options)


@contextmanager
def reading() -> Iterator[None]:
    """What cannot be read in here, as one line."""
    from itel_cabinet.io.worker import OutageError
    from itel_cabinet.pipeline.queries import TableMissingError

    try:
        yield
    except (TableMissingError, OutageError) as error:
        raise CommandError(f"--tables_root: {error}") from error


def report(
    output: Annotated[Path, typer.Option("--output", metavar="FILE.html", help="The page; replaced if it is there.")],
    tables_root: TablesRoot,
    storage_options: StorageOptions = "{}",
    bootstrap_servers: Annotated[
        str | None,
        typer.Option(
            "--bootstrap_servers",
            metavar="HOST:PORT[,HOST:PORT]",
            help="Kafka brokers, for the failures; without, the page says how to see them.",
        ),
    ] = None,
    dead_letter_topic: DeadLetterTopic = TASK_ERRORS,
    itel_errors_topic: ItelErrorsTopic = ITEL_ERRORS,
    kafka_config: KafkaConfig = "{}",
) -> None:
    """Write one HTML page about the tasks, with charts: it opens without a network and shows nobody's data."""
    from itel_cabinet.pipeline.operate import gather, render
    from itel_cabinet.pipeline.queries import Session

    specs = table_specs_of(tables_root, storage_options)
    failures = None
    if bootstrap_servers:
        failures = _failures(bootstrap_servers, kafka_config, (dead_letter_topic, itel_errors_topic))
    with reading(), Session(specs) as session:
        contents = gather(session, tables_root=tables_root, failures=failures, now=datetime.now(UTC))
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        unfinished.write_text(render(contents), encoding="utf-8")
        unfinished.replace(output)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise CommandError(f"--output: {output} cannot be written: {error.strerror}") from None
    typer.echo(f"{output}: {contents.answers['funnel'][0]['tasks']} tasks, {len(contents.answers['open-tasks'])} open")


def _failures(bootstrap_servers: str, kafka_config: str, topics: tuple[str, str]) -> list[FailureCount]:
    from itel_cabinet.pipeline.operate import Filter, error_log, failure_counts

    with error_topics(bootstrap_servers, kafka_config, topics) as (_, reader):
        log = error_log(reader, topics, Filter())
    warn_of(log.foreign)
    return failure_counts(log.entries)


# ------------------------------------------------------------------------------------------------------------ printing


def _print(columns: Sequence[str], rows: Iterable[Sequence[Any]], form: Format) -> None:
    match form:
        case Format.TABLE:
            _print_table(columns, rows)
        case Format.JSON:
            _print_json(columns, rows)
        case Format.CSV:
            _print_csv(columns, rows, sys.stdout)


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    table = Table()
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")  # cut nothing off
    for row in rows:
        table.add_row(*map(_shown, row))
    make_console().print(table)


def _shown(value: Any) -> Text:
    from rich.text import Text

    from itel_cabinet.transforms.dead_letters import shorten

    return Text(shorten(_text(value, none="-"), 1_000), justify="right" if isinstance(value, int | float) else "left")


def _print_json(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """An array of objects, one a line, as the rows come."""
    opening = "["
    for row in rows:
        content = dict(zip(columns, map(_plain, row), strict=True))
        print(opening, json.dumps(content, ensure_ascii=False, allow_nan=False), sep="\n", end="")
        opening = ","
    print("[]" if opening == "[" else "\n]")


def _print_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]], out: TextIO) -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(_harmless(value) for value in row)


def _harmless(value: Any) -> str:
    text = _text(value, none="")
    return f"'{text}" if isinstance(value, str) and text.startswith(_FORMULA) else text


def _text(value: Any, *, none: str) -> str:
    return none if value is None else str(_plain(value))


def _plain(value: Any) -> Any:
    """A value as JSON has it: instants in ISO, in UTC; no number that is none."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value
