"""So many calls a second, evenly spaced.

Not pyrate-limiter: its waiting calls sleep on a clock of their own and race for the next slot, so that a thread may be
passed over for ever. Here each takes the next slot there and then, and knows at once whether it comes too late.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["RateLimit"]


class RateLimit:
    """Hands out moments, ``1 / per_second`` apart, in the order of asking. Thread-safe. ``clock`` is monotonic seconds.

    Time that nobody used is not saved up: a burst would be what the other side limits.
    """

    def __init__(self, per_second: float, clock: Callable[[], float]) -> None:
        self._spacing = 1.0 / per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._next = float("-inf")

    def reserve(self, most: float = float("inf")) -> float | None:
        """Seconds to wait for the next moment, which is the caller's from now on; None if that is more than ``most``,
        and nothing is taken."""
        with self._lock:
            now = self._clock()
            moment = max(now, self._next)
            if moment - now > most:
                return None
            self._next = moment + self._spacing
            return moment - now
