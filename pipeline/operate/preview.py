"""What would be stored and sent for one ClaimX answer, without Kafka, tables or iTel: `itel-cabinet preview`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from itel_cabinet.transforms.contracts import Contract, FromVar, Secret, load_shipped
from itel_cabinet.transforms.enrichment import CabinetTask, make_task
from itel_cabinet.transforms.events import IncompleteTaskError, TaskEvent, make_task_row, parse_event
from itel_cabinet.transforms.forms import WrongShapeError, parse_details, read_int
from itel_cabinet.transforms.json_text import read_json
from itel_cabinet.transforms.photos import PhotoError, parse_links
from itel_cabinet.transforms.records import Failure, Record
from itel_cabinet.transforms.rows import ATTACHMENTS_SCHEMA, make_attachment_rows, make_form_rows, make_forms_schema
from itel_cabinet.transforms.submission_keys import fill_path, idempotency_key
from itel_cabinet.transforms.submissions import Submission, build_submissions

__all__ = ["NotAnAnswerError", "PreviewContext", "preview_answer"]

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
    """What was given is no ClaimX answer about a task, or no event; one line, without any of its values.

    ``given`` says which of the texts it is: ``answer``, ``event``, ``project`` or ``media``.
    """

    def __init__(self, text: str, given: str = "answer") -> None:
        super().__init__(text)
        self.given = given


@dataclass(frozen=True)
class PreviewContext:
    """What is known beside ClaimX's answer about the task: the event, and ClaimX's exports of the project and of its
    media, as JSON texts."""

    event: bytes | None = None
    project: bytes | None = None
    media: bytes | None = None


_NOTHING = PreviewContext()


def preview_answer(
    answer: bytes,
    contract: Contract | None = None,
    *,
    context: PreviewContext = _NOTHING,
    now: datetime,
) -> dict[str, Any]:
    """What the `cabinet` job would make of an event about the task in an answer, the JSON text that ClaimX gives for an
    assignment, under a contract (the default one, unless given). Without an event it is taken to bear the answer's own
    status.

    ``form`` is the row of the forms table and ``attachments`` those of the attachments table, as an event's steps make
    them but without the columns of the event and the moment (``event_id``, ``event_timestamp``, ``kafka_*``,
    ``ingested_at``, ``created_at``, ``updated_at``); ``payload`` is the submission's body and ``request`` what goes
    round it, with secrets as their references; ``gate`` says whether the contract's gate lets the form through.
    ``form`` and ``payload`` are None where nothing would be stored or sent, and ``warnings`` says why, after what the
    form's parser found odd. Instants are aware datetimes. ``now`` (aware) only has to be a time. Pure and thread-safe;
    raises NotAnAnswerError.
    """
    contract = load_shipped() if contract is None else contract
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

    record = _record(context.event or _message(row, now), now)
    event = parse_event(record, now.timestamp(), task_ids=contract.task_ids)
    if isinstance(event, Failure):
        raise NotAnAnswerError(event.error, "answer" if context.event is None else "event")
    if not isinstance(event, TaskEvent):
        ids = ", ".join(map(str, sorted(contract.task_ids)))
        why = f"the task is not one of contract {contract.label}, which are {ids}: its events are skipped"
        return {"form": None, "attachments": [], "payload": None, "request": None, "gate": None, "warnings": [why]}
    if event.assignment_id != assignment_id:
        raise NotAnAnswerError("assignment_id is not the answer's", "event")

    task = make_task(record, event, details, read_form=contract.read_form)
    warnings = [*(task.form.warnings if task.form else ()), *_missing_vars(contract)]
    task = _with_lookups(task, context, contract, warnings)
    statuses = frozenset(status.upper() for status in contract.file.tasks.statuses)
    (outcome,) = build_submissions([task], contract=contract, statuses=statuses, clock=now.timestamp)
    passes = task.form is not None and contract.passes(task.details, task.form, event)
    if isinstance(outcome, Failure):
        warnings.append(f"not submitted: {outcome.error}")
    elif not isinstance(outcome, Submission):
        submitted = ", ".join(sorted(statuses))
        held = event.task_status in statuses and task.form is not None
        why = (
            "the gate holds it back"
            if held
            else f"the status is {event.task_status}, and only a {submitted} task's form is read"
        )
        warnings.append(f"not submitted: {why}")
    forms = make_forms_schema(contract.questions, contract.file.form.raw_data_after)
    return {
        "form": next(iter(_shown(make_form_rows([task], clock=now.timestamp), forms.names)), None),
        "attachments": [
            # The row that stands for an empty set is a sign to the table's sink.
            shown
            for shown in _shown(make_attachment_rows([task], clock=now.timestamp).to_pylist(), ATTACHMENTS_SCHEMA.names)
            if shown["is_active"]
        ],
        "payload": json.loads(outcome.payload) if isinstance(outcome, Submission) else None,
        "request": _request(
            contract, Submission(record, event.event_id, assignment_id, b"", (), event.project_id, event.task_id)
        ),
        "gate": {"passed": passes, "reason": _gate_reason(contract, task, passes)},
        "warnings": warnings,
    }


def _gate_reason(contract: Contract, task: CabinetTask, passes: bool) -> str:
    if task.form is None:
        return "there is no completed form"
    if contract.file.tasks.gate is None:
        return "the contract has no gate"
    return "the condition tasks.gate holds" if passes else "the condition tasks.gate does not hold"


def _missing_vars(contract: Contract) -> Iterator[str]:
    for name, one in contract.file.vars.items():
        if one.default is None and name not in contract.vars:
            yield f"the var {name} is not given, so it is empty here; `run` refuses that"


def _with_lookups(task: CabinetTask, context: PreviewContext, contract: Contract, warnings: list[str]) -> CabinetTask:
    """The task with what the two exports say, where the contract needs it."""
    project: Any = None
    links: dict[int, str] = {}
    if contract.needs_project and context.project is None:
        warnings.append("the contract reads ClaimX's export of the project, which is not given")
    elif contract.needs_project and context.project is not None:
        try:
            project, _ = read_json(context.project)
        except ValueError as error:
            raise NotAnAnswerError(f"not JSON: {error}", "project") from None
        if not isinstance(project, dict):
            raise NotAnAnswerError("JSON, but not an object", "project")
    if contract.needs_links and task.form is not None:
        wanted = contract.sent_photos(task.form)
        if context.media is not None:
            try:
                links = {media_id: link.url for media_id, link in parse_links(context.media, wanted).items()}
            except PhotoError as error:
                raise NotAnAnswerError(str(error), "media") from None
        missing = len(set(wanted) - set(links))
        if missing:
            warnings.append(f"{missing} photos have no link, and are not sent")
    return CabinetTask(task.record, task.event, task.details, task.form, task.photographs, project, links)


def _request(contract: Contract, submission: Submission) -> dict[str, Any]:
    """Method, path and headers of a submission, with secrets as their references."""
    request = contract.file.request
    headers = {"Content-Type": "application/json"}
    if request.key.header:
        headers[request.key.header] = idempotency_key(submission.event_id)
    for name, value in request.headers.items():
        match value:
            case Secret():
                headers[name] = value.secret
            case FromVar():
                default = contract.file.vars[value.var].default
                given = contract.vars.get(value.var, default)
                headers[name] = f"vars.{value.var}" if given is None else str(given)
            case str():
                headers[name] = value
    if request.auth not in (None, "none"):
        headers["Authorization"] = str(request.auth)
    return {"method": request.method, "path": fill_path(request.path, submission), "headers": headers}


def _message(row: Mapping[str, Any], now: datetime) -> bytes:
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
    return json.dumps(message).encode()


def _record(message: bytes, now: datetime) -> Record:
    return Record("preview", "preview", 0, 0, int(now.timestamp() * 1000), None, message)


def _shown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    return [{column: row[column] for column in columns if column not in _OF_THE_RUN} for row in rows]
