"""What `itel-cabinet status` says of a job, run in this process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from itel_cabinet.pipeline.commands import main
from tests.support.jobs import Stack


class Asked:
    """What `itel-cabinet status` says of a stack's `cabinet` job: its JSON, its exit status checked with it."""

    def __init__(self, stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
        self._stack, self._capsys = stack, capsys

    def arguments(self, *more: str) -> list[str]:
        stack = self._stack
        return [
            "status",
            "cabinet",
            f"--bootstrap_servers={stack.broker.bootstrap_servers}",
            f"--consumer_group={stack.prefix}.cabinet",
            f"--input_topic={stack.topic('tracking')}",
            f"--tables_root={stack.tables_uri}",
            f"--dead_letter_topic={stack.topic('errors')}",
            f"--itel_errors_topic={stack.topic('itel_errors')}",
            *more,
        ]

    def __call__(self, *more: str) -> dict[str, Any]:
        exit_status = main([*self.arguments("--window_seconds=1"), *more, "--json"])
        printed = self._capsys.readouterr()
        assert printed.err == ""
        report: dict[str, Any] = json.loads(printed.out)
        assert exit_status == (0 if report["verdict"] == "healthy" else 1), report
        return report
