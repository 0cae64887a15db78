"""What a body needs of ClaimX beside the task: its export of the project, and links to the photos that are sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from itel_cabinet.transforms.contracts import Contract
from itel_cabinet.transforms.enrichment import CabinetTask, TaskLookupError, Trace
from itel_cabinet.transforms.ledger import refuse
from itel_cabinet.transforms.ordering import map_in_key_order
from itel_cabinet.transforms.records import Failure
from itel_cabinet.transforms.trace_context import trace_call

__all__ = ["Exports", "SentLinks", "expiry_of", "look_up_exports"]


@dataclass(frozen=True, slots=True)
class SentLinks:
    """Links to photos by media id, and how many were ``kept`` as ClaimX gives them, though a redirect was wanted."""

    urls: Mapping[int, str]
    kept: int = 0


class Exports(Protocol):
    """ClaimX's exports as the step sees them. Implementations are thread-safe and wait until an outage ends."""

    def project(self, project_id: str, trace: Trace) -> Mapping[str, Any] | None:
        """ClaimX's answer about a project; None if it knows none such. Raises TaskLookupError."""

    def links(self, project_id: str, media_ids: Sequence[int], trace: Trace) -> SentLinks:
        """Where these photos are; those that ClaimX does not list, or that lead where no link may, are left out.
        Raises TaskLookupError."""


def look_up_exports(
    tasks: Sequence[CabinetTask],
    *,
    contract: Contract,
    statuses: frozenset[str],
    exports: Callable[[], Exports],
    pool: Callable[[], Executor],
    clock: Callable[[], float],
    count: Callable[[str, str, int], None],
) -> list[CabinetTask | Failure]:
    """The tasks, in order, each that is to be submitted with what its contract needs of ClaimX's exports.

    Args:
        tasks: a batch.
        contract: says what is needed, and what is done where ClaimX has no such thing: go on without, or a Failure
            ``lookup_missing``.
        statuses: those that are submitted.
        exports: gives the process's client; called on the worker, as ``pool`` is.
        pool: gives the threads to ask from.
        clock: epoch seconds.
        count: is called with ``project`` or ``media``, an outcome (``found``, ``missing``, ``not_resolved``) and a
            number.
    """
    client, lookups = exports(), contract.file.lookups

    def wanted(task: CabinetTask) -> bool:
        submitted = task.event.task_status in statuses and not task.is_ahead
        return submitted and task.form is not None and contract.passes(task.details, task.form, task.event)

    def look_up(task: CabinetTask) -> CabinetTask | Failure:
        form = task.form
        if form is None or not wanted(task):
            return task
        event, first_at, trace = task.event, clock(), partial(trace_call, task.record)
        failure = partial(refuse, task.record, event, "enrich")
        try:
            if lookups.project is not None:
                project = client.project(event.project_id, trace)
                count("project", "missing" if project is None else "found", 1)
                if project is None and lookups.project.missing == "hold":
                    return failure("lookup_missing", "ClaimX has no export of the project", first_at, clock())
                task = replace(task, project=project)
            sent = contract.sent_photos(form)
            if lookups.media is not None and sent:
                links = client.links(event.project_id, sent, trace)
                missing = len(set(sent) - links.urls.keys())
                count("media", "found", len(links.urls) - links.kept)
                count("media", "not_resolved", links.kept)
                count("media", "missing", missing)
                if missing and lookups.media.missing == "hold":
                    error = f"ClaimX has no link to {missing} of the form's photos"
                    return failure("lookup_missing", error, first_at, clock())
                task = replace(task, links=links.urls)
        except TaskLookupError as error:
            return failure(error.error_class, str(error), first_at, clock(), error.attempts)
        return task

    return map_in_key_order(list[Any](tasks), lambda task: task.event.assignment_id, look_up, pool())


def expiry_of(link: str) -> datetime | None:
    """When a signed link ends, if it says so: ClaimX's ``systemDate`` and ``expires``, both in milliseconds, or S3's
    ``X-Amz-Date`` and ``X-Amz-Expires``, in seconds."""
    try:
        query = {name: values[-1] for name, values in parse_qs(urlsplit(link).query).items()}
        if "systemDate" in query and "expires" in query:
            milliseconds = int(query["systemDate"]) + int(query["expires"])
            return datetime.fromtimestamp(milliseconds / 1000, UTC)
        if "X-Amz-Date" in query and "X-Amz-Expires" in query:
            signed_at = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            return signed_at + timedelta(seconds=int(query["X-Amz-Expires"]))
    except (ValueError, OverflowError, OSError):
        return None
    return None
