"""What an event is: the ClaimX event that the trigger job reads, and the task event that it publishes for the others.

The first step of every job turns records into one of them. Parsing never raises and never repeats a value in an error:
what a message holds may be personal data, its keys are not. All functions are pure and thread-safe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationError,
)
from pydantic.alias_generators import to_camel
from pydantic_core import to_json

from itel_cabinet.transforms.json_text import read_charset, read_json
from itel_cabinet.transforms.records import Failure, Record, Skip
from itel_cabinet.transforms.replays import is_for_other_group
from itel_cabinet.transforms.trace_context import trace_message

__all__ = [
    "INT64_MAX",
    "Announced",
    "ClaimXEvent",
    "IncompleteTaskError",
    "TaskEvent",
    "dump_json",
    "make_task_row",
    "make_tracking_headers",
    "make_tracking_message",
    "parse_claimx_event",
    "parse_claimx_events",
    "parse_event",
    "parse_task_events",
    "parse_timestamp",
    "read_ids",
    "skip_other_statuses",
    "without_fraction",
]

INT64_MAX = 2**63 - 1
# ClaimX has two task events; a future one of the same family is a task event too, which only `on_any` rules can match.
_TASK_EVENT_PREFIX = "CUSTOM_TASK_"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_timestamp(value: object) -> datetime:
    """ISO 8601 text as an aware UTC datetime; text without a zone is UTC. Numbers count from 1970: those below 10^11
    (the year 5138) as seconds, others as milliseconds, which is what JavaScript and Java write.

    Raises:
        ValueError: it is something else, or before 1970.
    """
    try:
        match value:
            case str():
                moment = datetime.fromisoformat(value.strip())
            case int() | float() if not isinstance(value, bool) and value == value:
                seconds = float(value)
                moment = _EPOCH + timedelta(seconds=seconds if seconds < 1e11 else seconds / 1000)
            case _:
                raise ValueError("neither ISO 8601 text nor a number")
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        moment = moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("out of the calendar") from None
    if moment < _EPOCH:
        raise ValueError("before 1970")
    return moment


def dump_json(value: object) -> str:
    """``value`` as compact JSON, non-ASCII characters as they are; infinities, which JSON cannot hold, become null."""
    return to_json(value, inf_nan_mode="null").decode()


def without_fraction(value: object) -> object:
    """A whole number that was written as a double (7.0) as an int; everything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole(value: object) -> object:
    # The same ClaimX id is a number in one message, a double or text in the next; true is no id.
    value = without_fraction(value)
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,19}", value) else value


def _id_text(value: object) -> object:
    value = without_fraction(value)
    return str(value) if type(value) is int else value


_TEXT = StringConstraints(strip_whitespace=True, pattern=r"^[^\x00-\x1f\x7f]{1,255}$")
_TEXT_MEANING = "text of 1 to 255 characters without control characters"
Id = Annotated[
    int,
    BeforeValidator(_whole),
    Field(strict=True, ge=1, le=INT64_MAX, description="a whole number from 1 to 2^63-1, or its digits as text"),
]
EventId = Annotated[
    str,
    StringConstraints(strip_whitespace=True, pattern=r"^[\x21-\x7e]{1,255}$"),
    Field(description="1 to 255 printable ASCII characters without spaces, because it is sent as an HTTP header"),
]
ProjectId = Annotated[
    str, BeforeValidator(_id_text), _TEXT, Field(description=f"a whole number, or {_TEXT_MEANING}, best its digits")
]
Text = Annotated[str, _TEXT, Field(description=_TEXT_MEANING)]
UpperText = Annotated[Text, StringConstraints(to_upper=True)]
Timestamp = Annotated[
    datetime,
    BeforeValidator(parse_timestamp),
    Field(description="a time between 1970 and 9999, as ISO 8601 text (UTC where no zone is named) or a number"),
]
Object = Annotated[dict[str, Any] | None, Field(default=None, description="an object or null")]
OptionalText = Annotated[str | None, Field(default=None, description="text or null")]


class TaskEvent(BaseModel):
    """A message of the task tracking topic. Unknown keys are ignored; ``task`` and ``project`` are kept as they came.

    ``project_id`` is text in ClaimX's events and a number in its answers; both are accepted and kept as text. One that
    is no number is good enough for the history, and fails where the payload needs a number. ``task_status`` is upper
    case, and any status is valid. ``timestamp`` is aware and in UTC.
    """

    model_config = ConfigDict(frozen=True)

    event_id: EventId
    event_type: Text
    project_id: ProjectId
    task_id: Id
    assignment_id: Id
    task_status: UpperText
    timestamp: Timestamp
    trigger_name: OptionalText
    task_name: OptionalText
    task: Object
    project: Object
    media_ids: Annotated[list[Any] | None, Field(default=None, description="a list or null")]


_PLAIN_TEXT = StringConstraints(strict=True, pattern=r"^[!-~]([ -~]{0,253}[!-~])?$")
_PlainId = Annotated[int, Field(strict=True, ge=1, le=INT64_MAX)]


class _PlainTaskEvent(TaskEvent):
    """A TaskEvent in whose message nothing has to be converted: of these there are so many that they are read in one
    pass. What it refuses is read again, leniently, and only that decides."""

    event_id: Annotated[str, StringConstraints(strict=True, pattern=r"^[!-~]{1,255}$")]
    event_type: Annotated[str, _PLAIN_TEXT]
    project_id: Annotated[str, _PLAIN_TEXT]
    task_id: _PlainId
    assignment_id: _PlainId
    task_status: Annotated[str, StringConstraints(strict=True, to_upper=True, pattern="^[A-Za-z_]{1,255}$")]
    timestamp: Annotated[datetime, PlainValidator(parse_timestamp)]


class IncompleteTaskError(ValueError):
    """A task row that lacks what every consumer needs, or has it wrong; names the columns, never their values."""


class _TaskRow(BaseModel):
    assignment_id: Id
    task_id: Id
    status: UpperText
    task_name: OptionalText


def _complete_row(row: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {**row, **_TaskRow.model_validate(row).model_dump()}
    except ValidationError as error:
        raise IncompleteTaskError(f"the task row is incomplete: {_complaint(_TaskRow, error)[1]}") from None


def _snake_keys(row: object) -> object:
    return {_snake(key): value for key, value in row.items()} if isinstance(row, dict) else row


def _snake(key: str) -> str:
    words = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", key)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", words).lower()


def _either_case(name: str) -> AliasChoices:
    return AliasChoices(name, to_camel(name))


class _EventHead(BaseModel):
    """What every ClaimX event must have, task event or not."""

    model_config = ConfigDict(
        frozen=True, alias_generator=AliasGenerator(validation_alias=_either_case), loc_by_alias=False
    )

    event_id: EventId
    event_type: Text
    project_id: ProjectId


class ClaimXEvent(_EventHead):
    """A ClaimX task event, as the trigger job reads it; keys in snake_case or camelCase.

    ``task`` is the task row where the event brings one (keys in snake_case; ``assignment_id``, ``task_id`` and
    ``status`` are there); where it is None, ``task_assignment_id`` says which task to look up.
    """

    task_assignment_id: Annotated[Id | None, Field(default=None, description="a whole number, its digits, or null")]
    task: Annotated[
        dict[str, Any] | None,
        BeforeValidator(_snake_keys),
        AfterValidator(lambda row: row if row is None else _complete_row(row)),
        Field(default=None, description="an object with assignment_id, task_id and status, or null"),
    ]
    project: Object

    @property
    def assignment_id(self) -> int:
        """The assignment that the event is about; every event that was parsed has one."""
        named = self.task_assignment_id if self.task is None else self.task["assignment_id"]
        assert isinstance(named, int)
        return named


_Model = TypeVar("_Model", bound=BaseModel)


def parse_task_events(
    records: Sequence[Record], *, group: str, task_ids: frozenset[int], clock: Callable[[], float]
) -> Iterator[tuple[Record, TaskEvent] | Failure | Skip]:
    """The task event of each record, for the jobs that read the tracking topic.

    ``group`` is the consumer group; events of task templates other than ``task_ids`` are skipped.
    """
    return _parse_each(records, partial(parse_event, task_ids=task_ids), group, clock())


def parse_claimx_events(
    records: Sequence[Record], *, group: str, clock: Callable[[], float]
) -> Iterator[tuple[Record, ClaimXEvent] | Failure | Skip]:
    """The ClaimX event of each record, for the trigger job. ``group`` is the consumer group."""
    return _parse_each(records, parse_claimx_event, group, clock())


class Announced(NamedTuple):
    """A record's event, of which no more is known yet."""

    record: Record
    event: TaskEvent


def skip_other_statuses(
    events: Sequence[tuple[Record, TaskEvent]], *, statuses: frozenset[str]
) -> Iterator[Announced | Skip]:
    """The events with one of ``statuses`` (upper case); the others are skipped before they cost a lookup."""
    for record, event in events:
        yield Announced(record, event) if event.task_status in statuses else Skip(record, "status_not_submitted")


def _parse_each(
    records: Sequence[Record], parse: Callable[[Record, float], _Model | Failure | Skip], group: str, now: float
) -> Iterator[tuple[Record, _Model] | Failure | Skip]:
    for record in records:
        event = Skip(record, "replay_for_another_group") if is_for_other_group(record, group) else parse(record, now)
        yield event if isinstance(event, (Failure, Skip)) else (record, event)


def parse_event(record: Record, now: float, *, task_ids: frozenset[int]) -> TaskEvent | Failure | Skip:
    """The task event in a record of the tracking topic. ``now`` is epoch seconds, for the failure.

    Of a key given twice the last counts.

    Returns:
        A Skip ``other_task`` for a valid event of a task that is not in ``task_ids``. A Failure of class ``empty``,
        ``not_json`` (also nesting over 200 levels; see read_json for what is put right), ``not_an_object``,
        ``missing_field`` or ``wrong_type`` (also a value out of its range) for what is not valid.
    """
    event = _read_plain(record.value) or _validated(TaskEvent, _read_object(record, now), record, now)
    if isinstance(event, TaskEvent) and event.task_id not in task_ids:
        return Skip(record, "other_task")
    return event


def parse_claimx_event(record: Record, now: float) -> ClaimXEvent | Failure | Skip:
    """The task event in a record of ClaimX's events; other valid events are skipped as ``not_a_task_event``.

    Failures are those of :func:`parse_event`.
    """
    content = _read_object(record, now)
    head = _validated(_EventHead, content, record, now)
    if isinstance(head, Failure):
        return head
    if not head.event_type.upper().startswith(_TASK_EVENT_PREFIX):
        return Skip(record, "not_a_task_event")
    event = _validated(ClaimXEvent, content, record, now)
    if isinstance(event, ClaimXEvent) and event.task is None and event.task_assignment_id is None:
        return _failure(record, now, "missing_field", "task and task_assignment_id are missing; one of them is needed")
    return event


def read_ids(record: Record) -> dict[str, int | str]:
    """``assignment_id`` and ``project_id`` as a record of either topic names them, be it valid or not, as far as it can
    be read."""
    content = _as_row(_read_object(record, 0.0))
    task = _as_row(content.get("task"))
    named = (content.get("assignment_id"), content.get("task_assignment_id"), task.get("assignment_id"))
    assignments = [int(text) for text in map(str, named) if text.isascii() and text.isdigit() and len(text) < 20]
    project = _id_text(content.get("project_id", task.get("project_id")))
    ids: dict[str, int | str] = {"assignment_id": assignments[0]} if assignments else {}
    return ids | {"project_id": project} if isinstance(project, str) else ids


def _as_row(value: object) -> Mapping[str, Any]:
    row = _snake_keys(value)
    return row if isinstance(row, dict) else {}


def make_task_row(details: Mapping[str, Any]) -> dict[str, Any]:
    """The task row of a ClaimX answer (its JSON object): the known keys in snake_case, absent ones as null.

    ``assignment_id``, ``task_id`` (int) and ``status`` (upper case) are always there. Raises IncompleteTaskError.
    """
    row = {column: details.get(key) for column, key in _TASK_ROW_KEYS.items()}
    row["project_id"] = _id_text(row["project_id"])
    row["assignor_email"] = details.get("assignor") or details.get("assignorEmail")
    return _complete_row(row)


def make_tracking_message(
    event: ClaimXEvent,
    task_row: Mapping[str, Any],
    trigger_name: str,
    now: datetime,
    include_task: bool = True,
    include_project: bool = False,
) -> dict[str, Any]:
    """The message for the tracking topic, as :class:`TaskEvent` reads it; its key is the assignment id as text.

    Args:
        task_row: as ClaimXEvent.task or :func:`make_task_row` give it.
        now: aware; the message's ``timestamp``: when the trigger fired, not when ClaimX changed the task.
    """
    message = {
        "trigger_name": trigger_name,
        "event_id": event.event_id,
        "event_type": event.event_type,
        "project_id": event.project_id,
        "task_id": task_row["task_id"],
        "assignment_id": task_row["assignment_id"],
        "task_name": task_row["task_name"],
        "task_status": task_row["status"],
        "timestamp": now.astimezone(UTC).isoformat(),
    }
    if include_task:
        message["task"] = dict(task_row)
    if include_project and event.project is not None:
        message["project"] = event.project
    return message


def make_tracking_headers(message: Mapping[str, Any], source: Record) -> tuple[tuple[str, bytes], ...]:
    """The Kafka headers of a tracking message; ``x-source`` is the record it was made from, so that a repeat shows, and
    the trace context is that record's."""
    return (
        ("x-trigger-name", message["trigger_name"].encode()),
        ("x-task-id", str(message["task_id"]).encode()),
        ("x-event-type", message["event_type"].encode()),
        ("x-source", source.coordinates.encode()),
        *trace_message(source, "publish"),
    )


_TASK_ROW_KEYS = {
    "assignment_id": "assignmentId",
    "task_id": "taskId",
    "task_name": "taskName",
    "form_id": "formId",
    "project_id": "projectId",
    "assignee_id": "assigneeId",
    "assignor_id": "assignorId",
    "assignor_email": "assignor",
    "date_assigned": "dateAssigned",
    "date_completed": "dateCompleted",
    "cancelled_date": "cancelledDate",
    "cancelled_by_resource_id": "cancelledByResourceId",
    "status": "status",
    "pdf_project_media_id": "pdfProjectMediaId",
    "date_exported": "dateExported",
    "form_response_id": "formResponseId",
    "stp_enabled": "stpEnabled",
    "stp_started_date": "stpStartedDate",
    "mfn": "mfn",
    "xactimate_exportable": "xactimateExportable",
    "fraud_language_accepted_date": "fraudLanguageAcceptedDate",
    "resubmit_task_assignment_id": "resubmitTaskAssignmentId",
    "task_url": "url",
}


def _failure(record: Record, now: float, error_class: str, error: str) -> Failure:
    return Failure(record, "parse", error_class, error, first_at=now, last_at=now)


def _read_plain(value: bytes | None) -> TaskEvent | None:
    if not value or b"NaN" in value or b"Infinity" in value:  # which pydantic would let through, and JSON does not have
        return None
    try:
        return _PlainTaskEvent.model_validate_json(value)
    except ValidationError:
        return None


def _read_object(record: Record, now: float) -> dict[str, Any] | Failure:
    if not record.value:
        return _failure(record, now, "empty", "the message has no value")
    try:
        content, _ = read_json(record.value, _charset(record))
    except ValueError as error:
        # The reader names what it met and where, never the text itself.
        return _failure(record, now, "not_json", f"the value is not JSON: {error}")
    if not isinstance(content, dict):
        return _failure(record, now, "not_an_object", "the value is JSON, but not an object")
    return content


def _charset(record: Record) -> str | None:
    """As a header ``content-type`` declares it."""
    kinds = (value for name, value in record.headers if name.lower() == "content-type" and value)
    return read_charset(next(kinds, b"").decode("latin-1"))


def _validated(model: type[_Model], content: dict[str, Any] | Failure, record: Record, now: float) -> _Model | Failure:
    if isinstance(content, Failure):
        return content
    try:
        return model.model_validate(content)
    except ValidationError as error:
        return _failure(record, now, *_complaint(model, error))


def _complaint(model: type[BaseModel], error: ValidationError) -> tuple[str, str]:
    """Error class and text of a refusal. It has field names and their descriptions, never a value."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    missing = [str(problem["loc"][0]) for problem in problems if problem["type"] == "missing"]
    wrong = {str(problem["loc"][0]) for problem in problems} - set(missing)
    lines = [f"{', '.join(missing)}: missing"] if missing else []
    lines += [f"{name}: must be {field.description}" for name, field in model.model_fields.items() if name in wrong]
    return "missing_field" if missing else "wrong_type", "; ".join(lines)
