"""A program of the local stack as a process under a guard (:mod:`itel_cabinet.local.services.guard`)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from itel_cabinet.local.services import guard

__all__ = ["Guarded"]

_STOP_SECONDS = 20.0
_LOG_LINES = 15


class Guarded:
    """A running command. It never outlives this process, even if that is killed, and leaves no children behind.

    What it and its children print is appended to ``log``; what it has started lives ``linger`` seconds longer than
    itself. ``environment`` is added to this process's own. ``pid`` is the command's, 0 if it could not be started. Not
    thread-safe.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        cwd: Path,
        linger: float = 0.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(linger), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=cwd,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        weakref.finalize(self, _end, self._guard)
        assert self._guard.stdout is not None
        self.pid = int(self._guard.stdout.readline() or 0)

    @property
    def running(self) -> bool:
        """Whether the command, or anything that it has started, is there."""
        return self._guard.poll() is None

    def members(self) -> list[int]:
        """The process ids of the command and of all that it has started."""
        return guard.session(self._guard.pid)

    def wait(self, seconds: float) -> int:
        """The command's exit status, once it and its children have ended. Raises subprocess.TimeoutExpired."""
        return self._guard.wait(seconds)

    def stop(self) -> None:
        """End in order (SIGTERM), or by force after 20 s; waits for the children's end too. Idempotent."""
        self._guard.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(_STOP_SECONDS)
        self.end()

    def kill(self) -> None:
        """End the command at once (SIGKILL), as a crash would, and wait until its children have lingered and gone."""
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
            self._guard.wait(_STOP_SECONDS)

    def end(self) -> None:
        """Kill everything at once. Idempotent."""
        _end(self._guard)

    def wait_until(
        self, ready: Callable[[], bool], name: str, failed: Callable[[str], Exception], seconds: float
    ) -> None:
        """Return once ``ready()``. If the command ends before, or does not get there within ``seconds`` (it is stopped
        then), raise what ``failed`` makes of the reason.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.running:
                raise failed(f"{name} ended with status {self._guard.returncode} while starting; {self.tail()}")
            if time.monotonic() > deadline:
                self.stop()
                raise failed(f"{name} did not serve within {seconds:.0f} s; {self.tail()}")
            time.sleep(0.05)

    def tail(self) -> str:
        """The end of the log."""
        return f"from {self.log}:\n" + "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


def _end(guarding: subprocess.Popen[bytes]) -> None:
    """Let go of a guard's stdin, upon which it kills everything at once."""
    if guarding.stdin is not None:
        guarding.stdin.close()
    guarding.wait(_STOP_SECONDS)
