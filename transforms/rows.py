"""The rows of the tables of events, forms and photos, and their Arrow schemas.

Every row made here fits its schema: whole numbers are within 64 bits, text is valid Unicode, and instants are aware and
in UTC. All functions are pure and thread-safe; ``now`` (aware) is when the row is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from itel_cabinet.transforms.columns import DAY, INSTANT, ORIGIN, make_day_columns, make_origin_columns, required
from itel_cabinet.transforms.enrichment import CabinetTask, Photograph
from itel_cabinet.transforms.events import TaskEvent, dump_json
from itel_cabinet.transforms.forms import Form, Question, TaskDetails, read_int, read_timestamp
from itel_cabinet.transforms.records import Record
from itel_cabinet.transforms.replays import describe_edit, has_row

__all__ = [
    "ATTACHMENTS_SCHEMA",
    "TRACKING_SCHEMA",
    "make_attachment_rows",
    "make_form_row",
    "make_form_rows",
    "make_forms_schema",
    "make_photo_rows",
    "make_tracking_row",
    "make_tracking_rows",
    "record_of",
]

_TRACKING_VERSION = "1.0"
_SOURCE = "claimx_itel_plugin"
_MEDIA_TYPE = "image/jpeg"
_NOT_FETCHED = Photograph(None, None)

_ANSWER_TYPES = {
    "yes_no": pa.bool_(),
    "decimal": pa.float64(),
    "integer": pa.int32(),
    "text": pa.string(),
    "choice": pa.string(),
}


TRACKING_SCHEMA = pa.schema(
    [
        required("event_id", pa.string()),
        required("event_type", pa.string()),
        *ORIGIN,
        required("processed_timestamp", INSTANT),
        required("task_id", pa.int64()),
        required("assignment_id", pa.int64()),
        required("project_id", pa.string()),
        required("task_status", pa.string()),
        pa.field("task_name", pa.string()),
        pa.field("assigned_to_user_id", pa.int64()),
        pa.field("assigned_by_user_id", pa.int64()),
        pa.field("task_created_at", INSTANT),
        pa.field("task_completed_at", INSTANT),
        pa.field("claimx_task_full", pa.string()),
        pa.field("original_event", pa.string()),
        pa.field("project_data", pa.string()),
        pa.field("tracking_version", pa.string()),
        pa.field("source", pa.string()),
        *DAY,
    ]
)


def make_forms_schema(questions: Sequence[Question], raw_data_after: str | None = None) -> pa.Schema:
    """The schema of the forms table with a column for each question, in their order; ``raw_data`` stands after one of
    them, or after all."""
    answers = [pa.field(one.column, _ANSWER_TYPES[one.type]) for one in questions]
    columns = [one.column for one in questions]
    before = columns.index(raw_data_after) + 1 if raw_data_after else len(columns)
    return pa.schema(
        [
            required("assignment_id", pa.int64()),
            required("task_id", pa.int64()),
            pa.field("task_name", pa.string()),
            required("project_id", pa.string()),
            pa.field("form_id", pa.string()),
            pa.field("form_response_id", pa.string()),
            required("status", pa.string()),
            required("event_id", pa.string()),
            pa.field("date_assigned", INSTANT),
            pa.field("date_completed", INSTANT),
            pa.field("ingested_at", INSTANT),
            pa.field("customer_first_name", pa.string()),
            pa.field("customer_last_name", pa.string()),
            pa.field("customer_email", pa.string()),
            pa.field("customer_phone", pa.string()),
            pa.field("assignor_email", pa.string()),
            pa.field("external_link_url", pa.string()),
            *answers[:before],
            pa.field("raw_data", pa.string()),
            *answers[before:],
            pa.field("created_at", INSTANT),
            pa.field("updated_at", INSTANT),
            pa.field("parse_warnings", pa.string()),
            *ORIGIN,
        ]
    )


ATTACHMENTS_SCHEMA = pa.schema(
    [
        required("assignment_id", pa.int64()),
        required("project_id", pa.string()),
        required("event_id", pa.string()),
        pa.field("control_id", pa.string()),
        pa.field("question_key", pa.string()),
        pa.field("question_text", pa.string()),
        pa.field("topic_category", pa.string()),
        pa.field("claim_media_id", pa.int64()),
        pa.field("blob_path", pa.string()),
        pa.field("display_order", pa.int32()),
        pa.field("created_at", INSTANT),
        pa.field("is_active", pa.bool_()),
        pa.field("media_type", pa.string()),
        pa.field("updated_at", INSTANT),
        pa.field("media_warning", pa.string()),
        *ORIGIN,
    ]
)


def make_tracking_rows(tasks: Sequence[CabinetTask], *, clock: Callable[[], float]) -> pa.Table:
    """A row for each event of a batch, in order; none for a replay of an event that has its row."""
    now = datetime.fromtimestamp(clock(), UTC)
    found = [task for task in tasks if not has_row(task.record)]
    columns = _tracking_columns(
        [task.record for task in found], [task.event for task in found], [task.details for task in found], now
    )
    return pa.table(columns, schema=TRACKING_SCHEMA)


def make_form_rows(tasks: Sequence[CabinetTask], *, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """A row for each form in a batch, in order; several of one assignment are left for the sink to decide between."""
    now = datetime.fromtimestamp(clock(), UTC)
    return [make_form_row(task.record, task.event, task.details, task.form, now) for task in tasks if task.form]


def make_attachment_rows(tasks: Sequence[CabinetTask], *, clock: Callable[[], float]) -> pa.Table:
    """The photo rows of each form in a batch, in order."""
    now = datetime.fromtimestamp(clock(), UTC)
    of_form, shared, own = _photo_columns(
        [(one.record, one.event, one.form, one.photographs) for one in tasks if one.form], now
    )
    at = pa.array(of_form, pa.int64())
    columns = [
        pa.array(shared[field.name], field.type).take(at)
        if field.name in shared
        else pa.array(own[field.name], field.type)
        for field in ATTACHMENTS_SCHEMA
    ]
    return pa.table(columns, schema=ATTACHMENTS_SCHEMA)


def make_tracking_row(record: Record, event: TaskEvent, details: TaskDetails | None, now: datetime) -> dict[str, Any]:
    """The row of one event. User ids and dates are ClaimX's, or the event's own task row's where ClaimX names none.
    ``source`` says if a person has edited the record."""
    return {name: values[0] for name, values in _tracking_columns([record], [event], [details], now).items()}


def _tracking_columns(
    records: Sequence[Record], events: Sequence[TaskEvent], answers: Sequence[TaskDetails | None], now: datetime
) -> dict[str, list[Any]]:
    """Columns, since a row at a time costs three times as much: no dict of each event, and none to be taken apart."""
    both = [*zip(events, answers, strict=True)]
    number = len(events)
    return {
        "event_id": [event.event_id for event in events],
        "event_type": [event.event_type for event in events],
        **make_origin_columns(records, events),
        "processed_timestamp": [now] * number,
        "task_id": [event.task_id for event in events],
        "assignment_id": [event.assignment_id for event in events],
        "project_id": [event.project_id for event in events],
        "task_status": [event.task_status for event in events],
        "task_name": [event.task_name or (details and details.task_name) for event, details in both],
        "assigned_to_user_id": _known(both, attrgetter("assignee_id"), "assignee_id", read_int),
        "assigned_by_user_id": _known(both, attrgetter("assignor_id"), "assignor_id", read_int),
        "task_created_at": _known(both, attrgetter("date_assigned"), "date_assigned", read_timestamp),
        "task_completed_at": _known(both, attrgetter("date_completed"), "date_completed", read_timestamp),
        "claimx_task_full": [details and details.text for details in answers],
        "original_event": [None if one.value is None else one.value.decode(errors="replace") for one in records],
        "project_data": [None if event.project is None else dump_json(event.project) for event in events],
        "tracking_version": [_TRACKING_VERSION] * number,
        "source": [describe_edit(record) or _SOURCE for record in records],
        **make_day_columns(events),
    }


def _known(
    both: Sequence[tuple[TaskEvent, TaskDetails | None]],
    answered: Callable[[TaskDetails], Any],
    key: str,
    read: Callable[[Any], Any],
) -> list[Any]:
    """What ClaimX answers, or what the event's own task row has where ClaimX names nothing."""
    values = [None if details is None else answered(details) for _, details in both]
    for index, value in enumerate(values):
        if value is None:
            task = both[index][0].task
            if task and task.get(key) is not None:
                values[index] = read(task[key])
    return values


def record_of(row: Mapping[str, Any]) -> Record:
    """The record that a row of the tracking table was made of, as far as the row has it: not its key, headers and time
    in Kafka, in place of which stands the event's."""
    value = row["original_event"]
    return Record(
        topic=row["kafka_topic"],
        topic_id=row["kafka_topic_id"],
        partition=row["kafka_partition"],
        offset=row["kafka_offset"],
        timestamp_ms=int(row["event_timestamp"].timestamp() * 1000),
        key=None,
        value=None if value is None else value.encode(),
    )


def make_form_row(record: Record, event: TaskEvent, details: TaskDetails, form: Form, now: datetime) -> dict[str, Any]:
    """The row of an assignment's form. ``status`` is the event's; ``raw_data`` and ``parse_warnings`` are JSON text."""
    customer = details.external_link_data
    return {
        "assignment_id": event.assignment_id,
        "task_id": event.task_id,
        "task_name": event.task_name or details.task_name,
        "project_id": event.project_id,
        "form_id": details.form_id,
        "form_response_id": details.form_response_id,
        "status": event.task_status,
        "event_id": event.event_id,
        "date_assigned": details.date_assigned,
        "date_completed": details.date_completed,
        "ingested_at": now,
        "customer_first_name": customer.first_name,
        "customer_last_name": customer.last_name,
        "customer_email": customer.email,
        "customer_phone": customer.phone,
        "assignor_email": details.assignor_email,
        "external_link_url": customer.url,
        **form.answers,
        "raw_data": dump_json(form.raw_data),
        "created_at": now,
        "updated_at": now,
        "parse_warnings": dump_json(form.warnings),
        **{name: value for name, (value,) in make_origin_columns([record], [event]).items()},
    }


def make_photo_rows(
    record: Record,
    event: TaskEvent,
    form: Form,
    now: datetime,
    photographs: Mapping[int, Photograph] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """The rows of a form's photos, in the form's order; ``photographs`` are their files, by media id.

    A form without photos gives one inactive marker row, whose ``question_key`` and ``claim_media_id`` are None: a
    sign for the sink that the assignment's set is empty now.
    """
    _, shared, own = _photo_columns([(record, event, form, photographs)], now)
    common = {name: value for name, (value,) in shared.items()}
    return [{**common, **dict(zip(own, values, strict=True))} for values in zip(*own.values(), strict=True)]


def _photo_columns(
    forms: Sequence[tuple[Record, TaskEvent, Form, Mapping[int, Photograph]]], now: datetime
) -> tuple[list[int], dict[str, list[Any]], dict[str, list[Any]]]:
    """For each photo the number of its form; the columns that the photos of a form share, a value a form; and those of
    the photos themselves."""
    events = [event for _, event, _, _ in forms]
    shared: dict[str, list[Any]] = {
        "assignment_id": [event.assignment_id for event in events],
        "project_id": [event.project_id for event in events],
        "event_id": [event.event_id for event in events],
        "created_at": [now] * len(forms),
        "updated_at": [now] * len(forms),
        **make_origin_columns([record for record, _, _, _ in forms], events),
    }
    of_form = [(index, photo) for index, (_, _, form, _) in enumerate(forms) for photo in form.photos or (None,)]
    photos = [photo for _, photo in of_form]
    files = [
        forms[index][3].get(photo.claim_media_id, _NOT_FETCHED) if photo else _NOT_FETCHED for index, photo in of_form
    ]
    own: dict[str, list[Any]] = {
        "control_id": [photo and photo.control_id for photo in photos],
        "question_key": [photo and photo.question_key for photo in photos],
        "question_text": [photo and photo.question_text for photo in photos],
        "topic_category": [photo and photo.topic_category for photo in photos],
        "claim_media_id": [photo and photo.claim_media_id for photo in photos],
        "blob_path": [file.path for file in files],
        "display_order": [photo and photo.display_order for photo in photos],
        "is_active": [photo is not None for photo in photos],
        "media_type": [photo and _MEDIA_TYPE for photo in photos],
        "media_warning": [file.warning for file in files],
    }
    return [index for index, _ in of_form], shared, own
