"""What a process tells of itself: pulse, health and metrics, over a real socket."""

from __future__ import annotations

import contextlib
import json
import socket
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import requests

from itel_cabinet.io.worker import (
    PULSE,
    OutageError,
    RefusedError,
    WorkerSettings,
    check_port,
    metrics,
    retry_outage,
    serve,
)
from itel_cabinet.io.worker.health import Health, Pulse
from itel_cabinet.io.worker.outcomes import Outcomes
from itel_cabinet.local.services import free_port
from itel_cabinet.pipeline.operate import WorkerState
from itel_cabinet.pipeline.operate.observation import look_at_worker
from tests.support.faulty_server import FaultyServer


def settings(port: int = 0, stuck_after_seconds: float = 30.0) -> WorkerSettings:
    return WorkerSettings(
        "cabinet", "group", "topic", "1.2.3", metrics_port=port, stuck_after_seconds=stuck_after_seconds
    )


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def asked(app: Health, path: str, query: str = "") -> tuple[str, bytes]:
    told: list[str] = []
    environ = {"PATH_INFO": path, "REQUEST_METHOD": "GET", "QUERY_STRING": query}
    body = b"".join(app(environ, lambda status, _headers: told.append(status)))
    return told[0], body


def test_a_stage_that_mostly_fails_is_reported_however_seldom_it_is_used() -> None:
    clock = Clock()
    outcomes = Outcomes(clock)
    app = Health(settings(stuck_after_seconds=10_000), Pulse(clock), outcomes)
    for _ in range(2):  # a form a minute
        outcomes.add("submit", good=0, failed=1)
        clock.now += 60
    assert app.document()["status"] == "ok"
    outcomes.add("parse", good=100, failed=2)
    outcomes.add("submit", good=0, failed=1)
    assert (
        app.document() | {"status": "failing", "failing": ["submit: 3 of the last hour's 3 failed"]} == app.document()
    )
    assert asked(app, "/healthz")[0] == "200 OK"  # it lives
    outcomes.add("submit", good=4, failed=0)
    assert app.document()["status"] == "ok"
    outcomes.add("submit", good=0, failed=1)
    assert app.document()["failing"] == ["submit: 4 of the last hour's 8 failed"]
    clock.now += 3_601
    assert app.document()["status"] == "ok"


def test_unknown_questions_are_listed_within_bounds() -> None:
    outcomes = Outcomes()
    labels = [outcomes.add_question(f"q{n}") for n in (*range(50), 7, 50)]
    assert labels == [*(f"q{n}" for n in (*range(50), 7)), "other"]
    assert Health(settings(), outcomes=outcomes).document()["unknown_questions"] == [f"q{n}" for n in range(50)]


def test_what_was_skipped_is_reported_by_reason_and_seen_from_outside() -> None:
    outcomes = Outcomes()
    outcomes.add_skips({"other_task": 2, "held_by_gate": 1})
    outcomes.add_skips({"held_by_gate": 2})
    document = Health(settings(), Pulse(Clock()), outcomes).document()
    assert document["skipped"] == {"held_by_gate": 3, "other_task": 2}

    def answer(handler: Any) -> None:
        body = json.dumps(document).encode()
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    with FaultyServer(answer) as server:
        worker = look_at_worker(server.url, document["job"], document["group"])
    assert worker.state is WorkerState.OK
    assert worker.detail.endswith("; skipped: held_by_gate 3, other_task 2")


def test_a_process_is_ok_until_it_has_done_nothing_for_too_long() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    app = Health(settings(stuck_after_seconds=30), pulse, Outcomes(clock))
    clock.now += 30
    assert asked(app, "/healthz")[0] == "200 OK"
    clock.now += 0.5
    document = app.document()
    assert asked(app, "/healthz")[0] == "503 Service Unavailable"
    assert document == {
        "status": "stuck",
        "job": "cabinet",
        "group": "group",
        "topic": "topic",
        "version": "1.2.3",
        "seconds_since_heartbeat": 30.5,
        "stuck_after_seconds": 30,
        "waiting_for": [],
        "failing": [],
        "unknown_questions": [],
    }
    pulse.beat()
    assert app.document()["status"] == "ok"


def test_an_outage_is_told_while_anyone_waits_for_its_end() -> None:
    pulse = Pulse()
    app = Health(settings(), pulse)
    with pulse.waiting_for("the moon"):
        with pulse.waiting_for("the moon"), pulse.waiting_for("a star"):
            assert app.document()["waiting_for"] == ["a star", "the moon"]
        assert app.document()["status"] == "waiting"
        assert asked(app, "/healthz")[0] == "200 OK"
        assert b'itel_cabinet_waiting{pipeline="cabinet",what="the moon"} 1.0' in asked(app, "/metrics")[1]
    assert app.document()["status"] == "ok"
    assert b'itel_cabinet_waiting{pipeline="cabinet",what="the moon"} 0.0' in asked(app, "/metrics")[1]


@pytest.mark.parametrize("seconds", [5.0, 0.0])
def test_retries_beat_and_say_what_they_wait_for(seconds: float) -> None:
    clock, seen, failures = Clock(), [], [OSError("away")] * 3

    def call() -> str:
        seen.append((PULSE.waits, PULSE.age < 1))
        if failures:
            raise failures.pop()
        return "answer"

    def sleep(seconds: float) -> None:
        clock.now += seconds

    def attempt() -> str:
        return retry_outage(
            call,
            what="the sea",
            seconds=seconds,
            is_outage=lambda _: True,
            clock=clock,
            sleep=sleep,
            random=lambda: 1.0,
        )

    if seconds:
        assert attempt() == "answer"
        assert [waits for waits, _ in seen] == [[], ["the sea"], ["the sea"], ["the sea"]]
        assert all(lately for _, lately in seen[1:])
    else:
        with pytest.raises(OutageError):
            attempt()
    assert PULSE.waits == []


def test_served_over_a_socket_with_the_labels_of_the_job() -> None:
    metrics.RECORDS_SKIPPED.labels("test_health").inc(3)
    port = serve(settings(free_port()))
    told = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10)
    assert told.headers["Content-Type"].startswith("text/plain")
    assert 'itel_cabinet_records_skipped_total{pipeline="cabinet",reason="test_health"} 3.0' in told.text
    assert requests.get(f"http://127.0.0.1:{port}/healthz", timeout=10).json()["group"] == "group"
    only = requests.get(f"http://127.0.0.1:{port}/metrics?name[]=itel_cabinet_waiting", timeout=10)
    assert only.status_code == 200
    elsewhere = requests.get(f"http://127.0.0.1:{port}/../etc/passwd", timeout=10)
    assert (elsewhere.status_code, elsewhere.text) == (404, "there is /metrics and /healthz\n")


def test_the_next_free_port_is_taken_and_none_is_no_reason_to_fail(caplog: pytest.LogCaptureFixture) -> None:
    first = free_port()
    with closing(socket.create_server(("", first))):
        with pytest.raises(RefusedError, match="in use"):
            check_port(first)
        port = serve(settings(first))
        assert port is not None
        assert first < port < first + 16
    with contextlib.ExitStack() as taken:
        with contextlib.suppress(OSError):  # another program has it
            taken.enter_context(closing(socket.create_server(("", 65_535))))
        assert serve(settings(65_535)) is None
    assert "none of the 16 ports from 65535 is free" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_it_is_served_on_both_kinds_of_addresses(host: str) -> None:
    if host == "[::1]" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 on this machine")
    port = serve(replace(settings(), metrics_port=free_port(), job=f"both-{host}"))
    document = requests.get(f"http://{host}:{port}/healthz", timeout=10).json()
    assert document["job"] == f"both-{host}"
