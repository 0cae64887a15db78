"""The commands `itel-cabinet templates ...`: see docs/templates.md."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from itel_cabinet.pipeline.commands.printing import make_console, print_json
from itel_cabinet.pipeline.commands.shared import PROGRAM, AsJson, CommandError

__all__ = ["templates_app"]

templates_app = typer.Typer(help="Launch templates: a job with its options in a file.")


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
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    table = Table("template", "job", "runner", "what it does")
    table.add_column("given at launch", no_wrap=True)
    for *texts, given_at_launch in rows:
        table.add_row(*texts, "\n".join(given_at_launch))
    make_console().print(table)


@templates_app.command("schema")
def print_template_schema() -> None:
    """Print the JSON Schema of templates, by which editors complete and check them."""
    from itel_cabinet.pipeline.launch import make_template_schema

    print_json(make_template_schema())


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
