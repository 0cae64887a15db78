"""Whatever the two APIs answer, over real sockets: each lookup and each submission has one of its defined ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from itel_cabinet.io.claimx import Answer, ClaimX, ClaimXOutageError, ClaimXSettings, LookupRefused
from itel_cabinet.io.http import BreakerSettings, Connection, ConnectionSettings
from itel_cabinet.io.itel import HttpItel, ItelSettings
from itel_cabinet.transforms.forms import TaskDetails, parse_details
from itel_cabinet.transforms.submitting import Accepted, Rejected
from tests.support.cabinet_samples import ASSIGNMENT_ID, answer, group, question, submission
from tests.support.faulty_server import FaultyServer

PRIVATE = "pat.roe@private.example"
KINDS = {"refused", "unauthorized", "redirected", "outage", "timeout", "unreachable", "reset", "too_large"}


class Server(FaultyServer):
    """Writes ``says`` to whoever asks, byte for byte, and hangs up."""

    def __init__(self) -> None:
        self.says = b""
        super().__init__(self._say)

    def _say(self, handler: Any) -> None:
        handler.wfile.write(self.says)
        handler.close_connection = True


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running  # type: ignore[misc]


def connect(server: Server, name: str) -> Connection:
    # Most of what is said here is a failure, so there is no breaker.
    peaceless = BreakerSettings(open_seconds=0)
    link = ConnectionSettings(name, server.url, max_retries=1, read_timeout_seconds=2.0, breaker=peaceless)
    return Connection(link, sleep=lambda _: None, random=lambda: 0.0)


@pytest.fixture(scope="module")
def claimx(server: Server) -> ClaimX[TaskDetails]:
    link = connect(server, "claimx")
    return ClaimX(ClaimXSettings(link.settings, cache_seconds=0), link, parse_details)


@pytest.fixture(scope="module")
def itel(server: Server) -> HttpItel:
    link = connect(server, "itel")
    return HttpItel(ItelSettings(link.settings), link)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.just(PRIVATE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


def _paths(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield here
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield from _paths(child, (*here, name))


_REAL = answer(
    group("Photos", question("Upload Overview Photo(s)", [11, 12])), assigneeEmail=PRIVATE, assignmentId=ASSIGNMENT_ID
)


@st.composite
def _bent(draw: st.DrawFn) -> bytes:
    """A real answer of which a few places have become something else."""
    bent = json.loads(json.dumps(_REAL))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(sorted(_paths(bent), key=str)))
        if not path:
            return json.dumps(draw(_JSON)).encode()
        inside = bent
        for name in path[:-1]:
            inside = inside[name]
        inside[path[-1]] = draw(_JSON)
    return json.dumps(bent).encode()


_BODIES = st.binary(max_size=300) | _JSON.map(lambda found: json.dumps(found).encode()) | _bent()
_HEADERS = st.dictionaries(
    st.sampled_from(["Retry-After", "Content-Type", "Content-Encoding", "Location", "Transfer-Encoding", "X-Other"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40)
    | st.sampled_from(["gzip", "chunked", "0", "application/json", "/login"]),
    max_size=3,
)


@st.composite
def _answers(draw: st.DrawFn) -> bytes:
    """HTTP of some kind: any status and headers, a length that may be wrong."""
    body = draw(_BODIES)
    length = draw(st.just(len(body)) | st.none() | st.integers(-1, 500))
    headers = {**draw(_HEADERS), **({} if length is None else {"Content-Length": str(length)})}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    status = draw(st.sampled_from([200, 201, 400, 401, 404, 409, 503]) | st.integers(0, 999))
    return f"HTTP/1.1 {status} Fine\r\n{head}\r\n".encode("latin-1") + body


def _limits_calls(said: bytes) -> bool:
    """An API that always does is waited for without end: see test_back_pressure.py."""
    status = said[9:12]
    return status == b"429" or (status == b"503" and b"Retry-After" in said)


_SAID = (_answers() | st.binary(max_size=300)).filter(lambda said: not _limits_calls(said))
_WITHOUT_NAME = b"HTTP/1.1 200 OK\r\n: x\r\n\r\n"


@given(said=_SAID)
@example(said=b"")
@example(said=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Encoding: gzip\r\n\r\n{}")
@example(said=_WITHOUT_NAME)
@example(said=b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1_000 + b"\r\n")
@example(said=b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n")
@example(said=b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 200_000)
@example(said=b'HTTP/1.1 200 OK\r\n\r\n{"assignmentId": 1e400}')
def test_a_lookup_has_a_defined_end(said: bytes, server: Server, claimx: ClaimX[TaskDetails]) -> None:
    server.says = said
    try:
        found = claimx.task_details(ASSIGNMENT_ID, not_before=0)
    except ClaimXOutageError as outage:
        message, found = str(outage), None
    if isinstance(found, Answer):
        assert found.task.assignment_id == ASSIGNMENT_ID
        return
    if isinstance(found, LookupRefused):
        assert found.error_class in {"unknown_assignment", "lookup_refused", "wrong_shape"}
        message = found.message
    assert 0 < len(message) < 600
    assert len(message.splitlines()) == 1
    assert PRIVATE not in message


@given(said=_SAID)
@example(said=b"")
@example(said=_WITHOUT_NAME)
@example(said=b"HTTP/1.1 400 No\r\n\r\nthis ALREADY Exists")
@example(said=b"HTTP/1.1 201 OK\r\nContent-Length: 100\r\n\r\n{")
def test_a_submission_has_a_defined_end(said: bytes, server: Server, itel: HttpItel) -> None:
    server.says = said
    end = itel.submit(submission(ASSIGNMENT_ID, "e1", b"{}"))
    assert len(end.excerpt) <= 500
    assert len(end.excerpt.splitlines()) <= 1
    if isinstance(end, Accepted):
        assert 200 <= end.status < 300 or (end.duplicate and 400 <= end.status < 500 and b"e1" in said)
        return
    assert isinstance(end, Rejected)
    assert end.error_class in KINDS
    assert end.attempts in (1, 2)
    assert len(end.error.splitlines()) == 1
    assert PRIVATE not in end.error
