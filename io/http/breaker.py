"""A circuit breaker: leaves an API in peace while most of the tries fail, and looks now and then whether it is back.

The breakers to be had count failures in a row, or know no threads; here a share over a window is wanted, so that the
few failures that retries get over do not open it.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from itel_cabinet.io.worker import metrics

__all__ = ["LEAST_TRIES", "Admission", "Breaker", "BreakerSettings"]

LEAST_TRIES = 20
_FEW_FAILURES = 5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When it opens, and for how long; ``open_seconds=0`` is no breaker at all.

    The share is high on purpose: a call is tried several times, so an API that fails half of its tries still does
    almost all of its work.
    """

    failure_share: float = 0.8
    window_seconds: float = 20.0
    open_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class Admission:
    """Leave for one try, to be handed back with its end."""

    turn: int
    probe: bool


class Breaker:
    """The breaker of one API, for all its callers. Thread-safe. ``clock`` is monotonic, in seconds.

    Closed, it lets all tries through. It opens upon a failed try if within the last ``window_seconds`` at least
    LEAST_TRIES tries ended, ``failure_share`` of them failed, and the first of these failed half a window ago or more
    (a restart of the API fails a whole batch of tries at once, and is over when they are made again). Open, it lets
    none through for ``open_seconds``; then one at a time, of which the first good one closes it, and a bad one opens it
    again.
    """

    def __init__(self, name: str, settings: BreakerSettings, clock: Callable[[], float]) -> None:
        self._name = name
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._tries: deque[tuple[float, bool]] = deque()
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False
        metrics.BREAKER_OPEN.labels(name).set(0)
        self._turn = 0  # grows with each change of state, so that tries from before it no longer count
        self._why = ""
        self._answered_at = -math.inf
        self._failed_in_a_row = 0

    def admit(self) -> Admission | None:
        """Leave for one try; its end must be given to :meth:`record`. None while open, and while another call's probe
        is under way: then :meth:`wait` is 0, and the probe's end is worth waiting for."""
        with self._lock:
            if self._open_until is None:
                return Admission(self._turn, probe=False)
            if self._probing or self._clock() < self._open_until:
                return None
            self._probing = True
            return Admission(self._turn, probe=True)

    def record(self, admission: Admission, ok: bool | None, why: str = "") -> None:
        """How a try ended: whether the API is alive, None if that is not known. ``why`` describes a failure."""
        with self._lock:
            if admission.turn != self._turn:
                return
            if admission.probe:
                self._probing = False
                if ok:
                    self._close()
                elif ok is not None:
                    self._open(why)
            elif ok is not None and self._settings.open_seconds:
                self._count(ok)
                if not ok and self._mostly_fails():
                    share = f"{self._failures} of the last {len(self._tries)} tries failed"
                    _log.warning("%s: %s (%s): not called until it answers again", self._name, share, why)
                    self._open(why)

    def wait(self) -> float:
        """Seconds until a try may be let through; 0 while another call's probe finds out whether it is back."""
        with self._lock:
            if self._open_until is None or self._probing:
                return 0.0
            return max(0.0, self._open_until - self._clock())

    def note(self, answered: bool) -> None:
        """Take in whether a try got an answer that stands, for :meth:`answers_others`."""
        with self._lock:
            if answered:
                self._answered_at, self._failed_in_a_row = self._clock(), 0
            else:
                self._failed_in_a_row += 1

    def answers_others(self, since: float) -> bool:
        """Whether a try was answered after this moment, and not many in a row since were not."""
        with self._lock:
            return self._answered_at > since and self._failed_in_a_row < _FEW_FAILURES

    @property
    def why(self) -> str:
        """How the try failed that opened it."""
        return self._why

    def _count(self, ok: bool) -> None:
        now = self._clock()
        self._tries.append((now, ok))
        self._failures += not ok
        while self._tries[0][0] < now - self._settings.window_seconds:
            self._failures -= not self._tries.popleft()[1]

    def _mostly_fails(self) -> bool:
        if len(self._tries) < LEAST_TRIES or self._failures < self._settings.failure_share * len(self._tries):
            return False
        began = next(moment for moment, ok in self._tries if not ok)
        return self._tries[-1][0] - began >= self._settings.window_seconds / 2

    def _open(self, why: str) -> None:
        self._why = why
        self._open_until = self._clock() + self._settings.open_seconds
        metrics.BREAKER_OPEN.labels(self._name).set(1)
        self._forget()

    def _close(self) -> None:
        _log.info("%s: answers again", self._name)
        self._open_until = None
        metrics.BREAKER_OPEN.labels(self._name).set(0)
        self._forget()

    def _forget(self) -> None:
        self._turn += 1
        self._tries.clear()
        self._failures = 0
