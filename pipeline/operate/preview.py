"""What would be stored and sent for one ClaimX answer, without Kafka, tables or iTel: `itel-cabinet preview`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from itel_cabinet.transforms.enrichment import COMPLETED, make_task
from itel_cabinet.transforms.events import (
    CABINET_TASK_ID,
    IncompleteTaskError,
    TaskEvent,
    make_task_row,
    parse_event,
)
from itel_cabinet.transforms.forms import WrongShapeError, parse_details, read_int
from itel_cabinet.transforms.json_text import read_json
from itel_cabinet.transforms.records import Failure, Record
from itel_cabinet.transforms.rows import ATTACHMENTS_SCHEMA, FORMS_SCHEMA, make_attachment_rows, make_form_rows
from itel_cabinet.transforms.submissions import Submission, build_submissions

__all__ = ["NotAnAnswerError", "preview_answer"]

# Columns that a row has from its event or from the moment it is written, which an answer alone does not have.
_OF_THE_RUN = frozenset(
    {
        "event_id",
        "event_timestamp",
        "kafka_topic",
        "kafka_topic_id",
        "kafka_partition",
        "kafka_offset",
        "ingested_at",
        "created_at",
        "updated_at",
    }
)


class NotAnAnswerError(ValueError):
    """What was given is no ClaimX answer about a task; one line, without any of its values."""


def preview_answer(answer: bytes, *, now: datetime) -> dict[str, Any]:
    """What the `cabinet` job would make of an event about the task in ``answer``, the JSON text that ClaimX gives for
    an assignment; the event is taken to bear the answer's own status.

    ``form`` is the row of the forms table and ``attachments`` those of the attachments table, as an event's steps make
    them but without the columns of the event and the moment (``event_id``, ``event_timestamp``, ``kafka_*``,
    ``ingested_at``, ``created_at``, ``updated_at``); ``payload`` is the submission's body. ``form`` and ``payload`` are
    None where nothing would be stored or sent, and ``warnings`` says why, after what the form's parser found odd.
    Instants are aware datetimes. ``now`` (aware) only has to be a time. Pure and thread-safe; raises NotAnAnswerError.
    """
    try:
        content, _ = read_json(answer)
    except ValueError as error:
        raise NotAnAnswerError(f"not JSON: {error}") from None
    assignment_id = read_int(content.get("assignmentId")) if isinstance(content, dict) else None
    if assignment_id is None:
        raise NotAnAnswerError("no ClaimX answer about a task: a JSON object with an assignmentId is expected")
    try:
        details = parse_details(answer, assignment_id)
        row = make_task_row(details.raw)
    except (WrongShapeError, IncompleteTaskError) as error:
        raise NotAnAnswerError(str(error)) from None

    record = _record(row, now)
    event = parse_event(record, now.timestamp())
    if isinstance(event, Failure):
        raise NotAnAnswerError(event.error)
    if not isinstance(event, TaskEvent):
        why = (
            f"task {row['task_id']} is not the cabinet repair form, which is {CABINET_TASK_ID}: its events are skipped"
        )
        return {"form": None, "attachments": [], "payload": None, "warnings": [why]}

    task = make_task(record, event, details)
    (outcome,) = build_submissions([task], statuses=frozenset({COMPLETED}), clock=now.timestamp)
    warnings = list(task.form.warnings) if task.form else []
    if isinstance(outcome, Failure):
        warnings.append(f"not submitted: {outcome.error}")
    elif not isinstance(outcome, Submission):
        warnings.append(f"not submitted: the status is {event.task_status}, and only a {COMPLETED} task's form is read")
    return {
        "form": next(iter(_shown(make_form_rows([task], clock=now.timestamp), FORMS_SCHEMA.names)), None),
        "attachments": [
            # The row that stands for an empty set is a sign to the table's sink.
            shown
            for shown in _shown(make_attachment_rows([task], clock=now.timestamp), ATTACHMENTS_SCHEMA.names)
            if shown["is_active"]
        ],
        "payload": json.loads(outcome.payload) if isinstance(outcome, Submission) else None,
        "warnings": warnings,
    }


def _record(row: Mapping[str, Any], now: datetime) -> Record:
    """The message that the trigger job would publish, had an event named this task."""
    message = {
        "event_id": "preview",
        "event_type": "CUSTOM_TASK_COMPLETED",
        "project_id": row["project_id"],
        "task_id": row["task_id"],
        "assignment_id": row["assignment_id"],
        "task_name": row["task_name"],
        "task_status": row["status"],
        "timestamp": now.isoformat(),
    }
    return Record("preview", "preview", 0, 0, int(now.timestamp() * 1000), None, json.dumps(message).encode())


def _shown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    return [{column: row[column] for column in columns if column not in _OF_THE_RUN} for row in rows]
