"""The command `itel-cabinet`.

Exit status 0 is done, 1 failed, 2 wrong use; an error is one line on stderr. Options are written with underscores, as
Beam's are, and understood with hyphens too. Commands import what they need when they run: Beam alone takes a second.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from rich.table import Table

from itel_cabinet.pipeline.commands.contracts import (
    DEFAULT_CONTRACT,
    ContractName,
    ContractVars,
    contract_app,
    load,
    read_vars,
)
from itel_cabinet.pipeline.commands.examples import EXAMPLES, add_examples
from itel_cabinet.pipeline.commands.letters import letters_app
from itel_cabinet.pipeline.commands.media import media_app
from itel_cabinet.pipeline.commands.monitoring import monitoring_app
from itel_cabinet.pipeline.commands.offsets import offsets_app
from itel_cabinet.pipeline.commands.printing import make_console
from itel_cabinet.pipeline.commands.query import query, questions, report
from itel_cabinet.pipeline.commands.shared import (
    BOTH_SPELLINGS,
    PROGRAM,
    CommandError,
)
from itel_cabinet.pipeline.commands.status import lag, status
from itel_cabinet.pipeline.commands.tables import tables_app
from itel_cabinet.pipeline.commands.templates import templates_app
from itel_cabinet.pipeline.commands.topics import topics_app

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


__all__ = ["app", "main", "root_command"]

app = typer.Typer(
    name=PROGRAM,
    help="ClaimX cabinet repair forms from Kafka into Delta tables and to iTel.",
    context_settings=BOTH_SPELLINGS,
)
_COMMANDS = "itel_cabinet.commands"  # entry points of other distributions, each a command
app.add_typer(topics_app, name="topics")
app.add_typer(tables_app, name="tables")
app.add_typer(media_app, name="media")
app.add_typer(contract_app, name="contract")
app.add_typer(letters_app, name="dead-letters")
app.add_typer(offsets_app, name="offsets")
app.add_typer(monitoring_app, name="monitoring")
app.add_typer(templates_app, name="templates")
app.command()(query)
app.command()(questions)
app.command()(report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    try:
        status = root_command().main(
            None if arguments is None else list(arguments), prog_name=PROGRAM, standalone_mode=False
        )
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)  # a usage error, which says what is wrong but not where to look
        hint = f": see `{context.command_path} --help`" if context else ""
        print(f"{PROGRAM}: {' '.join(error.format_message().split()).rstrip('.')}{hint}", file=sys.stderr)
        return error.exit_code
    return status if isinstance(status, int) else 0


@functools.cache
def root_command() -> Any:
    """All commands, with those that other distributions bring, such as `produce` and `simulate` of the local tools."""
    for command in entry_points(group=_COMMANDS):
        app.command(command.name)(command.load())
    root = typer.main.get_command(app)
    add_examples(root)
    return root


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(version(PROGRAM))
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)] = False,
) -> None:
    """ClaimX cabinet repair forms from Kafka into Delta tables and to iTel."""


# ----------------------------------------------------------------------------------------------------------------- run


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
    add_help_option=False,
    options_metavar="JOB [OPTIONS]",
)
def run(context: typer.Context) -> int:
    """Run a job: trigger, tracking, api or cabinet. `run --help` lists its options."""
    from itel_cabinet.io.worker import prepare
    from itel_cabinet.pipeline import launch

    if {"--help", "-h"} & {*context.args}:
        _print_run_help()
        return 0
    prepare()
    return launch.main(context.args)


_JOBS = {
    "trigger": "match ClaimX events with the trigger rules, publish task events",
    "tracking": "write task events, forms and photo lists into the Delta tables",
    "api": "send completed forms to iTel",
    "cabinet": "tracking and api in one, with one read and one ClaimX lookup",
}


def _print_run_help() -> None:
    from itel_cabinet.pipeline.options import option_fields

    console = make_console()
    console.print(f"Usage: {PROGRAM} run JOB [--template=FILE] [--NAME=VALUE ...]\n\nJobs:")
    console.print(_listing(_JOBS.items()))
    console.print("\nOptions:")
    fields = ((name, field) for name, field in option_fields().items() if name != "job")
    console.print(_listing((f"--{name}", _meaning(name, field)) for name, field in fields))
    console.print("\nBeam's own options, such as --runner, are taken beside these.")
    console.print("\nFor example:")
    for example in EXAMPLES["run"]:
        console.print(f"  {PROGRAM} {example}")


def _listing(entries: Iterable[tuple[str, str]]) -> Table:
    listing = Table.grid(padding=(0, 2), pad_edge=True)
    listing.add_column(no_wrap=True)
    listing.add_column()
    for name, meaning in entries:
        listing.add_row(name, meaning)
    return listing


def _meaning(name: str, field: FieldInfo) -> str:
    """An option's description, values, default and environment variable."""
    from itel_cabinet.pipeline.options import ENVIRONMENT, JOB_DEFAULTS

    notes = []
    if get_origin(field.annotation) is Literal:
        notes.append(f"One of {', '.join(get_args(field.annotation))}.")
    jobs: dict[str, list[str]] = {}
    for job, defaults in JOB_DEFAULTS.items():
        if name in defaults:
            jobs.setdefault(str(defaults[name]), []).append(job)
    if jobs:
        notes.append("Default: " + "; ".join(f"{value} ({', '.join(those)})" for value, those in jobs.items()) + ".")
    elif not field.is_required() and field.default not in (None, "", {}):
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        notes.append(f"Default: {str(default).lower() if isinstance(default, bool) else default}.")
    if name in ENVIRONMENT and ENVIRONMENT[name] not in str(field.description):
        notes.append(f"Else {ENVIRONMENT[name]}.")
    return " ".join([str(field.description), *notes])


# ------------------------------------------------------------------------------------------------------------- preview


@app.command()
def preview(
    task: Annotated[str, typer.Argument(metavar="TASK.json", help="A ClaimX answer about a task; - for stdin.")],
    contract: ContractName = DEFAULT_CONTRACT,
    contract_vars: ContractVars = "{}",
    event: Annotated[
        str | None, typer.Option("--event", metavar="E.json", help="A message of the tracking topic about the task.")
    ] = None,
    project: Annotated[
        str | None, typer.Option("--project", metavar="P.json", help="ClaimX's export of the project.")
    ] = None,
    media: Annotated[
        str | None, typer.Option("--media", metavar="M.json", help="ClaimX's export of the project's media.")
    ] = None,
) -> None:
    """Print what would be stored and sent for a ClaimX answer: form, attachments, payload, request, gate, warnings.

    Left out are the columns that come from the event and the moment: event_id, event_timestamp, kafka_*, ingested_at,
    created_at, updated_at. Secrets are shown as their references.
    """
    from pydantic_core import to_json

    from itel_cabinet.pipeline.operate import NotAnAnswerError, PreviewContext, preview_answer

    files = {"answer": task, "event": event, "project": project, "media": media}
    texts = {name: _read(file) for name, file in files.items() if file is not None}
    loaded = load(contract, read_vars(contract_vars), complete=False)
    try:
        result = preview_answer(texts.pop("answer"), loaded, context=PreviewContext(**texts), now=datetime.now(UTC))
    except NotAnAnswerError as error:
        raise CommandError(f"{files[error.given]}: {error}") from None
    typer.echo(to_json(result, indent=2, inf_nan_mode="null"))


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}", wrong_use=True) from None


# ------------------------------------------------------------------------------------------------------ lag and status

app.command()(lag)
app.command()(status)


if __name__ == "__main__":
    sys.exit(main())
