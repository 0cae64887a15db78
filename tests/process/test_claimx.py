"""Lookups in ClaimX: whose fault a failure is, and when an answer may be used again."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from itel_cabinet.io import claimx as module
from itel_cabinet.io.claimx import Answer, ClaimX, ClaimXOutageError, ClaimXSettings, LookupRefused, get_claimx
from itel_cabinet.io.http import Connection, ConnectionSettings, transport
from tests.support.faulty_server import (
    Act,
    FaultyServer,
    answer,
    cut_body,
    endless_body,
    garbage,
    hang,
    reset,
    unused_port,
)

ASSIGNMENT = 5430007
PRIVATE = "pat.roe@private.example"


class Task(BaseModel):
    """What these tests take an answer to be."""

    assignmentId: int
    status: str = "ASSIGNED"


def parse(body: bytes, _: int) -> Task:
    return Task.model_validate_json(body)


def task(status: str = "ASSIGNED", **more: Any) -> bytes:
    return json.dumps({"assignmentId": ASSIGNMENT, "status": status, **more}).encode()


class Clock:
    """Epoch seconds, set by hand."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(clock: Clock) -> Iterator[Callable[..., tuple[ClaimX[Task], FaultyServer]]]:
    """Makes a client of a server with the given script; pauses take no time."""
    servers: list[FaultyServer] = []

    def make(*script: Act, cache_seconds: float = 60.0, **settings: Any) -> tuple[ClaimX[Task], FaultyServer]:
        servers.append(FaultyServer(*script).__enter__())
        link = ConnectionSettings("claimx", servers[-1].url, **{"max_retries": 2, **settings})
        waited: list[float] = []
        connection = Connection(link, clock=lambda: sum(waited), sleep=waited.append, random=lambda: 1.0)
        settings_ = ClaimXSettings(link, cache_seconds=cache_seconds)
        return ClaimX(settings_, connection, parse, clock), servers[-1]

    yield make
    for server in servers:
        server.__exit__(None, None, None)


# -- the three ends of a lookup


def test_the_task_is_asked_for_by_its_assignment(client: Any) -> None:
    claims, server = client(answer(200, task("COMPLETED")))
    found = claims.task_details(ASSIGNMENT, not_before=0)
    assert found == Answer(Task(assignmentId=ASSIGNMENT, status="COMPLETED"), 1_000.0, len(task("COMPLETED")))
    assert (server.requests[0].method, server.requests[0].path) == (
        "GET",
        "/customTasks/assignment/5430007?full=true",
    )


def test_the_time_of_an_answer_is_from_before_the_request(client: Any, clock: Clock) -> None:
    def slow(handler: Any) -> None:
        clock.now = 1_030.0
        answer(200, task())(handler)

    claims, _ = client(slow)
    assert claims.task_details(ASSIGNMENT, not_before=0).fetched_at == 1_000.0


@pytest.mark.parametrize(
    ("status", "error_class"),
    [(404, "unknown_assignment"), (400, "lookup_refused"), (410, "unknown_assignment"), (501, "lookup_refused")],
)
def test_another_4xx_is_the_records_fault(status: int, error_class: str, client: Any) -> None:
    claims, server = client(answer(status, PRIVATE.encode()))
    refused = claims.task_details(ASSIGNMENT, not_before=0)
    assert isinstance(refused, LookupRefused)
    assert (refused.error_class, refused.status, refused.attempts) == (error_class, status, 1)
    assert str(status) in refused.message
    assert PRIVATE not in refused.message
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 425])
def test_an_outage_is_the_worlds_after_the_tries(status: int, client: Any) -> None:
    claims, server = client(answer(status))
    with pytest.raises(ClaimXOutageError) as caught:
        claims.task_details(ASSIGNMENT, not_before=0)
    assert str(caught.value) == f"{server.url}: status {status} (3 tries in 1.5 s)"
    assert caught.value.attempts == 3
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "fix"), [(401, "the credentials"), (403, "the credentials"), (302, "the URL"), (307, "the URL")]
)
def test_refused_credentials_and_redirects_are_the_worlds(status: int, fix: str, client: Any) -> None:
    claims, server = client(answer(status, location="/login"))
    with pytest.raises(ClaimXOutageError, match=rf"status {status}.*: check {fix}"):
        claims.task_details(ASSIGNMENT, not_before=0)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "fault", [reset, garbage, hang, cut_body(200, b'{"assign')], ids=["reset", "garbage", "hang", "cut"]
)
def test_a_broken_connection_is_the_worlds(fault: Act, client: Any) -> None:
    claims, server = client(fault, read_timeout_seconds=0.2)
    with pytest.raises(ClaimXOutageError, match="3 tries"):
        claims.task_details(ASSIGNMENT, not_before=0)
    assert len(server.requests) == 3


def test_no_connection_is_the_worlds() -> None:
    link = ConnectionSettings("claimx", f"http://127.0.0.1:{unused_port()}", max_retries=0)
    with pytest.raises(ClaimXOutageError, match="Connection refused"):
        ClaimX(ClaimXSettings(link), Connection(link), parse).task_details(ASSIGNMENT, not_before=0)


def test_a_passing_fault_is_not_seen(client: Any) -> None:
    claims, server = client(answer(503), answer(200, b"<html>gateway"), answer(200, task()))
    assert claims.task_details(ASSIGNMENT, not_before=0).task.status == "ASSIGNED"
    assert len(server.requests) == 3


# -- wrong shapes


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=str)
def test_what_stays_no_json_is_the_records_after_the_tries(body: bytes, client: Any) -> None:
    claims, server = client(answer(200, body))
    refused = claims.task_details(ASSIGNMENT, not_before=0)
    assert (refused.error_class, refused.status, refused.attempts) == ("wrong_shape", 200, 3)
    assert refused.message.startswith("ClaimX's answer: the whole: Invalid JSON")
    assert len(server.requests) == 3


def test_a_page_for_people_is_an_outage(client: Any) -> None:
    claims, server = client(answer(200, b"\n<html>log in"))
    with pytest.raises(ClaimXOutageError, match=r"status 200, with a page for people in place of data \(3 tries"):
        claims.task_details(ASSIGNMENT, not_before=0)
    assert len(server.requests) == 3


def test_data_that_is_called_a_page_is_read(client: Any) -> None:
    claims, server = client(answer(200, task(), content_type="text/html; charset=utf-8"))
    assert claims.task_details(ASSIGNMENT, not_before=0).task.status == "ASSIGNED"
    assert len(server.requests) == 1


def test_json_of_a_wrong_shape_is_not_tried_again_and_its_values_are_not_told(client: Any) -> None:
    claims, _ = client(answer(200, json.dumps({"assignmentId": PRIVATE, "status": [PRIVATE]}).encode()))
    refused = claims.task_details(ASSIGNMENT, not_before=0)
    assert refused == LookupRefused(
        "wrong_shape",
        200,
        1,
        "ClaimX's answer: assignmentId: Input should be a valid integer, unable to parse string as an integer; "
        "status: Input should be a valid string",
    )


@pytest.mark.parametrize("body", [b"null", b"[]", b"3", b'"x"', b"{}"])
def test_json_that_is_no_task(body: bytes, client: Any) -> None:
    claims, _ = client(answer(200, body))
    refused = claims.task_details(ASSIGNMENT, not_before=0)
    assert (refused.error_class, refused.attempts) == ("wrong_shape", 1)


def test_an_answer_without_end_is_the_records(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_BODY_BYTES", 2_000_000)
    claims, _ = client(endless_body(200))
    refused = claims.task_details(ASSIGNMENT, not_before=0)
    assert (refused.error_class, refused.status) == ("wrong_shape", None)
    assert "larger than 2000000 bytes" in refused.message


# -- the cache


def test_an_answer_is_used_again_within_its_time(client: Any, clock: Clock) -> None:
    claims, server = client(answer(200, task("ASSIGNED")), answer(200, task("COMPLETED")))
    first = claims.task_details(ASSIGNMENT, not_before=900)
    clock.now += 59.9
    assert claims.task_details(ASSIGNMENT, not_before=900) == first
    assert len(server.requests) == 1
    clock.now += 0.1
    assert claims.task_details(ASSIGNMENT, not_before=900).task.status == "COMPLETED"
    assert len(server.requests) == 2


def test_an_answer_from_before_the_event_is_not_used(client: Any, clock: Clock) -> None:
    claims, server = client(answer(200, task("ASSIGNED")), answer(200, task("COMPLETED")))
    assert claims.task_details(ASSIGNMENT, not_before=999).task.status == "ASSIGNED"
    clock.now = 1_010.0
    assert claims.task_details(ASSIGNMENT, not_before=1_000.0).task.status == "COMPLETED"  # not after, but at
    assert claims.task_details(ASSIGNMENT, not_before=1_009.9).fetched_at == 1_010.0
    assert len(server.requests) == 2


def test_fresh_goes_past_the_cache_and_fills_it(client: Any, clock: Clock) -> None:
    claims, server = client(answer(200, task("ASSIGNED")), answer(200, task("COMPLETED")))
    claims.task_details(ASSIGNMENT, not_before=0)
    clock.now += 1
    assert claims.task_details(ASSIGNMENT, not_before=0, fresh=True).task.status == "COMPLETED"
    assert claims.task_details(ASSIGNMENT, not_before=0).task.status == "COMPLETED"
    assert len(server.requests) == 2


def test_the_answer_is_read_as_one_to_the_question_asked() -> None:
    def echo(body: bytes, assignment_id: int) -> tuple[bytes, int]:
        return body, assignment_id

    with FaultyServer(answer(200, b"{}")) as server:
        link = ConnectionSettings("claimx", server.url)
        found = ClaimX(ClaimXSettings(link), Connection(link), echo).task_details(7, not_before=0)
    assert isinstance(found, Answer)
    assert found.task == (b"{}", 7)


def test_an_answer_about_another_assignment_is_the_records_and_not_told(client: Any) -> None:
    def strict(_: bytes, assignment_id: int) -> Task:
        raise ValueError(f"not the answer about {assignment_id}")

    claims, server = client(answer(200, json.dumps({"assignmentId": 1, "name": PRIVATE}).encode()))
    claims.parse = strict
    refused = claims.task_details(ASSIGNMENT, not_before=0)
    assert refused == LookupRefused("wrong_shape", 200, 1, f"ClaimX's answer: not the answer about {ASSIGNMENT}")
    assert len(server.requests) == 1


def test_assignments_do_not_share_an_answer(client: Any) -> None:
    claims, server = client(answer(200, task()))
    for assignment in (1, 2, 1):
        claims.task_details(assignment, not_before=0)
    assert [seen.path.split("?")[0] for seen in server.requests] == [
        "/customTasks/assignment/1",
        "/customTasks/assignment/2",
    ]


@pytest.mark.parametrize("fault", [answer(404), answer(503), answer(200, b"{}"), answer(200, b"<html>"), reset])
def test_failures_are_not_cached(fault: Act, client: Any) -> None:
    claims, server = client(fault, answer(200, task()), max_retries=0)
    with contextlib.suppress(ClaimXOutageError):
        assert isinstance(claims.task_details(ASSIGNMENT, not_before=0), LookupRefused)
    assert claims.task_details(ASSIGNMENT, not_before=0).task == Task(assignmentId=ASSIGNMENT)
    assert len(server.requests) == 2


def test_a_cache_of_no_time_never_serves(client: Any) -> None:
    claims, server = client(answer(200, task()), cache_seconds=0)
    claims.task_details(ASSIGNMENT, not_before=0)
    claims.task_details(ASSIGNMENT, not_before=0)
    assert len(server.requests) == 2


def test_the_cache_is_bounded_by_size(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_BYTES", 2_500)
    claims, server = client(answer(200, task(filler="x" * 950)))
    for assignment in (1, 2, 3, 3, 2, 1):  # two fit
        claims.task_details(assignment, not_before=0)
    assert len(server.requests) == 4
    monkeypatch.setattr(module, "CACHE_BYTES", 100)
    claims, server = client(answer(200, task(filler="x" * 950)))
    claims.task_details(1, not_before=0)  # too large to be kept, but no failure
    claims.task_details(1, not_before=0)
    assert len(server.requests) == 2


def test_a_slower_older_answer_does_not_replace_a_newer_one(client: Any, clock: Clock) -> None:
    newer_is_in = threading.Event()

    def held(handler: Any) -> None:
        assert newer_is_in.wait(30)
        answer(200, task("ASSIGNED"))(handler)

    claims, server = client(held, answer(200, task("COMPLETED")), read_timeout_seconds=30)
    slow = threading.Thread(target=lambda: claims.task_details(ASSIGNMENT, not_before=0))
    slow.start()
    while not server.requests:
        threading.Event().wait(0.005)
    clock.now += 5
    claims.task_details(ASSIGNMENT, not_before=0)
    newer_is_in.set()
    slow.join(30)
    assert claims.task_details(ASSIGNMENT, not_before=0).task.status == "COMPLETED"


# -- settings


@pytest.mark.parametrize("path", ["", "x/{assignment_id}", "/x", "/{assignment_id}/{task}", "/{assignment_id", "/{}"])
def test_a_path_without_the_assignment_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"must begin with / and hold \{assignment_id\}"):
        ClaimXSettings(ConnectionSettings("claimx", "https://claimx.example"), path)


def test_a_process_has_one_client_for_its_settings() -> None:
    settings = ClaimXSettings(ConnectionSettings("claimx", "https://claimx.example"))
    assert get_claimx(settings, parse) is get_claimx(ClaimXSettings(settings.connection), parse)
    assert get_claimx(settings, parse) is not get_claimx(ClaimXSettings(settings.connection, cache_seconds=1), parse)
