"""One HTTP request and its answer, bounded in time and size: what a connection tries again and again.

Redirects are not followed (a 3xx is an answer), cookies are not kept, TLS certificates are always checked. A proxy and
a CA bundle of the environment (``HTTPS_PROXY``, ``NO_PROXY``, ``REQUESTS_CA_BUNDLE``) are honoured, because many
networks cannot do without; ``.netrc`` is not, because it would replace the credentials the job was given.
"""

from __future__ import annotations

import http.client
import io
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util import Timeout
from urllib3.util.connection import allowed_gai_family

from itel_cabinet.io.secrets import UnresolvedSecretError

__all__ = [
    "EXCERPT_CHARACTERS",
    "MAX_BODY_BYTES",
    "CallError",
    "FailureKind",
    "Reply",
    "TimedResponse",
    "TlsFiles",
    "Transport",
    "TransportSettings",
    "check_url",
]

MAX_BODY_BYTES = 16 * 1024 * 1024  # far above any task or media list, and as many threads may each hold one
EXCERPT_CHARACTERS = 500
_MAX_PEM_BYTES = 4 * 1024 * 1024  # the bundle of all public authorities has 0.3 MB

FailureKind = Literal["timeout", "unreachable", "reset", "too_large", "outage", "unauthorized", "breaker_open"]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of any status.

    ``headers`` ignore case. ``excerpt`` is the body's beginning as one line of at most 500 characters, secrets taken
    out. ``attempts`` and ``elapsed`` (seconds) are those of the whole call.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    excerpt: str = field(default="", repr=False)
    attempts: int = 1
    elapsed: float = 0.0

    @property
    def ok(self) -> bool:
        """A 2xx."""
        return 200 <= self.status < 300


class CallError(Exception):
    """The last try brought no usable answer.

    ``kind`` is a stable name:

    - ``timeout``, ``unreachable`` (no connection: refused, unknown host, TLS), ``reset`` (the connection broke, or what
      came is not HTTP), ``too_large``: the API, or its token endpoint;
    - ``outage``: the token endpoint answers 5xx, 408, 425, 429 or no token;
    - ``unauthorized``: the token endpoint refuses the client, or the secrets for it cannot be read;
    - ``breaker_open``: the API was not called (again), since most of the last tries failed.

    ``attempts`` counts the tries, 0 if there was none. ``last`` is the answer of an earlier try, if there was one.
    ``retry_after`` is what the token endpoint's header of that name says.
    """

    def __init__(
        self,
        kind: FailureKind,
        detail: str,
        *,
        attempts: int = 1,
        last: Reply | None = None,
        retry_after: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind: FailureKind = kind
        self.attempts = attempts
        self.last = last
        self.retry_after = retry_after


def check_url(text: str, *, query: bool = False) -> str:
    """``text``, if it is an http(s) URL without user and fragment (and without a query, unless ``query``); else
    ValueError. The error never quotes a URL that holds a user."""
    if "@" in text:  # first of all: the other texts quote the URL
        raise ValueError("must not hold a user or password")
    try:
        url = urlsplit(text)
        host, _ = url.hostname, url.port  # the port is checked when it is asked for
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not host or re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ValueError(f"must be http(s)://HOST[:PORT][/PATH], got {text!r}")
    if (url.query and not query) or url.fragment:
        raise ValueError(f"must have no query and no fragment, got {text!r}")
    return text


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files, read where the job's workers run; an empty name is none.

    ``ca`` holds certificates to trust beside the usual authorities. ``client_cert`` is what we show the server (mTLS),
    with its chain; ``client_key`` its key, which may also stand in the same file. The client's files are read again for
    each connection that is opened, so renewed ones need no restart.
    """

    ca: str = ""
    client_cert: str = ""
    client_key: str = ""

    def check(self) -> str | None:
        """Read the files now; the text of ``ca``, or None. Raises UnresolvedSecretError with the field."""
        context = ssl.create_default_context()
        authorities = _pem("ca", self.ca) if self.ca else None
        if authorities is not None:
            try:
                context.load_verify_locations(cadata=authorities)
            except (ssl.SSLError, ValueError):
                raise UnresolvedSecretError(f"{self.ca} holds no certificate in PEM form", field="ca") from None
        if self.client_cert:
            for name, path in (("client_cert", self.client_cert), ("client_key", self.client_key)):
                if path and "ENCRYPTED" in _pem(name, path):
                    raise UnresolvedSecretError(f"{path} needs a passphrase: give a key without one", field=name)
            try:
                context.load_cert_chain(self.client_cert, self.client_key or None)
            except (ssl.SSLError, OSError):
                raise UnresolvedSecretError(
                    f"{self.client_cert} and {self.client_key or 'the key in it'} are no certificate in PEM form with "
                    "its own key",
                    field="client_cert",
                ) from None
        return authorities

    @property
    def client(self) -> str | tuple[str, str] | None:
        """As requests takes it."""
        return (self.client_cert, self.client_key) if self.client_key else self.client_cert or None


def _pem(name: str, path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_PEM_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no path"
        raise UnresolvedSecretError(f"{path!r} cannot be read: {reason}", field=name) from None
    if len(content) > _MAX_PEM_BYTES:
        raise UnresolvedSecretError(
            f"{path} is larger than {_MAX_PEM_BYTES} bytes: this is no certificate's file", field=name
        )
    return content.decode("ascii", errors="ignore")  # comments in other alphabets


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """Where to, and within which bounds. Hashable, free of secrets.

    ``connect_timeout_seconds`` bounds looking the host up and connecting, ``read_timeout_seconds`` the whole answer,
    from the request's last byte to the answer's. ``concurrency`` is how many idle connections are kept for reuse.
    """

    base_url: str
    connect_timeout_seconds: float = 5.0
    read_timeout_seconds: float = 10.0
    concurrency: int = 32
    user_agent: str = "itel-cabinet"
    tls: TlsFiles = field(default_factory=TlsFiles)


class Transport:
    """Sends requests to one base URL over kept connections. Thread-safe. Raises UnresolvedSecretError for unusable TLS
    files."""

    def __init__(self, settings: TransportSettings) -> None:
        self.settings = settings
        authorities = settings.tls.check()
        self._adapter = _Adapter(authorities, pool_connections=4, pool_maxsize=settings.concurrency)
        self._proxies = requests.utils.get_environ_proxies(settings.base_url)
        self._verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True

    def close(self) -> None:
        """Close the idle connections. A later request opens new ones."""
        self._adapter.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str],
        redact: Callable[[str], str],
        seconds: float,
    ) -> Reply | CallError:
        """One try within ``seconds``, and within the settings' bounds. A failure is a value here.

        ``redact`` is applied to the answer's excerpt. A lost answer is not a failure: a write (any method but GET and
        HEAD) that was answered by a 2xx status line has been done, even if the body then never comes; it is returned as
        far as it came. So is the body of any status but 2xx. A body over MAX_BODY_BYTES is too large, and cut off
        likewise. Raises ValueError for a header that none can carry.
        """
        request = requests.Request(
            method,
            self.settings.base_url.rstrip("/") + path,
            params=params,
            data=body,
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
                "User-Agent": self.settings.user_agent,
                **headers,
            },
        ).prepare()
        limits = Timeout(
            total=max(seconds, 0.001),
            connect=self.settings.connect_timeout_seconds,
            read=self.settings.read_timeout_seconds,
        )
        try:
            # The adapter, not a Session: a Session reads a redirect's body whole, and keeps cookies.
            response = self._adapter.send(
                request,
                stream=True,
                timeout=limits,  # type: ignore[arg-type]  # requests takes it, its stubs do not
                verify=self._verify,
                cert=self.settings.tls.client,
                proxies=self._proxies,
            )
        except (OSError, urllib3.exceptions.HTTPError) as error:  # requests' own errors are OSErrors
            return _failure(error)
        content, cut = _read(response)
        if cut is not None and 200 <= response.status_code < 300 and method in ("GET", "HEAD"):
            return cut
        excerpt = " ".join(redact(content[:65_536].decode("utf-8", errors="replace")).split())
        return Reply(response.status_code, response.headers, content, excerpt[:EXCERPT_CHARACTERS])


def _read(response: requests.Response) -> tuple[bytes, CallError | None]:
    """The body as far as it came, and why it ended early if it did."""
    chunks: list[bytes] = []
    size = 0
    try:
        for chunk in response.raw.stream(65_536, decode_content=True):
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                return b"".join(chunks), CallError("too_large", f"the answer is larger than {MAX_BODY_BYTES} bytes")
            chunks.append(chunk)
    except (OSError, urllib3.exceptions.HTTPError) as error:
        return b"".join(chunks), _failure(error)
    finally:
        response.close()
    return b"".join(chunks), None


def _failure(error: Exception) -> CallError:
    """What a library's exception means. Its own text is left out: it holds the whole URL, with its query."""
    causes = list(_causes(error))
    # NewConnectionError (refused, unknown host) is a TimeoutError to urllib3, for history's sake.
    unconnected = any(isinstance(cause, urllib3.exceptions.NewConnectionError) for cause in causes)
    if not unconnected and any(isinstance(cause, urllib3.exceptions.TimeoutError | TimeoutError) for cause in causes):
        return CallError("timeout", "no complete answer in time")
    reasons = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
    detail = reasons[-1] if reasons else type(causes[-1]).__name__
    if any(isinstance(cause, urllib3.exceptions.ProtocolError | urllib3.exceptions.DecodeError) for cause in causes):
        return CallError("reset", f"the connection broke: {detail}")
    return CallError("unreachable", f"no connection: {detail}")


def _causes(error: BaseException | None) -> list[BaseException]:
    """An exception and what led to it, outermost first."""
    found: list[BaseException] = []
    pending = [error]
    while pending:
        cause = pending.pop(0)
        if cause is None or cause in found:
            continue
        found.append(cause)
        reason = getattr(cause, "reason", None)
        pending += [item for item in (*cause.args, reason) if isinstance(item, BaseException)]
        pending += [cause.__cause__, cause.__context__]
    return found


# ------------------------------------------------------------------------------------------ a bound on a whole answer


class _TimedReads(io.RawIOBase):
    """A socket's bytes until a moment. A socket's own timeout begins again with each byte, so a server that drips
    outlives it."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock
        self._end = time.monotonic() + (sock.gettimeout() or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class TimedResponse(http.client.HTTPResponse):
    """An answer whose headers and body together must come within the read timeout that urllib3 has set on the
    socket."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp: io.BufferedReader = io.BufferedReader(_TimedReads(self.fp.detach(), sock))


class _TimedConnect(HTTPConnection):
    """A connection whose connect timeout holds for the look-up of the host's name and all its addresses together;
    urllib3 leaves the look-up unbounded, and grants each address the whole time."""

    response_class = TimedResponse

    def _new_conn(self) -> socket.socket:
        name, seconds = self._dns_host, self.timeout or 0.0
        end = time.monotonic() + seconds
        failure: Exception = ConnectTimeoutError(self, "no address in time")
        try:
            addresses = _addresses(name, self.port, seconds)
            for tried, address in enumerate(addresses):
                self._dns_host = address
                self.timeout = max(0.001, (end - time.monotonic()) / (len(addresses) - tried))
                try:
                    sock = super()._new_conn()
                    sock.settimeout(max(0.001, end - time.monotonic()))  # what is left for TLS to agree
                    return sock
                except (NewConnectionError, ConnectTimeoutError) as error:
                    failure = error
        except socket.gaierror as error:
            failure = NameResolutionError(name, self, error)
        except TimeoutError:
            pass
        finally:
            self._dns_host, self.timeout = name, seconds
        raise failure


def _addresses(host: str, port: int, seconds: float) -> list[str]:
    """What the resolver says, within ``seconds`` (else TimeoutError). It cannot be broken off, so it has a thread of
    its own, which ends when the resolver gives up."""
    answer: Future[list[str]] = Future()

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(host, port, allowed_gai_family(), socket.SOCK_STREAM)
            answer.set_result(list(dict.fromkeys(str(info[4][0]) for info in infos)))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=look_up, name=f"look-up-{host}", daemon=True).start()
    return answer.result(seconds)


class _TlsConnection(_TimedConnect, HTTPSConnection):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _TimedConnect


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


_POOLS = {"http": _PlainPool, "https": _TlsPool}


class _Adapter(HTTPAdapter):
    """requests' adapter over those connections, with and without a proxy, which may trust more authorities."""

    def __init__(self, authorities: str | None, **kwargs: Any) -> None:
        self._tls: dict[str, Any] = {} if authorities is None else {"ca_cert_data": authorities}
        super().__init__(**kwargs)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **(kwargs | self._tls))
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **(kwargs | self._tls))
        manager.pool_classes_by_scheme = _POOLS
        return manager
