"""Contracts by what an option or argument says: the name of one that is shipped, or a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from itel_cabinet.io.http import Auth
from itel_cabinet.transforms.contracts import SHIPPED, Contract, ContractError, Problem, compile_contract, shipped_text

__all__ = ["load_contract", "read_contract_text"]


def read_contract_text(name: str) -> str:
    """The text of a shipped contract or of a file. Raises ContractError."""
    if name in SHIPPED:
        return shipped_text(name)
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as error:
        known = ", ".join(SHIPPED)
        said = f"cannot be read ({error.strerror}): give a file, or one of the shipped contracts: {known}"
    except ValueError:
        said = "is not UTF-8 text"
    raise ContractError(name, [Problem(1, "", said)])


def load_contract(name: str, given: Mapping[str, str] = MappingProxyType({}), *, complete: bool = True) -> Contract:
    """A contract with what the installation gives, which with ``complete`` must be all that it needs. Raises
    ContractError, with every problem."""
    text = read_contract_text(name)
    contract = compile_contract(text, name, tuple(sorted(given.items())), complete)
    auth = contract.file.request.auth
    if auth is not None:
        try:
            Auth.parse(auth)
        except ValueError as error:
            line = next((n for n, one in enumerate(text.splitlines(), 1) if one.lstrip().startswith("auth:")), 1)
            raise ContractError(name, [Problem(line, "request.auth", str(error))]) from None
    return contract
