"""Memory goes back to the system when it is free: without this a worker holds twice what it needs.

delta-rs brings jemalloc, which keeps freed pages in four arenas a core for ten seconds; a job that merges each second
never gives any back. glibc gives each thread an arena, and what the pools' threads make is freed by others. (m: a
`cabinet` job at 200 events/s stood at 440 MB and crept up; so at 340 MB and flat.)
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_small"]

_JEMALLOC = "narenas:2,dirty_decay_ms:500,muzzy_decay_ms:0"
_M_ARENA_MAX = -8  # of glibc's malloc.h
_ARENAS = 2


def keep_small() -> None:
    """Tell both allocators; must come before deltalake is imported. What the environment says of them goes first."""
    os.environ.setdefault("_RJEM_MALLOC_CONF", _JEMALLOC)
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, _ARENAS)
