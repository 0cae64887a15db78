"""Looking up a task in ClaimX, with a small cache that never serves an answer from before the event.

A lookup has three ends: an :class:`Answer`; a :class:`LookupRefused`, which is the record's own fault and a value; a
:class:`ClaimXOutageError`, which is no record's fault (an expired token would refuse every record alike) and is raised,
for the caller to retry.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

from cachetools import TTLCache
from pydantic import ValidationError

from itel_cabinet.io.batch_limits import FETCHED
from itel_cabinet.io.http import CallError, Connection, ConnectionSettings, Meaning, Reply, get_connection
from itel_cabinet.io.worker import SettingError, describe_error, metrics, once_per_process, retry_outage
from itel_cabinet.transforms.enrichment import TaskLookupError, Trace
from itel_cabinet.transforms.forms import TaskDetails, parse_details
from itel_cabinet.transforms.json_text import read_json

__all__ = [
    "Answer",
    "ClaimX",
    "ClaimXOutageError",
    "ClaimXSettings",
    "LookupRefused",
    "WaitingLookup",
    "describe_refusal",
    "get_claimx",
    "get_task_lookup",
]

# By the size of the answers' text: one with a form has tens of KB, and several times that once it is parsed, so that
# a bound on their number alone could fill the worker.
CACHE_BYTES = 4 * 1024 * 1024

T = TypeVar("T")


class ClaimXOutageError(Exception):
    """ClaimX cannot be asked: no connection, time is up, an answer that may pass, refused credentials, a redirect, or a
    page for people.

    One line, which names the address and what to do; ``attempts`` counts the tries.
    """

    def __init__(self, message: str, attempts: int) -> None:
        super().__init__(message)
        self.attempts = attempts


@dataclass(frozen=True, slots=True)
class LookupRefused:
    """ClaimX answers, but not for this record.

    ``error_class`` is ``unknown_assignment`` (404, 410), ``lookup_refused`` (another answer that refuses) or
    ``wrong_shape`` (a 2xx that is not JSON, not what ``parse`` takes, or too large). ``message`` is one line without
    the answer's own text.
    """

    error_class: str
    status: int | None
    attempts: int
    message: str


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What ``parse`` made of the answer. ``fetched_at``, by the client's clock, is from before the request; ``size`` in
    bytes."""

    task: T
    fetched_at: float
    size: int


@dataclass(frozen=True, slots=True)
class ClaimXSettings:
    """``path`` holds ``{assignment_id}``, or the id of another ``subject``; ``cache_seconds`` may be 0. Raises
    SettingError when made."""

    connection: ConnectionSettings
    path: str = "/customTasks/assignment/{assignment_id}?full=true"
    cache_seconds: float = 60.0
    subject: Literal["assignment", "project"] = "assignment"

    @property
    def placeholder(self) -> str:
        return f"{{{self.subject}_id}}"

    def __post_init__(self) -> None:
        rest = self.path.replace(self.placeholder, "")
        if rest == self.path or "{" in rest or "}" in rest or not rest.startswith("/"):
            message = f"must begin with / and hold {self.placeholder}, got {self.path!r}"
            raise SettingError(message, field="task_path")


@dataclass
class ClaimX(Generic[T]):
    """The client. Thread-safe; made once for its settings and ``parse`` by :func:`claimx`.

    ``parse`` turns the JSON text of an assignment's answer into what the caller works with. It raises ValueError
    (pydantic's ValidationError is one) for a wrong shape; of a ValidationError only places and reasons are reported,
    never values, and the text of any other ValueError must be free of personal data. ``clock`` is monotonic, in
    seconds: answers do not grow younger when the machine's time is set back.
    """

    settings: ClaimXSettings
    connection: Connection
    parse: Callable[[bytes, Any], T]
    clock: Callable[[], float] = time.monotonic
    _cache: TTLCache[int | str, Answer[bytes]] = field(init=False, repr=False)
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._cache = TTLCache(CACHE_BYTES, self.settings.cache_seconds, timer=self.clock, getsizeof=_size)

    def task_details(
        self, assignment_id: int | str, *, not_before: float, fresh: bool = False, trace: Trace | None = None
    ) -> Answer[T] | LookupRefused:
        """The task of an assignment (or what the settings' subject is), as of after ``not_before`` (by ``clock``) if it
        comes from the cache.

        Give the moment at which the event was here: an answer fetched before might show the task as it was before the
        event. ``fresh`` goes past the cache. Only parsed answers are cached. ``trace`` gives the headers of the
        call: it is in the trace of the record that caused it, no matter how many are answered from the cache then.

        A 2xx that is not JSON is tried again like a fault on the way, which it mostly is (a cut body, a proxy's page),
        and becomes a LookupRefused if it stays so; a page for people (a login's) is an outage. Raises
        ClaimXOutageError, after the tries of the connection.
        """
        if not fresh:
            with self._lock:
                known = self._cache.get(assignment_id)
            if known is not None and known.fetched_at > not_before:
                metrics.LOOKUPS_CACHED.inc()
                return Answer(self.parse(known.task, assignment_id), known.fetched_at, known.size)
        fetched_at = self.clock()
        parsed: T | Exception

        def judge(reply: Reply) -> Meaning:
            nonlocal parsed
            if reply.meaning is not Meaning.ACCEPTED:
                return reply.meaning
            try:
                parsed = self.parse(reply.text, assignment_id)
            except (ValueError, RecursionError) as error:
                parsed = error
                return reply.meaning if _is_json(reply.text) else Meaning.AGAIN
            return reply.meaning

        path = self.settings.path.replace(self.settings.placeholder, quote(str(assignment_id), safe=""))
        try:
            headers = trace(f"{path} again" if fresh else path) if trace else None
            reply = self.connection.call("GET", path, headers=headers, judge=judge)
        except CallError as error:
            if error.kind == "too_large":
                return LookupRefused("wrong_shape", None, error.attempts, f"ClaimX: {error}")
            raise ClaimXOutageError(str(error), error.attempts) from None
        is_not_json = reply.meaning is Meaning.AGAIN and reply.status < 300 and not reply.is_page
        if not (reply.ok or is_not_json):
            return _refused(reply, self.settings)
        if isinstance(parsed, Exception):
            return LookupRefused("wrong_shape", reply.status, reply.attempts, f"ClaimX's answer: {_reason(parsed)}")
        answer = Answer(parsed, fetched_at, len(reply.body))
        # The text, as an answer takes ten times as much once it is parsed.
        self._keep(assignment_id, Answer(reply.text, fetched_at, answer.size))
        return answer

    def _keep(self, assignment_id: int | str, answer: Answer[bytes]) -> None:
        with self._lock:
            known = self._cache.get(assignment_id)
            # Two threads may have asked at once, and the later answer may have come first.
            if (known is None or known.fetched_at < answer.fetched_at) and answer.size <= CACHE_BYTES:
                self._cache[assignment_id] = answer


def _size(answer: Answer[Any]) -> int:
    return answer.size


def _is_json(body: bytes) -> bool:
    try:
        read_json(body)
    except ValueError:
        return False
    return True


def _refused(reply: Reply, settings: ClaimXSettings) -> LookupRefused:
    """What an answer means that is not about a task. Raises ClaimXOutageError for what is not this record's fault."""
    message = describe_refusal(reply, settings.connection, settings.subject)
    if message is None:
        message = f"ClaimX knows no such {settings.subject} (status {reply.status})"
        return LookupRefused(f"unknown_{settings.subject}", reply.status, reply.attempts, message)
    return LookupRefused("lookup_refused", reply.status, reply.attempts, message)


def describe_refusal(reply: Reply, settings: ConnectionSettings, subject: str) -> str | None:
    """Why ClaimX does not answer a lookup, in one line; None if it has nothing of that id. Raises ClaimXOutageError for
    what no record can help."""
    answered = f"{settings.base_url}: {reply.describe()}"
    if reply.meaning is Meaning.CREDENTIALS:
        hint = "" if reply.status == 407 else ": check the credentials"  # what to do about a proxy is said already
        raise ClaimXOutageError(answered + hint, reply.attempts)
    if reply.meaning is Meaning.REDIRECTED:
        raise ClaimXOutageError(f"{answered}, a redirect: check the URL", reply.attempts)
    if reply.meaning is Meaning.AGAIN:
        page = ", with a page for people in place of data" if reply.status < 300 else ""
        raise ClaimXOutageError(f"{answered}{page} ({reply.attempts} tries in {reply.elapsed:.1f} s)", reply.attempts)
    if reply.status in (404, 410):
        return None
    of = "" if subject == "assignment" else f" of the {subject}"
    return f"ClaimX refuses the lookup{of} (status {reply.status})"


def _reason(error: Exception) -> str:
    """One line on a wrong shape, without the values in it."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at character {error.pos}"
    if not isinstance(error, ValidationError):
        return describe_error(error)
    faults = error.errors(include_input=False, include_context=False, include_url=False)
    first = [f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}" for fault in faults[:3]]
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return "; ".join(first)[:300] + more


@once_per_process
def get_claimx(settings: ClaimXSettings, parse: Callable[[bytes, Any], Any]) -> ClaimX[Any]:
    """This process's one client with these settings. ``parse`` must be a module's function. Raises
    UnresolvedSecretError.
    """
    return ClaimX(settings, get_connection(settings.connection), parse)


@dataclass(frozen=True)
class WaitingLookup(Generic[T]):
    """A TaskLookup over the ClaimX client. Thread-safe.

    ``on_outage`` says what an outage is: ``wait`` tries again for ``outage_seconds`` and then raises OutageError (an
    expired token must not send the whole stream to the dead letters); ``divert`` raises TaskLookupError at once.
    ``clock`` (monotonic seconds) and ``sleep`` steer the waits.
    """

    client: ClaimX[T]
    on_outage: Literal["wait", "divert"]
    outage_seconds: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def now(self) -> float:
        """See transforms.enrichment.TaskLookup."""
        return self.client.clock()

    def calls_at_once(self) -> int:
        """See transforms.enrichment.TaskLookup."""
        return self.client.connection.calls_at_once()

    def task(
        self, assignment_id: int | str, *, not_before: float, fresh: bool = False, trace: Trace | None = None
    ) -> T:
        """The task of an assignment; see transforms.enrichment.TaskLookup."""
        with metrics.LOOKUP_SECONDS.time():
            return self._task(assignment_id, not_before, fresh, trace)

    def _task(self, assignment_id: int | str, not_before: float, fresh: bool, trace: Trace | None) -> T:
        try:
            answer = retry_outage(
                lambda: self.client.task_details(assignment_id, not_before=not_before, fresh=fresh, trace=trace),
                what="ClaimX",
                seconds=self.outage_seconds if self.on_outage == "wait" else 0.0,
                is_outage=lambda error: self.on_outage == "wait" and isinstance(error, ClaimXOutageError),
                clock=self.clock,
                sleep=self.sleep,
            )
        except ClaimXOutageError as error:
            raise TaskLookupError("outage", str(error), error.attempts) from None
        if isinstance(answer, LookupRefused):
            raise TaskLookupError(answer.error_class, answer.message, answer.attempts)
        FETCHED.add(answer.size)
        return answer.task


def get_task_lookup(
    settings: ClaimXSettings, *, on_outage: Literal["wait", "divert"], outage_seconds: float
) -> WaitingLookup[TaskDetails]:
    """The process's lookup with these settings."""
    return WaitingLookup(get_claimx(settings, parse_details), on_outage, outage_seconds)
