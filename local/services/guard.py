"""Runs a command as a process that outlives neither its starter nor leaves children behind.

``python guard.py LINGER COMMAND...`` writes the command's process id to its stdout and then waits. The command is
killed when this process's stdin is closed, so also when the process at the other end dies, however it dies. When the
command has ended, what it started and left behind is killed after LINGER seconds: a Flink TaskManager that is
killed leaves its Python workers, and they go on working for a moment. SIGTERM is handed to the command. The exit status
is the command's.

It needs nothing but the standard library, so that it starts quickly (``python -I -S``). Linux only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

__all__ = ["session"]


def session(leader: int) -> list[int]:
    """The processes of the session that ``leader`` began, without the leader itself."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != leader:
            with contextlib.suppress(OSError):
                if os.getsid(int(entry.name)) == leader:
                    members.append(int(entry.name))
    return members


def _kill_session(leader: int) -> None:
    # More than one round, as a process may start another while this one looks.
    while members := [pid for pid in session(leader) if not _is_zombie(pid)]:
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _main(linger: float, command: list[str]) -> int:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    print(child.pid, flush=True)
    abandoned = threading.Event()

    def watch() -> None:
        sys.stdin.buffer.read()
        abandoned.set()
        child.kill()

    threading.Thread(target=watch, daemon=True).start()
    status = child.wait()
    abandoned.wait(linger)
    _kill_session(os.getpid())
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    # os._exit, as the watching thread sits in a read that nothing ends.
    os._exit(_main(float(sys.argv[1]), sys.argv[2:]))
