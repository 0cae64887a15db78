"""Downloads from addresses that somebody else has written down: what is fetched, and where no link may lead."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itel_cabinet.io.http import AllowedHosts, DownloadError, Downloads, DownloadSettings
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
    reset,
    unused_port,
)

LOCAL = AllowedHosts(("127.0.0.1",))
JPEG = b"\xff\xd8\xff\xe0 a photo"


def downloads(allowed: AllowedHosts = LOCAL, **changes: Any) -> Downloads:
    settings = DownloadSettings(**{"allowed": allowed, "deadline_seconds": 20.0, "max_bytes": 100_000, **changes})
    return Downloads(settings, sleep=lambda _: None)


def fetched(url: str, **changes: Any) -> bytes:
    with downloads(**changes).image(url) as content:
        return content.read()


def failed(url: str, **changes: Any) -> tuple[str, str]:
    with pytest.raises(DownloadError) as caught, downloads(**changes).image(url):
        pytest.fail("it was fetched")
    return caught.value.reason, str(caught.value)


def photo(body: bytes = JPEG, kind: str = "image/jpeg", **headers: str) -> Act:
    return answer(200, body, Content_Type=kind, **headers)


# What is fetched


def test_each_hop_gets_the_headers_that_are_meant_for_it() -> None:
    with FaultyServer(photo()) as store, FaultyServer(answer(302, Location=f"{store.url}/kept?sign=x")) as claimx:
        own = {"Authorization": "Bearer token"}
        with downloads().image(
            f"{claimx.url}/media/1", lambda link: own if link.startswith(claimx.url) else {}
        ) as content:
            assert content.read() == JPEG
    assert [seen.headers.get("authorization") for seen in (*claimx.requests, *store.requests)] == ["Bearer token", None]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (JPEG, "image/jpeg"),
        (b"anything", "Image/HEIC; q=1"),
        (JPEG, "application/octet-stream"),
        (b"\x89PNG\r\n\x1a\n...", "binary/octet-stream"),
        (b"\x00\x00\x00\x18ftypheic", ""),
        (JPEG * 5_000, "image/jpeg"),
    ],
)
def test_an_image_is_fetched_whole(body: bytes, kind: str) -> None:
    with FaultyServer(photo(body, kind)) as server:
        assert fetched(f"{server.url}/a%20b?sign=x") == body
    [seen] = server.requests
    assert seen.path == "/a%20b?sign=x"
    assert not {"authorization", "cookie"} & seen.headers.keys()
    assert seen.headers["accept-encoding"] == "identity"


def test_a_large_image_is_not_held_in_memory() -> None:
    with FaultyServer(photo(JPEG * 200_000)) as server, downloads(max_bytes=10_000_000).image(server.url) as content:
        assert content._rolled  # type: ignore[attr-defined]
        assert len(content.read()) == len(JPEG) * 200_000


def test_no_room_for_temporary_files_is_not_the_server_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "read-only root"))
    with FaultyServer(photo(JPEG * 200_000)) as server:
        reason, text = failed(server.url, max_bytes=10_000_000)
        assert (reason, text) == ("no_room", "no room for temporary files: No such file or directory")
        assert len(server.requests) == 1, "another try would find no more room"
    with FaultyServer(photo()) as server:
        assert fetched(server.url) == JPEG, "small ones need none"


@pytest.mark.parametrize("first", [answer(503), answer(429), cut_body(200), reset, garbage])
def test_what_fails_on_the_way_is_tried_again(first: Act) -> None:
    with FaultyServer(first, first, photo()) as server:
        assert fetched(server.url) == JPEG
    assert len(server.requests) == 3


def test_a_failure_that_stays_is_told_after_four_tries() -> None:
    with FaultyServer(answer(503)) as server:
        assert failed(server.url) == ("download", "status 503 (4 tries)")
    assert failed(f"http://127.0.0.1:{unused_port()}/") == ("download", "no connection: Connection refused (4 tries)")


@pytest.mark.parametrize("act", [hang, drip_headers, drip_body])
def test_a_download_ends_within_its_deadline(act: Act) -> None:
    with FaultyServer(act) as server:
        began = time.monotonic()
        reason, text = failed(server.url, deadline_seconds=0.5)
        assert time.monotonic() - began < 10
    assert (reason, text.partition(" (")[0]) == ("download", "no complete answer in time")


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_an_expired_link_is_told_as_such_at_once(status: int) -> None:
    with FaultyServer(answer(status)) as server:
        assert failed(server.url) == ("expired", f"status {status}")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("act", "reason", "text"),
    [
        (photo(b"<html>", "text/html"), "wrong_type", "the answer is no image"),
        (photo(b"<svg/>", "image/svg+xml"), "wrong_type", "the answer is no image"),
        (photo(b"<html>", "application/octet-stream"), "wrong_type", "has no type, and its content is no image"),
        (photo(b""), "wrong_type", "the answer is empty"),
        (photo(JPEG, Content_Encoding="gzip"), "wrong_type", "the answer is compressed"),
        (photo(JPEG * 20_000), "too_large", "more than 100000 bytes"),
        (answer(204), "download", "status 204"),
        (answer(400), "download", "status 400"),
    ],
)
def test_what_is_no_photo_is_refused_at_once(act: Act, reason: str, text: str) -> None:
    with FaultyServer(act) as server:
        told = failed(server.url)
    assert told[0] == reason
    assert text in told[1]
    assert len(server.requests) == 1


def test_a_body_without_end_is_cut_off() -> None:
    with FaultyServer(endless_body(200)) as server:
        assert failed(server.url)[0] in ("wrong_type", "too_large")


# Where no link may lead

PRIVATE = [
    "127.0.0.1",
    "127.8.9.1",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "2002:7f00:1::",
    "64:ff9b::a9fe:a9fe",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_not_permitted(address: str) -> None:
    assert not AllowedHosts(("*.example.com", "example.com")).permits(ipaddress.ip_address(address))
    literal = f"[{address}]" if ":" in address else address
    for scheme in ("http", "https"):
        reason, text = failed(f"{scheme}://{literal}/x", allowed=AllowedHosts(("*.example.com", "example.com")))
        assert (reason, text) == ("refused", f"{address} is not an allowed host")


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_a_public_address_is_permitted_by_https_only(address: str) -> None:
    assert AllowedHosts(()).permits(ipaddress.ip_address(address))
    assert not AllowedHosts(()).permits(ipaddress.ip_address(address), "http")


def test_a_listed_network_is_permitted_and_no_other() -> None:
    allowed = AllowedHosts(("10.1.0.0/16", "fd00::/8"))
    permitted = ("10.1.2.3", "fd00::1", "::ffff:10.1.2.3")
    assert [allowed.permits(ipaddress.ip_address(a), "http") for a in permitted] == [True] * 3
    assert not allowed.permits(ipaddress.ip_address("10.2.0.1"))


@pytest.mark.parametrize(
    ("link", "text"),
    [
        ("file:///etc/passwd", "the link is not http(s)://HOST/..."),
        ("ftp://photos.example/x", "the link is not http(s)://HOST/..."),
        ("gopher://photos.example/", "the link is not http(s)://HOST/..."),
        ("data:image/png;base64,xx", "the link is not http(s)://HOST/..."),
        ("//photos.example/x", "the link is not http(s)://HOST/..."),
        ("/etc/passwd", "the link is not http(s)://HOST/..."),
        ("https:///x", "the link is not http(s)://HOST/..."),
        ("https://user:pw@photos.example/x", "the link holds a user name"),
        ("https://photos.example@10.0.0.1/x", "the link holds a user name"),
        ("https://elsewhere.example/x", "elsewhere.example is not an allowed host"),
        ("https://photos.example.evil.example/", "photos.example.evil.example is not an allowed host"),
        ("https://evilphotos.example/", "evilphotos.example is not an allowed host"),
        ("https://2130706433/", "2130706433 is not an allowed host"),
        ("https://0x7f.1/", "0x7f.1 is not an allowed host"),
        ("https://[::1/", "the link is no URL"),
        ("https://photos.example:99999/", "the link is no URL"),
        ("https://photos.example\\@10.0.0.1/", "the link is no URL"),
        ("https://photos.example\t/x", "the link is no URL"),
        ("", "the link is not http(s)://HOST/..."),
    ],
)
def test_a_link_that_leads_elsewhere_is_refused(link: str, text: str) -> None:
    assert failed(link, allowed=AllowedHosts(("photos.example", "*.photos.example"))) == ("refused", text)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Have each look-up of a name lead to the next of ``addresses``, the last one for good; the names asked for."""
    asked, left = [], list(addresses)
    original = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if host[0].isdigit() or ":" in host:
            return original(host, port, *args, **kwargs)
        asked.append(host)
        return original(left.pop(0) if len(left) > 1 else left[0], port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1"])
def test_a_good_name_that_leads_to_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    asked = resolve_to(monkeypatch, address)
    told = failed("https://photos.example/x", allowed=AllowedHosts(("photos.example",)))
    assert told == ("refused", f"photos.example leads to {address}, which is not public")
    assert asked == ["photos.example"], "looked up once: what is checked is what would be connected to"


def test_plain_http_to_a_public_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "8.8.8.8")
    told = failed("http://photos.example/x", allowed=AllowedHosts(("photos.example",)))
    assert told == ("refused", "photos.example leads to 8.8.8.8, which is public, by http")


def test_a_name_that_changes_its_address_is_checked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the second connection would go to another address than the first."""
    with FaultyServer(reset) as server:
        port = server.server_address[1]
        asked = resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2")
        told = failed(f"http://photos.example:{port}/x", allowed=AllowedHosts(("photos.example", "127.0.0.1")))
    assert told == ("refused", "photos.example leads to 127.0.0.2, which is not public")
    assert (len(server.requests), len(asked)) == (1, 2)


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.2:{port}/secret",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "http://[::1]:{port}/",
        "http://localhost:{port}/",
        "file:///etc/passwd",
        "https://elsewhere.example/",
        "http://[bad",
    ],
)
def test_a_redirect_to_where_no_link_may_lead_is_refused(target: str) -> None:
    with FaultyServer(photo()) as secret:
        location = target.replace("{port}", str(secret.server_address[1]))
        with FaultyServer(answer(302, Location=location)) as server:
            reason, _ = failed(server.url)
    assert reason == "refused"
    assert secret.requests == []


def test_redirects_to_allowed_hosts_are_followed_but_not_without_end() -> None:
    with FaultyServer(photo()) as store:
        steps = [answer(status, Location="/next") for status in (301, 303, 307)]
        with FaultyServer(*steps, answer(308, Location=f"{store.url}/photo?sign=1")) as server:
            assert fetched(server.url) == JPEG
        assert [seen.path for seen in store.requests] == ["/photo?sign=1"]
    with FaultyServer(answer(302, Location="/again")) as server:
        assert failed(server.url) == ("refused", "more than 5 redirects")
    assert len(server.requests) == 6


def test_a_certificate_that_nobody_vouches_for_is_no_connection(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(tmp_path))
    with FaultyServer(photo(), tls=context) as server:
        reason, text = failed(server.url)
    assert (reason, "certificate verify failed" in text, "(4 tries)" in text) == ("download", True, True)
    assert server.requests == []


@pytest.mark.parametrize("entry", ["", "https://x", "a b", "*", "*.*", "x/y", "10.0.0.0/99", "a..b"])
def test_what_is_no_host_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="is no host name"):
        AllowedHosts((entry,))


@given(st.text(), st.sampled_from(["", "http://", "https://", "https://photos.example/", "https://photos.example"]))
def test_no_link_crashes_the_guard(text: str, start: str) -> None:
    outcome: Any
    try:
        outcome = AllowedHosts(("photos.example",)).check(start + text)
    except DownloadError as error:
        outcome = error
    if isinstance(outcome, DownloadError):
        assert outcome.reason == "refused"
        assert len(str(outcome)) < 400
    else:
        assert (outcome.host, outcome.auth) in [("photos.example", None), ("photos.example.", None)]
