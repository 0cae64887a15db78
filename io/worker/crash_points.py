"""Named places at which a test can have the process killed, as if by a power cut; see docs/testing.md.

They exist for the crash tests alone. With ``ITEL_CABINET_CRASH_AT=before-commit:some_table`` in the environment the
process kills itself with SIGKILL when it reaches that point, and with ``...:3`` appended when it reaches it for the
third time. With ``@FILE`` the point is what stands in that file, and the process that dies there removes it first: of a
cluster's workers, which are started again and again, one dies each time a test writes the file. The variable is read
once, at import; where it is unset, :func:`reached` costs two comparisons.
"""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

__all__ = ["reached"]


def _parse(value: str) -> tuple[str, int]:
    point, _, nth = value.rpartition(":")
    return (point, int(nth)) if point and nth.isdigit() else (value, 1)


_POINT, _NTH = _parse(os.environ.get("ITEL_CABINET_CRASH_AT", ""))
_FILE = Path(_POINT[1:]) if _POINT.startswith("@") else None
_COUNT = itertools.count(1)


def reached(point: str) -> None:
    """Say that ``point`` has been reached; does not return if a test wants the process dead here. Thread-safe."""
    if _FILE is not None:
        if _disarmed(_FILE, point):
            os.kill(os.getpid(), signal.SIGKILL)
    elif _POINT and point == _POINT and next(_COUNT) == _NTH:
        os.kill(os.getpid(), signal.SIGKILL)


def _disarmed(file: Path, point: str) -> bool:
    """Whether ``file`` asked for this point, and this call is the one that removed it."""
    try:
        if file.read_text(encoding="utf-8") != point:
            return False
        file.unlink()
    except FileNotFoundError:
        return False
    return True
