"""The HTTP connection against real sockets: what is tried again, what bounds it, and what never shows."""

from __future__ import annotations

import contextlib
import gzip
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from itel_cabinet.io.http import (
    Auth,
    CallError,
    Connection,
    ConnectionSettings,
    Meaning,
    Reply,
    TlsFiles,
    get_connection,
    transport,
)
from itel_cabinet.io.secrets import SecretRef, UnresolvedSecretError
from itel_cabinet.io.worker import SettingError
from tests.support.certificates import self_signed
from tests.support.faulty_server import (
    Act,
    FaultyServer,
    answer,
    cut_body,
    drip_body,
    drip_headers,
    endless_body,
    garbage,
    hang,
    interim,
    reset,
    then_more,
    unused_port,
)

SECRET = "s3cr3t-t0ken/with+signs="


class Pauses:
    """A sleep that does not sleep, and a clock that knows."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.taken.append(seconds)

    def clock(self) -> float:
        return sum(self.taken)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def serve() -> Iterator[Callable[..., FaultyServer]]:
    servers: list[FaultyServer] = []

    def start(*script: Act, tls: ssl.SSLContext | None = None) -> FaultyServer:
        servers.append(FaultyServer(*script, tls=tls).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def quick(url: str, pauses: Pauses, **settings: Any) -> Connection:
    """A connection whose pauses take no time and have no jitter (the longest each time)."""
    return Connection(
        ConnectionSettings("claimx", url, **settings), clock=pauses.clock, sleep=pauses.sleep, random=lambda: 1.0
    )


# -- what is tried again


@pytest.mark.parametrize("status", [408, 421, 425, 500, 502, 503, 504, 520, 599])
def test_a_transient_status_is_tried_again(status: int, serve: Any, pauses: Pauses) -> None:
    server = serve(answer(status), answer(status), answer(200, b'{"a": 1}'))
    reply = quick(server.url, pauses).call("GET", "/x")
    assert (reply.status, reply.body, reply.attempts) == (200, b'{"a": 1}', 3)
    assert pauses.taken == [0.5, 1.0]
    assert reply.elapsed == 1.5


@pytest.mark.parametrize("status", [200, 201, 204, 301, 302, 400, 401, 403, 404, 409, 413, 422, 431, 501])
def test_a_final_status_is_returned_at_once(status: int, serve: Any, pauses: Pauses) -> None:
    server = serve(answer(status, b"" if status == 204 else b"no", location="/elsewhere"))
    reply = quick(server.url, pauses).call("POST", "/x", body=b"{}")
    assert (reply.status, reply.attempts, pauses.taken, len(server.requests)) == (status, 1, [], 1)


@pytest.mark.parametrize("fault", [reset, garbage, cut_body(200, b'{"a"')], ids=["reset", "garbage", "cut"])
def test_a_broken_connection_is_tried_again(fault: Act, serve: Any, pauses: Pauses) -> None:
    server = serve(fault, answer(200, b"[1]"))
    reply = quick(server.url, pauses).call("GET", "/x")
    assert (reply.body, reply.attempts) == (b"[1]", 2)


def test_a_timeout_is_tried_again(serve: Any, pauses: Pauses) -> None:
    server = serve(hang, answer(200, b"[2]"))
    reply = quick(server.url, pauses, read_timeout_seconds=0.2).call("GET", "/x")
    assert (reply.body, reply.attempts) == (b"[2]", 2)


def test_a_refused_connection_is_tried_again_and_named(pauses: Pauses) -> None:
    port = unused_port()
    with pytest.raises(CallError) as caught:
        quick(f"http://127.0.0.1:{port}", pauses, max_retries=2).call("GET", "/x", params={"q": "private"})
    assert caught.value.kind == "unreachable"
    assert caught.value.attempts == 3
    assert caught.value.last is None
    assert str(caught.value) == f"http://127.0.0.1:{port}: no connection: Connection refused (3 tries in 1.5 s)"


def test_an_unknown_host_is_unreachable(pauses: Pauses) -> None:
    with pytest.raises(CallError) as caught:
        quick("http://host.invalid", pauses, max_retries=0).call("GET", "/x")
    assert caught.value.kind == "unreachable"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context for 127.0.0.1, and its self-signed certificate."""
    certificate, key = self_signed(tmp_path_factory.mktemp("tls"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


@pytest.mark.parametrize(
    ("link", "own"),
    [
        ("https://claimx.example/media/1?sign=x", True),
        ("https://CLAIMX.example:443/media/1", True),
        ("http://claimx.example/media/1", False),
        ("https://claimx.example:8443/media/1", False),
        ("https://claimx.example.evil.example/media/1", False),
        ("https://bucket.s3.amazonaws.com/1", False),
    ],
)
def test_credentials_go_to_the_api_s_own_origin_alone(link: str, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAIMX_API_TOKEN", "token")
    api = Connection(ConnectionSettings("claimx", "https://claimx.example/service", "bearer:env:CLAIMX_API_TOKEN"))
    assert api.headers_for(link) == ({"Authorization": "Bearer token"} if own else {})


def test_an_unknown_certificate_is_refused(tls: tuple[ssl.SSLContext, Path], serve: Any, pauses: Pauses) -> None:
    server = serve(answer(200), tls=tls[0])
    with pytest.raises(CallError, match="self-signed certificate") as caught:
        quick(server.url, pauses, max_retries=0).call("GET", "/x")
    assert caught.value.kind == "unreachable"
    assert server.requests == []


@pytest.mark.parametrize("fault", [hang, drip_body, drip_headers])
def test_tls_is_spoken_and_bounded_alike(
    fault: Act, tls: tuple[ssl.SSLContext, Path], serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls[1]))
    server = serve(answer(200, b"x" * 100_000), fault, tls=tls[0])
    link = Connection(ConnectionSettings("claimx", server.url, deadline_seconds=1.0, read_timeout_seconds=30))
    assert len(link.call("GET", "/x").body) == 100_000
    began = time.monotonic()
    with pytest.raises(CallError) as caught:
        link.call("GET", "/x")
    assert (caught.value.kind, caught.value.attempts) == ("timeout", 1)
    assert time.monotonic() - began < 5


def test_a_proxy_of_the_environment_is_used(serve: Any, pauses: Pauses, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(answer(200, b"[1]"), drip_body)
    for name in ("HTTP_PROXY", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    link = quick("http://claimx.example", pauses, max_retries=0, read_timeout_seconds=0.3)
    assert link.call("GET", "/x").body == b"[1]"
    assert server.requests[0].path == "http://claimx.example/x"
    with pytest.raises(CallError) as caught:
        link.call("GET", "/x")
    assert caught.value.kind == "timeout"


def test_a_failure_after_a_status_carries_that_reply(serve: Any, pauses: Pauses) -> None:
    server = serve(answer(503, b"busy"), reset)
    with pytest.raises(CallError) as caught:
        quick(server.url, pauses, max_retries=1).call("GET", "/x")
    assert caught.value.kind == "reset"
    assert caught.value.last is not None
    assert (caught.value.last.status, caught.value.last.excerpt) == (503, "busy")


def test_tries_end_after_max_retries_with_the_last_reply(serve: Any, pauses: Pauses) -> None:
    server = serve(answer(500, b"one"), answer(502, b"two"), answer(503, b"three"))
    reply = quick(server.url, pauses, max_retries=2).call("GET", "/x")
    assert (reply.status, reply.excerpt, reply.attempts, len(server.requests)) == (503, "three", 3, 3)


def test_what_the_caller_reads_out_of_an_answer_counts(serve: Any, pauses: Pauses) -> None:
    def judge(reply: Reply) -> Meaning:
        return Meaning.AGAIN if reply.body == b"{" else reply.meaning

    server = serve(answer(200, b"{"), answer(200, b"{}"))
    reply = quick(server.url, pauses).call("GET", "/x", judge=judge)
    assert (reply.body, reply.attempts, reply.meaning) == (b"{}", 2, Meaning.ACCEPTED)


# -- the answer to the question that was asked


@pytest.mark.parametrize("statuses", [(100,), (102,), (103,), (103, 103), (100, 102, 103), (199,) * 50], ids=str)
def test_interim_answers_are_skipped(statuses: tuple[int, ...], serve: Any, pauses: Pauses) -> None:
    final = [answer(200, b"[1]"), answer(422, b"[2]"), answer(201, b"[3]")]
    server = serve(*(interim(*statuses, then=act) for act in final))
    link = quick(server.url, pauses)
    replies = [link.call("POST", "/x", body=b"{}") for _ in final]
    assert [(reply.status, reply.body, reply.attempts) for reply in replies] == [
        (200, b"[1]", 1),
        (422, b"[2]", 1),
        (201, b"[3]", 1),
    ]
    assert server.connections == 1


def test_another_protocol_that_nobody_asked_for_is_a_broken_connection(serve: Any, pauses: Pauses) -> None:
    server = serve(interim(101, then=answer(200, b"[1]")), answer(200, b"[2]"))
    reply = quick(server.url, pauses).call("POST", "/x")
    assert (reply.body, reply.attempts, server.connections) == (b"[2]", 2, 2)


@pytest.mark.parametrize(
    "first",
    [
        then_more(answer(200, b"[1]"), b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"),
        then_more(answer(200, b"[1]"), b"x"),
        then_more(answer(204, b""), b"a body that has no place"),
    ],
    ids=["second", "longer", "204"],
)
def test_a_connection_that_says_more_than_was_asked_is_not_used_again(first: Act, serve: Any, pauses: Pauses) -> None:
    server = serve(first, answer(422, b"[2]"))
    link = quick(server.url, pauses)
    assert link.call("POST", "/x").ok
    reply = link.call("POST", "/x")
    assert (reply.status, reply.body, reply.attempts, server.connections) == (422, b"[2]", 1, 2)


# -- proxies


def test_a_proxy_that_refuses_the_tunnel_is_named(pauses: Pauses, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for status, kind, text in (
        (407, "unauthorized", "status 407): check the user and password in the proxy's address"),
        (403, "unreachable", "the proxy lets no connection through (status 403)"),
    ):
        proxy = serve(answer(status))
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(CallError) as caught:
            quick("https://claimx.example", pauses, max_retries=0).call("GET", "/x")
        assert caught.value.kind == kind
        assert text in str(caught.value)


def test_a_proxy_that_refuses_a_plain_request_is_named(
    pauses: Pauses, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", serve(answer(407)).url)
    reply = quick("http://claimx.example", pauses).call("GET", "/x")
    assert (reply.meaning, reply.attempts) == (Meaning.CREDENTIALS, 1)
    assert reply.describe() == "status 407, from the proxy: check the user and password in the proxy's address"


# -- pauses


def test_retry_after_in_seconds(serve: Any, pauses: Pauses) -> None:
    server = serve(answer(409, retry_after="7"), answer(200))
    quick(server.url, pauses).call("GET", "/x")
    assert pauses.taken == [7.5]  # and jitter, so that those told the same second spread


def test_retry_after_as_a_date(serve: Any, pauses: Pauses) -> None:
    server = serve(answer(500, retry_after=formatdate(time.time() + 8, usegmt=True)), answer(200))
    quick(server.url, pauses).call("GET", "/x")
    assert 5 < pauses.taken[0] <= 8.5


@pytest.mark.parametrize("value", ["soon", "-3", "", "9" * 5000, "Wed, 99 Foo 99999 99:99:99 GMT"])
def test_retry_after_that_makes_no_sense_is_ignored(value: str, serve: Any, pauses: Pauses) -> None:
    server = serve(answer(503, retry_after=value), answer(200))
    quick(server.url, pauses).call("GET", "/x")
    assert pauses.taken == [0.5]


def test_retry_after_beyond_the_deadline_ends_the_call(serve: Any, pauses: Pauses) -> None:
    server = serve(answer(500, b"later", retry_after="3600"), answer(200))
    reply = quick(server.url, pauses).call("GET", "/x")
    assert (reply.status, reply.attempts, pauses.taken) == (500, 1, [])


# -- time and size


@pytest.mark.parametrize("fault", [hang, drip_body, drip_headers])
def test_no_server_holds_a_call_longer_than_its_deadline(fault: Act, serve: Any) -> None:
    server = serve(fault)
    link = Connection(ConnectionSettings("claimx", server.url, deadline_seconds=1.0, read_timeout_seconds=30))
    began = time.monotonic()
    with pytest.raises(CallError) as caught:
        link.call("GET", "/x")
    assert 0.9 < time.monotonic() - began < 5
    assert (caught.value.kind, caught.value.attempts) == ("timeout", 1)


@contextlib.contextmanager
def deaf(*hosts: str) -> Iterator[int]:
    """A port that takes no connections at these addresses: attempts are neither accepted nor refused."""
    with contextlib.ExitStack() as open_:
        port = unused_port()
        for host in hosts:
            listener = open_.enter_context(socket.socket())
            listener.bind((host, port))
            listener.listen(0)
            filler = open_.enter_context(socket.socket())  # all the room that its queue has
            filler.connect((host, port))
        yield port


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``resolve(addresses)`` makes them those of claimx.example; ``resolve(until=event)`` is a resolver that hangs."""
    real = socket.getaddrinfo

    def make(*addresses: str, until: threading.Event | None = None) -> None:
        def look_up(host: Any, port: Any, *more: Any) -> Any:
            if host != "claimx.example":
                return real(host, port, *more)
            if until is not None:
                until.wait()
            return [found for address in addresses for found in real(address, port, *more)]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)

    return make


def time_out(link: Connection) -> float:
    """How long a call takes that must end as a timeout."""
    began = time.monotonic()
    with pytest.raises(CallError) as caught:
        link.call("GET", "/x")
    assert caught.value.kind == "timeout"
    return time.monotonic() - began


def test_a_host_whose_addresses_all_hang_gets_one_connect_timeout(resolve: Any) -> None:
    hosts = [f"127.0.0.{number}" for number in range(2, 8)]
    resolve(*hosts)
    with deaf(*hosts) as port:
        settings = ConnectionSettings(
            "claimx", f"http://claimx.example:{port}", connect_timeout_seconds=1.0, max_retries=0
        )
        assert 0.9 < time_out(Connection(settings)) < 4


def test_an_address_that_hangs_leaves_time_for_the_next(resolve: Any, serve: Any) -> None:
    server = serve(answer(200, b"[5]"))
    port = server.server_address[1]
    resolve("127.0.0.2", "127.0.0.1")
    with socket.socket() as listener, socket.socket() as filler:
        listener.bind(("127.0.0.2", port))
        listener.listen(0)
        filler.connect(("127.0.0.2", port))
        settings = ConnectionSettings("claimx", f"http://claimx.example:{port}", connect_timeout_seconds=2.0)
        reply = Connection(settings).call("GET", "/x")
    assert (reply.body, reply.attempts) == (b"[5]", 1)
    assert server.requests[0].headers["host"] == f"claimx.example:{port}"


def test_a_resolver_that_hangs_holds_no_call_beyond_its_deadline(resolve: Any) -> None:
    answered = threading.Event()
    resolve(until=answered)
    try:
        assert time_out(Connection(ConnectionSettings("claimx", "http://claimx.example", deadline_seconds=1.0))) < 5
    finally:
        answered.set()


def test_a_server_silent_in_the_middle_of_tls_holds_no_call_beyond_its_deadline() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(10)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        assert time_out(Connection(ConnectionSettings("claimx", url, deadline_seconds=1.0))) < 5


def test_a_read_timeout_is_that_of_each_try(serve: Any) -> None:
    server = serve(hang, drip_body, answer(200, b"[6]"))
    link = Connection(ConnectionSettings("claimx", server.url, read_timeout_seconds=0.3), random=lambda: 0.0)
    reply = link.call("GET", "/x")
    assert (reply.body, reply.attempts) == (b"[6]", 3)
    assert reply.elapsed < 5


def test_endless_retries_end_at_the_deadline(serve: Any) -> None:
    server = serve(answer(503))
    link = Connection(
        ConnectionSettings("claimx", server.url, deadline_seconds=1.0, max_retries=1_000_000), random=lambda: 0.01
    )
    began = time.monotonic()
    reply = link.call("GET", "/x")
    assert time.monotonic() - began < 5
    assert reply.status == 503
    assert reply.attempts == len(server.requests) > 3


def test_a_body_without_end_is_refused_and_not_tried_again(
    serve: Any, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_BODY_BYTES", 3_000_000)
    server = serve(endless_body(200))
    with pytest.raises(CallError) as caught:
        quick(server.url, pauses).call("GET", "/x")
    assert (caught.value.kind, caught.value.attempts, len(server.requests)) == ("too_large", 1, 1)


def test_a_compressed_bomb_is_refused(serve: Any, pauses: Pauses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_BODY_BYTES", 1_000_000)
    server = serve(answer(200, gzip.compress(b"0" * 20_000_000), content_encoding="gzip"))
    with pytest.raises(CallError) as caught:
        quick(server.url, pauses).call("GET", "/x")
    assert caught.value.kind == "too_large"


def test_a_compressed_answer_is_unpacked(serve: Any, pauses: Pauses) -> None:
    server = serve(answer(200, gzip.compress(b'{"a": 1}'), content_encoding="gzip"))
    assert quick(server.url, pauses).call("GET", "/x").body == b'{"a": 1}'


@pytest.mark.parametrize("fault", [cut_body(201, b'{"id"'), endless_body(201)], ids=["cut", "endless"])
def test_a_write_whose_2xx_answer_is_lost_has_been_done(
    fault: Act, serve: Any, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_BODY_BYTES", 1_500_000)
    server = serve(fault)
    reply = quick(server.url, pauses).call("POST", "/x", body=b"{}")
    assert (reply.status, reply.attempts, len(server.requests)) == (201, 1, 1)


def test_a_write_whose_2xx_answer_drips_has_been_done(serve: Any, pauses: Pauses) -> None:
    server = serve(drip_body)
    reply = quick(server.url, pauses, read_timeout_seconds=0.3).call("POST", "/x", body=b"{}")
    assert (reply.status, reply.attempts) == (200, 1)


def test_the_status_counts_even_if_an_errors_body_is_cut(serve: Any, pauses: Pauses) -> None:
    server = serve(cut_body(400, b"bad"))
    reply = quick(server.url, pauses).call("GET", "/x")
    assert (reply.status, reply.attempts) == (400, 1)


# -- requests


def test_the_request_arrives_as_it_was_meant(serve: Any, pauses: Pauses) -> None:
    server = serve(answer(200))
    quick(server.url + "/base/", pauses, user_agent="cabinet/1").call(
        "PUT", "/a", params={"full": "true", "ids": "1,2&x=y"}, body=b'{"n": 1}', headers={"Idempotency-Key": "e1"}
    )
    seen = server.requests[0]
    assert (seen.method, seen.path, seen.body) == ("PUT", "/base/a?full=true&ids=1%2C2%26x%3Dy", b'{"n": 1}')
    assert (seen.headers["idempotency-key"], seen.headers["user-agent"]) == ("e1", "cabinet/1")
    assert "authorization" not in seen.headers
    assert "cookie" not in seen.headers


def test_cookies_are_not_kept(serve: Any, pauses: Pauses) -> None:
    server = serve(answer(200, set_cookie="a=b"))
    link = quick(server.url, pauses)
    link.call("GET", "/x")
    link.call("GET", "/x")
    assert "cookie" not in server.requests[1].headers


def test_netrc_does_not_replace_the_given_credentials(
    serve: Any, pauses: Pauses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password other\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("TOKEN", SECRET)
    server = serve(answer(200))
    quick(server.url, pauses, auth="bearer:env:TOKEN").call("GET", "/x")
    quick(server.url, pauses).call("GET", "/x")
    assert [seen.headers.get("authorization") for seen in server.requests] == [f"Bearer {SECRET}", None]


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", " a"])
def test_a_header_cannot_be_smuggled_in(value: str, serve: Any, pauses: Pauses) -> None:
    server = serve(answer(200))
    with pytest.raises(ValueError, match="header"):
        quick(server.url, pauses).call("GET", "/x", headers={"Idempotency-Key": value})
    assert server.requests == []


def test_connections_are_reused(serve: Any, pauses: Pauses) -> None:
    server = serve(answer(200, b"x" * 100_000))
    link = quick(server.url, pauses)
    assert [len(link.call("GET", "/x").body) for _ in range(5)] == [100_000] * 5
    assert server.connections == 1


def test_many_threads_may_call(serve: Any) -> None:
    server = serve(answer(200, b"[]", delay=0.05))
    link = Connection(ConnectionSettings("claimx", server.url, concurrency=8))
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda n: link.call("GET", f"/{n}"), range(64)))
    assert [reply.body for reply in replies] == [b"[]"] * 64
    assert sorted(seen.path for seen in server.requests) == sorted(f"/{n}" for n in range(64))
    assert server.connections == 8


def test_a_link_with_the_same_settings_is_shared() -> None:
    settings = ConnectionSettings("claimx", "http://127.0.0.1:9", deadline_seconds=12)
    made: list[Connection] = []
    threads = [threading.Thread(target=lambda: made.append(get_connection(settings))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(link) for link in made}) == 1
    assert get_connection(ConnectionSettings("claimx", "http://127.0.0.1:9", deadline_seconds=13)) is not made[0]


# -- excerpts


def test_an_excerpt_is_one_short_line(serve: Any, pauses: Pauses) -> None:
    server = serve(answer(400, b"first\r\n\tsecond \xff" + b"x" * 1000))
    excerpt = quick(server.url, pauses).call("GET", "/x").excerpt
    assert excerpt.startswith("first second \ufffdxxx")
    assert len(excerpt) == 500
    assert len(excerpt.splitlines()) == 1


# -- credentials


@pytest.mark.parametrize(
    ("auth", "header", "value"),
    [
        ("bearer:env:A", "authorization", "Bearer alpha"),
        ("basic:env:A:env:B", "authorization", "Basic YWxwaGE6YmV0YQ=="),
        ("api_key:X-API-Key:env:B", "x-api-key", "beta"),
        ("basic:file:{tmp}/user:name:env:B", "authorization", "Basic dXNlcjpiZXRh"),
        ("basic:env:A:file:{tmp}/user:name", "authorization", "Basic YWxwaGE6dXNlcg=="),
    ],
)
def test_ways_to_authenticate(
    auth: str, header: str, value: str, serve: Any, pauses: Pauses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A", "alpha")
    monkeypatch.setenv("B", " beta\n")
    (tmp_path / "user:name").write_text("user\n")
    server = serve(answer(200))
    quick(server.url, pauses, auth=auth.format(tmp=tmp_path)).call("GET", "/x")
    assert server.requests[0].headers[header] == value


def test_a_rotated_secret_is_read_after_a_401(serve: Any, pauses: Pauses, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old\n")
    server = serve(answer(200), answer(401), answer(200, b"[3]"))
    link = quick(server.url, pauses, auth=f"bearer:file:{token}", max_retries=0)
    link.call("GET", "/x")
    token.write_text("new\n")
    reply = link.call("GET", "/x")
    assert (reply.body, reply.attempts) == (b"[3]", 2)
    assert [seen.headers["authorization"] for seen in server.requests] == ["Bearer old", "Bearer old", "Bearer new"]


def test_a_401_is_tried_once_more_only(serve: Any, pauses: Pauses, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    server = serve(answer(401))
    link = quick(server.url, pauses, auth=f"bearer:file:{token}")
    token.write_text("new")
    assert (link.call("GET", "/x").status, len(server.requests)) == (401, 2)
    assert (link.call("GET", "/x").status, len(server.requests)) == (401, 3)  # unchanged since: not worth a try


def test_a_secret_gone_after_a_401_leaves_the_401(
    serve: Any, pauses: Pauses, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = tmp_path / "token"
    token.write_text(SECRET)
    server = serve(answer(401))
    link = quick(server.url, pauses, auth=f"bearer:file:{token}")
    token.unlink()
    assert link.call("GET", "/x").status == 401
    expected = f"claimx: after a 401: file:{token} cannot be read: No such file or directory"
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [expected]


def test_secrets_are_never_seen(serve: Any, pauses: Pauses, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TOKEN", SECRET)
    monkeypatch.setenv("USER_NAME", "someone")
    basic = "c29tZW9uZTpzM2NyM3QtdDBrZW4vd2l0aCtzaWducz0="
    echo = f"bad header: {SECRET} {basic}".encode()
    server = serve(answer(503), answer(400, echo), reset)
    texts = []
    for auth in ("bearer:env:TOKEN", "basic:env:USER_NAME:env:TOKEN", "api_key:X-Key:env:TOKEN"):
        link = quick(server.url, pauses, auth=auth, max_retries=1)
        texts += [repr(link), repr(link.settings), repr(Auth.parse(auth)), repr(Auth.parse(auth).resolve())]
        try:
            reply = link.call("GET", "/x")
            texts += [repr(reply), str(reply), reply.excerpt]
        except CallError as error:
            texts += [repr(error), str(error)]
    everything = "\n".join([*texts, caplog.text])
    assert "env:TOKEN" in everything
    assert "bad header: [secret]" in everything
    assert SECRET not in everything
    assert basic not in "\n".join([repr(link), caplog.text])


# -- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": ""}, "base_url: must be http(s)://HOST[:PORT][/PATH], got ''"),
        ({"base_url": "claimx.example"}, "base_url: must be http(s)://"),
        ({"base_url": "ftp://claimx.example"}, "base_url: must be http(s)://"),
        ({"base_url": "http://"}, "base_url: must be http(s)://"),
        ({"base_url": "http://host:99999"}, "base_url: not a URL"),
        ({"base_url": "http://[::1"}, "base_url: not a URL"),
        ({"base_url": "http://a b"}, "base_url: must be http(s)://"),
        ({"base_url": f"http://me:{SECRET}@host"}, "base_url: must not hold a user or password"),
        ({"base_url": "http://me:pass/word@host"}, "base_url: must not hold a user or password"),
        ({"base_url": "http://host?x=1"}, "base_url: must have no query"),
        ({"auth": f"bearer:{SECRET}"}, "auth: a secret must be referred to"),
        ({"auth": f"bearer:env:{SECRET}"}, "auth: a secret must be referred to"),
        ({"auth": "bearer:file:"}, "auth: a secret must be referred to"),
        ({"auth": "basic:env:A"}, "auth: must be none"),
        ({"auth": "none:env:A"}, "auth: must be none"),
        ({"auth": ""}, "auth: must be none"),
        ({"auth": "api_key:X Key:env:A"}, "auth: a header's name may hold"),
        ({"auth": "oauth2:https://host/token:env:ID"}, "auth: must be none"),
        ({"auth": f"oauth2:{SECRET}:env:ID:env:KEY"}, "auth: the token URL of oauth2 must be http(s)://"),
        ({"auth": f"oauth2:https://a:{SECRET}@host/t:env:ID:env:KEY"}, "auth: the token URL of oauth2"),
        ({"auth": f"oauth2:https://host/token:env:ID:{SECRET}"}, "auth: must be none"),
        ({"auth": "oauth2:https://host/token:env:ID:env:KEY:read"}, "auth: a secret must be referred to"),
        ({"auth": "oauth2:https://host/token:env:ID:env:KEY:scope="}, "auth: the scope of oauth2"),
        ({"auth": "oauth2:https://host/token:env:ID:env:KEY:scope=a\nb"}, "auth: the scope of oauth2"),
        ({"tls": TlsFiles(client_key="/k.pem")}, "client_key: has no use without client_cert"),
        ({"base_url": "http://host", "tls": TlsFiles(ca="/ca.pem")}, "ca: has no use for http://host"),
        ({"base_url": "http://host", "tls": TlsFiles(client_cert="/c.pem")}, "client_cert: has no use for"),
    ],
)
def test_wrong_settings_are_refused_by_their_field(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        ConnectionSettings(**{"name": "claimx", "base_url": "https://claimx.example", **settings})
    assert f"{caught.value.field}: {caught.value}".startswith(message)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "cannot be read: No such file or directory"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.write_text(" \n"), "is empty"),
        (lambda path: path.write_text(f"{SECRET}\n{SECRET}"), "holds a line break"),
        (lambda path: path.write_bytes(b"\xff\xfe" + SECRET.encode()), "holds a line break or a character"),
        (lambda path: path.write_text(SECRET * 10_000), "is larger than 65536 bytes"),
    ],
)
def test_a_file_without_a_usable_secret(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    make(path)
    with pytest.raises(UnresolvedSecretError) as caught:
        Connection(ConnectionSettings("itel", "https://itel.example", f"bearer:file:{path}"))
    assert caught.value.field == "auth"
    assert str(caught.value).startswith(f"file:{path} {message}")
    assert SECRET not in str(caught.value)


def test_a_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ITEL_CABINET_API_TOKEN", raising=False)
    with pytest.raises(UnresolvedSecretError) as caught:
        ConnectionSettings("itel", "https://itel.example", "bearer:env:ITEL_CABINET_API_TOKEN").credentials()
    assert caught.value.field == "auth"
    assert str(caught.value) == (
        "env:ITEL_CABINET_API_TOKEN is not set: set this environment variable where the job's workers run"
    )


def test_a_reference_shows_itself_only() -> None:
    ref = SecretRef.parse("file:/run/secrets/token")
    assert (str(ref), ref.kind, ref.name) == ("file:/run/secrets/token", "file", "/run/secrets/token")
