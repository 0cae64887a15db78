"""One named HTTP API: its address, credentials, time limits, retries, rate limit and circuit breaker.

:class:`Connection` is what the clients of ClaimX and iTel stand on. Take one from :func:`connection`, which keeps one
for each settings and process::

    claimx = connection(ConnectionSettings("claimx", "https://claimx.example", "bearer:env:CLAIMX_API_TOKEN"))
    reply = claimx.call("GET", "/customTasks/assignment/5430007", params={"full": "true"})

Its parts are modules of their own: a single bounded try (``transport``), whether and when to try again (``retries``),
who is calling (``auth``, ``oauth2``), when to leave the API in peace (``breaker``) and how often to call it
(``rate_limit``).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from itel_cabinet.io.http.auth import Auth, Credentials
from itel_cabinet.io.http.breaker import Admission, Breaker, BreakerSettings
from itel_cabinet.io.http.oauth2 import Tokens, get_tokens
from itel_cabinet.io.http.rate_limit import RateLimit
from itel_cabinet.io.http.retries import is_transient, pause_before_retry
from itel_cabinet.io.http.transport import (
    CallError,
    Reply,
    TlsFiles,
    Transport,
    TransportSettings,
    check_url,
)
from itel_cabinet.io.secrets import UnresolvedSecretError
from itel_cabinet.io.worker import SettingError, beat, metrics, once_per_process

__all__ = [
    "Connection",
    "ConnectionSettings",
    "get_connection",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """All that is said about one API. Hashable, free of secrets; raises SettingError when made.

    ``name`` stands in log lines and metrics.

    ``deadline_seconds`` bounds one call with all its tries and pauses; ``connect_timeout_seconds`` bounds looking the
    host up and connecting; ``read_timeout_seconds`` bounds one try's whole answer, from the request's last byte to the
    answer's.
    ``max_retries`` counts the tries after the first. ``concurrency`` is how many idle connections are kept for reuse;
    it should be the number of threads that call. ``calls_per_second`` limits the tries of this process; 0 is no limit.
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
    tls: TlsFiles = field(default_factory=TlsFiles)
    calls_per_second: float = 0.0
    breaker: BreakerSettings = field(default_factory=BreakerSettings)

    def __post_init__(self) -> None:
        for name, check in (("base_url", check_url), ("auth", Auth.parse)):
            try:
                check(getattr(self, name))
            except ValueError as error:
                raise SettingError(str(error), field=name) from None
        self._check_tls()

    def _check_tls(self) -> None:
        if self.tls.client_key and not self.tls.client_cert:
            raise SettingError("has no use without client_cert", field="client_key")
        for name, file in (("ca", self.tls.ca), ("client_cert", self.tls.client_cert)):
            if file and not self.base_url.startswith("https:"):
                raise SettingError(f"has no use for {self.base_url}, which is not https", field=name)

    def credentials(self) -> Credentials:
        """Resolve the secrets now. Raises UnresolvedSecretError (field ``auth``)."""
        try:
            return Auth.parse(self.auth).resolve()
        except UnresolvedSecretError as error:
            raise UnresolvedSecretError(str(error), field="auth") from None

    def check(self) -> None:
        """Read what the settings refer to, secrets and TLS files; ``run`` calls this to refuse early. Raises
        UnresolvedSecretError with the field."""
        self.credentials()
        self.tls.check()

    def transport(self, base_url: str) -> TransportSettings:
        """The bounds of a single try, at this API or at the token endpoint that belongs to it."""
        return TransportSettings(
            base_url=base_url,
            connect_timeout_seconds=self.connect_timeout_seconds,
            read_timeout_seconds=self.read_timeout_seconds,
            concurrency=self.concurrency,
            user_agent=self.user_agent,
            tls=self.tls,
        )


@dataclass
class Connection:
    """Calls to one API. Thread-safe; made once for its settings by :func:`connection`.

    Secrets are resolved when it is made (UnresolvedSecretError) and again after a 401. ``clock`` is monotonic, in
    seconds; it, ``sleep`` and ``random`` (0 to 1) steer pauses, rate limit and breaker only: sockets keep real time.
    ``now`` (in epoch seconds) is what the date in a Retry-After is compared with. ``tokens`` are the process's, unless
    given.
    """

    settings: ConnectionSettings
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random
    now: Callable[[], float] = time.time
    tokens: Tokens | None = field(default=None, repr=False)
    _credentials: Credentials = field(init=False, repr=False)
    _transport: Transport = field(init=False, repr=False)
    _breaker: Breaker = field(init=False, repr=False)
    _limit: RateLimit | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        settings = self.settings
        settings.check()
        self._credentials = settings.credentials()
        self._transport = Transport(settings.transport(settings.base_url))
        self._breaker = Breaker(settings.name, settings.breaker, self.clock)
        if settings.calls_per_second:
            self._limit = RateLimit(settings.calls_per_second, self.clock)
        auth = Auth.parse(settings.auth)
        if auth.scheme == "oauth2" and self.tokens is None:
            url = urlsplit(auth.token_url)
            self.tokens = get_tokens(auth, settings.transport(f"{url.scheme}://{url.netloc}"))

    def close(self) -> None:
        """Close the idle connections. A later call opens new ones."""
        self._transport.close()

    def breaker_open_until(self) -> float | None:
        """When, by ``clock``, a try will be let through again; None while the breaker is closed."""
        return self._breaker.open_until()

    def wait_until_closed(self, seconds: float) -> bool:
        """Wait for ``seconds`` at most until the breaker lets a try through; whether it does.

        The next call may be the probe that finds out whether the API is back; another thread may be the first to make
        it, so ``breaker_open`` can come again.
        """
        end = self.clock() + seconds
        while (wait := self._breaker.wait()) > 0:
            left = end - self.clock()
            if left <= 0:
                return False
            self.sleep(min(wait, left))
        return True

    def headers_for(self, link: str) -> Mapping[str, str]:
        """What authenticates a GET of ``link``, if that leads to this API's own scheme, host and port; else nothing.

        Nothing too while no token can be had.
        """
        if _origin(link) != _origin(self.settings.base_url):
            return {}
        credentials = self._authorize(self.settings.deadline_seconds)
        return {} if isinstance(credentials, CallError) else credentials.headers

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
        5xx except 501, a 2xx that ``unusable`` refuses, and a token endpoint for which the same holds. A 401 is tried
        once more with a new token, or if the secret has changed meanwhile. So a request may arrive more than once: a
        write needs an idempotency key among its ``headers``.

        Returns the last try's reply, of any status, for the caller to judge; raises CallError if the last try
        had none, and with the kind ``breaker_open`` as soon as the breaker is open: at once, or instead of a further
        try. A write that was answered by a 2xx has been done, even if the answer's body is lost.

        The deadline begins when the rate limit lets the first try pass, and holds against servers that hang or drip,
        and against a resolver that hangs.
        """
        api, good = self.settings.name, False
        try:
            if self._breaker.wait() > 0:
                raise self._breaker_open(0, None)
            self._take_turn(float("inf"))
            with metrics.HTTP_CALL_SECONDS.labels(api).time():
                reply = self._until_answered(method, path, params, body, headers or {}, unusable)
            good = reply.ok
            return reply
        finally:
            if not good:
                metrics.HTTP_CALLS_FAILED.labels(api).inc()

    def _until_answered(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: bytes | None,
        headers: Mapping[str, str],
        unusable: Callable[[Reply], bool],
    ) -> Reply:
        started = self.clock()
        deadline = started + self.settings.deadline_seconds
        attempts = 0
        renewed = False
        last: Reply | None = None
        while True:
            admission = self._breaker.admit()
            if admission is None:
                raise self._breaker_open(attempts, last)
            attempts += 1
            if attempts > 1:
                metrics.HTTP_RETRIES.labels(self.settings.name).inc()
            credentials, outcome = self._try(admission, method, path, params, body, headers, deadline)
            if isinstance(outcome, Reply):
                last = outcome = replace(outcome, attempts=attempts, elapsed=self.clock() - started)
                if outcome.status == 401 and not renewed and self.clock() < deadline and self._renew(credentials):
                    renewed = True
                    if self._take_turn(deadline):
                        continue
            pause = pause_before_retry(
                outcome,
                usable=not (isinstance(outcome, Reply) and outcome.ok and unusable(outcome)),
                attempts=attempts,
                max_retries=self.settings.max_retries,
                left=deadline - self.clock(),
                chance=self.random(),
                now=self.now(),
            )
            if pause is None:
                break
            if self._breaker.wait() > pause:
                raise self._breaker_open(attempts, last)
            _log.debug("%s: try %d: %s; again in %.2f s", self.settings.name, attempts, outcome, pause)
            self.sleep(pause)
            if not self._take_turn(deadline):
                break
        if isinstance(outcome, Reply):
            return outcome
        hint = ": check the credentials" if outcome.kind == "unauthorized" else ""
        tries = f"{attempts} {'try' if attempts == 1 else 'tries'} in {self.clock() - started:.1f} s"
        detail = f"{self.settings.base_url}: {outcome}{hint} ({tries})"
        raise CallError(outcome.kind, detail, attempts=attempts, last=last)

    def _try(
        self,
        admission: Admission,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: bytes | None,
        headers: Mapping[str, str],
        deadline: float,
    ) -> tuple[Credentials, Reply | CallError]:
        """One try, recorded by the breaker whether it fails or not; and the credentials it was made with."""
        alive: bool | None = None
        why = ""
        try:
            credentials = self._authorize(deadline - self.clock())
            if isinstance(credentials, CallError):
                outcome: Reply | CallError = credentials
                credentials = self._credentials
            else:
                outcome = self._transport.send(
                    method,
                    path,
                    params=params,
                    body=body,
                    headers={**headers, **credentials.headers},
                    redact=credentials.redact,
                    seconds=deadline - self.clock(),
                )
            alive, why = _is_alive(outcome), _in_short(outcome)
        finally:
            self._breaker.record(admission, alive, why)
            beat()
        kind = f"{outcome.status // 100}xx" if isinstance(outcome, Reply) else outcome.kind
        metrics.HTTP_TRIES.labels(self.settings.name, kind).inc()
        return credentials, outcome

    def _authorize(self, seconds: float) -> Credentials | CallError:
        return self._credentials if self.tokens is None else self.tokens.credentials(seconds)

    def _renew(self, used: Credentials) -> bool:
        """Get rid of credentials that were refused; whether there are, or will be, other ones."""
        if self.tokens is not None:
            self.tokens.refused(used)
            return True
        try:
            self._credentials = self.settings.credentials()
        except UnresolvedSecretError as error:
            _log.warning("%s: after a 401: %s", self.settings.name, error)
            return False
        return self._credentials != used

    def _take_turn(self, deadline: float) -> bool:
        """Wait as the rate limit wants it; False at once if that would be beyond the deadline."""
        if self._limit is None:
            return True
        wait = self._limit.reserve(deadline - self.clock())
        if wait:
            self.sleep(wait)
        return wait is not None

    def _breaker_open(self, attempts: int, last: Reply | None) -> CallError:
        detail = (
            f"{self.settings.base_url}: not called, as most of the last tries failed ({self._breaker.why}); "
            f"the next try is in {self._breaker.wait():.0f} s"
        )
        return CallError("breaker_open", detail, attempts=attempts, last=last)


def _is_alive(outcome: Reply | CallError) -> bool | None:
    """Whether a try speaks for the API being up. One that says it is busy is up; a refused token says nothing."""
    if isinstance(outcome, Reply):
        return not is_transient(outcome.status) or outcome.status in (425, 429)
    return {"too_large": True, "unauthorized": None}.get(outcome.kind, False)


def _in_short(outcome: Reply | CallError) -> str:
    return f"status {outcome.status}" if isinstance(outcome, Reply) else str(outcome)


def _origin(link: str) -> tuple[str, str | None, int | None]:
    url = urlsplit(link)
    return url.scheme, url.hostname, url.port or {"http": 80, "https": 443}.get(url.scheme)


@once_per_process
def get_connection(settings: ConnectionSettings) -> Connection:
    """This process's one connection with these settings. Thread-safe. Raises UnresolvedSecretError."""
    return Connection(settings)
