"""One named HTTP API: its address, credentials, time limits and retries.

:class:`Connection` is what the clients of ClaimX and iTel stand on. Take one from :func:`connection`, which keeps one
for each settings and process::

    claimx = connection(ConnectionSettings("claimx", "https://claimx.example", "bearer:env:CLAIMX_API_TOKEN"))
    reply = claimx.call("GET", "/customTasks/assignment/5430007", params={"full": "true"})

Redirects are not followed (a 3xx is returned as it is), cookies are not kept, TLS certificates are always checked. A
proxy and a CA bundle of the environment (``HTTPS_PROXY``, ``NO_PROXY``, ``REQUESTS_CA_BUNDLE``) are honoured, because
many networks cannot do without; ``.netrc`` is not, because it would replace the credentials the job was given.
"""

from __future__ import annotations

import base64
import http.client
import io
import logging
import os
import random
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry, Timeout

from itel_cabinet.io.process import once_per_process
from itel_cabinet.io.secrets import SecretRef, UnresolvedSecret

__all__ = [
    "EXCERPT_CHARACTERS",
    "MAX_BODY_BYTES",
    "Auth",
    "CallFailed",
    "Connection",
    "ConnectionSettings",
    "Credentials",
    "FailureKind",
    "Reply",
    "check_header_name",
    "connection",
    "is_transient",
]

MAX_BODY_BYTES = 16 * 1024 * 1024  # far above any task or media list, and as many threads may each hold one
EXCERPT_CHARACTERS = 500
BACKOFF_BASE_SECONDS = 0.5
BACKOFF_CAP_SECONDS = 10.0

FailureKind = Literal["timeout", "unreachable", "reset", "too_large"]

_log = logging.getLogger(__name__)


# -------------------------------------------------------------------------------------------------------- credentials


@dataclass(frozen=True, slots=True)
class Credentials:
    """Resolved secrets: the headers to send, and every text that must not be seen. Neither is in its repr."""

    headers: Mapping[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)

    def redact(self, text: str) -> str:
        """``text`` with each secret replaced by ``[secret]``: some servers echo the request in their errors."""
        for secret in self.secrets:
            text = text.replace(secret, "[secret]")
        return text


@dataclass(frozen=True, slots=True)
class Auth:
    """How to authenticate, by reference. Written ``none``, ``bearer:REF``, ``basic:REF:REF`` or
    ``api_key:HEADER:REF``."""

    scheme: Literal["none", "bearer", "basic", "api_key"]
    header: str = "Authorization"
    refs: tuple[SecretRef, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Auth:
        """Read the written form. Raises ValueError, which says what is expected but never quotes what may be a
        secret."""
        scheme, _, rest = text.partition(":")
        # A reference holds a colon itself, so the parts are told apart by what each begins with.
        parts = re.split(r":(?=(?:env|file):)", rest) if rest else []
        if scheme == "none" and not parts:
            return cls("none")
        if scheme == "bearer" and len(parts) == 1:
            return cls("bearer", refs=(SecretRef.parse(parts[0]),))
        if scheme == "basic" and len(parts) == 2:
            return cls("basic", refs=(SecretRef.parse(parts[0]), SecretRef.parse(parts[1])))
        if scheme == "api_key" and len(parts) == 2:
            return cls("api_key", check_header_name(parts[0]), (SecretRef.parse(parts[1]),))
        if scheme == "oauth2":
            raise ValueError("oauth2 is not available in this version: use bearer, basic or api_key")
        raise ValueError(
            "must be none, bearer:REF, basic:REF:REF or api_key:HEADER:REF, where REF is env:NAME or file:PATH "
            "(what was given is not shown: it may hold a secret)"
        )

    def resolve(self) -> Credentials:
        """Read the secrets now. Raises UnresolvedSecret."""
        values = tuple(ref.resolve() for ref in self.refs)
        if self.scheme == "none":
            return Credentials({}, ())
        if self.scheme == "api_key":
            return Credentials({self.header: values[0]}, values)
        if self.scheme == "bearer":
            return Credentials({self.header: f"Bearer {values[0]}"}, values)
        if ":" in values[0]:
            raise UnresolvedSecret(f"{self.refs[0]} holds a colon: no user name of basic authentication can")
        token = base64.b64encode(":".join(values).encode()).decode()
        return Credentials({self.header: f"Basic {token}"}, (token, values[1]))


def check_header_name(name: str) -> str:
    """``name``, if it can be an HTTP header's; else ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
        raise ValueError("a header's name may hold letters, digits and -")
    return name


# ----------------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """All that is said about one API. Hashable, free of secrets; checked when made (ValueError names the option).

    ``name`` is ``claimx`` or ``itel``: the options in the error texts are ``--{name}_url``, ``--{name}_auth`` and so
    on.

    ``deadline_seconds`` bounds one call with all its tries and pauses; ``connect_timeout_seconds`` bounds connecting to
    one address; ``read_timeout_seconds`` bounds one try's whole answer, from the request's last byte to the answer's.
    ``max_retries`` counts the tries after the first. ``concurrency`` is how many idle connections are kept for reuse;
    it should be the number of threads that call.
    """

    name: str
    base_url: str
    auth: str = "none"
    deadline_seconds: float = 30.0
    connect_timeout_seconds: float = 5.0
    read_timeout_seconds: float = 10.0
    max_retries: int = 9
    concurrency: int = 32
    user_agent: str = "itel-cabinet"

    def __post_init__(self) -> None:
        self._check_url()
        try:
            Auth.parse(self.auth)
        except ValueError as error:
            raise ValueError(f"--{self.name}_auth: {error}") from None
        for option, value in (
            (f"--{self.name}_deadline_seconds", self.deadline_seconds),
            ("connect_timeout_seconds", self.connect_timeout_seconds),
            ("read_timeout_seconds", self.read_timeout_seconds),
        ):
            if not 0 < value < float("inf"):
                raise ValueError(f"{option}: must be more than 0 seconds, got {value}")
        if self.max_retries < 0:
            raise ValueError(f"--max_retries: must be 0 or more, got {self.max_retries}")
        if self.concurrency < 1:
            raise ValueError(f"--http_concurrency: must be 1 or more, got {self.concurrency}")

    def _check_url(self) -> None:
        option = f"--{self.name}_url"
        if "@" in self.base_url:  # first of all: the other texts quote the URL
            raise ValueError(f"{option}: must not hold a user or password; give them by --{self.name}_auth")
        try:
            url = urlsplit(self.base_url)
            host, _ = url.hostname, url.port  # the port is checked when it is asked for
        except ValueError as error:
            raise ValueError(f"{option}: not a URL: {error}") from None
        if url.scheme not in ("http", "https") or not host or re.search(r"[\s\x00-\x1f\x7f]", self.base_url):
            raise ValueError(f"{option}: must be http(s)://HOST[:PORT][/PATH], got {self.base_url!r}")
        if url.query or url.fragment:
            raise ValueError(f"{option}: must have no query and no fragment, got {self.base_url!r}")

    def credentials(self) -> Credentials:
        """Resolve the secrets now; ``run`` calls this to refuse early. Raises UnresolvedSecret, naming option and
        reference."""
        try:
            return Auth.parse(self.auth).resolve()
        except UnresolvedSecret as error:
            raise UnresolvedSecret(f"--{self.name}_auth: {error}") from None


# -------------------------------------------------------------------------------------------------------------- calls


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, whatever its status.

    ``headers`` ignore case. ``excerpt`` is the body's beginning as one line of at most 500 characters, secrets taken
    out. ``attempts`` and ``elapsed`` (seconds) tell of the whole call.
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


class CallFailed(Exception):
    """The last try brought no usable answer.

    ``kind`` is a stable name: ``timeout``, ``unreachable`` (no connection: refused, unknown host, TLS), ``reset`` (the
    connection broke, or what came is not HTTP) or ``too_large``. ``last`` is the answer of an earlier try, if there was
    one.
    """

    def __init__(self, kind: FailureKind, detail: str, *, attempts: int = 1, last: Reply | None = None) -> None:
        super().__init__(detail)
        self.kind: FailureKind = kind
        self.attempts = attempts
        self.last = last


def is_transient(status: int) -> bool:
    """Whether a status is worth another try: 408, 425, 429, and 5xx except 501."""
    return status in (408, 425, 429) or (500 <= status < 600 and status != 501)


@dataclass
class Connection:
    """Calls to one API. Thread-safe; made once for its settings by :func:`connection`.

    Secrets are resolved when it is made (UnresolvedSecret) and again after a 401. ``clock`` is monotonic, in seconds;
    it, ``sleep`` and ``random`` (0 to 1) steer the pauses between tries only: sockets keep real time.
    """

    settings: ConnectionSettings
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random
    _credentials: Credentials = field(init=False, repr=False)
    _adapter: HTTPAdapter = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._credentials = self.settings.credentials()
        self._adapter = _Adapter(pool_connections=4, pool_maxsize=self.settings.concurrency)
        self._proxies = requests.utils.get_environ_proxies(self.settings.base_url)
        self._verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True

    def close(self) -> None:
        """Close the idle connections. A later call opens new ones."""
        self._adapter.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        unusable: Callable[[Reply], bool] = lambda _: False,
    ) -> Reply:
        """Send a request until it is answered for good, within ``deadline_seconds``.

        Tried again, with full jitter or as ``Retry-After`` says: no connection, a broken one, a timeout, 408, 425, 429,
        5xx except 501, and a 2xx that ``unusable`` refuses. A 401 is tried once more if the secret has changed
        meanwhile. So a request may arrive more than once: a write needs an idempotency key among its ``headers``.

        Returns the last try's reply, whatever its status, for the caller to judge; raises CallFailed if the last try
        had none.

        A lost answer is not a failure: a write (any method but GET and HEAD) that was answered by a 2xx status line has
        been done, even if the body then never comes; it is returned as far as it came. So is the body of any status but
        2xx. A body over MAX_BODY_BYTES is too large, and cut off likewise.

        The time bound holds against servers that hang or drip. Looking up the host's name, and a host of several
        addresses which all hang, can take a call beyond it: by the resolver's own timeout, and by
        ``connect_timeout_seconds`` for each further address.
        """
        started = self.clock()
        deadline = started + self.settings.deadline_seconds
        attempts = 0
        renewed = False
        last: Reply | None = None
        while True:
            attempts += 1
            credentials = self._credentials
            request = self._prepare(method, path, params, body, headers, credentials)
            outcome = self._attempt(request, credentials, deadline - self.clock())
            if isinstance(outcome, Reply):
                last = outcome = replace(outcome, attempts=attempts, elapsed=self.clock() - started)
                if outcome.status == 401 and not renewed and self.clock() < deadline and self._renew(credentials):
                    renewed = True
                    continue
                again = is_transient(outcome.status) or (outcome.ok and unusable(outcome))
            else:
                again = outcome.kind != "too_large"
            pause = self._pause(attempts, outcome)
            if not again or attempts > self.settings.max_retries or self.clock() + pause >= deadline:
                break
            _log.debug("%s: try %d: %s; again in %.2f s", self.settings.name, attempts, outcome, pause)
            self.sleep(pause)
        if isinstance(outcome, Reply):
            return outcome
        tries = f"{attempts} {'try' if attempts == 1 else 'tries'} in {self.clock() - started:.1f} s"
        raise CallFailed(outcome.kind, f"{self.settings.base_url}: {outcome} ({tries})", attempts=attempts, last=last)

    def _prepare(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        credentials: Credentials,
    ) -> requests.PreparedRequest:
        return requests.Request(
            method,
            self.settings.base_url.rstrip("/") + path,
            params=params,
            data=body,
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
                "User-Agent": self.settings.user_agent,
                **(headers or {}),
                **credentials.headers,
            },
        ).prepare()

    def _renew(self, used: Credentials) -> bool:
        """Resolve the secrets anew; whether they now differ from those that were refused."""
        try:
            self._credentials = self.settings.credentials()
        except UnresolvedSecret as error:
            _log.warning("%s: after a 401: %s", self.settings.name, error)
            return False
        return self._credentials != used

    def _pause(self, attempts: int, outcome: Reply | CallFailed) -> float:
        """Seconds to wait after the given number of tries: what the server asks for, and jitter so that callers
        spread."""
        backoff = self.random() * min(BACKOFF_CAP_SECONDS, BACKOFF_BASE_SECONDS * 2.0 ** min(attempts - 1, 16))
        asked = outcome.headers.get("Retry-After") if isinstance(outcome, Reply) else None
        if asked is None:
            return backoff
        try:
            return Retry().parse_retry_after(asked) + self.random() * BACKOFF_BASE_SECONDS
        except (InvalidHeader, ValueError, OverflowError):
            return backoff

    def _attempt(self, request: requests.PreparedRequest, credentials: Credentials, left: float) -> Reply | CallFailed:
        """One try within ``left`` seconds."""
        limits = Timeout(
            total=max(left, 0.001),
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
                proxies=self._proxies,
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            return _failure(error)
        body, cut = _read(response)
        if cut is not None and 200 <= response.status_code < 300 and request.method in ("GET", "HEAD"):
            return cut
        excerpt = " ".join(credentials.redact(body[:65_536].decode("utf-8", errors="replace")).split())
        return Reply(response.status_code, response.headers, body, excerpt[:EXCERPT_CHARACTERS])


def _read(response: requests.Response) -> tuple[bytes, CallFailed | None]:
    """The body as far as it came, and why it ended early if it did."""
    chunks: list[bytes] = []
    size = 0
    try:
        for chunk in response.raw.stream(65_536, decode_content=True):
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                return b"".join(chunks), CallFailed("too_large", f"the answer is larger than {MAX_BODY_BYTES} bytes")
            chunks.append(chunk)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        return b"".join(chunks), _failure(error)
    finally:
        response.close()
    return b"".join(chunks), None


def _failure(error: Exception) -> CallFailed:
    """What a library's exception means. Its own text is left out: it holds the whole URL, with its query."""
    causes = list(_causes(error))
    # NewConnectionError (refused, unknown host) is a TimeoutError to urllib3, for history's sake.
    unconnected = any(isinstance(cause, urllib3.exceptions.NewConnectionError) for cause in causes)
    if not unconnected and any(isinstance(cause, urllib3.exceptions.TimeoutError | TimeoutError) for cause in causes):
        return CallFailed("timeout", "no complete answer in time")
    reasons = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
    detail = reasons[-1] if reasons else type(causes[-1]).__name__
    if any(isinstance(cause, urllib3.exceptions.ProtocolError | urllib3.exceptions.DecodeError) for cause in causes):
        return CallFailed("reset", f"the connection broke: {detail}")
    return CallFailed("unreachable", f"no connection: {detail}")


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
    """A socket's bytes until a moment. A socket's own timeout begins anew with each byte, so a server that drips
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


class _TimedResponse(http.client.HTTPResponse):
    """An answer whose headers and body together must come within the read timeout that urllib3 has set on the
    socket."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp: io.BufferedReader = io.BufferedReader(_TimedReads(self.fp.detach(), sock))


class _PlainConnection(HTTPConnection):
    response_class = _TimedResponse


class _TlsConnection(HTTPSConnection):
    response_class = _TimedResponse


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


_POOLS = {"http": _PlainPool, "https": _TlsPool}


class _Adapter(HTTPAdapter):
    """requests' adapter over those connections, with and without a proxy."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager


# ----------------------------------------------------------------------------------------------------------- registry


@once_per_process
def connection(settings: ConnectionSettings) -> Connection:
    """This process's one connection with these settings. Thread-safe. Raises UnresolvedSecret."""
    return Connection(settings)
