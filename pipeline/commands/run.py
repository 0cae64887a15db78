"""The command `itel-cabinet run`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.table import Table

from itel_cabinet.io.worker import prepare
from itel_cabinet.pipeline import launch
from itel_cabinet.pipeline.commands.examples import EXAMPLES
from itel_cabinet.pipeline.commands.printing import make_console
from itel_cabinet.pipeline.commands.shared import PROGRAM
from itel_cabinet.pipeline.jobs import JOB_DEFAULTS
from itel_cabinet.pipeline.options import ENVIRONMENT, option_fields

__all__ = ["run"]


def run(context: typer.Context) -> int:
    """Run a job: trigger, tracking, api or cabinet. `run --help` lists its options."""
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
