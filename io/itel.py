"""iTel over HTTP, or a folder while there is no endpoint yet; and, for those who would rather wait, WaitingItel."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

from itel_cabinet.io.http import (
    CallError,
    Connection,
    ConnectionSettings,
    FailureKind,
    Meaning,
    Reply,
    get_connection,
)
from itel_cabinet.io.worker import SettingError, crash_points, once_per_process, retry_outage
from itel_cabinet.transforms.ordering import MOST_AT_ONCE
from itel_cabinet.transforms.submission_keys import batch_key, fill_path, idempotency_key
from itel_cabinet.transforms.submissions import Submission
from itel_cabinet.transforms.submitting import Accepted, Itel, NewestContents, Rejected
from itel_cabinet.transforms.trace_context import trace_call

__all__ = [
    "DUPLICATE_BY_KEY",
    "OUTCOMES",
    "AnswerRule",
    "FolderItel",
    "HttpItel",
    "ItelSettings",
    "Request",
    "WaitingItel",
    "find_created_id",
    "folder_of",
    "get_itel",
    "get_newest_contents",
    "make_request",
    "read_answer",
]

_LONGEST_NAME = 180  # with the marks of a temporary file it stays under the 255 bytes of common file systems


_MEANINGS = {
    "accepted": Meaning.ACCEPTED,
    "duplicate": Meaning.DUPLICATE,
    "in_flight": Meaning.AGAIN,
    "again": Meaning.AGAIN,
    "refused": Meaning.REFUSED,
    "credentials": Meaning.CREDENTIALS,
}
_PLAIN = (Meaning.ACCEPTED, Meaning.REFUSED)
_FAILURE_WORDS = frozenset({"error", "fail", "failed", "failure", "rejected", "refused", "invalid"})
_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})
_ERROR_CLASSES = {
    Meaning.AGAIN: "outage",
    Meaning.CREDENTIALS: "unauthorized",
    Meaning.REDIRECTED: "redirected",
    Meaning.REFUSED: "refused",
}
_CONTRADICTIONS = {
    Meaning.AGAIN: "with a page for people in place of data",
    Meaning.REFUSED: "but does not accept the submission",
}


OUTCOMES = ("accepted", "duplicate", "unchanged", "refused", "redirected", *get_args(FailureKind))
"""What can become of a submission: see Accepted, Rejected and NewestContents."""


# ------------------------------------------------------------------------------------------------------------ the API


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """What an answer means, if all that the rule names is there.

    Attributes:
        statuses: three digits each, or a class such as ``4xx``.
        means: ``accepted``, ``duplicate``, ``in_flight``, ``again``, ``refused`` or ``credentials``.
        contains: the text must hold this, in any case.
        field: look only into this field of a JSON answer, whose parts are separated by dots.
        names_key: the text must name the key of this very submission.
    """

    statuses: tuple[str, ...]
    means: str
    contains: str | None = None
    field: str | None = None
    names_key: bool = False

    def fits(self, reply: Reply, names: Sequence[str]) -> bool:
        """Whether the rule speaks of this answer to a submission known by ``names``."""
        status = str(reply.status)
        if status not in self.statuses and f"{status[0]}xx" not in self.statuses:
            return False
        text = reply.body.decode("utf-8", errors="replace")
        if self.field is not None:
            found = _find(text, self.field)
            if found is None:
                return False
            text = found
        if self.contains is not None and self.contains.lower() not in text.lower():
            return False
        return not self.names_key or _names(text, names)


DUPLICATE_BY_KEY = AnswerRule(("4xx",), "duplicate", "already exists", names_key=True)


@dataclass(frozen=True, slots=True)
class ItelSettings:
    """Where and how to submit.

    ``path`` may hold ``{assignment_id}``, ``{project_id}``, ``{task_id}`` and ``{event_id}``. ``idempotency_header`` is
    empty where a repeat is recognised by the body. ``rules`` say what answers mean beside their status, the first that
    fits; ``created_id`` is where an answer names what has come of a submission.
    """

    connection: ConnectionSettings
    path: str = "/api/v1/tasks"
    method: str = "POST"
    idempotency_header: str = "Idempotency-Key"
    batch_size: int = 1
    batch_path: str = "/api/v1/tasks/batch"
    headers: tuple[tuple[str, str], ...] = ()
    rules: tuple[AnswerRule, ...] = (DUPLICATE_BY_KEY,)
    created_id: str = "itel_task_id"


@dataclass(frozen=True, slots=True)
class Request:
    """Where a submission goes, with which headers, and by which ``names`` an answer may call it."""

    path: str
    headers: Mapping[str, str]
    names: tuple[str, ...]


def make_request(settings: ItelSettings, submission: Submission) -> Request:
    """How a submission is sent, in the trace of its record; its key is the event's id, or what its body has as one."""
    event_id, key = submission.event_id, idempotency_key(submission.event_id)
    own = (event_id, key, f"{submission.assignment_id}-{event_id}")
    names = own if submission.key is None else (submission.key,)
    return Request(fill_path(settings.path, submission), _headers(settings, key, submission), names)


def _headers(settings: ItelSettings, key: str, first: Submission) -> dict[str, str]:
    own = trace_call(first.record, settings.connection.name)
    headers = {"Content-Type": "application/json", **dict(settings.headers), **own}
    if settings.idempotency_header:
        headers[settings.idempotency_header] = key
    return headers


@dataclass(frozen=True)
class HttpItel:
    """Submits to the API. Never raises for what the API does."""

    settings: ItelSettings
    connection: Connection

    @property
    def batch_size(self) -> int:
        """As the settings have it."""
        return self.settings.batch_size

    def calls_at_once(self) -> int:
        """See Itel."""
        return self.connection.calls_at_once()

    def submit(self, submission: Submission) -> Accepted | Rejected:
        """Send the payload with the event's id as its idempotency key; see :func:`read_answer`."""
        request = make_request(self.settings, submission)
        return self._send(self.settings.method, request, submission.payload)

    def submit_batch(self, batch: Sequence[Submission]) -> Accepted | Rejected:
        """Post ``{"tasks": [...], "batch_size": n}`` under :func:`batch_key`, in the trace of the first one's record.

        A 4xx is a refusal, no matter what its body says: what already exists may be one of many.
        """
        body = b'{"tasks":[%b],"batch_size":%d}' % (b",".join(one.payload for one in batch), len(batch))
        headers = _headers(self.settings, batch_key([one.event_id for one in batch]), batch[0])
        return self._send("POST", Request(self.settings.batch_path, headers, ()), body)

    def _send(self, method: str, request: Request, body: bytes) -> Accepted | Rejected:
        settings, names = self.settings, request.names
        try:
            reply = self.connection.call(
                method,
                request.path,
                body=body,
                headers=request.headers,
                judge=lambda reply: read_answer(reply, names, settings.rules if names else ()),
            )
        except CallError as error:
            status, excerpt = (error.last.status, error.last.excerpt) if error.last else (None, "")
            return Rejected(error.kind, status, error.attempts, f"iTel: {error}", excerpt)
        if not reply.ok:
            return _rejected(reply)
        if reply.meaning is Meaning.ACCEPTED:
            crash_points.maybe_crash("after-2xx")
        created = find_created_id(reply.body, settings.created_id)
        return Accepted(reply.status, reply.attempts, reply.excerpt, reply.meaning is Meaning.DUPLICATE, created)


def read_answer(reply: Reply, names: Sequence[str], rules: Sequence[AnswerRule] = (DUPLICATE_BY_KEY,)) -> Meaning:
    """What iTel's answer to a submission means that can be known by ``names``.

    - The first of ``rules`` that fits decides. None can turn a status that asks for another try, for credentials or
      for quiet into an acceptance, but by naming it.
    - Else a 2xx accepts it, even if its body is lost, but for a page for people (a login's, a proxy's), which is no
      word of iTel's, and for JSON that says it failed.
    - All else is as the status says.
    """
    meaning = reply.meaning
    if meaning is Meaning.BACK_PRESSURE:
        return meaning
    for rule in rules:
        # "4xx" names a class: what of it the table knows better, such as a 401 or a 408, stays.
        if rule.fits(reply, names) and (meaning in _PLAIN or str(reply.status) in rule.statuses):
            return _MEANINGS[rule.means]
    if meaning is Meaning.ACCEPTED:
        return Meaning.AGAIN if reply.is_page else Meaning.REFUSED if _says_failed(reply.body) else meaning
    return meaning


def _names(text: str, names: Sequence[str]) -> bool:
    """Whether a text holds one of these, as it is or as JSON spells it, and not as part of a longer word."""
    forms = {
        form for name in names for form in (name, *(json.dumps(name, ensure_ascii=a)[1:-1] for a in (True, False)))
    }
    return any(re.search(rf"(?<!\w){re.escape(form)}(?!\w)", text) for form in forms)


def _find(text: str, field: str) -> str | None:
    """A field of a JSON text, itself as text; None if it is not there."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    for part in field.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return None if found is None else found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def find_created_id(body: bytes, field: str) -> str | None:
    """What an answer calls that which has come of a submission; None if it does not say."""
    return _find(body.decode("utf-8", errors="replace"), field)


def _says_failed(body: bytes) -> bool:
    """Whether a body is JSON that denies what its 2xx says; an array does if one of its objects does."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return any(_is_failure(one) for one in (found if isinstance(found, list) else [found]) if isinstance(one, dict))


def _is_failure(answer: Mapping[str, Any]) -> bool:
    fields = {name.lower().replace("_", ""): value for name, value in answer.items()}
    flags = [str(fields[name]).lower() for name in ("success", "ok", "succeeded", "accepted") if name in fields]
    words = [str(fields[name]).lower() for name in ("status", "result", "outcome") if name in fields]
    codes = [fields[name] for name in ("status", "statuscode") if isinstance(fields.get(name), int)]
    return (
        any(flag in ("false", "0", "no") for flag in flags)
        or any(word in _FAILURE_WORDS for word in words)
        or any(code >= 400 for code in codes)
        or any(fields.get(name) not in _NOTHING for name in ("error", "errors"))
    )


def _rejected(reply: Reply) -> Rejected:
    tried = f"{reply.attempts} {'try' if reply.attempts == 1 else 'tries'} in {reply.elapsed:.1f} s"
    answer = reply.describe().removeprefix("status ")
    if reply.status < 300:
        answer += f", {_CONTRADICTIONS[reply.meaning]}"
    error_class = _ERROR_CLASSES[reply.meaning]
    return Rejected(error_class, reply.status, reply.attempts, f"iTel answers {answer} ({tried})", reply.excerpt)


# ------------------------------------------------------------------------------------------------------------ waiting


class _AwayError(Exception):
    """iTel's outage, to be waited for."""


@dataclass(frozen=True)
class WaitingItel:
    """Waits for as long as iTel is away, so that only what it refuses is rejected.

    Refused credentials and redirects count as away: an expired token or session must not send the whole stream to the
    error topic. So does a submission that iTel always answers with 5xx. A process that has been asked to end waits for
    10 s more, then OutageError is raised. ``clock`` (monotonic seconds) and ``sleep`` steer the waits.
    """

    api: Itel
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @property
    def batch_size(self) -> int:
        """As the API has it."""
        return self.api.batch_size

    def calls_at_once(self) -> int:
        """See Itel."""
        return self.api.calls_at_once()

    def submit(self, submission: Submission) -> Accepted | Rejected:
        """See Itel."""
        return self._patiently(lambda: self.api.submit(submission), lambda rejected: rejected.outage)

    def submit_batch(self, batch: Sequence[Submission]) -> Accepted | Rejected:
        """See Itel."""
        return self._patiently(
            lambda: self.api.submit_batch(batch), lambda rejected: rejected.outage and not rejected.divisible
        )

    def _patiently(
        self, call: Callable[[], Accepted | Rejected], is_away: Callable[[Rejected], bool]
    ) -> Accepted | Rejected:
        def attempt() -> Accepted | Rejected:
            answer = call()
            if isinstance(answer, Rejected) and is_away(answer):
                raise _AwayError(answer.error.removeprefix("iTel").removeprefix(":").strip())
            return answer

        return retry_outage(
            attempt,
            what="iTel",
            seconds=math.inf,
            is_outage=lambda error: isinstance(error, _AwayError),
            clock=self.clock,
            sleep=self.sleep,
        )


# ----------------------------------------------------------------------------------------------------------- a folder


@dataclass(frozen=True)
class FolderItel:
    """Writes each payload to ``{folder}/{assignment_id}-{event_id}.json``, byte for byte what the API would get.

    The idempotency key is in the name (percent-encoded; the SHA-256 of one too long for a file name), so a repeat
    replaces its own file. A file is complete as soon as it can be seen, and on disk once Accepted is returned.
    """

    folder: Path
    outage_seconds: float = 0.0

    @property
    def batch_size(self) -> int:
        """1: each form is a file of its own."""
        return 1

    def calls_at_once(self) -> int:
        """As many as there are threads."""
        return MOST_AT_ONCE

    def submit(self, submission: Submission) -> Accepted | Rejected:
        """Write the payload. A folder that cannot be written is no fault of the submission: tries for
        ``outage_seconds``, then raises OutageError.
        """
        path = self.folder / f"{submission.assignment_id}-{_file_name(submission.event_id)}.json"
        known = retry_outage(
            lambda: _write(path, submission.payload),
            what=f"folder {self.folder} for submissions cannot be written",
            seconds=self.outage_seconds,
            is_outage=lambda error: isinstance(error, OSError),
            describe=lambda error: getattr(error, "strerror", None) or type(error).__name__,
        )
        crash_points.maybe_crash("after-2xx")
        return Accepted(200 if known else 201, 1, f"written to {path.name}", duplicate=known)

    def submit_batch(self, batch: Sequence[Submission]) -> Accepted | Rejected:
        """Write the one form there is."""
        (one,) = batch
        return self.submit(one)


def _write(path: Path, payload: bytes) -> bool:
    """Put the payload there in one step; whether there was one before."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    known = path.exists()
    try:
        with partial.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return known


def _file_name(event_id: str) -> str:
    name = quote(event_id, safe="", errors="surrogatepass")
    return name if len(name) <= _LONGEST_NAME else hashlib.sha256(name.encode()).hexdigest()


def folder_of(url: str) -> Path | None:
    """The folder that ``file:DIR`` (or ``file:///DIR``) names; None for another kind of URL. Raises SettingError."""
    if not url.startswith("file:"):
        return None
    folder = url.removeprefix("file:")
    if folder.startswith("//"):
        folder = folder.removeprefix("//")
        if not folder.startswith("/"):
            raise SettingError(f"write file:DIR or file:///DIR, got {url!r}", field="base_url")
    if not folder or "\0" in folder:
        raise SettingError(f"file: must be followed by a folder, got {url!r}", field="base_url")
    return Path(folder)


def get_itel(
    settings: ItelSettings | Path, *, on_outage: Literal["divert", "wait"] = "divert", outage_seconds: float = 0.0
) -> Itel:
    """This process's one client with these settings (raises UnresolvedSecretError); or, for a Path, that folder.

    ``on_outage`` says whether the API's outages are returned as values or waited for; ``outage_seconds`` is how long an
    unwritable folder is waited for.
    """
    if isinstance(settings, Path):
        return FolderItel(settings, outage_seconds)
    api = HttpItel(settings, get_connection(settings.connection))
    return WaitingItel(api) if on_outage == "wait" else api


@once_per_process
def get_newest_contents(_settings: ItelSettings | Path, seconds: float) -> NewestContents:
    """What this process has handed in with these settings, or in that folder, within so many seconds."""
    return NewestContents(seconds)
