"""The command `itel-cabinet`.

Exit status 0 is done, 1 failed, 2 wrong use; an error is one line on stderr. Options are written with underscores, as
Beam's are, and understood with hyphens too. A command's module is imported when it is wanted, not to list it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from itel_cabinet.pipeline.commands.on_demand import CommandsOnDemand, Listed
from itel_cabinet.pipeline.commands.shared import BOTH_SPELLINGS, PROGRAM

__all__ = ["main", "root_command"]

_HERE = __name__.rpartition(".")[0]
_COMMANDS = {
    "query": Listed(
        f"{_HERE}.query:query",
        "Ask the tables one of the twelve questions, each event counted once; without NAME, list them.",
    ),
    "questions": Listed(
        f"{_HERE}.query:questions",
        "Rank the questions of the kept forms that no column takes, with examples; exit status 1 if there are any.",
    ),
    "report": Listed(
        f"{_HERE}.query:report",
        "Write one HTML page about the tasks, with charts: it opens without a network and shows nobody's data.",
    ),
    "erase": Listed(
        f"{_HERE}.erase:erase",
        "Erase people from the tables, the bodies, the photos and the payload files, and keep them out: what comes "
        "again of them, by a replay or a late event, is skipped.",
    ),
    "reconcile": Listed(
        f"{_HERE}.submissions:reconcile",
        "Say which completed forms iTel lacks, by reason and age. Exit status 1 if any is older than --older_than.",
    ),
    "trace": Listed(
        f"{_HERE}.trace:trace",
        "Show what happened to an assignment or an event, as one timeline: its events, form, photos, submissions and "
        "dead letters, with the coordinates of their records, and what became of each event.",
    ),
    "run": Listed(
        f"{_HERE}.run:run",
        "Run a job: trigger, tracking, api or cabinet. `run --help` lists its options.",
        {
            "context_settings": {
                "ignore_unknown_options": True,
                "allow_extra_args": True,
                "allow_interspersed_args": False,
            },
            "add_help_option": False,
            "options_metavar": "JOB [OPTIONS]",
        },
    ),
    "preview": Listed(
        f"{_HERE}.preview:preview",
        "Print what would be stored and sent for a ClaimX answer: form, attachments, payload, request, gate, warnings.",
    ),
    "lag": Listed(
        f"{_HERE}.status:lag",
        "Show how far jobs are behind: what a group has committed, where each partition ends, and what lies between.",
    ),
    "status": Listed(
        f"{_HERE}.status:status",
        "Show on one screen whether a job is well: healthy, lagging, stuck, dead, waiting or unknown, why, and what to "
        "do.",
    ),
}
_GROUPS = {
    "topics": Listed(f"{_HERE}.topics:topics_app", "The Kafka topics that the jobs use."),
    "tables": Listed(f"{_HERE}.tables:tables_app", "The Delta tables that the jobs write."),
    "media": Listed(f"{_HERE}.media:media_app", "The files of the photos on the forms."),
    "contract": Listed(
        f"{_HERE}.contracts:contract_app", "Contracts: what is read of a form, and how it is sent to iTel."
    ),
    "dead-letters": Listed(f"{_HERE}.letters:letters_app", "The records that the jobs gave up, on the error topics."),
    "submissions": Listed(
        f"{_HERE}.submissions:submissions_app", "What became of each form on its way to iTel, as the ledger has it."
    ),
    "offsets": Listed(f"{_HERE}.offsets:offsets_app", "Where consumer groups stand in topics."),
    "monitoring": Listed(f"{_HERE}.monitoring:monitoring_app", "What Prometheus and Grafana are given."),
    "templates": Listed(f"{_HERE}.templates:templates_app", "Launch templates: a job with its options in a file."),
}
_OTHERS = "itel_cabinet.commands"  # entry points of other distributions, each a command

_app = typer.Typer(
    name=PROGRAM,
    cls=CommandsOnDemand,
    help="ClaimX cabinet repair forms from Kafka into Delta tables and to iTel.",
    context_settings=BOTH_SPELLINGS,
)


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
def root_command() -> CommandsOnDemand:
    """All commands, with those that other distributions bring, such as `produce` and `simulate` of the local tools."""
    root = typer.main.get_command(_app)
    assert isinstance(root, CommandsOnDemand)
    root.offer(_COMMANDS, _GROUPS, _find_others)
    return root


def _find_others() -> Mapping[str, Callable[..., Any]]:
    # Looks through all that is installed, which commands of this distribution need not wait for.
    from importlib.metadata import entry_points

    return {command.name: command.load() for command in entry_points(group=_OTHERS)}


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # as above

        typer.echo(version(PROGRAM))
        raise typer.Exit


@_app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)] = False,
) -> None:
    """ClaimX cabinet repair forms from Kafka into Delta tables and to iTel."""


if __name__ == "__main__":
    sys.exit(main())
