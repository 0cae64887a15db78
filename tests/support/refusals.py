"""`itel-cabinet run` with arguments that it refuses: in this process, which is fast, or as a process of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout

from itel_cabinet.local.services import free_port
from itel_cabinet.pipeline import launch

_COMMAND = [sys.executable, "-m", "itel_cabinet.pipeline.commands", "run"]
# A test's own environment must not fill in what the test leaves out.
UNSET = (
    "KAFKA_BOOTSTRAP_SERVERS",
    "CLAIMX_API_BASE_URL",
    "CLAIMX_API_TOKEN",
    "ITEL_CABINET_API_BASE_URL",
    "ITEL_CABINET_API_TOKEN",
)


def complete(**options: str | None) -> list[str]:
    """The `cabinet` job with all it needs, on a broker that is not there; None leaves an option out."""
    settings: dict[str, str | None] = {
        "bootstrap_servers": f"127.0.0.1:{free_port()}",
        "claimx_url": "http://127.0.0.1:9",
        "claimx_auth": "none",
        "itel_url": "http://127.0.0.1:9",
        "itel_auth": "none",
        "tables_root": "tables",
        **options,
    }
    return ["cabinet", *(f"--{name}={value}" for name, value in settings.items() if value is not None)]


def lines_of(given: Sequence[str], status: int) -> list[str]:
    """The lines that a launch with these arguments prints before it ends with ``status``."""
    errors, output = io.StringIO(), io.StringIO()
    with redirect_stderr(errors), redirect_stdout(output):
        ended = launch.main(given)
    return _lines(errors.getvalue(), output.getvalue(), ended, status)


def refusal(given: Sequence[str], status: int) -> str:
    """The one line of a launch that is refused."""
    [line] = lines_of(given, status)
    return line


def refusal_of_process(
    given: Sequence[str], status: int, env: Mapping[str, str] | None = None, *, seconds: float = 30.0
) -> str:
    """The same of a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in UNSET} | dict(env or {})
    ended = subprocess.run(
        [*_COMMAND, *given], capture_output=True, text=True, timeout=seconds, env=environment, check=False
    )
    [line] = _lines(ended.stderr, ended.stdout, ended.returncode, status)
    return line


def _lines(errors: str, output: str, ended: int, status: int) -> list[str]:
    lines = errors.splitlines()
    assert all(line.startswith("itel-cabinet: ") for line in lines), errors
    assert (ended, output) == (status, ""), errors
    return [line.removeprefix("itel-cabinet: ") for line in lines]
