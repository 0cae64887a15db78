"""The command line, `itel-cabinet`: a module a group of commands."""

from __future__ import annotations

from itel_cabinet.pipeline.commands.app import main

__all__ = ["main"]
