"""Which tables a command works on, what they refuse, and how large they are, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from itel_cabinet.pipeline.commands.shared import PROGRAM, CommandError, storing, tables_at

if TYPE_CHECKING:
    from itel_cabinet.io.delta import TableSpec

__all__ = ["OneTable", "TableName", "chosen", "sized", "working"]

TableName = Annotated[str, typer.Option("--table", metavar="NAME", help="Which one.")]
OneTable = Annotated[str | None, typer.Option("--table", metavar="NAME", help="Only this one.")]


def chosen(tables_root: str, storage_options: str, name: str | None) -> list[TableSpec]:
    """The specification of the named table, or of all that there are."""
    from itel_cabinet.io.delta import table_exists

    specs = tables_at(tables_root, storage_options)
    if name is not None and name not in specs:
        raise CommandError(f"--table: there is no table {name!r}: give one of {', '.join(specs)}", wrong_use=True)
    wanted = [spec for spec in specs.values() if name in (None, spec.name)]
    with working():
        there = [spec for spec in wanted if table_exists(spec)]
    if not there:
        raise CommandError(
            f"--tables_root: there is no table {wanted[0].uri}: give the root that the jobs write to, or make the "
            f"tables with `{PROGRAM} tables create`"
        )
    return there


@contextmanager
def working() -> Iterator[None]:
    """What a table refuses in here, or its store, as one line."""
    from itel_cabinet.io.delta import TableError
    from itel_cabinet.io.worker import describe_error

    with storing():
        try:
            yield
        except TableError as refused:  # not for its place, which `storing` would say
            raise CommandError(describe_error(refused)) from None


def sized(files: int, number_of_bytes: int) -> str:
    return f"{files} {'file' if files == 1 else 'files'} ({decimal(number_of_bytes)})"
