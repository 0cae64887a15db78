"""Objects that live once per process (clients, readers, pools), since a runner makes many DoFns."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

__all__ = ["OncePerProcess", "once_per_process"]

Key = ParamSpec("Key")
Made = TypeVar("Made")


class OncePerProcess(Generic[Key, Made]):
    """``functools.cache``, but two threads that ask at once get the same object. The arguments must be hashable."""

    __qualname__: str

    def __init__(self, make: Callable[Key, Made]) -> None:
        self._make = make
        self._lock = threading.RLock()
        self._made: dict[object, Made] = {}
        functools.update_wrapper(self, make)

    def __call__(self, *args: Key.args, **kwargs: Key.kwargs) -> Made:
        key = (args, tuple(sorted(kwargs.items())))
        with self._lock:
            if key not in self._made:
                self._made[key] = self._make(*args, **kwargs)
            return self._made[key]

    def __reduce__(self) -> str:
        """Pickle the name only: a copy in a shipped DoFn would make everything a second time."""
        return self.__qualname__

    def forget(self) -> None:
        """Make everything again at the next call; objects that are in use go on working."""
        with self._lock:
            self._made.clear()


def once_per_process(make: Callable[Key, Made]) -> OncePerProcess[Key, Made]:
    """Decorate a factory so that equal arguments give the same object in the whole process."""
    return OncePerProcess(make)
