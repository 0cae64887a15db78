"""The commands `itel-cabinet contract ...`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from itel_cabinet.pipeline.commands.contract_choice import ContractVars, load, read_vars
from itel_cabinet.pipeline.commands.printing import print_json, print_rows
from itel_cabinet.pipeline.commands.shared import (
    AsJson,
    CommandError,
    StorageOptions,
    TablesRoot,
    read_moment,
    storing,
    tables_at,
)

__all__ = ["contract_app"]

contract_app = typer.Typer(help="Contracts: what is read of a form, and how it is sent to iTel.")


@contract_app.command("list")
def list_contracts(as_json: AsJson = False) -> None:
    """Show the contracts that come with the project."""
    from itel_cabinet.transforms.contracts import SHIPPED, load_shipped

    rows = []
    for name in SHIPPED:
        file = load_shipped(name).file
        rows.append(
            {
                "name": name,
                "version": file.version,
                "title": file.title,
                "tasks": [*file.tasks.ids],
                "questions": len(file.form.questions),
                "request": f"{file.request.method} {file.request.path}",
                "vars": [*file.vars],
            }
        )
    if as_json:
        print_json(rows)
        return
    heads = {"name": "contract", "version": "version", "title": "title", "tasks": "task ids"}
    heads |= {"questions": "questions", "request": "request", "vars": "vars"}
    joined = [{**row, "tasks": _listed(row["tasks"]), "vars": _listed(row["vars"])} for row in rows]
    print_rows(heads, joined)


def _listed(values: object) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list) and values else "-"


@contract_app.command("show")
def show_contract(name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped contract, or a file.")]) -> None:
    """Print a contract's YAML, to be copied and changed."""
    from itel_cabinet.pipeline.contracts import read_contract_text
    from itel_cabinet.transforms.contracts import ContractError

    try:
        typer.echo(read_contract_text(name).rstrip("\n"))
    except ContractError as error:
        raise CommandError(f"{error.source} {error.problems[0].text}", wrong_use=True) from None


@contract_app.command("schema")
def print_contract_schema() -> None:
    """Print the JSON Schema of contracts, by which editors complete and check them."""
    from itel_cabinet.transforms.contracts import make_contract_schema

    print_json(make_contract_schema())


@contract_app.command("check")
def check_contract(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped contract, or a file.")],
    given: Annotated[
        str | None,
        typer.Option("--vars", "--contract_vars", metavar="JSON", help="Check that these are all that it needs, too."),
    ] = None,
) -> None:
    """Report every mistake in a contract, a line each with its place. Nothing is fetched and no form is needed."""
    contract = load(name, read_vars(given or "{}"), complete=given is not None)
    typer.echo(f"{name}: contract {contract.label} is in order (sha256 {contract.sha256[:12]})")


@contract_app.command("backtest")
def backtest_contract(
    contract: Annotated[str, typer.Option("--contract", metavar="NAME|FILE", help="The contract to try.")],
    tables_root: TablesRoot,
    against: Annotated[
        str | None, typer.Option("--against", metavar="NAME|FILE", help="Compare with what this one makes.")
    ] = None,
    contract_vars: ContractVars = "{}",
    storage_options: StorageOptions = "{}",
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help="Only events of then or later.")] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Only events of before then.")] = None,
    sample: Annotated[int | None, typer.Option("--sample", min=1, help="Only about so many answers.")] = None,
    processes: Annotated[int | None, typer.Option("--processes", min=1, help="Default: a process a core.")] = None,
    as_json: AsJson = False,
) -> None:
    """Try a contract on every ClaimX answer in the tracking table: what would be valid, held by the gate, invalid, and
    which questions it does not know. Nothing is called or written.

    What the body needs of ClaimX's exports is not in the history and counts as not there. Exit status 1 if any form
    is invalid.
    """
    from rich.progress import Progress

    from itel_cabinet.io.delta import table_exists
    from itel_cabinet.pipeline.operate import backtest
    from itel_cabinet.pipeline.tables import TRACKING

    new = load(contract, read_vars(contract_vars), complete=False)
    old = None if against is None else load(against, {}, complete=False)
    within = {name: read_moment(name, text) for name, text in (("since", since), ("until", until))}
    spec = tables_at(tables_root, storage_options)[TRACKING]
    console = Console(stderr=True)
    with storing():
        if not table_exists(spec):
            raise CommandError(f"--tables_root: there is no table {spec.uri}: give the root that the jobs write to")
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("answers", total=None)
            found = backtest(
                spec,
                new,
                old,
                processes=processes,
                sample=sample,
                advance=lambda number: bar.advance(task, number),
                **within,
            )
    if as_json:
        print_json(found)
    else:
        _print_backtest(found)
    if found["invalid"]:
        raise typer.Exit(1)


def _print_backtest(found: dict[str, Any]) -> None:
    typer.echo(f"contract {found['contract']} (sha256 {found['sha256'][:12]}): {found['answers']} stored answers")
    for end in ("valid", "held", "invalid", "without_form", "unreadable"):
        typer.echo(f"  {end.replace('_', ' ')}: {found[end]}")
    for task, count in found["other_tasks"].items():
        typer.echo(f"  {count} of them are of task {task}, which the contract does not read: tried all the same")
    if found["invalid_by_field"]:
        heads = {"error_class": "error class", "field": "field", "count": "forms", "examples": "assignments, such as"}
        print_rows(heads, [_with_examples(row) for row in found["invalid_by_field"]])
    if found["unknown_questions"]:
        heads = {"question": "unknown question", "count": "forms", "examples": "assignments, such as"}
        print_rows(heads, [_with_examples(row) for row in found["unknown_questions"]])
    if "against" in found:
        typer.echo(f"against {found['against']} (sha256 {found['against_sha256'][:12]}):")
        typer.echo(f"  submitted by the new one alone: {found['only_new']}, by the old one alone: {found['only_old']}")
        rows = [{"field": row["field"], "count": row["count"], **row["examples"][0]} for row in found["changed_fields"]]
        if rows:
            heads = {"field": "field that changes", "count": "forms", "assignment_id": "assignment"}
            print_rows({**heads, "old": "old", "new": "new"}, rows)
        else:
            typer.echo("  no field changes")
    typer.echo(
        f"{found['seconds']} s, {found['forms_per_second']} forms a second in {found['processes']} processes, "
        f"{found['memory_mb']} MB here and {found['memory_mb_per_process']} MB in each"
    )


def _with_examples(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "examples": _listed(row["examples"])}
