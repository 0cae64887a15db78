"""The commands `itel-cabinet contract ...`, and how other commands take a contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from itel_cabinet.pipeline.commands.printing import print_json, print_rows
from itel_cabinet.pipeline.commands.shared import PROGRAM, AsJson, CommandError

if TYPE_CHECKING:
    from itel_cabinet.transforms.contracts import Contract

__all__ = ["DEFAULT_CONTRACT", "ContractName", "ContractVars", "contract_app", "load", "read_vars"]

DEFAULT_CONTRACT = "cabinet_repair"
ContractName = Annotated[
    str, typer.Option("--contract", metavar="NAME|FILE", help="The contract: one that is shipped, or a YAML file.")
]
ContractVars = Annotated[
    str,
    typer.Option(
        "--contract_vars",
        metavar="JSON",
        help="What the contract leaves to the installation, as a JSON object; secrets as env:NAME or file:PATH.",
    ),
]

contract_app = typer.Typer(help="Contracts: what is read of a form, and how it is sent to iTel.")


def read_vars(text: str) -> dict[str, str]:
    """The JSON object of an option; raises CommandError."""
    from pydantic import TypeAdapter, ValidationError

    from itel_cabinet.pipeline.options import JsonObject

    try:
        given: dict[str, str] = TypeAdapter(JsonObject).validate_python(text)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise CommandError(f"--contract_vars: {reason}", wrong_use=True) from None
    return given


def load(name: str, given: Mapping[str, str], *, complete: bool = True) -> Contract:
    """A contract; ends the command with a line for each problem. With ``complete`` no var may be missing."""
    from itel_cabinet.pipeline.contracts import load_contract
    from itel_cabinet.transforms.contracts import ContractError

    try:
        return load_contract(name, given, complete=complete)
    except ContractError as error:
        for problem in error.problems:
            typer.echo(f"{PROGRAM}: {error.source}: {problem}", err=True)
        raise typer.Exit(1) from None


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
