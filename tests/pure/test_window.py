"""How many calls are under way at once, on a simulated API whose capacity changes, in simulated time."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from itel_cabinet.io.http.window import Window, question_kind

CALL_SECONDS = 0.05
PHASES = ((30.0, 8), (30.0, 48), (30.0, 4), (30.0, 24), (30.0, 64), (30.0, 12))
MOST = 64
PATIENCE_SECONDS = 2.0


@dataclass
class Api:
    """Bears so many calls at once; with more, each takes longer by the square: what it does then falls. One that takes
    longer than the caller waits was done for nothing."""

    now: float = 0.0
    under_way: int = 0

    @property
    def capacity(self) -> int:
        left = self.now
        for seconds, capacity in PHASES:
            if left < seconds:
                return capacity
            left -= seconds
        return PHASES[-1][1]

    def seconds(self) -> float:
        return CALL_SECONDS * max(1.0, self.under_way / self.capacity) ** 2


def play(limit: Callable[[Api], int], ended: Callable[[Api, float, bool], None]) -> int:
    """How many calls are answered in time, by a caller who never runs out of work."""
    api, ends, good = Api(), list[tuple[float, float, bool]](), 0
    while api.now < sum(seconds for seconds, _ in PHASES):
        while api.under_way < limit(api):
            api.under_way += 1
            seconds = api.seconds()
            heapq.heappush(ends, (api.now + min(seconds, PATIENCE_SECONDS), api.now, seconds <= PATIENCE_SECONDS))
        api.now, began, is_good = heapq.heappop(ends)
        api.under_way -= 1
        good += is_good
        ended(api, began, is_good)
    return good


def play_adaptive() -> tuple[int, dict[int, list[int]]]:
    at: list[float] = [0.0]
    window = Window("claimx", MOST, lambda: at[0], lambda: 0.0)
    limits: dict[int, list[int]] = {}

    def limit(api: Api) -> int:
        at[0] = api.now
        if api.under_way < window.limit:
            window.enter()
        return window.limit

    def ended(api: Api, began: float, is_good: bool) -> None:
        at[0] = api.now
        window.leave(began, answered=is_good, overloaded=not is_good)
        limits.setdefault(int(api.now // 30), []).append(window.limit)

    return play(limit, ended), limits


def test_it_beats_any_fixed_number_where_the_capacity_changes() -> None:
    adaptive, limits = play_adaptive()
    fixed = {number: play(lambda _, n=number: n, lambda *_: None) for number in range(1, MOST + 1)}
    best = max(fixed.values())
    assert adaptive > best, (adaptive, best)
    ideal = sum(seconds * capacity / CALL_SECONDS for seconds, capacity in PHASES)
    assert adaptive > 0.75 * ideal, (adaptive, ideal)
    # In the second half of each phase it has found what the API bears.
    for phase, (_, capacity) in enumerate(PHASES):
        found = limits[phase][len(limits[phase]) // 2 :]
        assert capacity * 0.5 <= sum(found) / len(found) <= capacity * 1.6, (phase, capacity)


@pytest.fixture
def window() -> Window:
    return Window("itel", 10, iter(range(10**6)).__next__, lambda: 0.0)


def call(window: Window, **end: bool) -> None:
    window.leave(window.enter(), **end)


def test_it_shrinks_once_for_calls_that_are_refused_together(window: Window) -> None:
    began = [window.enter() for _ in range(8)]
    for one in began:
        window.leave(one, overloaded=True)
    assert window.limit == 5
    for _ in range(20):
        call(window, overloaded=True)
    assert window.limit == 1


def test_it_does_not_grow_while_it_is_not_used(window: Window) -> None:
    for _ in range(1_000):
        call(window, answered=True)
    assert window.limit == 8


def test_slow_questions_among_quick_ones_do_not_make_it_smaller() -> None:
    at = [0.0]
    window = Window("claimx", 64, lambda: at[0], lambda: 0.0)
    # A batch asks for its tasks, then for what is longer in coming: each for many records, and over and over.
    for _ in range(20):
        for kind, seconds in (("GET/task/#", 0.01), ("GET/media", 0.3), ("GET/project/#", 0.08)):
            for _ in range(10):
                began = [window.enter() for _ in range(window.limit)]
                at[0] += seconds
                for one in began:
                    window.leave(one, kind=kind, answered=True)
    assert window.limit == 64


def test_kinds_without_end_are_one() -> None:
    window = Window("claimx", 8, lambda: 0.0, lambda: 0.0)
    for number in range(1_000):
        window.leave(window.enter(), kind=f"GET/{number}", answered=True)
    assert len(window._kinds) == 17


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("GET", "/customTasks/assignment/5430057?full=true", "GET/customTasks/assignment/#"),
        ("GET", "/export/project/12/media?mediaIds=1,2", "GET/export/project/#/media"),
        ("POST", "/api/v1/cabinet", "POST/api/#/cabinet"),
        ("GET", "/orders/0b5f7a2e-77aa-4f0c-9f57-6d6f0a52b2d1", "GET/orders/#"),
        ("GET", "", "GET"),
    ],
)
def test_questions_alike_but_for_ids_are_of_one_kind(method: str, path: str, kind: str) -> None:
    assert question_kind(method, path) == kind


def test_what_says_nothing_changes_nothing(window: Window) -> None:
    for _ in range(100):
        call(window)
    assert window.limit == 8


@dataclass
class Processor:
    """One processor and an API that answers after ``latency`` seconds: each call needs ``WORK`` of the processor, one
    after the other."""

    latency: float
    now: float = 0.0
    used: float = 0.0

    def round(self, window: Window) -> None:
        began = [window.enter() for _ in range(window.limit)]
        work = WORK * len(began)
        self.now += max(work, self.latency + WORK)
        self.used += work
        for one in began:
            window.leave(one, answered=True)


WORK = 0.0004


@pytest.mark.parametrize(
    ("latency", "least", "most"),
    [(0.0, 2, 2), (0.0001, 2, 2), (0.004, 8, 13), (0.01, 18, 32), (0.05, MOST, MOST), (1.0, MOST, MOST)],
)
def test_no_more_calls_than_keep_the_processor_busy(latency: float, least: int, most: int) -> None:
    world = Processor(latency)
    window = Window("claimx", MOST, lambda: world.now, lambda: world.used)
    for _ in range(500):
        world.round(window)
    assert least <= window.limit <= most
    for world.latency in (0.05, 0.0):
        for _ in range(3_000):  # by then it is forgotten how fast the API was
            world.round(window)
        assert window.limit == (MOST if world.latency else 2)


def test_a_busy_processor_is_no_reason_for_more_calls_than_an_api_bears() -> None:
    world = Processor(0.0)
    window = Window("claimx", MOST, lambda: world.now, lambda: world.used)
    for _ in range(20):
        world.now += 1.0
        window.leave(window.enter(), overloaded=True)
    for _ in range(200):
        world.round(window)
    assert window.limit == 1


def test_what_is_done_between_calls_is_no_load() -> None:
    world = Processor(0.05)
    window = Window("claimx", MOST, lambda: world.now, lambda: world.used)
    for _ in range(500):
        world.round(window)
        world.now, world.used = world.now + 5.0, world.used + 5.0
    assert window.limit == MOST


def test_it_is_never_above_its_bound() -> None:
    window = Window("itel", 3, lambda: 0.0, lambda: 0.0)
    for _ in range(200):
        began = [window.enter() for _ in range(window.limit)]
        for one in began:
            window.leave(one, answered=True)
        assert 1 <= window.limit <= 3
    assert window.limit == 3


def test_a_call_waits_for_a_place_and_a_probe_does_not() -> None:
    window = Window("itel", 1, lambda: 0.0, lambda: 0.0)
    first = window.enter()
    probe = window.enter(waits=False)
    entered = threading.Event()
    waiting = threading.Thread(target=lambda: (window.enter(), entered.set()))
    waiting.start()
    window.leave(probe)
    assert not entered.wait(0.05)
    window.leave(first)
    waiting.join(10)
    assert entered.is_set()
