"""What is reported of records that came through: the formats of the success topics. Pure and thread-safe."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel

from itel_cabinet.transforms.submissions import Submitted
from itel_cabinet.transforms.trace_context import trace_message

__all__ = ["SubmissionResult", "TrackingResult", "encode_submission_result", "encode_tracking_result"]

_EXCERPT_CHARACTERS = 500


class SubmissionResult(BaseModel):
    """A submission that iTel has accepted. ``status`` is the HTTP status of its answer, ``timestamp`` when it came.

    ``response`` is the start of the answer's body, at most 500 characters; it may hold personal data, so it is written
    here and never logged. ``payload_sha256`` (hex) identifies the content that was accepted. ``itel_task_id`` is what
    the answer calls it, if it does; ``contract`` is the name, version and hash of the one that made it.
    """

    version: Literal[1] = 1
    event_id: str
    assignment_id: int
    status: int
    response: str
    payload_sha256: str
    attempts: int
    timestamp: AwareDatetime
    itel_task_id: str | None = None
    contract: str | None = None


class TrackingResult(BaseModel):
    """An event whose row is in the tracking table, with the event's own time and coordinates."""

    version: Literal[1] = 1
    event_id: str
    assignment_id: int
    task_status: str
    event_timestamp: AwareDatetime
    kafka_topic: str
    kafka_topic_id: str
    kafka_partition: int
    kafka_offset: int


def encode_submission_result(
    submitted: Submitted, now: float, contract: str | None = None
) -> tuple[bytes, bytes, tuple[tuple[str, bytes], ...]]:
    """Key, value (JSON of SubmissionResult) and headers of a message; the key is the event id, so that a repeat shows.

    ``now`` is epoch seconds.
    """
    submission = submitted.submission
    result = SubmissionResult(
        event_id=submission.event_id,
        assignment_id=submission.assignment_id,
        status=submitted.status,
        response=submitted.excerpt[:_EXCERPT_CHARACTERS].encode(errors="replace").decode(),
        payload_sha256=submission.payload_sha256,
        attempts=submitted.attempts,
        timestamp=datetime.fromtimestamp(now, UTC),
        itel_task_id=submitted.created_id,
        contract=contract,
    )
    headers = (
        ("x-assignment-id", str(result.assignment_id).encode()),
        ("x-status", str(result.status).encode()),
        *trace_message(submission.record, "result"),
    )
    return result.event_id.encode(), result.model_dump_json(exclude_none=True).encode(), headers


def encode_tracking_result(row: Mapping[str, Any]) -> tuple[bytes, bytes, tuple[tuple[str, bytes], ...]]:
    """Key, value (JSON of Tracked) and headers for a row of the tracking table; the key is the event id."""
    tracked = TrackingResult.model_validate({name: row[name] for name in TrackingResult.model_fields if name in row})
    headers = (("x-assignment-id", str(tracked.assignment_id).encode()), ("x-status", tracked.task_status.encode()))
    return tracked.event_id.encode(), tracked.model_dump_json().encode(), headers
