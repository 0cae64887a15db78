"""One named HTTP API: its address, credentials, time limits, retries, rate limit and circuit breaker.

:class:`Connection` is what the clients of ClaimX and iTel stand on. Take one from :func:`connection`, which keeps one
for each settings and process::

    claimx = connection(ConnectionSettings("claimx", "https://claimx.example", "bearer:env:CLAIMX_API_TOKEN"))
    reply = claimx.call("GET", "/customTasks/assignment/5430007", params={"full": "true"})

Its parts are modules of their own: a single bounded try (``transport``), what its answer means (``answers``), whether
and when to try again (``retries``), who is calling (``auth``, ``oauth2``), when to leave the API in peace (``breaker``)
and how often to call it (``pace``).
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from itel_cabinet.io.http.answers import Meaning, read_retry_after
from itel_cabinet.io.http.auth import Auth, Credentials, check_header_name
from itel_cabinet.io.http.breaker import Admission, Breaker, BreakerSettings
from itel_cabinet.io.http.oauth2 import Tokens, get_tokens
from itel_cabinet.io.http.pace import Pace, Turn
from itel_cabinet.io.http.retries import pause_before_retry
from itel_cabinet.io.http.transport import (
    CallError,
    Reply,
    TlsFiles,
    Transport,
    TransportSettings,
    check_environment,
)
from itel_cabinet.io.http.urls import check_url
from itel_cabinet.io.http.window import Window, question_kind
from itel_cabinet.io.secrets import SecretRef, UnresolvedSecretError
from itel_cabinet.io.worker import (
    OutageError,
    SettingError,
    beat,
    limit_wait,
    metrics,
    once_per_process,
    waiting_for,
)

__all__ = [
    "Connection",
    "ConnectionSettings",
    "get_connection",
]

_POLL_SECONDS = 0.25  # while another call finds out whether the API is back
_LONGEST_NAP = 1.0  # between two looks whether the process has been asked to end

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
    ``max_retry_after_seconds`` is how long an API that limits its calls is left alone at most before one call looks
    whether it still does. ``secret_headers`` are sent beside what ``auth`` makes: names, and references to the values.
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
    max_retry_after_seconds: float = 300.0
    breaker: BreakerSettings = field(default_factory=BreakerSettings)
    secret_headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name, check in (("base_url", check_url), ("auth", Auth.parse), ("secret_headers", _check_secret_headers)):
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

    def further_credentials(self) -> Credentials:
        """Resolve ``secret_headers`` now. Raises UnresolvedSecretError."""
        headers = {}
        for name, reference in self.secret_headers:
            try:
                headers[name] = SecretRef.parse(reference).resolve()
            except UnresolvedSecretError as error:
                raise UnresolvedSecretError(f"header {name}: {error}", field="secret_headers") from None
        return Credentials(headers, tuple(headers.values()))

    def check(self) -> None:
        """Read what the settings refer to (secrets, TLS files) and what the environment says of proxies and
        authorities; ``run`` does, to refuse early. Raises UnresolvedSecretError with the field, and RefusedError."""
        self.credentials()
        self.further_credentials()
        self.tls.check()
        check_environment(self.base_url)

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
    _further: Credentials = field(init=False, repr=False)
    _transport: Transport = field(init=False, repr=False)
    _breaker: Breaker = field(init=False, repr=False)
    _pace: Pace = field(init=False, repr=False)
    _window: Window = field(init=False, repr=False)

    def __post_init__(self) -> None:
        settings = self.settings
        settings.check()
        self._credentials = settings.credentials()
        self._further = settings.further_credentials()
        self._transport = Transport(settings.transport(settings.base_url))
        self._breaker = Breaker(settings.name, settings.breaker, self.clock)
        self._pace = Pace(
            settings.name, settings.calls_per_second, settings.max_retry_after_seconds, self.clock, self.random
        )
        self._window = Window(settings.name, settings.concurrency, self.clock)
        auth = Auth.parse(settings.auth)
        if auth.is_oauth2 and self.tokens is None:
            url = urlsplit(auth.token_url)
            self.tokens = get_tokens(auth, settings.transport(f"{url.scheme}://{url.netloc}"))

    def calls_at_once(self) -> int:
        """How many calls are worth making side by side now; more wait for each other."""
        return self._window.limit

    def close(self) -> None:
        """Close the idle connections. A later call opens new ones."""
        self._transport.close()

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
        judge: Callable[[Reply], Meaning] = lambda reply: reply.meaning,
    ) -> Reply:
        """Send a request until it is answered for good, within ``deadline_seconds``.

        Tried again, with full jitter or as ``Retry-After`` says: no connection, a broken one, a timeout, an answer that
        means AGAIN, and a token endpoint for which the same holds. ``judge`` may read more out of an answer than its
        status says. A 401 is tried once more with a new token, or if the secret has changed meanwhile. So a request may
        arrive more than once: a write needs an idempotency key among its ``headers``.

        While the API limits its calls, all wait, for as long as it does: that takes nothing of the deadline and of the
        tries. So does waiting for another call's probe, which finds out whether an API is back.

        Returns the last try's reply, of any meaning but BACK_PRESSURE, for the caller to act on; raises CallError if
        the last try had none, and with the kind ``breaker_open`` as soon as the breaker is open: at once, or instead of
        a further try. A write that was answered by a 2xx has been done, even if the answer's body is lost. Raises
        OutageError when the API still limits its calls 10 s after the process has been asked to end.

        The deadline begins when the pace lets the first try pass, and holds against servers that hang or drip, and
        against a resolver that hangs.
        """
        api, good = self.settings.name, False
        try:
            if self._breaker.wait() > 0:
                raise self._breaker_open(0, None)
            with metrics.HTTP_CALL_SECONDS.labels(api).time():
                reply = self._until_answered(method, path, params, body, headers or {}, judge)
            good = reply.ok
            return reply
        finally:
            if not good:
                metrics.HTTP_CALLS_FAILED.labels(api).inc()

    def try_once(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply | CallError:
        """One try, which waits for nothing and which breaker, pace and metrics do not know of."""
        seconds = self.settings.deadline_seconds
        own = self._authorize(seconds)
        if isinstance(own, CallError):
            return own
        further = self._further
        return self._transport.send(
            method,
            path,
            params=None,
            body=body,
            headers={**(headers or {}), **further.headers, **own.headers},
            redact=lambda text: further.redact(own.redact(text)),
            seconds=seconds,
        )

    def _until_answered(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: bytes | None,
        headers: Mapping[str, str],
        judge: Callable[[Reply], Meaning],
    ) -> Reply:
        started = self.clock()
        deadline = started + self.settings.deadline_seconds
        attempts = limited = 0
        renewed = False
        last: Reply | None = None
        is_free = True  # whether waiting for a turn takes nothing of the deadline
        while True:
            entry = self._enter(math.inf if is_free else deadline - self.clock(), attempts, last)
            if entry is None:
                break
            started += entry.held_seconds
            deadline += entry.held_seconds
            is_free = False
            attempts += 1
            if attempts > 1:
                metrics.HTTP_RETRIES.labels(self.settings.name).inc()
            credentials, outcome = self._try(entry, method, path, params, body, headers, judge, deadline)
            if isinstance(outcome, Reply):
                last = outcome = replace(outcome, attempts=attempts, elapsed=self.clock() - started)
            if _is_limited(outcome):
                limited += 1
                is_free = True
                continue
            if isinstance(outcome, Reply) and outcome.status == 401 and not renewed:
                renewed = self.clock() < deadline and self._renew(credentials)
                if renewed:
                    continue
            pause = pause_before_retry(
                outcome,
                attempts=attempts - limited,
                max_retries=self.settings.max_retries,
                left=deadline - self.clock(),
                chance=self.random(),
                now=self.now(),
                is_alive=self._breaker.answers_others(started),
            )
            if pause is None:
                break
            if self._breaker.wait() > pause:
                raise self._breaker_open(attempts, last)
            _log.debug("%s: try %d: %s; again in %.2f s", self.settings.name, attempts, outcome, pause)
            self.sleep(pause)
        if isinstance(outcome, Reply):
            return outcome
        hint = f": {outcome.remedy}" if outcome.remedy else ""
        tries = f"{attempts} {'try' if attempts == 1 else 'tries'} in {self.clock() - started:.1f} s"
        detail = f"{self.settings.base_url}: {outcome}{hint} ({tries})"
        raise CallError(outcome.kind, detail, attempts=attempts, last=last)

    def _enter(self, most: float, attempts: int, last: Reply | None) -> _Entry | None:
        """Leave for one try, once the API's limit, the pace and another call's probe let it pass.

        None if the turn is more than ``most`` seconds away. Raises CallError (``breaker_open``) and OutageError.
        """
        began = self.clock()
        if self._pace.blocked():
            most = math.inf
        place = self._pace.reserve(most)
        if place is None:
            return None
        counted = 0.0 if most == math.inf else self._pace.wait(place)
        while True:
            self._await_turn(place)
            admission = self._breaker.admit()
            if admission is None:
                if self._breaker.wait() > 0:
                    raise self._breaker_open(attempts, last)
                self.sleep(_POLL_SECONDS)
                continue
            # Before the pace's leave, which may be withdrawn while others' calls end; a probe is waited for by all.
            entered = self._window.enter(waits=not (admission.probe or self._pace.blocked()))
            turn = self._pace.admit()
            if turn is not None:
                return _Entry(admission, turn, entered, entered - began - counted)
            self._window.leave(entered)
            self._breaker.record(admission, None)

    def _await_turn(self, place: float) -> None:
        """Wait until it is this place's turn. Raises OutageError if a process that is to end would wait too long."""
        asked_to_end: float | None = None
        while (wait := self._pace.wait(place)) > 0:
            beat()
            if (most := limit_wait(math.inf)) < math.inf:
                asked_to_end = self.clock() if asked_to_end is None else asked_to_end
                if self.clock() - asked_to_end >= most:
                    raise OutageError(f"{self.settings.base_url}: limits its calls, and the process is to end")
            limits = waiting_for(f"{self.settings.name}, which limits its calls")
            with limits if self._pace.blocked() else nullcontext():
                self.sleep(min(wait, _LONGEST_NAP))

    def _try(
        self,
        entry: _Entry,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: bytes | None,
        headers: Mapping[str, str],
        judge: Callable[[Reply], Meaning],
        deadline: float,
    ) -> tuple[Credentials, Reply | CallError]:
        """One try, recorded by breaker and pace whether it fails or not; and the credentials it was made with."""
        outcome: Reply | CallError | None = None
        try:
            credentials = self._authorize(deadline - self.clock())
            if isinstance(credentials, CallError):
                outcome = credentials
                credentials = self._credentials
            else:
                further, own = self._further, credentials
                outcome = self._transport.send(
                    method,
                    path,
                    params=params,
                    body=body,
                    headers={**headers, **further.headers, **own.headers},
                    redact=lambda text: further.redact(own.redact(text)),
                    seconds=deadline - self.clock(),
                )
            if isinstance(outcome, Reply):
                outcome = replace(outcome, judged=judge(outcome))
        finally:
            self._breaker.record(entry.admission, *_read_life(outcome))
            self._breaker.note(isinstance(outcome, Reply) and outcome.meaning is not Meaning.AGAIN)
            self._window.leave(
                entry.entered,
                kind=question_kind(method, path),
                answered=isinstance(outcome, Reply) and outcome.ok,
                overloaded=_is_limited(outcome) or _is_overload(outcome),
            )
            self._pace.record(
                entry.turn,
                limited=_is_limited(outcome),
                asked=None if outcome is None else read_retry_after(outcome.retry_after, self.now()),
                answered=isinstance(outcome, Reply),
            )
            beat()
        kind = f"{outcome.status // 100}xx" if isinstance(outcome, Reply) else outcome.kind
        metrics.HTTP_TRIES.labels(self.settings.name, kind).inc()
        return credentials, outcome

    def _authorize(self, seconds: float) -> Credentials | CallError:
        return self._credentials if self.tokens is None else self.tokens.credentials(seconds)

    def _renew(self, used: Credentials) -> bool:
        """Get rid of credentials that were refused; whether there are, or will be, other ones."""
        further = self._further
        if self.tokens is not None:
            self.tokens.refused(used)
        try:
            self._credentials = self.settings.credentials()
            self._further = self.settings.further_credentials()
        except UnresolvedSecretError as error:
            _log.warning("%s: after a 401: %s", self.settings.name, error)
            return self.tokens is not None
        return self.tokens is not None or (self._credentials, self._further) != (used, further)

    def _breaker_open(self, attempts: int, last: Reply | None) -> CallError:
        detail = (
            f"{self.settings.base_url}: not called, as most of the last tries failed ({self._breaker.why}); "
            f"the next try is in {self._breaker.wait():.0f} s"
        )
        return CallError("breaker_open", detail, attempts=attempts, last=last)


@dataclass(frozen=True, slots=True)
class _Entry:
    """Leave for one try, and the seconds of waiting for it that take nothing of the call's deadline."""

    admission: Admission
    turn: Turn
    entered: float
    held_seconds: float


def _check_secret_headers(headers: tuple[tuple[str, str], ...]) -> None:
    for name, reference in headers:
        check_header_name(name)
        SecretRef.parse(reference)


def _is_limited(outcome: Reply | CallError | None) -> bool:
    """Whether the API (or the token endpoint before it) limits its calls."""
    return outcome.meaning is Meaning.BACK_PRESSURE if isinstance(outcome, Reply) else bool(outcome and outcome.limited)


def _is_overload(outcome: Reply | CallError | None) -> bool:
    """Whether a try says that the API, or a gateway for it, has more to do than it can."""
    return (
        outcome.status in (502, 503, 504) if isinstance(outcome, Reply) else bool(outcome and outcome.kind == "timeout")
    )


def _read_life(outcome: Reply | CallError | None) -> tuple[bool | None, str]:
    """Whether a try speaks for the API being up, and the failure in short. One that limits its calls, or puts off this
    one (4xx but 408), is up; a refused token says nothing."""
    if isinstance(outcome, Reply):
        put_off = outcome.status != 408 and 400 <= outcome.status < 500
        return outcome.meaning is not Meaning.AGAIN or put_off, outcome.describe()
    if outcome is None or outcome.limited:
        return None, ""
    return {"too_large": True, "unauthorized": None}.get(outcome.kind, False), str(outcome)


def _origin(link: str) -> tuple[str, str | None, int | None]:
    url = urlsplit(link)
    return url.scheme, url.hostname, url.port or {"http": 80, "https": 443}.get(url.scheme)


@once_per_process
def get_connection(settings: ConnectionSettings) -> Connection:
    """This process's one connection with these settings. Thread-safe. Raises UnresolvedSecretError."""
    return Connection(settings)
