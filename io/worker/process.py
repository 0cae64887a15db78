"""Objects that live once per process (clients, readers, pools), since a runner makes many DoFns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from cachetools import cached

__all__ = ["once_per_process"]

Key = ParamSpec("Key")
Made = TypeVar("Made")


def once_per_process(make: Callable[Key, Made]) -> Callable[Key, Made]:
    """Decorate a factory so that equal arguments, which must be hashable, give the same object in the whole process.

    Two threads that call at once get the same object. In a DoFn that is shipped, the factory is pickled by its name: a
    copy would make everything a second time. ``cache_clear()`` has everything made again at the next call.
    """
    return cached({}, condition=threading.Condition())(make)
