"""Commands that are listed without their modules, which are imported when one of them is wanted."""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from itel_cabinet.pipeline.commands.examples import add_examples

__all__ = ["CommandsOnDemand", "Listed"]


@dataclass(frozen=True, slots=True)
class Listed:
    """A command, or a group of them, as a list of commands has it.

    Attributes:
        place: ``module:name`` of its function or ``typer.Typer``.
        help: its first paragraph, as the function or the Typer has it (a test compares).
        settings: more arguments of ``Typer.command``.
    """

    place: str
    help: str
    settings: Mapping[str, Any] = field(default_factory=dict)


class _Unloaded(TyperCommand):
    """What lists and completion need of a command; ``load`` imports it."""

    def __init__(self, name: str, listed: Listed) -> None:
        super().__init__(name, help=listed.help)
        self._name, self._listed = name, listed

    @functools.cache  # noqa: B019  lives as long as the process
    def load(self) -> Any:
        return _make_command(self._name, pkgutil.resolve_name(self._listed.place), self._listed.settings)


def _make_command(name: str, found: Any, settings: Mapping[str, Any]) -> Any:
    holder = typer.Typer(add_completion=False)
    if isinstance(found, typer.Typer):
        holder.add_typer(found, name=name)
        command = typer.main.get_group(holder).commands[name]
    else:
        holder.command(name, **settings)(found)
        command = typer.main.get_command(holder)
    add_examples(command, name)
    return command


class CommandsOnDemand(TyperGroup):
    """A group whose commands are in a table, and which others may add to. Only what is run, or asked for its help, is
    imported; to list what others have added imports them."""

    def offer(
        self,
        commands: Mapping[str, Listed],
        groups: Mapping[str, Listed],
        find_others: Callable[[], Mapping[str, Callable[..., Any]]],
    ) -> None:
        """Take a table of commands, one of groups, and what looks for commands of other distributions."""
        self._names = [[*commands], [*groups]]
        self.commands.update({name: _Unloaded(name, one) for name, one in {**commands, **groups}.items()})
        self._find_others = find_others

    @functools.cached_property
    def _others(self) -> list[str]:
        found = self._find_others()
        self.commands.update({name: _make_command(name, function, {}) for name, function in found.items()})
        return [*found]

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        commands, groups = self._names
        return [*commands, *self._others, *groups]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name, as lists show it: :meth:`resolve_command` gives the one to run."""
        if cmd_name not in self.commands and cmd_name not in self._others:
            return None
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, _Unloaded) else command, rest
