"""What became of a process's last records, step by step: whether a step fails more than it does.

A rate alone does not show that: an API that refuses every form, at one form a minute, fails seldom and always.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping

__all__ = ["OUTCOMES", "Outcomes"]

_WINDOW_SECONDS = 3_600.0
_MOST_KEPT = 1_000
_LEAST_FAILURES = 3
_SHARE = 0.5
_MOST_QUESTIONS = 50


class Outcomes:
    """Counts of the last hour, of the last 1,000 batches at most. Thread-safe. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[str, deque[tuple[float, int, int]]] = {}
        self._questions: dict[str, None] = {}
        self._notes: dict[str, str] = {}
        self._skips: Counter[str] = Counter()

    def add(self, stage: str, *, good: int, failed: int) -> None:
        """Record how many items of a stage went on and how many became failures."""
        with self._lock:
            self._counts.setdefault(stage, deque(maxlen=_MOST_KEPT)).append((self._clock(), good, failed))

    def add_skips(self, skips: Mapping[str, int]) -> None:
        """Record how many items were left alone, by reason."""
        with self._lock:
            self._skips.update(skips)

    @property
    def skips(self) -> dict[str, int]:
        """How many items were left alone since the process began, by reason."""
        with self._lock:
            return dict(sorted(self._skips.items()))

    def add_question(self, question: str) -> str:
        """Remember a question that is not known; the text that it is counted under: ``other`` beyond the first 50."""
        with self._lock:
            if question not in self._questions and len(self._questions) >= _MOST_QUESTIONS:
                return "other"
            self._questions[question] = None
            return question

    def note(self, what: str, line: str | None) -> None:
        """Have :meth:`failing` report a line about something else, until it is None again."""
        with self._lock:
            if line is None:
                self._notes.pop(what, None)
            else:
                self._notes[what] = line

    @property
    def questions(self) -> list[str]:
        """Those that are not known, oldest first."""
        with self._lock:
            return list(self._questions)

    def failing(self) -> list[str]:
        """One line for each stage of which at least 3 items, and half of all, failed within the last hour, and the
        lines of :meth:`note`.
        """
        since = self._clock() - _WINDOW_SECONDS
        lines = []
        with self._lock:
            for stage, counts in self._counts.items():
                recent = [(good, failed) for at, good, failed in counts if at >= since]
                failed = sum(failed for _, failed in recent)
                total = failed + sum(good for good, _ in recent)
                if failed >= _LEAST_FAILURES and failed >= _SHARE * total:
                    lines.append(f"{stage}: {failed} of the last hour's {total} failed")
            lines.extend(self._notes.values())
        return lines


OUTCOMES = Outcomes()
"""This process's."""
