"""Rows: what each table holds, and that every row fits its Arrow schema, for any input."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itel_cabinet.transforms.enrichment import CabinetTask
from itel_cabinet.transforms.events import TaskEvent, parse_event
from itel_cabinet.transforms.forms import parse_details
from itel_cabinet.transforms.rows import (
    ATTACHMENTS_SCHEMA,
    TRACKING_SCHEMA,
    make_attachment_rows,
    make_form_row,
    make_form_rows,
    make_photo_rows,
    make_tracking_row,
    make_tracking_rows,
)
from tests.pure.test_forms import ANY_GROUPS
from tests.support.cabinet_samples import (
    ASSIGNMENT_ID,
    FORMS_SCHEMA,
    QUESTIONS,
    answer,
    details,
    event,
    group,
    parse_form,
    question,
    record,
    tracking_message,
)

NOW = datetime(2026, 1, 10, 15, 5, tzinfo=UTC)
EVENT_TIME = datetime(2026, 1, 10, 15, 4, 9, 120000, UTC)
ORIGIN = {
    "event_timestamp": EVENT_TIME,
    "kafka_topic": "itel.cabinet.task.tracking",
    "kafka_topic_id": "AbCdEfGhIjKlMnOpQrStUv",
    "kafka_partition": 2,
    "kafka_offset": 41,
}
US = "timestamp[us, tz=UTC]"


def stored(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> list[dict[str, Any]]:
    """The rows as Arrow gives them back; each must name every column, and no other."""
    rows = list(rows)
    assert all(row.keys() == set(schema.names) for row in rows)
    table = pa.Table.from_pylist(rows, schema=schema)
    table.validate(full=True)
    kept: list[dict[str, Any]] = table.to_pylist()
    return kept


def types(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) + ("" if field.nullable else " not null") for field in schema}


# ---------------------------------------------------------------------------------------------------------- tracking


def test_the_tracking_columns() -> None:
    assert types(TRACKING_SCHEMA) == {
        "event_id": "string not null",
        "event_type": "string not null",
        "event_timestamp": f"{US} not null",
        "kafka_topic": "string not null",
        "kafka_topic_id": "string not null",
        "kafka_partition": "int32 not null",
        "kafka_offset": "int64 not null",
        "processed_timestamp": f"{US} not null",
        "task_id": "int64 not null",
        "assignment_id": "int64 not null",
        "project_id": "string not null",
        "task_status": "string not null",
        "task_name": "string",
        "assigned_to_user_id": "int64",
        "assigned_by_user_id": "int64",
        "task_created_at": US,
        "task_completed_at": US,
        "claimx_task_full": "string",
        "original_event": "string",
        "project_data": "string",
        "tracking_version": "string",
        "source": "string",
        "year": "int32",
        "month": "int32",
        "day": "int32",
    }


def test_the_row_of_an_event() -> None:
    source = record(tracking_message())
    [row] = stored([make_tracking_row(source, event(), details(), NOW)], TRACKING_SCHEMA)
    assert json.loads(row.pop("claimx_task_full")) == answer()
    assert row == {
        **ORIGIN,
        "event_id": "9f2c" * 16,
        "event_type": "CUSTOM_TASK_COMPLETED",
        "processed_timestamp": NOW,
        "task_id": 32513,
        "assignment_id": ASSIGNMENT_ID,
        "project_id": "5400001",
        "task_status": "COMPLETED",
        "task_name": "ITEL Cabinet Repair Form",
        "assigned_to_user_id": 911,
        "assigned_by_user_id": 912,
        "task_created_at": datetime(2026, 1, 9, 9, tzinfo=UTC),
        "task_completed_at": datetime(2026, 1, 10, 15, 3, 58, tzinfo=UTC),
        "original_event": json.dumps(tracking_message()),
        "project_data": '{"project_id":"5400001"}',
        "tracking_version": "1.0",
        "source": "claimx_itel_plugin",
        "year": 2026,
        "month": 1,
        "day": 10,
    }


def test_without_an_answer_the_event_s_own_task_row_serves() -> None:
    row = make_tracking_row(record(b"{}"), event(project=None), None, NOW)
    assert (row["assigned_to_user_id"], row["assigned_by_user_id"]) == (811, 812)
    assert row["task_created_at"] == datetime(2026, 1, 9, 9, tzinfo=UTC)
    assert row["task_completed_at"] == datetime(2026, 1, 10, 15, 3, 58, tzinfo=UTC)
    assert (row["claimx_task_full"], row["project_data"], row["original_event"]) == (None, None, "{}")


def test_what_nobody_knows_is_null() -> None:
    unknown = {"assigneeId": 2**70, "assignorId": None, "dateAssigned": "?", "dateCompleted": ..., "taskName": ...}
    row = make_tracking_row(record(b"{}"), event(task=None, task_name=None), details(**unknown), NOW)
    names = ("assigned_to_user_id", "assigned_by_user_id", "task_created_at", "task_completed_at", "task_name")
    assert [row[name] for name in names] == [None] * 5
    [kept] = stored([row], TRACKING_SCHEMA)
    assert kept["assigned_to_user_id"] is None


def test_the_day_of_an_event_is_utc() -> None:
    row = make_tracking_row(record(b"{}"), event(timestamp="2026-01-01T00:30:00+01:00"), None, NOW)
    assert (row["year"], row["month"], row["day"]) == (2025, 12, 31)


# ------------------------------------------------------------------------------------------------------------- forms


def test_the_forms_columns() -> None:
    columns = types(FORMS_SCHEMA)
    assert list(columns)[:21] == [
        *("assignment_id", "task_id", "task_name", "project_id", "form_id", "form_response_id", "status", "event_id"),
        *("date_assigned", "date_completed", "ingested_at", "customer_first_name", "customer_last_name"),
        *("customer_email", "customer_phone", "assignor_email", "external_link_url", "damage_description"),
        *("additional_notes", "countertops_lf", "raw_data"),
    ]
    assert list(columns)[21:30] == [
        *("lower_cabinets_damaged", "lower_cabinets_lf", "num_damaged_lower_boxes", "lower_cabinets_detached"),
        *("lower_face_frames_doors_drawers_available", "lower_face_frames_doors_drawers_damaged"),
        *("lower_finished_end_panels_damaged", "lower_end_panel_damage_present", "lower_counter_type"),
    ]
    assert list(columns)[54:57] == ["created_at", "updated_at", "parse_warnings"]
    assert list(columns)[57:] == list(ORIGIN)
    kinds = {"yes_no": "bool", "decimal": "double", "integer": "int32", "text": "string", "choice": "string"}
    assert {asked.column: columns[asked.column] for asked in QUESTIONS} == {
        asked.column: kinds[asked.type] for asked in QUESTIONS
    }
    assert {name for name, kind in columns.items() if kind.endswith("not null")} == {
        *("assignment_id", "task_id", "project_id", "status", "event_id"),
        *ORIGIN,
    }


def test_the_row_of_a_form() -> None:
    read = details(
        group(
            "Lower Cabinets",
            question("Enter Number of Damaged Lower Boxes", 2.5),
            question("Are The Lower Cabinets Detached?", "Yes, one"),
        ),
        group("Linear Feet Capture", question("Lower Cabinets (linear feet)", 12.5)),
    )
    [row] = stored([make_form_row(record(b"{}"), event(), read, parse_form(read), NOW)], FORMS_SCHEMA)
    answers = {asked.column: row.pop(asked.column) for asked in QUESTIONS}
    assert {column: given for column, given in answers.items() if given is not None} == {
        "lower_cabinets_detached": True,
        "lower_cabinets_lf": 12.5,
    }
    assert json.loads(row.pop("raw_data")) == {
        "Lower Cabinets": [
            {"q": "Enter Number of Damaged Lower Boxes", "a": 2.5, "id": "control-1"},
            {"q": "Are The Lower Cabinets Detached?", "a": True, "id": "control-1"},
        ],
        "Linear Feet Capture": [{"q": "Lower Cabinets (linear feet)", "a": 12.5, "id": "control-1"}],
    }
    assert json.loads(row.pop("parse_warnings")) == ["num_damaged_lower_boxes: '2.5' is not a whole number of 32 bits"]
    assert row == {
        **ORIGIN,
        "assignment_id": ASSIGNMENT_ID,
        "task_id": 32513,
        "task_name": "ITEL Cabinet Repair Form",
        "project_id": "5400001",
        "form_id": "65f0c1d2e3f4a5b6c7d8e9f0",
        "form_response_id": "65f1c1d2e3f4a5b6c7d8e9f1",
        "status": "COMPLETED",
        "event_id": "9f2c" * 16,
        "date_assigned": datetime(2026, 1, 9, 9, tzinfo=UTC),
        "date_completed": datetime(2026, 1, 10, 15, 3, 58, tzinfo=UTC),
        "ingested_at": NOW,
        "customer_first_name": "Pat",
        "customer_last_name": "Roe",
        "customer_email": "pat@example.com",
        "customer_phone": "5550100",
        "assignor_email": "adjuster@example.com",
        "external_link_url": "https://example.com/l/1",
        "created_at": NOW,
        "updated_at": NOW,
    }


def test_a_form_without_a_link() -> None:
    read = details(externalLinkData=None)
    row = make_form_row(record(b"{}"), event(), read, parse_form(read), NOW)
    assert {name: row[name] for name in row if name.startswith(("customer_", "external_"))} == {
        "customer_first_name": None,
        "customer_last_name": None,
        "customer_email": None,
        "customer_phone": None,
        "external_link_url": None,
    }
    assert (row["raw_data"], row["parse_warnings"]) == ("{}", "[]")


# ------------------------------------------------------------------------------------------------------- attachments


def test_the_attachments_columns() -> None:
    assert types(ATTACHMENTS_SCHEMA) == {
        "assignment_id": "int64 not null",
        "project_id": "string not null",
        "event_id": "string not null",
        "control_id": "string",
        "question_key": "string",
        "question_text": "string",
        "topic_category": "string",
        "claim_media_id": "int64",
        "blob_path": "string",
        "display_order": "int32",
        "created_at": US,
        "is_active": "bool",
        "media_type": "string",
        "updated_at": US,
        "media_warning": "string",
        "event_timestamp": f"{US} not null",
        "kafka_topic": "string not null",
        "kafka_topic_id": "string not null",
        "kafka_partition": "int32 not null",
        "kafka_offset": "int64 not null",
    }


def test_a_row_for_each_photo() -> None:
    form = parse_form(details(group("Photos", question("Captured Lower Cabinet Box", [11, 12], "control-7"))))
    rows = stored(make_photo_rows(record(b"{}"), event(), form, NOW), ATTACHMENTS_SCHEMA)
    assert rows == [
        {
            **ORIGIN,
            "assignment_id": ASSIGNMENT_ID,
            "project_id": "5400001",
            "event_id": "9f2c" * 16,
            "control_id": "control-7",
            "question_key": "lower_cabinet_box",
            "question_text": "Captured Lower Cabinet Box",
            "topic_category": "Lower Cabinets",
            "claim_media_id": media_id,
            "blob_path": None,
            "display_order": order,
            "created_at": NOW,
            "is_active": True,
            "media_type": "image/jpeg",
            "updated_at": NOW,
            "media_warning": None,
        }
        for order, media_id in ((1, 11), (2, 12))
    ]


def test_a_form_without_photos_empties_the_set() -> None:
    rows = stored(make_photo_rows(record(b"{}"), event(), parse_form(details()), NOW), ATTACHMENTS_SCHEMA)
    known = {
        **ORIGIN,
        "assignment_id": ASSIGNMENT_ID,
        "project_id": "5400001",
        "event_id": "9f2c" * 16,
        "created_at": NOW,
        "updated_at": NOW,
        "is_active": False,
    }
    assert rows == [{**dict.fromkeys(ATTACHMENTS_SCHEMA.names), **known}]


# ----------------------------------------------------------------------------------------------------------- batches


def test_a_batch_of_tasks() -> None:
    formless, filled = details(), details(group("Photos", question("Captured Lower Cabinet Box", [11, 12])))
    tasks = [
        CabinetTask(record(b"{}", offset=1), event(task_status="ASSIGNED"), formless, None),
        CabinetTask(record(b"{}", offset=2), event(), filled, parse_form(filled)),
    ]

    def clock() -> float:
        return NOW.timestamp()

    assert [row["kafka_offset"] for row in make_tracking_rows(tasks, clock=clock).to_pylist()] == [1, 2]
    [row] = stored(make_form_rows(tasks, clock=clock), FORMS_SCHEMA)
    assert (row["kafka_offset"], row["updated_at"]) == (2, NOW)
    rows = stored(make_attachment_rows(tasks, clock=clock).to_pylist(), ATTACHMENTS_SCHEMA)
    assert [(row["kafka_offset"], row["claim_media_id"]) for row in rows] == [(2, 11), (2, 12)]


# --------------------------------------------------------------------------------------------------------- any shape

_ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just(10**4000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=4,
)
_TASK_KEYS = ["assignee_id", "assignor_id", "date_assigned", "date_completed"]
_DETAIL_KEYS = [
    *("taskId", "taskName", "formId", "formResponseId", "assignor", "assignorEmail", "assigneeId", "assignorId"),
    *("dateAssigned", "dateCompleted", "externalLinkData", "anything"),
]
_HOSTILE = _ANY_JSON | st.sampled_from(
    ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "9" * 19, "-" + "9" * 19, "\x00", 2**63, 1e308]
)


@given(
    message=st.fixed_dictionaries(
        {},
        optional={
            "task": st.dictionaries(st.sampled_from(_TASK_KEYS), _HOSTILE),
            "project": st.dictionaries(st.text(max_size=3), _HOSTILE),
            "task_name": st.text(max_size=9),
            "task_status": st.text(min_size=1, max_size=9),
            "project_id": st.text(min_size=1, max_size=9) | st.integers(),
            "timestamp": st.datetimes(min_value=datetime(1970, 1, 1)).map(datetime.isoformat),
            "assignment_id": st.integers(),
            "task_id": st.integers(),
        },
    ),
    changes=st.dictionaries(st.sampled_from(_DETAIL_KEYS), _HOSTILE),
    groups=ANY_GROUPS,
)
def test_every_row_fits_its_schema(message: dict[str, Any], changes: dict[str, Any], groups: list[Any]) -> None:
    source = record(tracking_message(**message))
    parsed = parse_event(source, 0.0, task_ids=frozenset({message.get("task_id", 32513)}))
    if not isinstance(parsed, TaskEvent):
        return
    raw = json.dumps(answer(*groups, **changes)).replace("NaN", "1e999").replace("Infinity", "1e999")
    read = parse_details(raw.encode(), ASSIGNMENT_ID)
    form = parse_form(read)
    [tracked] = stored([make_tracking_row(source, parsed, read, NOW)], TRACKING_SCHEMA)
    assert json.loads(tracked["claimx_task_full"])["assignmentId"] == ASSIGNMENT_ID
    assert json.loads(tracked["original_event"])["event_id"] == parsed.event_id
    [formed] = stored([make_form_row(source, parsed, read, form, NOW)], FORMS_SCHEMA)
    assert isinstance(json.loads(formed["raw_data"]), dict)
    assert json.loads(formed["parse_warnings"]) == list(form.warnings)
    photos = stored(make_photo_rows(source, parsed, form, NOW), ATTACHMENTS_SCHEMA)
    assert len(photos) == max(1, len(form.photos))


@pytest.mark.parametrize("schema", [TRACKING_SCHEMA, FORMS_SCHEMA, ATTACHMENTS_SCHEMA])
def test_column_names_are_unique(schema: pa.Schema) -> None:
    assert len(set(schema.names)) == len(schema.names)
