"""How often one API is called: a fixed limit, and the API's own, which it gives by 429 or by 503 with ``Retry-After``.

The API's limit holds for all callers of the process: nobody calls before the moment that it names. Then one call looks
whether the limit is over, and from there on calls are spaced, at a pace that is found as TCP CUBIC (RFC 9438) finds
its window: a tenth less than what went through before the limit, back to that within 20 s, and beyond it slowly at
first.

Not pyrate-limiter: its waiting calls sleep on a clock of their own and race for the next slot, so that a thread may be
passed over for ever, and its rate is fixed. Here each has its place in a line, which moves as fast as the pace by then.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from itel_cabinet.io.worker import metrics

__all__ = ["Pace", "Turn"]

_POLL_SECONDS = (
    0.05  # while another call finds out whether a limit is over: short, so that nobody catches up in a burst
)
_FIRST_PAUSE = 1.0  # after a 429 that names no time, or none to wait; doubles with each that follows
_LONGEST_BACKOFF = 30.0
_DROP = 0.1
_CLIMB_SECONDS = 20.0
_FREE, _FREE_GUESS = 10.0, 1_000.0  # a pace so many times above what was measured limits nothing any more
_SHORTEST_WINDOW = 1.0  # seconds over which the pace before a limit is measured
_MOST_KEPT = 4_096
_QUIET_SECONDS = 10.0  # between two warnings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Turn:
    """Leave for one try, to be handed back with its end. A ``probe`` finds out whether a limit is over."""

    probe: bool


class Pace:
    """The pace of one API, for all its callers. Thread-safe.

    ``calls_per_second`` is never exceeded (0: no fixed limit); a moment that an API names counts for ``most_seconds``
    at most. ``clock`` is monotonic, in seconds; ``random`` (0 to 1) spreads the pauses of APIs that name no time.

    A caller takes a place, waits until it is that place's turn, and asks for leave. Time that nobody used is not saved
    up: a burst would be what the other side limits.
    """

    def __init__(
        self,
        name: str,
        calls_per_second: float,
        most_seconds: float,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._name = name
        self._most_rate = calls_per_second or math.inf
        self._most_seconds = most_seconds
        self._clock = clock
        self._random = random
        self._lock = threading.Lock()
        # The line: places are numbers, and ``_passed`` is how far it has moved. It stands still during a limit.
        self._last_place = -1.0
        self._passed = 0.0
        self._moved_at = clock()
        self._not_before: float | None = None
        self._probing = False
        self._limits_in_a_row = 0
        self._warned_at = -math.inf
        self._answers: deque[float] = deque(maxlen=_MOST_KEPT)
        self._measured: float | None = None  # calls a second before the last limit
        self._measured_at = 0.0
        self._is_guess = (
            False  # there was less than a window to measure: the pace doubles each second, as in slow start
        )

    def reserve(self, most: float = math.inf) -> float | None:
        """The next place; None if its turn is more than ``most`` seconds away as it seems now, and nothing is taken."""
        with self._lock:
            self._move()
            place = max(self._passed, self._last_place + 1.0)
            if self._seconds_to(place) > most:
                return None
            self._last_place = place
            return place

    def wait(self, place: float) -> float:
        """Seconds to wait before asking again; 0 once it is the place's turn."""
        with self._lock:
            self._move()
            if self._not_before is not None:
                return self._blocked()  # the first to ask when that is over is the probe
            return self._seconds_to(place)

    def blocked(self) -> float:
        """Seconds to wait before asking again, as the API limits its calls; 0 if it does not."""
        with self._lock:
            return self._blocked()

    def admit(self) -> Turn | None:
        """Leave for one try, to be given to :meth:`record`; None while the API limits its calls."""
        with self._lock:
            if self._blocked():
                return None
            self._probing = self._not_before is not None
            return Turn(self._probing)

    def record(self, turn: Turn, *, limited: bool, asked: float | None = None, answered: bool = True) -> None:
        """How a try ended: ``limited`` by the API, which asked for so many seconds of peace; or ``answered`` otherwise,
        or not at all."""
        with self._lock:
            self._move()
            now = self._clock()
            if limited:
                self._limit(turn, asked, now)
            elif answered:
                self._answers.append(now)
                if turn.probe:
                    self._not_before, self._limits_in_a_row = None, 0
            if turn.probe:
                self._probing = False

    def _blocked(self) -> float:
        if self._not_before is None:
            return 0.0
        left = self._not_before - self._clock()
        return left if left > 0 else _POLL_SECONDS if self._probing else 0.0

    def _move(self) -> None:
        now = self._clock()
        if self._not_before is None:
            rate = self._rate(now)
            self._passed = (
                max(self._passed, self._last_place)
                if rate == math.inf
                else self._passed + rate * (now - self._moved_at)
            )
        self._moved_at = now

    def _seconds_to(self, place: float) -> float:
        missing = place - self._passed
        return missing / self._rate(self._moved_at) if missing > 1e-6 else 0.0  # sums of floats do not quite reach it

    def _rate(self, now: float) -> float:
        if self._measured is None:
            return self._most_rate
        since = now - self._measured_at
        factor = 2.0 ** min(since, 16.0) if self._is_guess else 1.0 + _DROP * (since / _CLIMB_SECONDS - 1.0) ** 3
        if factor > (_FREE_GUESS if self._is_guess else _FREE):
            self._measured = None
            return self._most_rate
        return min(self._most_rate, self._measured * max(factor, 1.0 - _DROP))

    def _limit(self, turn: Turn, asked: float | None, now: float) -> None:
        metrics.HTTP_LIMITED.labels(self._name).inc()
        begins = self._not_before is None
        if begins or turn.probe:
            self._limits_in_a_row += 1
        if not asked:
            backoff = _FIRST_PAUSE * 2.0 ** min(self._limits_in_a_row - 1, 16)
            asked = min(backoff, _LONGEST_BACKOFF) * (1 + self._random())
        pause = min(asked, self._most_seconds)
        if begins:
            self._measure(max(pause, _SHORTEST_WINDOW), now)
        self._not_before = max(self._not_before or -math.inf, now + pause)
        if now - self._warned_at >= _QUIET_SECONDS:
            self._warned_at = now
            _log.warning("%s: limits its calls: none for %.0f s", self._name, pause)

    def _measure(self, window: float, now: float) -> None:
        """Take what was answered in the last ``window`` seconds for what the API permits."""
        self._is_guess = not self._answers or self._answers[0] >= now - window
        while self._answers and self._answers[0] < now - window:
            self._answers.popleft()
        self._measured = max(len(self._answers), 1) / window
        self._measured_at = now + window
