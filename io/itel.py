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
from itel_cabinet.transforms.submissions import Submission
from itel_cabinet.transforms.submitting import Accepted, Itel, NewestContents, Rejected

__all__ = [
    "OUTCOMES",
    "FolderItel",
    "HttpItel",
    "ItelSettings",
    "WaitingItel",
    "batch_key",
    "folder_of",
    "get_itel",
    "get_newest_contents",
    "idempotency_key",
    "read_answer",
]

_VISIBLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")
_LONGEST_NAME = 180  # with the marks of a temporary file it stays under the 255 bytes of common file systems


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
class ItelSettings:
    """Where and how to submit."""

    connection: ConnectionSettings
    path: str = "/api/v1/tasks"
    method: str = "POST"
    idempotency_header: str = "Idempotency-Key"
    batch_size: int = 1
    batch_path: str = "/api/v1/tasks/batch"


@dataclass(frozen=True)
class HttpItel:
    """Submits to the API. Never raises for what the API does."""

    settings: ItelSettings
    connection: Connection

    @property
    def batch_size(self) -> int:
        """As the settings have it."""
        return self.settings.batch_size

    def submit(self, assignment_id: int, event_id: str, payload: bytes) -> Accepted | Rejected:
        """Send the payload with the event's id as its idempotency key; see :func:`read_answer`."""
        key = idempotency_key(event_id)
        names = (event_id, key, f"{assignment_id}-{event_id}")
        return self._send(self.settings.method, self.settings.path, key, payload, names)

    def submit_batch(self, batch: Sequence[Submission]) -> Accepted | Rejected:
        """Post ``{"tasks": [...], "batch_size": n}`` under :func:`batch_key`.

        A 4xx is a refusal, no matter what its body says: what already exists may be one of many.
        """
        body = b'{"tasks":[%b],"batch_size":%d}' % (b",".join(one.payload for one in batch), len(batch))
        return self._send("POST", self.settings.batch_path, batch_key([one.event_id for one in batch]), body, ())

    def _send(self, method: str, path: str, key: str, body: bytes, names: Sequence[str]) -> Accepted | Rejected:
        headers = {"Content-Type": "application/json", self.settings.idempotency_header: key}
        try:
            reply = self.connection.call(
                method, path, body=body, headers=headers, judge=lambda reply: read_answer(reply, names)
            )
        except CallError as error:
            status, excerpt = (error.last.status, error.last.excerpt) if error.last else (None, "")
            return Rejected(error.kind, status, error.attempts, f"iTel: {error}", excerpt)
        if not reply.ok:
            return _rejected(reply)
        if reply.meaning is Meaning.ACCEPTED:
            crash_points.maybe_crash("after-2xx")
        return Accepted(reply.status, reply.attempts, reply.excerpt, reply.meaning is Meaning.DUPLICATE)


def read_answer(reply: Reply, names: Sequence[str]) -> Meaning:
    """What iTel's answer to a submission means that can be known by ``names``.

    - A 2xx accepts it, even if its body is lost, but for a page for people (a login's, a proxy's), which is no word of
      iTel's, and for JSON that says it failed.
    - A 4xx that refuses is a duplicate if its body says that one of ``names`` ``already exists``.
    """
    meaning = reply.meaning
    if meaning is Meaning.ACCEPTED:
        return Meaning.AGAIN if reply.is_page else Meaning.REFUSED if _says_failed(reply.body) else meaning
    if meaning is Meaning.REFUSED and 400 <= reply.status < 500:
        text = reply.body.decode("utf-8", errors="replace")
        forms = {
            form for name in names for form in (name, *(json.dumps(name, ensure_ascii=a)[1:-1] for a in (True, False)))
        }
        named = any(re.search(rf"(?<!\w){re.escape(form)}(?!\w)", text) for form in forms)
        return Meaning.DUPLICATE if named and "already exists" in text.lower() else meaning
    return meaning


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


def idempotency_key(event_id: str) -> str:
    """The event's id as a header can carry it: visible ASCII stays as it is, all else and ``%`` become ``%XX``. One to
    one."""
    return quote(event_id, safe=_VISIBLE, errors="surrogatepass")


def batch_key(event_ids: Sequence[str]) -> str:
    """The idempotency key of a batch: the same for the same events in the same order, even if ClaimX has changed its
    answer by now.

    A task's own key has no place in a batch, since the payload's schema allows no further field. So iTel recognises a
    batch that comes again as it was, but not its tasks in another batch, as a crash may form it.
    """
    return f"batch-{hashlib.sha256(json.dumps(list(event_ids)).encode()).hexdigest()}"


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

    def submit(self, assignment_id: int, event_id: str, payload: bytes) -> Accepted | Rejected:
        """See Itel."""
        return self._patiently(
            lambda: self.api.submit(assignment_id, event_id, payload), lambda rejected: rejected.outage
        )

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

    def submit(self, assignment_id: int, event_id: str, payload: bytes) -> Accepted | Rejected:
        """Write the payload. A folder that cannot be written is no fault of the submission: tries for
        ``outage_seconds``, then raises OutageError.
        """
        path = self.folder / f"{assignment_id}-{_file_name(event_id)}.json"
        known = retry_outage(
            lambda: _write(path, payload),
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
        return self.submit(one.assignment_id, one.event_id, one.payload)


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
