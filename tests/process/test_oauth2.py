"""OAuth2 client credentials against a real token endpoint: who asks, when, how often, and what never shows."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itel_cabinet.io.claimx import ClaimX, ClaimXOutageError, ClaimXSettings
from itel_cabinet.io.http import Auth, CallError, Connection, ConnectionSettings, Reply, Transport, TransportSettings
from itel_cabinet.io.http.oauth2 import Token, Tokens, get_tokens, read_token
from itel_cabinet.io.itel import HttpItel, ItelSettings
from itel_cabinet.io.secrets import UnresolvedSecretError
from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator, OAuth2Simulator
from itel_cabinet.transforms.submitting import Rejected
from tests.support.cabinet_samples import group, question, submission, tracking_message
from tests.support.faulty_server import FaultyServer, answer
from tests.support.jobs import Stack, wait_for

CLIENT = "cabinet client:7"
SECRET = "s3cr3t/with +signs=%&:~"
THREADS = 32


class Time:
    """The one clock of client and server, moved by hand and by pauses."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def authority(clock: Time, tmp_path: Path) -> Iterator[OAuth2Simulator]:
    (tmp_path / "id").write_text(CLIENT)
    (tmp_path / "secret").write_text(SECRET)
    with OAuth2Simulator({CLIENT: SECRET}, clock=clock, token_seconds=600) as simulator:
        yield simulator


@pytest.fixture
def api(authority: OAuth2Simulator) -> Iterator[FaultyServer]:
    """An API that answers 200 to those whom the authority knows, and 401 to all others."""

    def check(handler: Any) -> None:
        known = authority.accepts(handler.headers.get("Authorization"))
        answer(200 if known else 401, b"[]")(handler)

    with FaultyServer(check) as server:
        yield server


def written(authority: OAuth2Simulator, folder: Path, scope: str = "") -> str:
    named = f":scope={scope}" if scope else ""
    return f"oauth2:{authority.token_url}:file:{folder}/id:file:{folder}/secret{named}"


@pytest.fixture
def connect(authority: OAuth2Simulator, clock: Time, tmp_path: Path) -> Callable[..., Connection]:
    """Connections with tokens of their own, for a given base URL."""

    def make(url: str, *, scope: str = "", token_url: str = "", **settings: Any) -> Connection:
        auth = written(authority, tmp_path, scope).replace(authority.token_url, token_url or authority.token_url)
        settings_ = ConnectionSettings("claimx", url, **{"auth": auth, "max_retries": 2, **settings})
        base_url = (token_url or authority.token_url).removesuffix("/oauth2/token")
        held = Tokens(Auth.parse(auth), Transport(settings_.transport(base_url)), clock)
        return Connection(settings_, clock=clock, sleep=clock.sleep, random=lambda: 1.0, tokens=held)

    return make


def at_once(link: Connection) -> list[int]:
    """The statuses of as many calls as there are threads, all made at the same moment."""
    together = threading.Barrier(THREADS)

    def call(_: int) -> int:
        together.wait(30)
        return link.call("GET", "/x").status

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(call, range(THREADS)))


# -- who asks, and when


def test_a_token_serves_many_calls(authority: OAuth2Simulator, api: FaultyServer, connect: Any) -> None:
    link = connect(api.url, scope="read write")
    assert [link.call("GET", "/x").attempts for _ in range(5)] == [1] * 5
    assert (authority.asked, authority.scopes) == (1, ["read write"])
    assert {seen.headers["authorization"] for seen in api.requests} == {f"Bearer {authority.tokens[0]}"}


def test_a_scope_is_sent_only_if_there_is_one(authority: OAuth2Simulator, api: FaultyServer, connect: Any) -> None:
    connect(api.url).call("GET", "/x")
    assert authority.scopes == [""]


def test_id_and_secret_may_go_in_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORM_ID", "an id+")
    monkeypatch.setenv("FORM_SECRET", "a&secret=")
    token = answer(200, b'{"access_token": "t1", "token_type": null, "expires_in": 60}')
    with FaultyServer(token) as endpoint, FaultyServer(answer(200)) as api:
        auth = f"oauth2_post:{endpoint.url}/token:env:FORM_ID:env:FORM_SECRET:scope=a b"
        assert Connection(ConnectionSettings("itel", api.url, auth=auth)).call("GET", "/x").ok
    (asked,) = endpoint.requests
    assert parse_qs(asked.body.decode()) == {
        "grant_type": ["client_credentials"],
        "scope": ["a b"],
        "client_id": ["an id+"],
        "client_secret": ["a&secret="],
    }
    assert "authorization" not in asked.headers
    assert api.requests[0].headers["authorization"] == "Bearer t1"


def test_threads_that_start_together_ask_once(authority: OAuth2Simulator, api: FaultyServer, connect: Any) -> None:
    authority.faults.latency_seconds = 0.3
    assert at_once(connect(api.url, concurrency=THREADS)) == [200] * THREADS
    assert authority.asked == 1


def test_threads_that_meet_an_expired_token_ask_once(
    authority: OAuth2Simulator, api: FaultyServer, connect: Any, clock: Time
) -> None:
    link = connect(api.url, concurrency=THREADS)
    link.call("GET", "/x")
    clock.seconds += 600
    authority.faults.latency_seconds = 0.3
    assert at_once(link) == [200] * THREADS
    assert authority.asked == 2
    assert [seen.headers["authorization"] for seen in api.requests].count(f"Bearer {authority.tokens[1]}") == THREADS


def test_threads_that_meet_a_revoked_token_ask_once(
    authority: OAuth2Simulator, api: FaultyServer, connect: Any
) -> None:
    link = connect(api.url, concurrency=THREADS)
    link.call("GET", "/x")
    authority.revoke()
    authority.faults.latency_seconds = 0.3
    assert at_once(link) == [200] * THREADS
    assert authority.asked == 2


@pytest.mark.parametrize(("life", "fresh_for"), [(600.0, 540.0), (100.0, 80.0)])
def test_a_token_is_renewed_before_it_ends(
    life: float, fresh_for: float, authority: OAuth2Simulator, api: FaultyServer, connect: Any, clock: Time
) -> None:
    authority.token_seconds = life
    link = connect(api.url)
    link.call("GET", "/x")
    clock.seconds += fresh_for - 1
    link.call("GET", "/x")
    assert authority.asked == 1
    clock.seconds += 1
    assert link.call("GET", "/x").attempts == 1
    assert authority.asked == 2


def test_a_renewal_that_hangs_holds_one_thread_only(
    authority: OAuth2Simulator, api: FaultyServer, connect: Any, clock: Time
) -> None:
    link = connect(api.url)
    link.call("GET", "/x")
    clock.seconds += 550
    authority.faults.hang = True
    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(link.call, "GET", "/x")
        wait_for(lambda: authority.asked == 2, "the renewal")
        assert [link.call("GET", "/x").status for _ in range(5)] == [200] * 5
        assert not renewing.done()
        authority.faults.hang = False
        assert renewing.result(30).status == 200
    assert {seen.headers["authorization"] for seen in api.requests[:6]} == {f"Bearer {authority.tokens[0]}"}
    assert api.requests[6].headers["authorization"] == f"Bearer {authority.tokens[1]}"


def test_the_old_token_is_used_while_the_endpoint_is_down(
    authority: OAuth2Simulator, api: FaultyServer, connect: Any, clock: Time
) -> None:
    link = connect(api.url)
    link.call("GET", "/x")
    clock.seconds += 550
    authority.faults.outage = True
    assert [link.call("GET", "/x").attempts for _ in range(5)] == [1] * 5
    assert authority.asked == 2  # not at each call
    clock.seconds += 6
    link.call("GET", "/x")
    assert authority.asked == 3
    clock.seconds += 44
    with pytest.raises(CallError, match="status 503") as caught:
        link.call("GET", "/x")
    assert caught.value.kind == "outage"


# -- a token that is refused


def test_a_revoked_token_is_replaced_and_the_call_made_once_more(
    authority: OAuth2Simulator, api: FaultyServer, connect: Any
) -> None:
    link = connect(api.url, max_retries=0)
    link.call("GET", "/x")
    authority.revoke()
    reply = link.call("GET", "/x")
    assert (reply.status, reply.attempts, authority.asked, len(api.requests)) == (200, 2, 2, 3)


def test_an_api_that_refuses_every_token_is_asked_twice(authority: OAuth2Simulator, connect: Any) -> None:
    with FaultyServer(answer(401)) as api:
        reply = connect(api.url).call("GET", "/x")
        assert (reply.status, len(api.requests), authority.asked) == (401, 2, 2)


# -- an endpoint that is down counts as the API being down


def test_an_endpoint_that_comes_back_is_asked_again(
    authority: OAuth2Simulator, api: FaultyServer, connect: Any, clock: Time
) -> None:
    authority.faults.error_status, authority.faults.times, authority.faults.retry_after = 503, 2, 3
    reply = connect(api.url).call("GET", "/x")
    assert (reply.status, reply.attempts, authority.asked, len(api.requests)) == (200, 3, 3, 1)
    assert clock.seconds >= 1_006.0  # twice what Retry-After says


def test_a_stopped_endpoint_fails_the_call_as_unreachable(
    authority: OAuth2Simulator, api: FaultyServer, connect: Any
) -> None:
    authority.stop()
    with pytest.raises(CallError) as caught:
        connect(api.url).call("GET", "/x")
    assert (caught.value.kind, caught.value.attempts, api.requests) == ("unreachable", 3, [])
    assert str(caught.value) == (
        f"{api.url}: token endpoint {authority.url}: no connection: Connection refused (3 tries in 1.5 s)"
    )


def test_a_revoked_token_and_a_stopped_endpoint(authority: OAuth2Simulator, api: FaultyServer, connect: Any) -> None:
    link = connect(api.url)
    link.call("GET", "/x")
    authority.revoke()
    authority.stop()
    with pytest.raises(CallError) as caught:
        link.call("GET", "/x")
    assert caught.value.kind == "unreachable"
    assert caught.value.last is not None
    assert caught.value.last.status == 401
    authority.start_again()
    assert link.call("GET", "/x").status == 200


def test_a_hanging_endpoint_holds_no_thread_beyond_its_deadline(
    authority: OAuth2Simulator, api: FaultyServer, connect: Any
) -> None:
    authority.faults.hang = True
    settings = connect(api.url, deadline_seconds=1.0, read_timeout_seconds=30).settings
    held = Tokens(Auth.parse(settings.auth), Transport(settings.transport(authority.url)))
    link = Connection(settings, tokens=held)

    def call(_: int) -> tuple[str, float]:
        began = time.monotonic()
        with pytest.raises(CallError) as caught:
            link.call("GET", "/x")
        return caught.value.kind, time.monotonic() - began

    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(call, range(8)))
    assert {kind for kind, _ in ended} == {"timeout"}
    assert max(seconds for _, seconds in ended) < 5


# -- a client that is refused


def test_a_refused_client_is_unauthorized_and_not_asked_again_at_once(
    authority: OAuth2Simulator, api: FaultyServer, connect: Any, clock: Time, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("of yesterday")
    link = connect(api.url)
    for _ in range(3):
        with pytest.raises(CallError) as caught:
            link.call("GET", "/x")
        assert (caught.value.kind, caught.value.attempts) == ("unauthorized", 1)
        assert str(caught.value) == (
            f"{api.url}: token endpoint {authority.url}: gives no token (status 401, invalid_client): "
            "check the credentials (1 try in 0.0 s)"
        )
    assert (authority.asked, api.requests) == (1, [])
    (tmp_path / "secret").write_text(SECRET)  # rotated secrets need no restart
    clock.seconds += 6
    assert link.call("GET", "/x").status == 200


def test_a_secret_gone_is_unauthorized(api: FaultyServer, connect: Any, tmp_path: Path) -> None:
    link = connect(api.url)
    (tmp_path / "secret").unlink()
    with pytest.raises(CallError, match=r"secret cannot be read.*: check the credentials") as caught:
        link.call("GET", "/x")
    assert caught.value.kind == "unauthorized"


def test_a_missing_secret_is_refused_before_any_call(authority: OAuth2Simulator, tmp_path: Path) -> None:
    (tmp_path / "secret").unlink()
    settings = ConnectionSettings("itel", "https://itel.example", written(authority, tmp_path))
    with pytest.raises(UnresolvedSecretError, match=r"^file:.*secret cannot be read"):
        settings.check()


def test_a_token_endpoint_s_redirect_is_not_followed(api: FaultyServer, connect: Any) -> None:
    with FaultyServer(answer(200)) as elsewhere, FaultyServer(answer(307, location=elsewhere.url)) as moved:
        with pytest.raises(CallError, match="status 307") as caught:
            connect(api.url, token_url=f"{moved.url}/oauth2/token").call("GET", "/x")
        assert (caught.value.kind, elsewhere.requests) == ("unauthorized", [])


# -- what the two APIs make of it


def test_claimx_waits_for_an_endpoint_and_itel_s_submission_is_told_why(
    authority: OAuth2Simulator, claimx: ClaimXSimulator, itel: ItelSimulator, connect: Any, tmp_path: Path
) -> None:
    claimx.authority = itel.authority = authority.accepts
    claimx.put_task({"assignmentId": 1, "projectId": 2, "response": None})
    for simulator in (claimx, itel):
        link = connect(simulator.url)
        look_up = ClaimX(ClaimXSettings(link.settings), link, lambda body, _: json.loads(body))
        submit = HttpItel(ItelSettings(link.settings), link)
        authority.faults.outage = True
        with pytest.raises(ClaimXOutageError, match="token endpoint"):
            look_up.task_details(1, not_before=0)
        rejected = submit.submit(submission(1, "e", b"{}"))
        assert isinstance(rejected, Rejected)
        assert (rejected.error_class, rejected.attempts) == ("outage", 3)
        authority.faults.outage = False
        (tmp_path / "secret").write_text("of yesterday")
        rejected = submit.submit(submission(1, "e", b"{}"))
        assert isinstance(rejected, Rejected)
        assert (rejected.error_class, rejected.attempts) == ("unauthorized", 1)
        with pytest.raises(ClaimXOutageError, match="check the credentials"):
            look_up.task_details(1, not_before=0)
        (tmp_path / "secret").write_text(SECRET)


def test_a_job_calls_both_apis_with_tokens(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "id").write_text(CLIENT)
    (tmp_path / "secret").write_text(SECRET)
    with OAuth2Simulator({CLIENT: SECRET}) as authority:
        stack.claimx.authority = stack.itel.authority = authority.accepts
        for number in range(20):
            form = group("Photos", question("Upload Overview Photo(s)", [11, 12]))
            stack.tell(tracking_message(event_id=f"e{number}", assignment_id=1000 + number), form)
        auth = written(authority, tmp_path)
        stack.run("cabinet", claimx_auth=auth, itel_auth=auth)
        assert len(stack.tracking()) == 20
        assert sorted(s.assignment_id for s in stack.itel.submissions()) == list(range(1000, 1020))
        assert authority.asked == 1  # one client at one endpoint
    assert [stack.dead_letters(role) for role in ("errors", "itel_errors")] == [[], []]


# -- what is made of an endpoint's answer


@pytest.mark.parametrize(
    ("answered", "seconds"),
    [
        ({"expires_in": 60}, 60.0),
        ({"expires_in": "3599"}, 3599.0),
        ({"expires_in": -5}, 0.0),
        ({"expires_in": 10**400}, 86_400.0),
        ({"expires_in": None}, 300.0),
        ({"expires_in": "soon"}, 300.0),
        ({"expires_in": True}, 300.0),
        ({}, 300.0),
    ],
)
def test_how_long_a_token_lives(answered: dict[str, Any], seconds: float) -> None:
    found = read_token(Reply(200, {}, json.dumps({"access_token": "t", **answered}).encode()))
    assert isinstance(found, Token)
    assert found.seconds == seconds
    assert found.credentials.headers == {"Authorization": "Bearer t"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"[" * 100_000,
        b'{"access_token": ""}',
        b'{"access_token": 5}',
        b'{"access_token": "a\\r\\nX-Evil: 1"}',
        b'{"access_token": "t", "token_type": "mac"}',
        json.dumps({"access_token": "t" * 40_000}).encode(),
    ],
    ids=range(9),
)
def test_a_2xx_without_a_token_is_an_outage(body: bytes) -> None:
    found = read_token(Reply(200, {}, body))
    assert isinstance(found, CallError)
    assert (found.kind, str(found)) == ("outage", "status 200, but no bearer token")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
_ANSWER = st.dictionaries(
    st.sampled_from(["access_token", "token_type", "expires_in", "error", "error_description"]),
    _JSON | st.sampled_from(["Bearer", "bearer", "t0ken", "invalid_client", SECRET]),
)


@given(
    status=st.integers(100, 599), body=st.binary(max_size=200) | _ANSWER.map(lambda found: json.dumps(found).encode())
)
def test_any_answer_is_a_token_or_a_failure(status: int, body: bytes) -> None:
    found = read_token(Reply(status, {}, body))
    if isinstance(found, CallError):
        assert found.kind in ("outage", "unauthorized")
        assert SECRET not in str(found)
        assert len(str(found)) < 100
    else:
        assert 200 <= status < 300
        assert 0 <= found.seconds <= 86_400
        value = found.credentials.headers["Authorization"]
        assert value.startswith("Bearer ")
        assert value[7:].isascii()
        assert value[7:].isprintable()


# -- what never shows


def test_tokens_and_secrets_are_never_seen(
    authority: OAuth2Simulator, connect: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def echo(handler: Any) -> None:
        answer(400, f"no: {handler.headers['Authorization']}".encode())(handler)

    with FaultyServer(echo) as api:
        link = connect(api.url)
        reply = link.call("GET", "/x")
        authority.revoke()
        (tmp_path / "secret").write_text("of yesterday")
        again = connect(api.url)
        with pytest.raises(CallError) as caught:
            again.call("GET", "/x")
    held = link.tokens
    texts = [repr(link), repr(link.settings), repr(held), repr(reply), reply.excerpt, repr(caught.value), caplog.text]
    token = api.requests[0].headers["authorization"].removeprefix("Bearer ")
    assert reply.excerpt == "no: Bearer [secret]"
    everything = "\n".join(texts)
    assert "invalid_client" in everything
    for secret in (token, SECRET, "of yesterday", CLIENT):
        assert secret not in everything


def test_one_client_has_one_set_of_tokens() -> None:
    auth = Auth.parse("oauth2:https://id.example/token:env:A:env:B:scope=x")
    settings = TransportSettings("https://id.example")
    assert get_tokens(auth, settings) is get_tokens(
        Auth.parse("oauth2:https://id.example/token:env:A:env:B:scope=x"), settings
    )
    other = Auth.parse("oauth2:https://id.example/token:env:A:env:B:scope=y")
    assert get_tokens(other, settings) is not get_tokens(auth, settings)
