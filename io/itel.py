"""Handing completed forms to iTel, or to a folder while there is no endpoint yet.

A submission's end is a value, :class:`Accepted` or :class:`Rejected`, no matter what the API does: one bad task, or an
hour's outage, must not hold up the tables. Those who would rather wait for iTel take a :class:`WaitingItel`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args
from urllib.parse import quote

from itel_cabinet.io.http import (
    CallError,
    Connection,
    ConnectionSettings,
    FailureKind,
    Reply,
    get_connection,
    is_transient,
)
from itel_cabinet.io.worker import SettingError, crash_points, metrics, retry_outage
from itel_cabinet.transforms.ordering import map_in_key_order
from itel_cabinet.transforms.records import Failure
from itel_cabinet.transforms.submissions import Submission, Submitted, scrub

__all__ = [
    "OUTCOMES",
    "Accepted",
    "FolderItel",
    "HttpItel",
    "Itel",
    "ItelSettings",
    "Rejected",
    "WaitingItel",
    "batch_key",
    "folder_of",
    "get_itel",
    "idempotency_key",
    "submit",
]

_VISIBLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")
_LONGEST_NAME = 180  # with the marks of a temporary file it stays under the 255 bytes of common file systems


OUTCOMES = ("accepted", "duplicate", "refused", "redirected", *get_args(FailureKind))
"""What can become of a submission: see Accepted and Rejected."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """iTel has the submission. ``duplicate``: it had it before this call. ``excerpt`` is the answer's beginning, one
    line."""

    status: int
    attempts: int
    excerpt: str
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """iTel does not have the submission, as far as is known.

    ``error_class`` is a stable name: ``refused`` (4xx, 501), ``unauthorized`` (401, 403), ``redirected`` (3xx),
    ``outage`` (5xx, 408, 425, 429 to the last try), ``timeout``, ``unreachable``, ``reset``, ``breaker_open`` (not even
    tried: too many calls have failed). ``status`` is that of the last answer, if one came. ``error`` is one line for a
    person, without anything from the answer's body; ``excerpt`` is the body's beginning, which may repeat what was
    sent.
    """

    error_class: str
    status: int | None
    attempts: int
    error: str
    excerpt: str = ""

    @property
    def outage(self) -> bool:
        """Whether iTel or its credentials are at fault, so that the same submission may well be accepted later."""
        return self.error_class not in ("refused", "redirected")

    @property
    def divisible(self) -> bool:
        """Of a batch: whether one of its submissions may be at fault, so that each must be tried alone.

        That a server breaks (500) over one of them is likelier than that it is down, which gateways tell by 502 to 504.
        """
        return self.error_class == "refused" or self.status == 500


class Itel(Protocol):
    """Where submissions go. Thread-safe; a call may be repeated, which the other side recognises by its key."""

    @property
    def batch_size(self) -> int:
        """How many submissions one call may take; with 1 there are no batches."""

    def submit(self, assignment_id: int, event_id: str, payload: bytes) -> Accepted | Rejected:
        """Hand in one form; its key is ``event_id``."""

    def submit_batch(self, batch: Sequence[Submission]) -> Accepted | Rejected:
        """Hand in some forms, ``batch_size`` at most and of different assignments: all are accepted, or none is."""


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

    def submit(self, assignment_id: int, event_id: str, payload: bytes) -> Accepted | Rejected:  # noqa: ARG002
        """Send the payload with the event's id as its idempotency key.

        Accepted by a 2xx, even if its body is lost, and by a 4xx whose body says that the submission ``already
        exists``.
        """
        reply = self._send(self.settings.method, self.settings.path, idempotency_key(event_id), payload)
        if isinstance(reply, Rejected):
            return reply
        if reply.ok:
            crash_points.maybe_crash("after-2xx")
            return Accepted(reply.status, reply.attempts, reply.excerpt)
        if 400 <= reply.status < 500 and b"already exists" in reply.body.lower():
            return Accepted(reply.status, reply.attempts, reply.excerpt, duplicate=True)
        return _rejected(reply)

    def submit_batch(self, batch: Sequence[Submission]) -> Accepted | Rejected:
        """Post ``{"tasks": [...], "batch_size": n}`` under :func:`batch_key`.

        Accepted by a 2xx but 207, which says that some were not. A 4xx is a refusal, no matter what its body says: what
        already exists may be one of many.
        """
        body = b'{"tasks":[%b],"batch_size":%d}' % (b",".join(one.payload for one in batch), len(batch))
        reply = self._send("POST", self.settings.batch_path, batch_key([one.event_id for one in batch]), body)
        if isinstance(reply, Rejected):
            return reply
        if reply.ok and reply.status != 207:
            crash_points.maybe_crash("after-2xx")
            return Accepted(reply.status, reply.attempts, reply.excerpt)
        return _rejected(reply)

    def _send(self, method: str, path: str, key: str, body: bytes) -> Reply | Rejected:
        headers = {"Content-Type": "application/json", self.settings.idempotency_header: key}
        try:
            return self.connection.call(method, path, body=body, headers=headers)
        except CallError as error:
            status, excerpt = (error.last.status, error.last.excerpt) if error.last else (None, "")
            return Rejected(error.kind, status, error.attempts, f"iTel: {error}", excerpt)


def _rejected(reply: Reply) -> Rejected:
    tried = f"{reply.attempts} {'try' if reply.attempts == 1 else 'tries'} in {reply.elapsed:.1f} s"
    return Rejected(
        _error_class(reply), reply.status, reply.attempts, f"iTel answers {reply.status} ({tried})", reply.excerpt
    )


def _error_class(reply: Reply) -> str:
    if reply.status in (401, 403):
        return "unauthorized"
    if 300 <= reply.status < 400:
        return "redirected"
    return "outage" if is_transient(reply.status) else "refused"


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

    401 and 403 count as away: an expired token must not send the whole stream to the error topic. So does a submission
    that iTel always answers with 5xx. A process that has been asked to end waits for 10 s more, then OutageError is
    raised. ``clock`` (monotonic seconds) and ``sleep`` steer the waits.
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


# ------------------------------------------------------------------------------------------------------- many at once


def submit(
    submissions: Sequence[Submission],
    *,
    client: Callable[[], Itel],
    pool: Callable[[], Executor],
    clock: Callable[[], float],
) -> list[Submitted | Failure]:
    """Hand in all of them: those of one assignment one after the other in their order, the rest side by side.

    In batches if the client has them; one that is refused is sent again one by one, so that a bad task sinks none of
    its neighbours. Returns the outcomes in the order of ``submissions``; returns or raises (OutageError) only when
    every call has ended.
    """
    api = client()

    def hand_in(submission: Submission) -> Submitted | Failure:
        first_at = clock()
        answer = api.submit(submission.assignment_id, submission.event_id, submission.payload)
        return describe([submission], answer, first_at)[0]

    def hand_in_batch(batch: Sequence[Submission]) -> list[Submitted | Failure]:
        if len(batch) == 1:
            return [hand_in(batch[0])]
        first_at = clock()
        answer = api.submit_batch(batch)
        if isinstance(answer, Rejected) and answer.divisible:
            return [hand_in(one) for one in batch]
        return describe(batch, answer, first_at)

    def describe(
        batch: Sequence[Submission], answer: Accepted | Rejected, first_at: float
    ) -> list[Submitted | Failure]:
        excerpt = scrub(answer.excerpt, batch)
        metrics.SUBMISSIONS.labels(_outcome(answer)).inc(len(batch))
        if isinstance(answer, Accepted):
            for one in batch:
                metrics.observe_freshness("itel", one.record.timestamp_ms / 1000)
            return [Submitted(one, answer.status, answer.attempts, excerpt, answer.duplicate) for one in batch]
        error = f"{answer.error}: {excerpt}" if excerpt else answer.error
        now = clock()
        return [
            Failure(
                one.record,
                "submit",
                answer.error_class,
                error,
                first_at,
                now,
                answer.attempts,
                one.event_id,
                one.assignment_id,
            )
            for one in batch
        ]

    if api.batch_size == 1:
        return map_in_key_order(submissions, lambda submission: submission.assignment_id, hand_in, pool())
    outcomes: dict[int, Submitted | Failure] = {}
    for turn in _turns(submissions):
        batches = [turn[start : start + api.batch_size] for start in range(0, len(turn), api.batch_size)]
        answers = map_in_key_order(
            batches, lambda batch: batch[0], lambda batch: hand_in_batch([submissions[at] for at in batch]), pool()
        )
        for batch, answer in zip(batches, answers, strict=True):
            outcomes.update(zip(batch, answer, strict=True))
    return [outcomes[index] for index in range(len(submissions))]


def _outcome(answer: Accepted | Rejected) -> str:
    if isinstance(answer, Rejected):
        return answer.error_class
    return "duplicate" if answer.duplicate else "accepted"


def _turns(submissions: Sequence[Submission]) -> list[list[int]]:
    """Indices of submissions: the first of each assignment, then the second of each that has more, and so on.

    Turn by turn, no batch holds two of one assignment, and a later one is sent when the earlier is answered.
    """
    turns: list[list[int]] = []
    seen: Counter[int] = Counter()
    for index, submission in enumerate(submissions):
        turn = seen[submission.assignment_id]
        seen[submission.assignment_id] += 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(index)
    return turns


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
