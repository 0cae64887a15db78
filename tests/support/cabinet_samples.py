"""Hand-made samples: a record, a message of the tracking topic, a ClaimX answer with a form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from itel_cabinet.transforms.contracts import Body, Refusal, load_shipped
from itel_cabinet.transforms.events import TaskEvent, parse_event
from itel_cabinet.transforms.forms import Form, TaskDetails, parse_details
from itel_cabinet.transforms.records import Record
from itel_cabinet.transforms.rows import make_forms_schema
from itel_cabinet.transforms.submissions import Submission

ASSIGNMENT_ID = 5430007
CONTRACT = load_shipped()
"""The default: the form, body and answers of the cabinet repair task."""
TASK_IDS = CONTRACT.task_ids
QUESTIONS = CONTRACT.questions
PHOTO_QUESTION_KEYS = {one.question: one.key for one in CONTRACT.file.form.photos}
FORMS_SCHEMA = make_forms_schema(QUESTIONS, CONTRACT.file.form.raw_data_after)
EXAMPLE = Path(__file__).with_name("cabinet_repair_submission.example.json")
"""A submission of invented content, as iTel may receive it."""


def parse_form(found: TaskDetails) -> Form:
    """The form in an answer, as the default contract reads it."""
    return CONTRACT.read_form(found)


def build_payload(found: TaskDetails, form: Form, about: TaskEvent) -> bytes:
    """The body of a form under the default contract."""
    body = CONTRACT.build(found, form, about)
    assert isinstance(body, Body), body
    return body.payload


def refuse_payload(found: TaskDetails, form: Form, about: TaskEvent) -> Refusal:
    """Why a form has no body under the default contract."""
    refusal = CONTRACT.build(found, form, about)
    assert isinstance(refusal, Refusal), refusal
    return refusal


def submission(assignment_id: int, event_id: str, payload: bytes, personal: tuple[str, ...] = ()) -> Submission:
    """A submission of any body."""
    return Submission(record(b"", offset=assignment_id), event_id, assignment_id, payload, personal)


def record(value: Any, **changes: Any) -> Record:
    """A record whose value is ``value``: bytes or None as they are, anything else as JSON."""
    raw = value if isinstance(value, bytes | None) else json.dumps(value).encode()
    fields: dict[str, Any] = {
        "topic": "itel.cabinet.task.tracking",
        "topic_id": "AbCdEfGhIjKlMnOpQrStUv",
        "partition": 2,
        "offset": 41,
        "timestamp_ms": 1_768_057_449_120,
        "key": b"5430007",
    }
    return Record(value=raw, **{**fields, **changes})


def tracking_message(**changes: Any) -> dict[str, Any]:
    """A message of the tracking topic; a key set to ``...`` is left out."""
    message: dict[str, Any] = {
        "trigger_name": "iTel Cabinet Repair Form Task",
        "event_id": "9f2c" * 16,
        "event_type": "CUSTOM_TASK_COMPLETED",
        "project_id": "5400001",
        "task_id": 32513,
        "assignment_id": ASSIGNMENT_ID,
        "task_name": "ITEL Cabinet Repair Form",
        "task_status": "COMPLETED",
        "timestamp": "2026-01-10T15:04:09.120000+00:00",
        "task": {
            "assignment_id": ASSIGNMENT_ID,
            "task_id": 32513,
            "status": "COMPLETED",
            "assignee_id": 811,
            "assignor_id": 812,
            "date_assigned": "2026-01-09T09:00:00+00:00",
            "date_completed": "2026-01-10T15:03:58+00:00",
        },
        "project": {"project_id": "5400001"},
        **changes,
    }
    return {key: value for key, value in message.items() if value is not ...}


def event(**changes: Any) -> TaskEvent:
    """The event of :func:`tracking_message`."""
    parsed = parse_event(record(tracking_message(**changes)), 0.0, task_ids=TASK_IDS)
    assert isinstance(parsed, TaskEvent), parsed
    return parsed


def question(text: Any, answer: Any, control_id: str | None = "control-1") -> dict[str, Any]:
    """A question of a form, answered by an option (a str), a number, photos (a list) or as a dict says."""
    if isinstance(answer, str):
        answer = {"type": "option", "optionAnswer": {"name": answer}}
    elif isinstance(answer, list):
        answer = {"type": "image", "claimMediaIds": answer}
    elif isinstance(answer, int | float):
        answer = {"type": "number", "numberAnswer": {"value": answer}}
    return {
        "questionText": text,
        "component": "any",
        "formControl": {"id": control_id},
        "responseAnswerExport": answer,
    }


def group(name: Any, *questions: Any) -> dict[str, Any]:
    """A group of a form."""
    return {"name": name, "groupId": "group-1", "questionAndAnswers": list(questions)}


def answer(*groups: Any, **changes: Any) -> dict[str, Any]:
    """ClaimX's answer, with these groups in its form; a key set to ``...`` is left out."""
    content: dict[str, Any] = {
        "assignmentId": ASSIGNMENT_ID,
        "taskId": 32513,
        "projectId": 5400001,
        "taskName": "ITEL Cabinet Repair Form",
        "formId": "65f0c1d2e3f4a5b6c7d8e9f0",
        "formResponseId": "65f1c1d2e3f4a5b6c7d8e9f1",
        "status": "COMPLETED",
        "assignor": "adjuster@example.com",
        "assigneeId": 911,
        "assignorId": 912,
        "dateAssigned": "2026-01-09T09:00:00Z",
        "dateCompleted": "2026-01-10T15:03:58",
        "externalLinkData": {
            "url": "https://example.com/l/1",
            "firstName": "Pat",
            "lastName": "Roe",
            "email": "pat@example.com",
            "phone": 5550100,
        },
        "response": {"groups": list(groups)},
        **changes,
    }
    return {key: value for key, value in content.items() if value is not ...}


def details(*groups: Any, **changes: Any) -> TaskDetails:
    """The details in :func:`answer`."""
    return parse_details(json.dumps(answer(*groups, **changes)).encode(), ASSIGNMENT_ID)
