"""A fast stand-in for ClaimX and iTel (``faststub.go``), so that a job is measured and not what answers it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import requests

from itel_cabinet.local.services import free_port

__all__ = ["build", "running", "write_form"]

_FORM_ID = "0000000"


def build(folder: Path) -> Path:
    """The program, compiled into ``folder``."""
    program = folder / "faststub"
    subprocess.run(["go", "build", "-o", str(program), "faststub.go"], cwd=Path(__file__).parent, check=True)
    return program


def write_form(details: bytes, form: Path) -> None:
    """Write an answer of ClaimX to ``form``, for the stub to give for any assignment."""
    form.write_text(details.decode().replace(str(json.loads(details)["assignmentId"]), _FORM_ID), encoding="utf-8")


@contextlib.contextmanager
def running(program: Path, form: Path, milliseconds: int = 0) -> Iterator[str]:
    """The URL of both APIs, which answer so slowly."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    with subprocess.Popen([str(program), str(port), str(milliseconds), str(form)]) as process:
        try:
            end = time.monotonic() + 10
            while True:
                with contextlib.suppress(requests.ConnectionError):
                    requests.get(f"{url}/count", timeout=5).raise_for_status()
                    break
                if time.monotonic() > end:
                    raise RuntimeError(f"{program} does not listen")
                time.sleep(0.02)
            yield url
        finally:
            process.terminate()
