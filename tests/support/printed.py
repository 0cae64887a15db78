"""What the commands of `itel-cabinet` print, run in this process."""

from __future__ import annotations

import pytest

from itel_cabinet.pipeline.commands import main
from itel_cabinet.pipeline.options import ENVIRONMENT


class Printed:
    """What commands print in this process: ``stdout`` without line breaks inside tables, ``error`` the one line."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        monkeypatch.setenv("COLUMNS", "240")
        for name in ENVIRONMENT.values():
            monkeypatch.delenv(name, raising=False)

    def stdout(self, *arguments: str) -> str:
        assert main(arguments) == 0, self._capsys.readouterr().err
        printed = self._capsys.readouterr()
        assert printed.err == ""
        return printed.out

    def error(self, status: int, *arguments: str) -> str:
        assert main(arguments) == status
        printed = self._capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("itel-cabinet: ")
        return line.removeprefix("itel-cabinet: ")

    def cells(self, *arguments: str) -> list[list[str]]:
        """The rows of the table that a command prints, heads left out."""
        lines = (line for line in self.stdout(*arguments).splitlines() if line.startswith("│"))
        return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
