"""How commands take a contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from itel_cabinet.pipeline.commands.shared import PROGRAM, CommandError

if TYPE_CHECKING:
    from itel_cabinet.transforms.contracts import Contract

__all__ = ["DEFAULT_CONTRACT", "ContractName", "ContractVars", "load", "read_vars"]

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


def read_vars(text: str) -> dict[str, str]:
    """The JSON object of an option; raises CommandError."""
    from pydantic import TypeAdapter, ValidationError

    from itel_cabinet.pipeline.json_options import JsonObject

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
