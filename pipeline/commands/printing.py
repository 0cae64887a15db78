"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["make_console", "print_json", "print_rows", "some"]

_WIDE = 100_000


def make_console() -> Console:
    """A console on stdout; where that is no terminal, and COLUMNS is not set, lines are as long as their values."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE
    return Console(markup=False, highlight=False, emoji=False, width=width)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def print_rows(heads: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a table; ``heads`` are the keys to show with their heads, numbers to the right and None as ``-``."""
    table = Table()
    for key, head in heads.items():
        numbers = any(isinstance(row[key], int | float) for row in rows)
        table.add_column(head, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*("-" if row[key] is None else str(row[key]) for key in heads))
    make_console().print(table)


def some(number: int, noun: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
