"""Access tokens by OAuth2's client credentials (RFC 6749, 4.4), fetched once for all callers of a process.

Not by oauthlib or authlib: what matters here (one refresh for all threads, each bounded by its own call's deadline, on
connections that neither follow redirects nor quote secrets in errors) would have to be built around them, and the
request itself is one form.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from itel_cabinet.io.http.answers import Meaning
from itel_cabinet.io.http.auth import Auth, Credentials
from itel_cabinet.io.http.transport import CallError, Reply, Transport, TransportSettings
from itel_cabinet.io.secrets import UnresolvedSecretError
from itel_cabinet.io.worker import once_per_process

__all__ = ["Token", "Tokens", "get_tokens", "read_token"]

_MARGIN_SECONDS = 60.0
_PRESUMED_SECONDS = 300.0  # of a token that does not say how long it lives; a 401 corrects it
_MOST_SECONDS = 86_400.0
_REST_SECONDS = 5.0  # after a refusal or a failed early refresh: 32 threads must not hammer the endpoint
_MOST_CHARACTERS = 32_768

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Token:
    """An access token. ``seconds`` is how long it lives from the moment it was asked for."""

    credentials: Credentials
    seconds: float


@dataclass
class Tokens:
    """The current token of one client, for all its callers. Thread-safe; made once for its settings by :func:`tokens`.

    A token is renewed when a fifth of its life is left, or a minute if that is less; by one thread, while the others go
    on with the old one. Without a token to go on with, they wait for that thread. The client's secrets are read for
    each request, so rotated ones need no restart. ``clock`` is monotonic, in seconds.
    """

    auth: Auth
    transport: Transport
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)
    _asking: Future[Token | CallError] | None = field(init=False, repr=False, default=None)
    _token: Token | None = field(init=False, repr=False, default=None)
    _asked_at: float = field(init=False, repr=False, default=0.0)
    _refusal: CallError | None = field(init=False, repr=False, default=None)
    _resting_until: float = field(init=False, repr=False, default=float("-inf"))

    def credentials(self, seconds: float) -> Credentials | CallError:
        """The token as a header, within ``seconds``. A failure is a value: see CallError."""
        with self._lock:
            now = self.clock()
            held = self._token
            age = now - self._asked_at
            if held is not None and age >= held.seconds:
                held = None
            if held is not None and (
                age < held.seconds - min(_MARGIN_SECONDS, held.seconds / 5)
                or self._asking is not None
                or now < self._resting_until
            ):
                return held.credentials
            if self._refusal is not None and now < self._resting_until:
                return self._refusal
            mine = self._asking is None
            asking = self._asking = self._asking or Future()
        if mine:
            self._ask(asking, seconds)
        try:
            found = asking.result(seconds)
        except TimeoutError:
            return CallError("timeout", f"{self._endpoint}: no token in time")
        if isinstance(found, Token):
            return found.credentials
        if held is not None:
            _log.warning("%s: using the old token while it lasts", found)
            return held.credentials
        return found

    def refused(self, used: Credentials) -> None:
        """The API has refused a token: do not use it any more. Does nothing if there is a newer one."""
        with self._lock:
            if self._token is not None and self._token.credentials is used:
                self._token = None

    @property
    def _endpoint(self) -> str:
        return f"token endpoint {self.transport.settings.base_url}"

    def _ask(self, asking: Future[Token | CallError], seconds: float) -> None:
        """Ask for a token, and hand the outcome to all who wait."""
        asked_at = self.clock()
        found: Token | CallError = CallError("outage", f"{self._endpoint}: the request was broken off")
        try:
            found = self._request(seconds)
        finally:
            with self._lock:
                self._asking = None
                if isinstance(found, Token):
                    self._token, self._asked_at = found, asked_at
                    self._refusal, self._resting_until = None, float("-inf")
                elif found.kind == "unauthorized" or self._token is not None:
                    self._refusal = found if found.kind == "unauthorized" else None
                    self._resting_until = self.clock() + _REST_SECONDS
            asking.set_result(found)

    def _request(self, seconds: float) -> Token | CallError:
        try:
            client = self.auth.resolve()
        except UnresolvedSecretError as error:
            return CallError("unauthorized", str(error))
        form = {"grant_type": "client_credentials"} | ({"scope": self.auth.scope} if self.auth.scope else {})
        form |= client.form
        url = urlsplit(self.auth.token_url)
        reply = self.transport.send(
            "POST",
            (url.path or "/") + (f"?{url.query}" if url.query else ""),
            body=urlencode(form).encode(),
            headers={"Content-Type": "application/x-www-form-urlencoded", **client.headers},
            redact=client.redact,
            seconds=seconds,
        )
        found = read_token(reply) if isinstance(reply, Reply) else reply
        if isinstance(found, CallError):
            detail = f"{self._endpoint}: {found}"
            return CallError(found.kind, detail, retry_after=found.retry_after, limited=found.limited)
        return found


def read_token(reply: Reply) -> Token | CallError:
    """What a token endpoint's answer means. Nothing of its text is quoted but a registered kind of error code."""
    if reply.meaning in (Meaning.AGAIN, Meaning.BACK_PRESSURE):
        limited = reply.meaning is Meaning.BACK_PRESSURE
        return CallError("outage", f"status {reply.status}", retry_after=reply.retry_after, limited=limited)
    answer = _json_object(reply.body)
    if not reply.ok:
        code = answer.get("error")
        code = f", {code}" if isinstance(code, str) and re.fullmatch(r"[a-z_]{1,40}", code) else ""
        return CallError("unauthorized", f"gives no token (status {reply.status}{code})")
    token, kind = answer.get("access_token"), answer.get("token_type") or "bearer"
    if (
        not isinstance(token, str)
        or not re.fullmatch(r"[\x21-\x7e]+", token)
        or len(token) > _MOST_CHARACTERS
        or str(kind).lower() != "bearer"
    ):
        return CallError("outage", f"status {reply.status}, but no bearer token")
    return Token(Credentials({"Authorization": f"Bearer {token}"}, (token,)), _life(answer.get("expires_in")))


def _json_object(body: bytes) -> dict[str, object]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _life(expires_in: object) -> float:
    """Seconds; some endpoints send the number as text."""
    try:
        seconds = float(str(expires_in))
    except ValueError:
        return _PRESUMED_SECONDS
    return min(max(seconds, 0.0), _MOST_SECONDS) if seconds == seconds else _PRESUMED_SECONDS


@once_per_process
def get_tokens(auth: Auth, settings: TransportSettings) -> Tokens:
    """This process's tokens of one client. ``settings`` name the endpoint's ``scheme://host``. Raises
    UnresolvedSecretError."""
    return Tokens(auth, Transport(settings))
