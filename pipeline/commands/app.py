"""The command `itel-cabinet`.

Exit status 0 is done, 1 failed, 2 wrong use; an error is one line on stderr. Options are written with underscores, as
Beam's are, and understood with hyphens too. Commands import what they need when they run: Beam alone takes a second.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args, get_origin

import typer
from rich.console import Console
from rich.table import Table

from itel_cabinet.pipeline.commands.letters import letters_app
from itel_cabinet.pipeline.commands.offsets import offsets_app
from itel_cabinet.pipeline.commands.query import query, questions, report
from itel_cabinet.pipeline.commands.shared import (
    BOTH_SPELLINGS,
    PROGRAM,
    AsJson,
    CommandError,
    DryRun,
    KafkaConfig,
    Servers,
    open_cluster,
    storing,
)
from itel_cabinet.pipeline.commands.status import lag, status
from itel_cabinet.pipeline.commands.tables import tables_app

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


__all__ = ["app", "main"]

app = typer.Typer(
    name=PROGRAM,
    help="ClaimX cabinet repair forms from Kafka into Delta tables and to iTel.",
    context_settings=BOTH_SPELLINGS,
    add_completion=False,
)
_COMMANDS = "itel_cabinet.commands"  # entry points of other distributions, each a command
topics_app = typer.Typer(help="The Kafka topics that the jobs use.")
app.add_typer(topics_app, name="topics")
app.add_typer(tables_app, name="tables")
media_app = typer.Typer(help="The files of the photos on the forms.")
app.add_typer(media_app, name="media")
app.add_typer(letters_app, name="dead-letters")
app.add_typer(offsets_app, name="offsets")
monitoring_app = typer.Typer(help="What Prometheus and Grafana are given.")
app.add_typer(monitoring_app, name="monitoring")
templates_app = typer.Typer(help="Launch templates: a job with its options in a file.")
app.add_typer(templates_app, name="templates")
app.command()(query)
app.command()(questions)
app.command()(report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    _add_installed_commands()
    try:
        status = typer.main.get_command(app).main(
            None if arguments is None else list(arguments), prog_name=PROGRAM, standalone_mode=False
        )
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)  # a usage error, which says what is wrong but not where to look
        hint = f": see `{context.command_path} --help`" if context else ""
        print(f"{PROGRAM}: {' '.join(error.format_message().split()).rstrip('.')}{hint}", file=sys.stderr)
        return error.exit_code
    return status if isinstance(status, int) else 0


@functools.cache
def _add_installed_commands() -> None:
    """Add what other distributions bring, such as `produce` and `simulate` of the local tools."""
    for command in entry_points(group=_COMMANDS):
        app.command(command.name)(command.load())


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

    console = Console(highlight=False, markup=False)
    console.print(f"Usage: {PROGRAM} run JOB [--template=FILE] [--NAME=VALUE ...]\n\nJobs:")
    console.print(_listing(_JOBS.items()))
    console.print("\nOptions:")
    fields = ((name, field) for name, field in option_fields().items() if name != "job")
    console.print(_listing((f"--{name}", _meaning(name, field)) for name, field in fields))
    console.print("\nBeam's own options, such as --runner, are taken beside these.")


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
) -> None:
    """Print what would be stored and sent for a ClaimX answer: form, attachments, payload, warnings.

    Left out are the columns that come from the event and the moment: event_id, event_timestamp, kafka_*, ingested_at,
    created_at, updated_at.
    """
    from pydantic_core import to_json

    from itel_cabinet.pipeline.operate import NotAnAnswerError
    from itel_cabinet.pipeline.operate import preview_answer as previewed

    try:
        answer = sys.stdin.buffer.read() if task == "-" else Path(task).read_bytes()
    except OSError as error:
        raise CommandError(f"{task} cannot be read: {error.strerror}", wrong_use=True) from None
    try:
        result = previewed(answer, now=datetime.now(UTC))
    except NotAnAnswerError as error:
        raise CommandError(f"{task}: {error}") from None
    typer.echo(to_json(result, indent=2, inf_nan_mode="null"))


# -------------------------------------------------------------------------------------------------------------- topics


@topics_app.command("create")
def create_topics(
    bootstrap_servers: Servers,
    replication_factor: Annotated[
        int, typer.Option("--replication_factor", min=1, help="Brokers that hold each record; 1 on a laptop.")
    ] = 3,
    letter_retention_days: Annotated[
        int | None,
        typer.Option("--letter_retention_days", min=1, help="How long dead letters are kept, to be replayed; else 30."),
    ] = None,
    dry_run: DryRun = False,
    kafka_config: KafkaConfig = "{}",
) -> None:
    """Make the topics that are missing; those that exist are left alone. May be repeated."""
    from itel_cabinet.pipeline import topics

    with open_cluster(bootstrap_servers, kafka_config) as cluster:
        for made in topics.create_topics(
            cluster, replication_factor, letter_days=letter_retention_days, dry_run=dry_run
        ):
            spec = made.spec
            kept = f"kept {spec.retention_days} days" if spec.retention_days else "kept as the broker says"
            shape = f"partitions: {spec.partitions}, replicas: {replication_factor}, {kept}"
            verb = "would be created" if dry_run else "created"
            typer.echo(f"{spec.name}: {f'{verb} ({shape})' if made.created else 'exists, left alone'}")


@topics_app.command("describe")
def describe_topics(bootstrap_servers: Servers, kafka_config: KafkaConfig = "{}") -> None:
    """Show the topics as they are."""
    from itel_cabinet.pipeline import topics

    table = Table("topic", "topic id")
    for column in ("partitions", "kept days", "records"):
        table.add_column(column, justify="right")
    missing = []
    with open_cluster(bootstrap_servers, kafka_config) as cluster:
        for topic in topics.describe_topics(cluster):
            if isinstance(topic, topics.TopicSpec):
                missing.append(topic.name)
                continue
            kept = "for ever" if topic.retention_ms < 0 else f"{topic.retention_ms / topics.DAY_MS:g}"
            table.add_row(topic.name, topic.topic_id, str(topic.partitions), kept, str(topic.records))
    Console().print(table)
    if missing:
        typer.echo(f"missing: {', '.join(missing)}; `{PROGRAM} topics create` makes them")


# ---------------------------------------------------------------------------------------------------------- monitoring


@monitoring_app.command("export")
def export_monitoring(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to; made if it is missing.")],
    docs_url: Annotated[
        str, typer.Option("--docs_url", help="Where the folder docs/ is published, for the alerts' links.")
    ] = "docs",
) -> None:
    """Write Prometheus's rules and Grafana's dashboards into a folder; files that are there are replaced.

    For example: itel-cabinet monitoring export /etc/itel-cabinet/monitoring
    """
    from importlib.resources import files

    source = files("itel_cabinet.monitoring")
    dashboards = source / "dashboards"
    wanted = [(source / "alerts.yml", folder / "alerts.yml")]
    wanted += [(one, folder / "dashboards" / one.name) for one in dashboards.iterdir() if one.name.endswith(".json")]
    if re.search(r"[^\x21-\x7e]|[\"\\]", docs_url):
        raise CommandError("--docs_url: not a URL: no blanks, quotes or backslashes")
    try:
        for content, path in sorted(wanted, key=lambda pair: str(pair[1])):
            path.parent.mkdir(parents=True, exist_ok=True)
            text = content.read_text(encoding="utf-8")
            text = text.replace('runbook_url: "docs/', f'runbook_url: "{docs_url.rstrip("/")}/')
            path.write_text(text, encoding="utf-8")
            typer.echo(str(path))
    except OSError as error:
        raise CommandError(f"FOLDER: {error.filename} cannot be written: {error.strerror}") from None


# --------------------------------------------------------------------------------------------------------------- media


@media_app.command("backfill", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def backfill_media(context: typer.Context, dry_run: DryRun = False) -> None:
    """Fetch the photo files that rows of the attachments table lack, and tell the rows where they are.

    Takes the options of `run tracking`, of which --tables_root, --media_root and ClaimX's are needed; no broker is. May
    run beside the jobs, be interrupted and repeated. What fails again stays without a file, with the reason in the
    row's media_warning.
    """
    from collections import Counter

    from rich.progress import Progress

    from itel_cabinet.io.delta import create_table, get_table
    from itel_cabinet.io.objects import ObjectStoreError, get_objects
    from itel_cabinet.io.secrets import UnresolvedSecretError
    from itel_cabinet.pipeline.launch import parse_arguments, with_template
    from itel_cabinet.pipeline.operate import BackfillStoppedError, backfill_photos, missing_photos
    from itel_cabinet.pipeline.options import OptionError
    from itel_cabinet.pipeline.tables import ATTACHMENTS
    from itel_cabinet.pipeline.wiring import Wiring

    try:
        job, *options = with_template(["tracking", *context.args])
        settings, _ = parse_arguments(job, ["--bootstrap_servers=unused:9092", *options])
    except OptionError as error:
        raise CommandError(str(error), wrong_use=True) from None
    if not settings.fetches_media:
        raise CommandError("--media_root is missing: give the folder or object-store URI for photos", wrong_use=True)
    wiring = Wiring(settings)
    console, progress = Console(), Console(stderr=True)
    ended: Counter[str] = Counter()
    try:
        with storing():
            spec = wiring.tables[ATTACHMENTS]
            if create_table(spec, dry_run=True).version is None:
                raise CommandError(f"--tables_root: there is no table {spec.uri}: give the root that the jobs write to")
            table = get_table(spec)
            missing = missing_photos(table)
        assignments = len({row["assignment_id"] for row in missing})
        console.print(f"{len(missing)} photos of {assignments} assignments have no file", soft_wrap=True)
        if dry_run or not missing:
            return
        settings.claimx_connection().credentials()
        get_objects(settings.media_settings().store).check()
        with Progress(console=progress, transient=True, disable=not progress.is_terminal) as bar, storing():
            task = bar.add_task("photos", total=len(missing))
            for counts in backfill_photos(wiring, table, missing):
                ended += counts
                bar.advance(task, counts.total())
    except ObjectStoreError as error:
        raise CommandError(f"--media_root: {error}") from None
    except (UnresolvedSecretError, BackfillStoppedError) as error:
        raise CommandError(f"{error}; {ended.total()} of {len(missing)} photos were tried") from None
    finally:
        for what, count in sorted(ended.items()):
            console.print(f"  {what}: {count}", soft_wrap=True)


# ----------------------------------------------------------------------------------------------------------- templates


class Format(StrEnum):
    """What a template is rendered to."""

    COMMAND = "command"
    KUBERNETES = "kubernetes"
    APPLICATION = "application"


@templates_app.callback()
def _prepare_for_templates() -> None:
    """Launch templates: a job with its options in a file."""
    from itel_cabinet.io.worker import prepare

    prepare()  # Beam is imported by all of them


@templates_app.command("list")
def list_templates(as_json: AsJson = False) -> None:
    """Show the templates that come with the project, for `run JOB --template NAME`."""
    from itel_cabinet.pipeline import launch

    rows = []
    for name in launch.list_templates():
        template = launch.load_template(name)
        given_at_launch = [*launch.check_template(template).open]
        rows.append((name, template.job.value, template.runner, template.description, given_at_launch))
    if as_json:
        keys = ("name", "job", "runner", "description", "given_at_launch")
        typer.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
        return
    table = Table("template", "job", "runner", "what it does")
    table.add_column("given at launch", no_wrap=True)
    for *texts, given_at_launch in rows:
        table.add_row(*texts, "\n".join(given_at_launch))
    Console().print(table)


@templates_app.command("schema")
def print_template_schema() -> None:
    """Print the JSON Schema of templates, by which editors complete and check them."""
    from itel_cabinet.pipeline.launch import make_template_schema

    typer.echo(json.dumps(make_template_schema(), indent=2))


@templates_app.command("check")
def check_templates(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Files, or names of shipped ones; default: all those."),
    ] = None,
) -> int:
    """Report every mistake in templates, each with its line. Secrets that do not resolve here are warnings: they must
    where the workers run.
    """
    from itel_cabinet.pipeline import launch

    failed = False
    for file in files or launch.list_templates():
        try:
            template = launch.load_template(file)
        except launch.TemplateError as error:
            failed = True
            for problem in error.problems:
                print(f"{PROGRAM}: {problem}", file=sys.stderr)
            continue
        found = launch.check_template(template)
        failed = failed or bool(found.problems)
        for fault in found.problems:
            print(f"{PROGRAM}: {template.locate(fault)}: {fault}", file=sys.stderr)
        for secret in found.unresolved:
            print(f"{PROGRAM}: warning: {template.locate(secret)}: {secret}", file=sys.stderr)
        if not found.problems:
            typer.echo(f"{file}: fine" + (f"; to be given at launch: {', '.join(found.open)}" if found.open else ""))
    return 1 if failed else 0


@templates_app.command("render", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def render_template(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE [OPTIONS]", help="A file or a shipped one; options as for run.")],
    form: Annotated[
        Format,
        typer.Option(
            "--format", help="A command line, manifests of a session cluster and a Job, or of an application."
        ),
    ] = Format.COMMAND,
) -> None:
    """Print the command line that a template amounts to, or its Kubernetes manifests."""
    import yaml

    from itel_cabinet.pipeline import launch
    from itel_cabinet.pipeline.options import OptionError

    try:
        template = launch.load_template(file)
        if form is Format.COMMAND:
            text, left_open = launch.render_command(template, context.args)
        else:
            documents = launch.render_manifests(template, context.args, application=form is Format.APPLICATION)
            text, left_open = yaml.safe_dump_all(documents, sort_keys=False, width=120).rstrip(), []
    except OptionError as error:
        raise CommandError(str(error), wrong_use=not isinstance(error, launch.TemplateError)) from None
    typer.echo(text)
    if left_open:
        print(f"{PROGRAM}: left open, to be added: --{', --'.join(left_open)}", file=sys.stderr)


# ------------------------------------------------------------------------------------------------------ lag and status

app.command()(lag)
app.command()(status)


if __name__ == "__main__":
    sys.exit(main())
