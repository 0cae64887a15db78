"""Jobs' processes without the second and a half of processor time that each spends on importing Beam and Arrow.

One process a test process has imported it all (``python -m tests.support.forks``), and copies itself for each job. The
copy runs ``python -m MODULE ARGUMENTS`` as a fresh interpreter does from there on: with its own environment, log and
signals, and it ends as an interpreter does. ``tests/services/test_stopping.py`` and others start real interpreters.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["ForkedProcess", "Forks"]

_POLL_SECONDS = 0.02


class Forks:
    """The process that has imported everything, and what it is asked for; it ends when this one does. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        ours, its = socket.socketpair()
        with its:
            command = [sys.executable, "-m", __name__, str(its.fileno())]
            folder = Path(__file__).parents[2]
            # Not in this process's own words: a failed import is to be seen.
            self._process = subprocess.Popen(command, pass_fds=[its.fileno()], stdout=subprocess.DEVNULL, cwd=folder)
        self._connection = ours.makefile("rwb")
        ours.close()

    def start(self, module: str, arguments: Sequence[str], log: Path, env: Mapping[str, str]) -> ForkedProcess:
        """Start ``python -m module arguments`` with exactly this environment; both its outputs go to ``log``."""
        asked = {"module": module, "arguments": [*arguments], "log": str(log), "env": {**env}, "cwd": os.getcwd()}
        return ForkedProcess(self._ask(asked), self)

    def look(self, pid: int) -> int | None:
        """The exit status, minus the signal's number if one ended it; None while the process runs."""
        status: int | None = self._ask({"pid": pid})
        return status

    def _ask(self, asked: dict[str, Any]) -> Any:
        with self._lock:
            self._connection.write(json.dumps(asked).encode() + b"\n")
            self._connection.flush()
            answer = self._connection.readline()
        assert answer, "the process that has imported everything has ended: its stderr says why"
        return json.loads(answer)


class ForkedProcess:
    """What tests use of subprocess.Popen. Its number is not another process's before this one knows its end."""

    def __init__(self, pid: int, forks: Forks) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._forks = forks

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._forks.look(self.pid)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit status. Raises TimeoutExpired."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(_POLL_SECONDS)
        return status

    def send_signal(self, number: int) -> None:
        """Nothing, if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Do what is asked until nobody asks any more; in a copy, what that copy is to do."""
    with connection, connection.makefile("rwb") as stream:
        for line in stream:
            asked = json.loads(line)
            if "pid" in asked:
                ended, status = os.waitpid(asked["pid"], os.WNOHANG)
                answer = os.waitstatus_to_exitcode(status) if ended else None
            elif not (answer := os.fork()):
                return dict(asked)
            stream.write(json.dumps(answer).encode() + b"\n")
            stream.flush()
    return None


def _become(asked: dict[str, Any]) -> None:
    """Be the interpreter that was asked for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.argv = [asked["module"], *asked["arguments"]]
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)


def main() -> None:
    """Import what a job does, and serve the connection whose number is the first argument."""
    # A terminal's interrupt is for the tests, which then end this by closing the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from itel_cabinet.io.worker import prepare

    prepare()
    import duckdb  # noqa: F401
    import obstore  # noqa: F401

    import itel_cabinet.pipeline.graph
    import itel_cabinet.pipeline.launch.job
    import itel_cabinet.pipeline.queries  # noqa: F401

    # What is imported is no garbage: a copy need not look at it, which would copy its memory too.
    gc.freeze()
    if asked := _serve(socket.socket(fileno=int(sys.argv[1]))):
        _become(asked)


if __name__ == "__main__":
    main()
