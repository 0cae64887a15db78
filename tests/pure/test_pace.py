"""The pace that an API's limit leaves, in simulated time: 32 callers against limits of several kinds."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from itel_cabinet.io.http.pace import Pace, Turn

CALLERS = 32


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Window:
    """So many calls in each second (or ``seconds``), counted from the full second."""

    limit: int
    seconds: float = 1.0
    _window: int = -1
    _used: int = 0

    def refuse_until(self, now: float) -> float | None:
        if int(now / self.seconds) != self._window:
            self._window, self._used = int(now / self.seconds), 0
        self._used += 1
        return (self._window + 1) * self.seconds if self._used > self.limit else None


@dataclass
class Bucket:
    """Tokens that come back at ``limit`` a second, as many as ``limit`` at most."""

    limit: int
    _tokens: float = 0.0
    _at: float = 0.0

    def refuse_until(self, now: float) -> float | None:
        self._tokens = min(self.limit, self._tokens + (now - self._at) * self.limit)
        self._at = now
        if self._tokens < 1:
            return now + (1 - self._tokens) / self.limit
        self._tokens -= 1
        return None


@dataclass
class Sliding:
    """So many calls in any second."""

    limit: int
    _calls: deque[float] = field(default_factory=deque)

    def refuse_until(self, now: float) -> float | None:
        while self._calls and self._calls[0] <= now - 1:
            self._calls.popleft()
        if len(self._calls) >= self.limit:
            return self._calls[0] + 1
        self._calls.append(now)
        return None


@dataclass
class Outcome:
    accepted: int
    limited: int
    seconds: float


def simulate(
    server: Window | Bucket | Sliding,
    *,
    forms: int,
    latency: float,
    name: Callable[[float], float | None] = lambda seconds: math.ceil(seconds),
    most_seconds: float = 300.0,
) -> Outcome:
    """Each caller hands in one form after the other, as a connection does; ``name`` is the Retry-After made of the
    exact seconds."""
    clock = Clock()
    pace = Pace("itel", 0.0, most_seconds, clock, lambda: 0.5)
    events: list[tuple[float, int, str]] = [(0.0, caller, "wait") for caller in range(CALLERS)]
    places: dict[int, float] = {}
    turns: dict[int, Turn] = {}
    left, accepted, limited = forms, 0, 0
    while events:
        clock.now, caller, step = heapq.heappop(events)
        if step == "wait":
            if caller not in places:
                places[caller] = pace.reserve() or 0.0
            if wait := pace.wait(places[caller]):
                heapq.heappush(events, (clock.now + min(wait, 1.0), caller, "wait"))
            elif (turn := pace.admit()) is None:
                heapq.heappush(events, (clock.now, caller, "wait"))
            elif left or turn.probe:
                del places[caller]
                turns[caller] = turn
                left -= 1
                heapq.heappush(events, (clock.now + latency, caller, "answer"))
        else:
            until = server.refuse_until(clock.now)
            asked = None if until is None else name(until - clock.now)
            pace.record(turns[caller], limited=until is not None, asked=asked)
            if until is None:
                accepted += 1
            else:
                limited, left = limited + 1, left + 1
            if accepted < forms:
                heapq.heappush(events, (clock.now, caller, "wait"))
    return Outcome(accepted, limited, clock.now)


KINDS = [Window, Bucket, Sliding]


@pytest.mark.parametrize("latency", [0.001, 0.05, 0.5])
@pytest.mark.parametrize("limit", [5, 20, 60])
@pytest.mark.parametrize("kind", KINDS)
def test_most_of_the_permitted_rate_is_used_and_few_calls_are_limited(
    kind: type[Window | Bucket | Sliding], limit: int, latency: float
) -> None:
    found = simulate(kind(limit), forms=limit * 100, latency=latency)
    assert found.accepted == limit * 100
    possible = min(limit, CALLERS / latency)
    assert found.accepted / found.seconds >= 0.8 * possible
    assert found.limited <= 0.1 * (found.accepted + found.limited)


@pytest.mark.parametrize("name", [lambda _: None, lambda _: 0.0, lambda seconds: seconds])
def test_an_api_that_names_no_time_or_a_short_one_is_not_stormed(name: Callable[[float], float | None]) -> None:
    found = simulate(Window(20), forms=2_000, latency=0.05, name=name)
    assert found.accepted == 2_000
    assert found.limited <= 0.25 * (found.accepted + found.limited)


def test_a_quota_of_a_minute_is_found() -> None:
    found = simulate(Window(100, seconds=60.0), forms=1_000, latency=0.05)
    assert found.accepted == 1_000
    assert found.seconds <= 1_000 / (100 / 60) / 0.8
    assert found.limited <= 100


def test_a_far_away_end_is_looked_for_earlier() -> None:
    found = simulate(Window(1_000, seconds=3_600.0), forms=1_100, latency=0.05, most_seconds=300.0)
    assert 3_600 <= found.seconds <= 3_600 + 600
    assert found.limited <= CALLERS + 3_600 / 300 + 1
