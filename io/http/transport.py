"""One HTTP request and its answer, bounded in time and size: what a connection tries again and again.

Redirects are not followed (a 3xx is an answer), cookies are not kept, TLS certificates are always checked. A proxy and
a CA bundle of the environment (``HTTPS_PROXY``, ``NO_PROXY``, ``REQUESTS_CA_BUNDLE``) are honoured, because many
networks cannot do without; ``.netrc`` is not, because it would replace the credentials the job was given.
"""

from __future__ import annotations

import codecs
import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import requests
import truststore
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry, Timeout
from urllib3.util.ssl_ import create_urllib3_context

from itel_cabinet.io.http.answers import Meaning, read_status
from itel_cabinet.io.http.sockets import make_pools
from itel_cabinet.io.secrets import UnresolvedSecretError
from itel_cabinet.io.worker import RefusedError
from itel_cabinet.transforms.json_text import read_charset

__all__ = [
    "EXCERPT_CHARACTERS",
    "MAX_BODY_BYTES",
    "CallError",
    "FailureKind",
    "Reply",
    "TlsFiles",
    "Transport",
    "TransportSettings",
    "check_environment",
    "describe_failure",
]

MAX_BODY_BYTES = 16 * 1024 * 1024  # far above any task or media list, and as many threads may each hold one
EXCERPT_CHARACTERS = 500
_EXCERPT_BYTES = 65_536  # of a body, before secrets and blanks are taken out
# Possessive: a path that is not plain would be cut into its segments in all ways there are before it is given up.
_PLAIN_PATH = re.compile(r"/(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*+/?)*+(?:\?[A-Za-z0-9_.=&-]*)?")
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # the first one given is used
_MAX_PEM_BYTES = 4 * 1024 * 1024  # the bundle of all public authorities has 0.3 MB

_FOR_THE_PROXY = "check the user and password in the proxy's address"
_REFUSED_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})")  # as http.client words it

FailureKind = Literal["timeout", "unreachable", "reset", "too_large", "outage", "unauthorized", "breaker_open"]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of any status.

    ``headers`` ignore case. ``redact`` takes secrets out of a text. ``attempts`` and ``elapsed`` (seconds) are those of
    the whole call. ``judged`` is what the API's own client makes of it, if that is more than the status says.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    redact: Callable[[str], str] = field(default=str, repr=False, compare=False)
    attempts: int = 1
    elapsed: float = 0.0
    judged: Meaning | None = None

    @property
    def meaning(self) -> Meaning:
        """What to do about it."""
        return self.judged or read_status(self.status, self.headers)

    @property
    def ok(self) -> bool:
        """The API has done what it was asked."""
        return self.meaning in (Meaning.ACCEPTED, Meaning.DUPLICATE)

    @property
    def retry_after(self) -> str | None:
        """The header of that name."""
        return self.headers.get("Retry-After")

    @property
    def excerpt(self) -> str:
        """The body's beginning as one line of at most 500 characters, secrets taken out."""
        text = self.redact(self.body[:_EXCERPT_BYTES].decode("utf-8", errors="replace"))
        return " ".join(text.split())[:EXCERPT_CHARACTERS]

    @property
    def text(self) -> bytes:
        """The body in UTF-8, if it is text of another charset, which its header declares; else as it came."""
        charset = read_charset(self.headers.get("Content-Type"))
        if charset is None:
            return self.body
        try:
            self.body.decode()
        except UnicodeDecodeError:
            try:
                return self.body.decode(charset).encode()
            except (UnicodeError, LookupError):
                pass
        return self.body

    @property
    def is_page(self) -> bool:
        """Whether the body is a page for people (a login, a proxy's notice) where an API would answer data."""
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        body = self.body.removeprefix(codecs.BOM_UTF8).lstrip()
        return body.startswith(b"<") or (kind in ("text/html", "application/xhtml+xml") and bool(body))

    def describe(self) -> str:
        """The status, and who gave it, if that was not the API."""
        if self.status == 407:
            return f"status 407, from the proxy: {_FOR_THE_PROXY}"
        if self.status == 511:
            return "status 511, from the network, which wants a login"
        return f"status {self.status}"


class CallError(Exception):
    """The last try brought no usable answer.

    ``kind`` is a stable name:

    - ``timeout``, ``unreachable`` (no connection: refused, unknown host, TLS), ``reset`` (the connection broke, or what
      came is not HTTP), ``too_large``: the API, or its token endpoint;
    - ``outage``: the token endpoint answers what may pass (see Meaning), or no token;
    - ``unauthorized``: the token endpoint or a proxy refuses the client, or the secrets for it cannot be read;
    - ``breaker_open``: the API was not called (again), since most of the last tries failed.

    ``attempts`` counts the tries, 0 if there was none. ``last`` is the answer of an earlier try, if there was one.
    ``retry_after`` is what the token endpoint's header of that name says, ``limited`` whether it limits its calls,
    ``remedy`` what to do about the failure, if that is known.
    """

    def __init__(
        self,
        kind: FailureKind,
        detail: str,
        *,
        attempts: int = 1,
        last: Reply | None = None,
        retry_after: str | None = None,
        limited: bool = False,
        remedy: str = "",
    ) -> None:
        super().__init__(detail)
        self.kind: FailureKind = kind
        self.attempts = attempts
        self.last = last
        self.retry_after = retry_after
        self.limited = limited
        self.remedy = remedy or ("check the credentials" if kind == "unauthorized" else "")


def check_environment(base_url: str) -> dict[str, str]:
    """The environment's proxies for a URL, as requests takes them.

    Raises RefusedError, with the variable, for a proxy other than HTTP and for a bundle of authorities that cannot be
    read: without them nothing could be called.
    """
    found: dict[str, str] = requests.utils.get_environ_proxies(base_url)
    proxy = requests.utils.select_proxy(base_url, found)
    if proxy:
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if url.scheme not in ("http", "https") or not url.hostname:
            names = [name for name, value in os.environ.items() if name.lower().endswith("_proxy") and value == proxy]
            known = f"{url.scheme}://{url.hostname or ''}"
            raise RefusedError(f"{' and '.join(sorted(names))}: {known} is no http:// or https:// proxy")
    if base_url.startswith("https:"):
        for name in _BUNDLES:
            path = os.environ.get(name)
            if path and not os.access(path, os.R_OK):
                raise RefusedError(f"{name} names {path}, which is no file that can be read: correct it or unset it")
    return found


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files, read where the job's workers run; an empty name is none.

    ``ca`` holds certificates to trust beside the system's and certifi's. ``client_cert`` is what we show the server
    (mTLS), with its chain; ``client_key`` its key, which may also stand in the same file. The client's files are read
    again for each connection that is opened, so renewed ones need no restart.
    """

    ca: str = ""
    client_cert: str = ""
    client_key: str = ""

    def check(self) -> str | None:
        """Read the files now; the text of ``ca``, or None. Raises UnresolvedSecretError with the field."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without the system's authorities, which take 25 ms to read
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
        self._proxies = check_environment(settings.base_url)
        self._verify = next(filter(None, map(os.environ.get, _BUNDLES)), True)
        self._adapter = _Adapter(
            authorities, self._verify is True, pool_connections=4, pool_maxsize=settings.concurrency
        )
        self._headers = {
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            "User-Agent": settings.user_agent,
        }
        self._root = self._target("", None).rstrip("/")
        self._pool: HTTPConnectionPool | None = None

    def close(self) -> None:
        """Close the idle connections. A later request opens new ones."""
        self._pool = None
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
        for header in headers.items():
            requests.utils.check_header_validity(header)
        limits = Timeout(
            total=max(seconds, 0.001),
            connect=self.settings.connect_timeout_seconds,
            read=self.settings.read_timeout_seconds,
        )
        is_plain = not params and _PLAIN_PATH.fullmatch(path)
        try:
            # The pool of requests' adapter, not a Session, which reads a redirect's body whole and keeps cookies. What
            # requests works out for each request is the same for all of an API's: it is done once.
            response = (self._pool or self._open_pool()).urlopen(
                method,
                self._root + path if is_plain else self._target(path, params),
                body,
                {**self._headers, **headers},
                retries=_NO_RETRIES,
                redirect=False,
                assert_same_host=False,
                timeout=limits,
                preload_content=False,
                decode_content=False,
            )
        except (OSError, urllib3.exceptions.HTTPError) as error:  # requests' own errors are OSErrors
            return describe_failure(error)
        content, cut = _read(response)
        if cut is not None and 200 <= response.status < 300 and method in ("GET", "HEAD"):
            return cut
        return Reply(response.status, response.headers, content, redact)

    def _open_pool(self) -> HTTPConnectionPool:
        base, cert = self._prepare("", None), self.settings.tls.client
        pool = self._adapter.get_connection_with_tls_context(base, self._verify, proxies=self._proxies, cert=cert)
        assert isinstance(pool, HTTPConnectionPool)
        self._adapter.cert_verify(pool, base.url, self._verify, cert)  # type: ignore[no-untyped-call]
        self._pool = pool
        return pool

    def _target(self, path: str, params: Mapping[str, str] | None) -> str:
        """What stands in the request's first line: a path, or for a proxy the whole URL."""
        return str(self._adapter.request_url(self._prepare(path, params), self._proxies))

    def _prepare(self, path: str, params: Mapping[str, str] | None) -> requests.PreparedRequest:
        return requests.Request("GET", self.settings.base_url.rstrip("/") + path, params=params).prepare()


def _read(response: BaseHTTPResponse) -> tuple[bytes, CallError | None]:
    """The body as far as it came, and why it ended early if it did."""
    chunks: list[bytes] = []
    size = 0
    try:
        for chunk in response.stream(65_536, decode_content=True):
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                return b"".join(chunks), CallError("too_large", f"the answer is larger than {MAX_BODY_BYTES} bytes")
            chunks.append(chunk)
    except (OSError, urllib3.exceptions.HTTPError) as error:
        return b"".join(chunks), describe_failure(error)
    finally:
        response.close()
        response.release_conn()
    return b"".join(chunks), None


def describe_failure(error: Exception) -> CallError:
    """What a library's exception means. Its own text is left out: it holds the whole URL, with its query."""
    causes = list(_causes(error))
    # NewConnectionError (refused, unknown host) is a TimeoutError to urllib3, for history's sake.
    unconnected = any(isinstance(cause, urllib3.exceptions.NewConnectionError) for cause in causes)
    if not unconnected and any(isinstance(cause, urllib3.exceptions.TimeoutError | TimeoutError) for cause in causes):
        return CallError("timeout", "no complete answer in time")
    tunnel = next((found for cause in causes if (found := _REFUSED_TUNNEL.search(str(cause)))), None)
    if tunnel:
        detail = f"the proxy lets no connection through (status {tunnel[1]})"
        return (
            CallError("unauthorized", detail, remedy=_FOR_THE_PROXY)
            if tunnel[1] == "407"
            else CallError("unreachable", detail)
        )
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


_POOLS = make_pools()
_NO_RETRIES = Retry(0, read=False)


class _Adapter(HTTPAdapter):
    """requests' adapter over bounded connections, with and without a proxy, which may trust more authorities."""

    def __init__(self, authorities: str | None, trusts_system: bool, **kwargs: Any) -> None:
        self._tls: dict[str, Any] = {}
        if authorities is not None:
            context = create_urllib3_context()
            # From 3.13 on Python refuses what companies' own authorities have signed for years without all the
            # extensions of RFC 5280. This one was named on purpose, and curl takes it.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            self._tls = {"ca_cert_data": authorities, "ssl_context": context}
        if trusts_system:
            # What the system trusts, as curl does; requests adds the authorities of certifi.
            self._tls["ssl_context"] = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        super().__init__(**kwargs)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **(kwargs | self._tls))
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **(kwargs | self._tls))
        manager.pool_classes_by_scheme = _POOLS
        return manager
