"""How many calls of one API are under way at once: as many as it bears, within a bound.

Found as TCP Vegas finds its window: more while answers take no longer than they did, fewer once they do, since from
there on calls only wait for each other; and fewer at once when a call is limited, cut off by its time-out, or answered
by 502 to 504. How long answers take without that is the least median of a stretch of calls within the last minutes, for
each kind of question by itself: a list of photos may always take longer than a task.

Where the API answers so fast that this process's own processor is what calls wait for, more of them at a time only take
the interpreter from each other: there as few are under way as keep it busy.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from statistics import median_low

from itel_cabinet.io.worker import metrics

__all__ = ["Window", "question_kind"]

_FIRST = 8.0
_LEAST = 2.0  # for answers that are slow; for refusals it is 1
_STRETCH = 16  # calls, at least, whose median counts
_SLOWER = 2.0  # times the least median, and
_SLACK_SECONDS = 0.020  # more than it: what waiting for this process's own processor looks like
_CUT, _MOST_CUT = 0.7, 0.5
_BUSY, _HAS_ROOM = 0.95, 0.8  # of one processor, used by this process while calls are under way
_MEMORY_SECONDS = 60.0  # of the least median; twice that at most
_MOST_KINDS = 16  # what an API is asked beyond them is one kind
_ID = re.compile(r"/[^/]*\d[^/]*")  # a segment with a digit in it


def question_kind(method: str, path: str) -> str:
    """What is the same for calls that are alike: the method, and the path but for ids and the query."""
    return method + _ID.sub("/#", path.partition("?")[0])


class _Usual:
    """How long the calls of one kind take. Not thread-safe."""

    def __init__(self, now: float) -> None:
        self._stretch: list[float] = []
        self._least = float("inf"), float("inf")  # of this minute, and of the one before
        self._minute_ends = now + _MEMORY_SECONDS

    def learn(self, seconds: float, now: float, calls: int) -> float | None:
        """At the end of a stretch of ``calls``, how many times longer they took than is bearable; else None."""
        self._stretch.append(seconds)
        if len(self._stretch) < max(_STRETCH, calls):
            return None
        usual = median_low(self._stretch)
        self._stretch.clear()
        if now >= self._minute_ends:
            self._least = float("inf"), self._least[0]
            self._minute_ends = now + _MEMORY_SECONDS
        self._least = min(self._least[0], usual), self._least[1]
        least = min(self._least)
        return usual / max(least * _SLOWER, least + _SLACK_SECONDS)

    def forget_stretch(self) -> None:
        """After a change of the limit: what was measured before says nothing of it."""
        self._stretch.clear()


class _Load:
    """The share of one processor that this process uses while calls are under way. Not thread-safe."""

    def __init__(self, processor: Callable[[], float]) -> None:
        self._processor = processor
        self._seconds = self._used = 0.0
        self._began = 0.0, 0.0

    def begin(self, now: float) -> None:
        """Calls are under way from now on,"""
        self._began = now, self._processor()

    def end(self, now: float) -> None:
        """and until now."""
        self._seconds += now - self._began[0]
        self._used += self._processor() - self._began[1]

    def take(self, now: float) -> float:
        """While calls are under way: the share since it was taken last; 0 if no time has passed."""
        self.end(now)
        self.begin(now)
        share = self._used / self._seconds if self._seconds > 0 else 0.0
        self._seconds = self._used = 0.0
        return share


class Window:
    """The calls of one API that are under way. Thread-safe. ``clock`` is monotonic, ``processor`` what this process has
    used of processors, both in seconds; waiting for a place takes real time.
    """

    def __init__(
        self, name: str, most: int, clock: Callable[[], float], processor: Callable[[], float] = time.process_time
    ) -> None:
        self._most = float(most)
        self._clock = clock
        self._load = _Load(processor)
        self._free = threading.Condition()
        self._limit = min(_FIRST, self._most)
        self._under_way = 0
        self._full = False  # whether the limit was reached since the last change
        self._doubles = True
        self._cut_at = -float("inf")
        self._kinds: dict[str, _Usual] = {}
        self._shown = metrics.HTTP_CONCURRENCY.labels(name)
        self._shown.set(self.limit)

    @property
    def limit(self) -> int:
        """How many calls may be under way now."""
        return int(self._limit)

    def enter(self, *, waits: bool = True) -> float:
        """Wait for a place, or take one too many; the moment from which on the call is under way, for :meth:`leave`."""
        with self._free:
            while waits and self._under_way >= self.limit:
                self._full = True
                self._free.wait()
            now = self._clock()
            if not self._under_way:
                self._load.begin(now)
            self._under_way += 1
            self._full |= self._under_way >= self.limit
            return now

    def leave(self, began: float, *, kind: str = "", answered: bool = False, overloaded: bool = False) -> None:
        """Give the place back. A call of a ``kind`` may have been ``answered``, or say that the API is ``overloaded``;
        else nothing is learnt of it."""
        with self._free:
            self._under_way -= 1
            now = self._clock()
            if overloaded:
                self._shrink(began, now, _CUT, 1.0)
            elif answered:
                self._learn(kind, began, now)
            if not self._under_way:
                self._load.end(now)
            self._shown.set(self.limit)
            self._free.notify(max(1, self.limit - self._under_way))

    def _learn(self, kind: str, began: float, now: float) -> None:
        if kind not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            kind = ""
        usual = self._kinds.get(kind) or self._kinds.setdefault(kind, _Usual(now))
        slower = usual.learn(now - began, now, self.limit)
        if slower is None:
            return
        load = self._load.take(now)
        if slower > 1:
            self._shrink(began, now, max(_MOST_CUT, 1 / slower), _LEAST)
        elif load > _BUSY:
            self._limit = min(self._limit, max(_LEAST, self._limit * _CUT))
            self._full = False
        elif self._full and load < _HAS_ROOM:
            self._limit = min(self._most, self._limit * 2 if self._doubles else self._limit + 1)
            self._full = False

    def _shrink(self, began: float, now: float, factor: float, least: float) -> None:
        """Once for all calls that were under way together."""
        if began < self._cut_at:
            return
        self._cut_at, self._doubles, self._full = now, False, False
        for usual in self._kinds.values():
            usual.forget_stretch()
        self._limit = min(self._most, max(least, self._limit * factor))
