"""Named places at which a test can have the process killed, as by a power cut; see docs/testing.md.

With ``ITEL_CABINET_CRASH_AT=before-commit:some_table`` in the environment the process kills itself with SIGKILL when it
reaches that point, and with ``...:3`` appended when it reaches it for the third time. With ``@FILE`` the point is the
content of that file, and the process that dies there removes the file first: of a cluster's workers, which are started
again and again, one dies each time a test writes the file. Only an armed process dies (see ``worker.prepare``).
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

__all__ = ["arm_crash_points", "maybe_crash"]

_VARIABLE = "ITEL_CABINET_CRASH_AT"

_is_due: Callable[[str], bool] | None = None


def arm_crash_points() -> None:
    """Read the variable. Idempotent: what has been armed stays as it is, and goes on counting."""
    global _is_due
    value = os.environ.get(_VARIABLE)
    if not value or _is_due is not None:
        return
    name, _, nth = value.rpartition(":")
    if value.startswith("@"):
        _is_due = functools.partial(_take, Path(value[1:]))
    elif name and nth.isdigit():
        _is_due = _make_countdown(name, int(nth))
    else:
        _is_due = _make_countdown(value, 1)


def _make_countdown(wanted: str, turn: int) -> Callable[[str], bool]:
    count = itertools.count(1)
    return lambda point: point == wanted and next(count) == turn


def maybe_crash(point: str) -> None:
    """Die here if a test wants it. Costs a comparison otherwise. Thread-safe."""
    if _is_due is not None and _is_due(point):
        os.kill(os.getpid(), signal.SIGKILL)


def _take(file: Path, point: str) -> bool:
    """Whether ``file`` holds this point, and this call is the one that removed it."""
    try:
        if file.read_text(encoding="utf-8") != point:
            return False
        file.unlink()
    except FileNotFoundError:
        return False
    return True
