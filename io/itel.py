"""Handing completed forms to iTel, or to a folder while there is no endpoint yet.

A submission's end is a value, :class:`Accepted` or :class:`Rejected`, whatever the API does: one bad task, or an hour's
outage, must not hold up the tables.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from itel_cabinet.io.crash_points import reached
from itel_cabinet.io.http import (
    CallFailed,
    Connection,
    ConnectionSettings,
    Reply,
    check_header_name,
    connection,
    is_transient,
)
from itel_cabinet.io.world import retry_world
from itel_cabinet.transforms.ordering import in_order_per_key
from itel_cabinet.transforms.records import Failure
from itel_cabinet.transforms.submissions import Submission, Submitted

__all__ = [
    "Accepted",
    "FolderItel",
    "HttpItel",
    "Itel",
    "ItelSettings",
    "Rejected",
    "folder_of",
    "idempotency_key",
    "itel",
    "submit",
]

_VISIBLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")
_LONGEST_NAME = 180  # with the marks of a temporary file it stays under the 255 bytes of common file systems


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
    ``outage`` (5xx, 408, 425, 429 to the last try), ``timeout``, ``unreachable``, ``reset``. ``status`` is that of the
    last answer, if one came. ``error`` is one line for a person, without anything from the answer's body; ``excerpt``
    is the body's beginning, which may repeat what was sent.
    """

    error_class: str
    status: int | None
    attempts: int
    error: str
    excerpt: str = ""


class Itel(Protocol):
    """Where submissions go."""

    def submit(self, assignment_id: int, event_id: str, payload: bytes) -> Accepted | Rejected:
        """Hand in one form. Thread-safe; may be repeated with the same ``event_id``, which the other side
        recognises."""


# ------------------------------------------------------------------------------------------------------------ the API


@dataclass(frozen=True, slots=True)
class ItelSettings:
    """Where and how to submit. Checked when made (ValueError names the option)."""

    connection: ConnectionSettings
    path: str = "/api/v1/tasks"
    method: str = "POST"
    idempotency_header: str = "Idempotency-Key"

    def __post_init__(self) -> None:
        if not self.path.startswith("/"):
            raise ValueError(f"--itel_path: must begin with /, got {self.path!r}")
        if self.method not in ("POST", "PUT", "PATCH"):
            raise ValueError(f"--itel_method: must be POST, PUT or PATCH, got {self.method!r}")
        try:
            check_header_name(self.idempotency_header)
        except ValueError as error:
            raise ValueError(f"--itel_idempotency_header: {error}") from None


@dataclass(frozen=True)
class HttpItel:
    """Submits to the API. Never raises for what the API does."""

    settings: ItelSettings
    connection: Connection

    def submit(self, assignment_id: int, event_id: str, payload: bytes) -> Accepted | Rejected:  # noqa: ARG002
        """Send the payload with the event's id as its idempotency key.

        Accepted by a 2xx, even if its body is lost, and by a 4xx whose body says that the submission ``already
        exists``.
        """
        try:
            reply = self.connection.call(
                self.settings.method,
                self.settings.path,
                body=payload,
                headers={
                    "Content-Type": "application/json",
                    self.settings.idempotency_header: idempotency_key(event_id),
                },
            )
        except CallFailed as error:
            status, excerpt = (error.last.status, error.last.excerpt) if error.last else (None, "")
            return Rejected(error.kind, status, error.attempts, f"iTel: {error}", excerpt)
        if reply.ok:
            reached("after-2xx")
            return Accepted(reply.status, reply.attempts, reply.excerpt)
        if 400 <= reply.status < 500 and b"already exists" in reply.body.lower():
            return Accepted(reply.status, reply.attempts, reply.excerpt, duplicate=True)
        tried = f"{reply.attempts} {'try' if reply.attempts == 1 else 'tries'} in {reply.elapsed:.1f} s"
        return Rejected(
            _error_class(reply), reply.status, reply.attempts, f"iTel answers {reply.status} ({tried})", reply.excerpt
        )


def _error_class(reply: Reply) -> str:
    if reply.status in (401, 403):
        return "unauthorized"
    if reply.status < 400:
        return "redirected"
    return "outage" if is_transient(reply.status) else "refused"


def idempotency_key(event_id: str) -> str:
    """The event's id as a header can carry it: visible ASCII stays as it is, all else and ``%`` become ``%XX``. One to
    one."""
    return quote(event_id, safe=_VISIBLE, errors="surrogatepass")


# ----------------------------------------------------------------------------------------------------------- a folder


@dataclass(frozen=True)
class FolderItel:
    """Writes each payload to ``{folder}/{assignment_id}-{event_id}.json``, byte for byte what the API would get.

    The idempotency key is in the name (percent-encoded; the SHA-256 of one too long for a file name), so a repeat
    replaces its own file. A file is complete as soon as it can be seen, and on disk once Accepted is returned.
    """

    folder: Path
    world_seconds: float = 0.0

    def submit(self, assignment_id: int, event_id: str, payload: bytes) -> Accepted | Rejected:
        """Write the payload. A folder that cannot be written is no fault of the submission: tries for
        ``world_seconds``, then raises WorldError.
        """
        path = self.folder / f"{assignment_id}-{_file_name(event_id)}.json"
        known = retry_world(
            lambda: _write(path, payload),
            what=f"--itel_url: folder {self.folder} cannot be written",
            seconds=self.world_seconds,
            is_world=lambda error: isinstance(error, OSError),
            describe=lambda error: getattr(error, "strerror", None) or type(error).__name__,
        )
        reached("after-2xx")
        return Accepted(200 if known else 201, 1, f"written to {path.name}", duplicate=known)


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
    """The folder that ``--itel_url file:DIR`` (or ``file:///DIR``) names; None for another kind of URL."""
    if not url.startswith("file:"):
        return None
    folder = url.removeprefix("file:")
    if folder.startswith("//"):
        folder = folder.removeprefix("//")
        if not folder.startswith("/"):
            raise ValueError(f"--itel_url: write file:DIR or file:///DIR, got {url!r}")
    if not folder or "\0" in folder:
        raise ValueError(f"--itel_url: file: must be followed by a folder, got {url!r}")
    return Path(folder)


# ------------------------------------------------------------------------------------------------------- many at once


def submit(
    submissions: Sequence[Submission],
    *,
    client: Callable[[], Itel],
    pool: Callable[[], Executor],
    clock: Callable[[], float],
) -> list[Submitted | Failure]:
    """Hand in a batch: those of one assignment one after the other in their order, the rest side by side.

    Returns the outcomes in the order of ``submissions``; returns or raises (WorldError) only when every call has ended.
    """
    api = client()

    def hand_in(submission: Submission) -> Submitted | Failure:
        first_at = clock()
        answer = api.submit(submission.assignment_id, submission.event_id, submission.payload)
        excerpt = submission.scrub(answer.excerpt)
        if isinstance(answer, Accepted):
            return Submitted(submission, answer.status, answer.attempts, excerpt, answer.duplicate)
        error = f"{answer.error}: {excerpt}" if excerpt else answer.error
        return Failure(submission.record, "submit", answer.error_class, error, first_at, clock(), answer.attempts)

    return in_order_per_key(submissions, lambda submission: submission.assignment_id, hand_in, pool())


def itel(settings: ItelSettings | Path, *, world_seconds: float = 0.0) -> Itel:
    """This process's one client with these settings (raises UnresolvedSecret); or, for a Path, that folder.

    ``world_seconds`` is how long an unwritable folder is waited for; the API's failures are values and have no part in
    it.
    """
    if isinstance(settings, Path):
        return FolderItel(settings, world_seconds)
    return HttpItel(settings, connection(settings.connection))
