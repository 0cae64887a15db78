"""The breaker and the rate limit by hand-moved clocks, and what a connection makes of them."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itel_cabinet.io.claimx import ClaimX, ClaimXSettings, WaitingLookup
from itel_cabinet.io.http import BreakerSettings, CallError, Connection, ConnectionSettings
from itel_cabinet.io.http.breaker import LEAST_TRIES, Breaker
from itel_cabinet.io.http.pace import Pace
from itel_cabinet.io.itel import HttpItel, ItelSettings
from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator
from itel_cabinet.transforms.enrichment import TaskLookupError
from itel_cabinet.transforms.forms import parse_details
from itel_cabinet.transforms.submitting import Accepted
from tests.support.cabinet_samples import submission
from tests.support.faulty_server import Act, FaultyServer, answer, reset

WINDOW = BreakerSettings(failure_share=0.8, window_seconds=20, open_seconds=15)


class Time:
    """A clock moved by hand and by pauses."""

    def __init__(self) -> None:
        self.seconds = 1_000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def breaker(clock: Time) -> Breaker:
    return Breaker("itel", WINDOW, clock)


@pytest.fixture
def serve() -> Iterator[Callable[..., FaultyServer]]:
    servers: list[FaultyServer] = []

    def start(*script: Act) -> FaultyServer:
        servers.append(FaultyServer(*script).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def connect(url: str, clock: Time, **settings: Any) -> Connection:
    settings = {"max_retries": 0, "breaker": WINDOW, **settings}
    return Connection(ConnectionSettings("itel", url, **settings), clock=clock, sleep=clock.sleep, random=lambda: 0.0)


def open_until(breaker: Breaker, clock: Time) -> float | None:
    """When the next try will be let through; None while it is closed (or a probe is under way)."""
    return clock.seconds + breaker.wait() if breaker.wait() else None


def end_tries(breaker: Breaker, clock: Time, *ends: bool, every: float) -> None:
    """One try after the other, each let through."""
    for ok in ends:
        admission = breaker.admit()
        assert admission is not None
        breaker.record(admission, ok, "status 503")
        clock.seconds += every


# -- when it opens


def test_a_burst_of_failures_does_not_open_it(breaker: Breaker, clock: Time) -> None:
    end_tries(breaker, clock, *[False] * 200, every=0.04)  # eight seconds
    end_tries(breaker, clock, *[True] * 200, every=0.04)
    assert open_until(breaker, clock) is None


def test_few_failures_do_not_open_it(breaker: Breaker, clock: Time) -> None:
    end_tries(breaker, clock, *[False] * 100, every=20 / (LEAST_TRIES - 2))
    assert open_until(breaker, clock) is None


def test_it_opens_once_most_tries_have_failed_for_half_a_window(breaker: Breaker, clock: Time) -> None:
    end_tries(breaker, clock, *[False] * 20, every=0.5)
    assert open_until(breaker, clock) is None
    end_tries(breaker, clock, False, every=0)
    assert open_until(breaker, clock) == 1_010 + 15
    assert breaker.admit() is None
    assert breaker.wait() == 15


def test_an_api_that_answers_others_is_alive_until_it_fails_in_a_row(breaker: Breaker, clock: Time) -> None:
    began = clock.seconds
    assert not breaker.answers_others(began)
    clock.seconds += 1
    for answered in (True, False, False, False, False):
        breaker.note(answered)
    assert breaker.answers_others(began)
    assert not breaker.answers_others(clock.seconds), "nothing was answered since"
    breaker.note(answered=False)
    assert not breaker.answers_others(began), "that is no chance any more"
    breaker.note(answered=True)
    assert breaker.answers_others(began)


def test_failures_that_have_left_the_window_do_not_count(breaker: Breaker, clock: Time) -> None:
    end_tries(breaker, clock, *[False] * 15, every=0.1)
    clock.seconds += 25
    end_tries(breaker, clock, *[False] * 15, every=0.1)
    assert open_until(breaker, clock) is None


@given(share=st.floats(0, 0.3), seed=st.integers(), every=st.sampled_from([0.01, 0.1, 0.5]))
def test_random_failures_that_retries_mend_leave_it_closed(share: float, seed: int, every: float) -> None:
    clock = Time()
    breaker = Breaker("itel", WINDOW, clock)
    draw = random.Random(seed)
    end_tries(breaker, clock, *[draw.random() >= share for _ in range(300)], every=every)
    assert open_until(breaker, clock) is None


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=200))
def test_it_opens_only_by_its_rule(tries: list[tuple[bool, float]]) -> None:
    """Against the rule written down plainly."""
    clock = Time()
    breaker = Breaker("itel", WINDOW, clock)
    ended: list[tuple[float, bool]] = []
    for ok, pause in tries:
        admission = breaker.admit()
        assert admission is not None
        breaker.record(admission, ok, "status 503")
        ended.append((clock.seconds, ok))
        recent = [(at, fine) for at, fine in ended if at >= clock.seconds - 20]
        failed = [at for at, fine in recent if not fine]
        opens = not ok and len(recent) >= 20 and len(failed) >= 0.8 * len(recent) and clock.seconds - failed[0] >= 10
        assert (open_until(breaker, clock) is not None) == opens
        if opens:
            break
        clock.seconds += pause


# -- when it closes


@pytest.fixture
def opened(breaker: Breaker, clock: Time) -> Breaker:
    end_tries(breaker, clock, *[False] * 21, every=0.5)
    assert open_until(breaker, clock) is not None
    return breaker


def test_one_probe_at_a_time_finds_out_whether_it_is_back(opened: Breaker, clock: Time) -> None:
    clock.seconds = open_until(opened, clock) or 0.0
    probe = opened.admit()
    assert probe is not None
    assert probe.probe
    assert opened.admit() is None
    assert opened.wait() == 0  # its end is near
    opened.record(probe, True)
    assert open_until(opened, clock) is None
    assert [opened.admit() is not None for _ in range(100)] == [True] * 100


def test_a_failed_probe_opens_it_again(opened: Breaker, clock: Time) -> None:
    clock.seconds = open_until(opened, clock) or 0.0
    probe = opened.admit()
    assert probe is not None
    opened.record(probe, False, "no connection")
    assert (open_until(opened, clock), opened.why) == (clock.seconds + 15, "no connection")
    assert opened.admit() is None


def test_a_probe_without_an_outcome_leaves_its_place_to_another(opened: Breaker, clock: Time) -> None:
    clock.seconds = open_until(opened, clock) or 0.0
    probe = opened.admit()
    assert probe is not None
    opened.record(probe, None)
    assert opened.wait() == 0
    assert opened.admit() is not None


def test_a_try_from_before_does_not_count(breaker: Breaker, clock: Time) -> None:
    late = [breaker.admit(), breaker.admit()]
    end_tries(breaker, clock, *[False] * 21, every=0.5)
    until = open_until(breaker, clock)
    assert until is not None
    for admission in late:
        assert admission is not None
        breaker.record(admission, True)
    assert open_until(breaker, clock) == until


def test_nought_seconds_are_no_breaker(clock: Time) -> None:
    breaker = Breaker("itel", BreakerSettings(open_seconds=0), clock)
    end_tries(breaker, clock, *[False] * 1_000, every=0.5)
    assert open_until(breaker, clock) is None


def test_an_outage_is_told_once_and_its_end(breaker: Breaker, clock: Time, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    end_tries(breaker, clock, *[False] * 21, every=0.5)
    for ok in (False, False, True):
        clock.seconds = open_until(breaker, clock) or 0.0
        end_tries(breaker, clock, ok, every=0)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "itel: 21 of the last 21 tries failed (status 503): not called until it answers again"),
        ("INFO", "itel: answers again"),
    ]


# -- what a connection makes of it


def open_breaker(link: Connection, clock: Time) -> None:
    for _ in range(21):
        with pytest.raises(CallError, match="the connection broke"):
            link.call("POST", "/x")
        clock.seconds += 0.5
    with pytest.raises(CallError) as caught:
        link.call("POST", "/x")
    assert caught.value.kind == "breaker_open"


def test_an_open_breaker_refuses_at_once(serve: Any, clock: Time) -> None:
    server = serve(reset)
    link = connect(server.url, clock)
    open_breaker(link, clock)
    asked = len(server.requests)
    with pytest.raises(CallError) as caught:
        link.call("POST", "/x")
    assert (caught.value.kind, caught.value.attempts, caught.value.last) == ("breaker_open", 0, None)
    assert str(caught.value) == (
        f"{server.url}: not called, as most of the last tries failed (the connection broke: Connection reset by peer); "
        "the next try is in 14 s"
    )
    assert (len(server.requests), clock.slept) == (asked, [])


def test_a_call_under_way_ends_when_the_breaker_opens(serve: Any, clock: Time) -> None:
    server = serve(answer(503, b"busy"))
    link = connect(server.url, clock, max_retries=100, deadline_seconds=60)
    link.random = lambda: 0.06  # pauses grow to 0.6 s
    with pytest.raises(CallError) as caught:
        link.call("GET", "/x")
    assert caught.value.kind == "breaker_open"
    assert caught.value.attempts == len(server.requests) >= LEAST_TRIES
    assert caught.value.last is not None
    assert (caught.value.last.status, caught.value.last.excerpt) == (503, "busy")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 421, 422, 425, 501])
def test_who_refuses_or_puts_off_is_up(status: int, serve: Any, clock: Time) -> None:
    server = serve(answer(status))
    link = connect(server.url, clock)
    for _ in range(LEAST_TRIES + 5):
        assert link.call("GET", "/x").status == status
        clock.seconds += 0.5


def test_a_request_that_cannot_be_made_gives_its_probe_back(serve: Any, clock: Time) -> None:
    server = serve(*[reset] * 21, answer(200))
    link = connect(server.url, clock)
    open_breaker(link, clock)
    clock.seconds += 20
    with pytest.raises(ValueError, match="header"):
        link.call("GET", "/x", headers={"X": "a\r\nb"})
    assert link.call("GET", "/x").status == 200


def test_claimx_s_open_breaker_is_an_outage(claimx: ClaimXSimulator, clock: Time) -> None:
    claimx.put_task({"assignmentId": 1, "projectId": 2, "taskId": 32513, "status": "ASSIGNED", "response": None})
    claimx.faults.reset = True
    link = connect(claimx.url, clock)
    client = ClaimX(ClaimXSettings(link.settings), link, parse_details)
    open_breaker(link, clock)
    divert = WaitingLookup(client, "divert", 0.0)
    with pytest.raises(TaskLookupError) as caught:
        divert.task(1, not_before=0)
    assert (caught.value.error_class, caught.value.attempts) == ("outage", 0)
    claimx.faults.reset = False
    wait = WaitingLookup(client, "wait", 120.0, clock=clock, sleep=clock.sleep)
    assert wait.task(1, not_before=0).status == "ASSIGNED"


def test_at_a_third_of_random_503s_every_submission_is_accepted() -> None:
    with ItelSimulator(seed=7, schema={}) as itel:
        itel.faults.error_status, itel.faults.error_rate = 503, 0.3
        settings = ConnectionSettings("itel", itel.url)
        # Pauses are cut short, so that the test is; what is tried, and how often, stays the same.
        link = Connection(settings, random=lambda: 0.01)
        client = HttpItel(ItelSettings(settings), link)

        def submit(number: int) -> Any:
            return client.submit(submission(number, f"e{number}", b'{"assignmentId": %d}' % number))

        with ThreadPoolExecutor(32) as pool:
            ends = list(pool.map(submit, range(1_000)))
        assert [end for end in ends if type(end) is not Accepted] == []
        assert sorted(found.assignment_id for found in itel.submissions()) == list(range(1_000))
        assert {found.times for found in itel.submissions()} == {1}
        tries = sum(end.attempts for end in ends)
        assert tries == itel.calls["/api/v1/tasks"] > 1_200


# -- so many calls a second


def limit_to(per_second: float, clock: Time) -> Pace:
    return Pace("itel", per_second, 300.0, clock, lambda: 0.0)


def reserve(limit: Pace, most: float = float("inf")) -> float | None:
    """How long a new place has to wait; None if there is none."""
    place = limit.reserve(most)
    return None if place is None else limit.wait(place)


def test_calls_are_spaced_evenly_in_the_order_of_asking(clock: Time) -> None:
    limit = limit_to(10, clock)
    assert [reserve(limit) for _ in range(4)] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    clock.seconds += 0.15
    assert reserve(limit) == pytest.approx(0.25)


def test_time_that_was_not_used_is_not_saved_up(clock: Time) -> None:
    limit = limit_to(10, clock)
    limit.reserve()
    clock.seconds += 60
    assert [reserve(limit) for _ in range(3)] == pytest.approx([0.0, 0.1, 0.2])


def test_a_turn_that_comes_too_late_is_not_taken(clock: Time) -> None:
    limit = limit_to(1, clock)
    assert reserve(limit) == 0
    assert [reserve(limit, most=0.5) for _ in range(3)] == [None] * 3
    assert reserve(limit, most=1.5) == 1


@given(st.floats(0.1, 1_000), st.lists(st.floats(0, 5), min_size=1, max_size=100))
def test_no_two_turns_are_closer_than_the_rate(per_second: float, pauses: list[float]) -> None:
    clock = Time()
    limit = limit_to(per_second, clock)
    turns = []
    for pause in pauses:
        wait = reserve(limit)
        assert wait is not None
        turns.append(clock.seconds + wait)
        clock.seconds += pause
    assert all(later - earlier >= 0.999 / per_second for earlier, later in pairwise(turns))


def test_threads_share_the_rate(serve: Any, clock: Time) -> None:
    server = serve(answer(200))
    link = connect(server.url, clock, calls_per_second=2)
    with ThreadPoolExecutor(8) as pool:
        waits = list(pool.map(lambda _: reserve(link._pace), range(8)))
    assert sorted(waits) == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5])


def test_tries_after_the_first_count_and_the_deadline_begins_at_the_first(serve: Any, clock: Time) -> None:
    server = serve(answer(200), answer(503), answer(200))
    link = connect(server.url, clock, calls_per_second=0.1, max_retries=9, deadline_seconds=15)
    link.call("GET", "/x")
    reply = link.call("GET", "/x")
    assert (reply.status, reply.attempts, reply.elapsed) == (200, 2, 10)
    assert sum(clock.slept) == pytest.approx(20)


def test_a_retry_whose_turn_is_beyond_the_deadline_is_not_made(serve: Any, clock: Time) -> None:
    server = serve(answer(503))
    link = connect(server.url, clock, calls_per_second=0.01, max_retries=9)
    assert (link.call("GET", "/x").status, len(server.requests)) == (503, 1)
