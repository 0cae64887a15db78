"""Memory goes back to the system when it is free: without this a worker holds twice what it needs.

delta-rs brings jemalloc, which keeps freed pages in four arenas a core for ten seconds; a job that merges each second
never gives any back; and it keeps a cache for each of the hundred threads by which a folder is read. glibc gives each
thread an arena, and what the pools' threads allocate is freed by others; it also keeps large blocks, once it has freed
one. pyarrow brings mimalloc, which keeps what a batch's columns took.
Measured: a `cabinet` job at 200 events/s stood at 440 MB and crept up; with the arenas limited at 340 MB and flat. One
with a backlog of forms took 510 MB; with the rest 400. What glibc has free between what is still used it keeps all the
same, unless it is asked for it: 88 MB after ten minutes at 500 events/s, and more each minute.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time

__all__ = ["ALLOCATORS", "collect_seldom", "give_back", "limit_allocators"]

_ARENAS = 2
_LARGE_BYTES = 128 * 1024  # glibc's own limit, which rises to 32 MB unless it is set
ALLOCATORS = {
    "_RJEM_MALLOC_CONF": f"narenas:{_ARENAS},dirty_decay_ms:500,muzzy_decay_ms:0,tcache:false",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": str(_ARENAS),
    "MALLOC_MMAP_THRESHOLD_": str(_LARGE_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(_LARGE_BYTES),
}
"""The environment variables that do the same for a process that is yet to start."""
_OBJECTS_BEFORE_A_COLLECTION = 50_000  # Python's own is 700
_GIVE_BACK_SECONDS = 5.0
# What glibc's malloc.h calls the same, for a process that runs already.
_MALLOPT = {"MALLOC_ARENA_MAX": -8, "MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}


def limit_allocators() -> None:
    """Limit this process's allocators, unless its environment does. Works before deltalake and pyarrow are imported
    only."""
    for name in ("_RJEM_MALLOC_CONF", "ARROW_DEFAULT_MEMORY_POOL"):
        os.environ.setdefault(name, ALLOCATORS[name])
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for name, parameter in _MALLOPT.items():
        if mallopt is not None and name not in os.environ:
            mallopt(parameter, int(ALLOCATORS[name]))


def collect_seldom() -> None:
    """Look for cycles of objects less often: a bundle's records are many, live long and hold none. Measured: a seventh
    of a completed form's processor time."""
    gc.set_threshold(_OBJECTS_BEFORE_A_COLLECTION, 20, 20)


class _Trimmer:
    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        self._next = 0.0

    def __call__(self) -> None:
        """Give the system what glibc has free, once in five seconds. Thread-safe."""
        now = time.monotonic()
        if self._trim is not None and now >= self._next:
            self._next = now + _GIVE_BACK_SECONDS
            self._trim(0)


give_back = _Trimmer()
