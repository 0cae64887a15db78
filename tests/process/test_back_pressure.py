"""An API that limits its calls, over real sockets: all wait for it, and nothing is given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from itel_cabinet.io.claimx import Answer, ClaimX, ClaimXSettings
from itel_cabinet.io.http import BreakerSettings, CallError, Connection, ConnectionSettings
from itel_cabinet.io.itel import HttpItel, ItelSettings
from itel_cabinet.io.worker import PULSE, OutageError, metrics
from itel_cabinet.transforms.submitting import Accepted
from tests.support.cabinet_samples import submission
from tests.support.faulty_server import Act, FaultyServer, Seen, answer, reset
from tests.support.jobs import wait_for

CALLERS = 32


class Limiting(FaultyServer):
    """Says 429 to all calls until a moment; counts what it said."""

    def __init__(self, seconds: float, status: int = 429, **headers: str) -> None:
        super().__init__(answer(201, b'{"itel_task_id": 7}'))
        self.open_at = time.monotonic() + seconds
        self.limited = 0
        self._refusal = answer(status, b"slow down", **headers)

    def next_act(self, seen: Seen) -> Act:
        act = super().next_act(seen)
        if seen.began < self.open_at:
            self.limited += 1
            return self._refusal
        return act


def make_itel(url: str, **settings: Any) -> HttpItel:
    link = ConnectionSettings("itel", url, **{"deadline_seconds": 1.0, "max_retries": 1, **settings})
    return HttpItel(ItelSettings(link), Connection(link))


@pytest.mark.parametrize(("status", "header"), [(429, "1"), (503, "1"), (429, None)])
def test_everyone_waits_for_the_end_that_is_named(status: int, header: str | None) -> None:
    """Three seconds of it, although a call has one second and one retry."""
    headers = {} if header is None else {"retry_after": header}
    with Limiting(3.0, status, **headers) as server, ThreadPoolExecutor(CALLERS) as pool:
        api = make_itel(server.url)
        ends = list(pool.map(lambda n: api.submit(submission(n, f"e{n}", b"{}")), range(2 * CALLERS)))
    assert {type(end) for end in ends} == {Accepted}
    # Those that were under way when the first heard of it, and one probe a second.
    assert server.limited <= CALLERS + 5
    assert len(server.requests) == server.limited + 2 * CALLERS


def test_a_lookup_waits_as_well() -> None:
    with Limiting(1.5, retry_after="1") as server:
        link = ConnectionSettings("claimx", server.url, max_retries=0, deadline_seconds=1.0)
        client = ClaimX(ClaimXSettings(link), Connection(link), lambda body, _: body)
        found = client.task_details(1, not_before=0)
    assert isinstance(found, Answer)


def test_waiting_is_visible_and_ends_soon_for_a_process_that_is_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    monkeypatch.setattr("itel_cabinet.io.worker.outages.STOP", stop)
    waited: list[list[str]] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        waited.append(PULSE.waits)
        if now[0] > 100:
            stop.set()

    before = metrics.HTTP_LIMITED.labels("itel")._value.get()
    with FaultyServer(answer(429, retry_after="3600")) as server:
        link = ConnectionSettings("itel", server.url, max_retry_after_seconds=30.0)
        api = HttpItel(ItelSettings(link), Connection(link, clock=lambda: now[0], sleep=sleep))
        with pytest.raises(OutageError, match="limits its calls, and the process is to end"):
            api.submit(submission(1, "e", b"{}"))
        assert len(server.requests) == 4  # one each 30 s
    assert 110 <= now[0] <= 113
    assert {tuple(waits) for waits in waited} == {("itel, which limits its calls",)}
    assert metrics.HTTP_LIMITED.labels("itel")._value.get() - before == 4


# -- the end of an outage


class Recovering(FaultyServer):
    """Breaks all connections until ``heal`` is set; then takes the next call ``seconds`` long."""

    def __init__(self, seconds: float) -> None:
        self.healed = False
        self.probed = threading.Event()
        super().__init__(answer(201, delay=seconds))

    def next_act(self, seen: Seen) -> Act:
        act = super().next_act(seen)
        if not self.healed:
            return reset
        if self.probed.is_set():
            return answer(201)
        self.probed.set()
        return act


@pytest.fixture
def recovering() -> Iterator[Recovering]:
    with Recovering(1.0) as server:
        yield server


def test_while_one_call_finds_out_that_the_api_is_back_the_others_wait(recovering: Recovering) -> None:
    peace = BreakerSettings(failure_share=0.8, window_seconds=0.4, open_seconds=1.0)
    api = make_itel(recovering.url, max_retries=0, deadline_seconds=10.0, breaker=peace)
    wait_for(
        lambda: getattr(api.submit(submission(1, "e", b"{}")), "error_class", "") == "breaker_open",
        "the breaker opens",
        30,
        pause=0.01,
    )
    recovering.healed = True
    wait_for(lambda: api.connection._breaker.wait() == 0, "the peace ends", 10)
    with ThreadPoolExecutor(CALLERS) as pool:
        ends = list(pool.map(lambda n: api.submit(submission(n, f"e{n}", b"{}")), range(CALLERS)))
    assert {type(end) for end in ends} == {Accepted}
    recovered = [seen for seen in recovering.requests if seen.headers["idempotency-key"] != "e"]
    assert len(recovered) == CALLERS
    assert all(seen.began >= recovered[0].ended for seen in recovered[1:])


def test_a_probe_that_fails_ends_the_others_waiting(recovering: Recovering) -> None:
    peace = BreakerSettings(failure_share=0.8, window_seconds=0.4, open_seconds=0.5)
    link = ConnectionSettings("itel", recovering.url, max_retries=0, breaker=peace)
    connection = Connection(link)

    def call(_: int = 0) -> str:
        with pytest.raises(CallError) as caught:
            connection.call("POST", "/x")
        return caught.value.kind

    wait_for(lambda: call() == "breaker_open", "the breaker opens", 30, pause=0.01)
    wait_for(lambda: connection._breaker.wait() == 0, "the peace ends", 10)
    asked = len(recovering.requests)
    with ThreadPoolExecutor(8) as pool:
        ends = sorted(pool.map(call, range(8)))
    assert ends == [*["breaker_open"] * 7, "reset"]
    assert len(recovering.requests) == asked + 1
