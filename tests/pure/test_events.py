"""Events: what is read, what is refused and how the refusal is worded, and what the trigger publishes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from itel_cabinet.transforms import events
from itel_cabinet.transforms.events import (
    ClaimXEvent,
    IncompleteTaskError,
    TaskEvent,
    dump_json,
    make_task_row,
    make_tracking_headers,
    parse_claimx_event,
    parse_event,
    parse_timestamp,
)
from itel_cabinet.transforms.records import Failure, Skip
from itel_cabinet.transforms.trace_context import trace_message
from tests.support.cabinet_samples import TASK_IDS, answer, record, tracking_message

NOW = 1_768_057_500.5
INT64_MAX = 2**63 - 1


def parsed(**changes: Any) -> TaskEvent:
    event = parse_event(record(tracking_message(**changes)), NOW, task_ids=TASK_IDS)
    assert isinstance(event, TaskEvent), event
    return event


def refused(value: Any) -> Failure:
    failure = parse_event(record(value), NOW, task_ids=TASK_IDS)
    assert isinstance(failure, Failure), failure
    assert (failure.stage, failure.first_at, failure.last_at, failure.attempts) == ("parse", NOW, NOW, 1)
    assert failure.record.value == record(value).value
    return failure


def test_a_message_is_read_in_full() -> None:
    message = tracking_message(media_ids=["1", "2"], unknown={"a": 1})
    event = parse_event(record(message), NOW, task_ids=TASK_IDS)
    assert isinstance(event, TaskEvent)
    assert event.model_dump() == {
        "trigger_name": "iTel Cabinet Repair Form Task",
        "event_id": "9f2c" * 16,
        "event_type": "CUSTOM_TASK_COMPLETED",
        "project_id": "5400001",
        "task_id": 32513,
        "assignment_id": 5430007,
        "task_name": "ITEL Cabinet Repair Form",
        "task_status": "COMPLETED",
        "timestamp": datetime(2026, 1, 10, 15, 4, 9, 120000, UTC),
        "task": message["task"],
        "project": message["project"],
        "media_ids": ["1", "2"],
    }


def test_optional_keys_may_be_absent_or_null() -> None:
    optional = ("trigger_name", "task_name", "task", "project", "media_ids")
    absent = parsed(**dict.fromkeys(optional, ...))
    assert absent == parsed(**dict.fromkeys(optional))
    assert [getattr(absent, name) for name in optional] == [None] * 5


def test_an_event_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parsed().task_status = "ASSIGNED"


@pytest.mark.parametrize(
    ("field", "given_value", "kept"),
    [
        ("project_id", 5400001, "5400001"),
        ("project_id", " 5400001 ", "5400001"),
        ("project_id", "proj_A1", "proj_A1"),
        ("task_status", " completed ", "COMPLETED"),
        ("task_status", "On hold", "ON HOLD"),
        ("assignment_id", "5430007", 5430007),
        ("assignment_id", INT64_MAX, INT64_MAX),
        ("task_id", "32513", 32513),
        ("event_id", "~!" * 100, "~!" * 100),
        ("task_name", "", ""),
    ],
)
def test_values_are_normalised(field: str, given_value: Any, kept: Any) -> None:
    assert getattr(parsed(**{field: given_value}), field) == kept


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-10T15:04:09.120000+00:00", datetime(2026, 1, 10, 15, 4, 9, 120000, UTC)),
        ("2026-01-10T15:04:09Z", datetime(2026, 1, 10, 15, 4, 9, tzinfo=UTC)),
        ("2026-01-10T15:04:09", datetime(2026, 1, 10, 15, 4, 9, tzinfo=UTC)),
        ("2026-01-10T15:04:09.1234567Z", datetime(2026, 1, 10, 15, 4, 9, 123456, UTC)),
        ("2026-01-10T20:34:09+05:30", datetime(2026, 1, 10, 15, 4, 9, tzinfo=UTC)),
        (" 2026-01-10 ", datetime(2026, 1, 10, tzinfo=UTC)),
        ("1970-01-01T00:00:00Z", datetime(1970, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999Z", datetime.max.replace(tzinfo=UTC)),
    ],
)
def test_timestamps_are_aware_and_utc(text: str, moment: datetime) -> None:
    timestamp = parsed(timestamp=text).timestamp
    assert (timestamp, timestamp.utcoffset()) == (moment, timedelta(0))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "1768057449",
        "1969-12-31T23:59:59Z",
        "9999-12-31T23:59:59-14:00",
        "0001-01-01T00:00:00+14:00",
        -1,
        True,
        float("inf"),
        float("nan"),
        10**400,
        None,
    ],
)
def test_other_timestamps_are_refused(text: Any) -> None:
    with pytest.raises(ValueError, match=r"ISO 8601|isoformat|1970|calendar"):
        parse_timestamp(text)
    assert refused(tracking_message(timestamp=text)).error.startswith("timestamp: must be a time between 1970 and 9999")


@pytest.mark.parametrize(
    ("value", "error_class"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b" ", "not_json"),
        (b"{", "not_json"),
        (b"\xff\xfe{}", "not_json"),
        (b'{"event_id":"\\ud800"}', "missing_field"),
        (b'{"task":{"x":NaN}}', "missing_field"),
        (b'{"task":{"x":-Infinity}}', "missing_field"),
        (b'{"event_id":"caf\xe9"}', "not_json"),
        (b'{"task":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not_json"),
        (b'{"task_id":' + b"9" * 100_000 + b"}", "not_json"),
        (b"\x00" * 900_000, "not_json"),
        (b"[]", "not_an_object"),
        (b"null", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"{}", "missing_field"),
        (tracking_message(task=[]), "wrong_type"),
    ],
)
def test_other_than_an_event_is_refused(value: Any, error_class: str) -> None:
    failure = refused(value)
    assert failure.error_class == error_class
    assert len(failure.error) < 200


@pytest.mark.parametrize(
    "field", ["event_id", "event_type", "project_id", "task_id", "assignment_id", "task_status", "timestamp"]
)
def test_a_required_key_that_is_missing_is_named(field: str) -> None:
    failure = refused(tracking_message(**{field: ...}))
    assert (failure.error_class, failure.error) == ("missing_field", f"{field}: missing")
    assert refused(tracking_message(**{field: None})).error_class == "wrong_type"


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("event_id", "two words"),
        ("event_id", "line\nbreak"),
        ("event_id", "é"),
        ("event_id", "x" * 256),
        ("event_id", 7),
        ("event_id", ""),
        ("event_type", " "),
        ("event_type", ["CUSTOM_TASK_ASSIGNED"]),
        ("project_id", "  "),
        ("project_id", "54\x00"),
        ("project_id", True),
        ("project_id", 1.5),
        ("project_id", {"id": 1}),
        ("task_id", "abc"),
        ("task_id", True),
        ("assignment_id", 0),
        ("assignment_id", -1),
        ("assignment_id", INT64_MAX + 1),
        ("assignment_id", str(INT64_MAX + 1)),
        ("assignment_id", 10**4000),
        ("assignment_id", "٣"),
        ("assignment_id", " 7"),
        ("assignment_id", 7.5),
        ("task_status", ""),
        ("task_status", "A\nB"),
        ("task_name", 5),
        ("trigger_name", []),
        ("task", "32513"),
        ("project", [1]),
        ("media_ids", "1,2"),
    ],
)
def test_a_wrong_value_is_reported_by_its_field_alone(field: str, wrong: Any) -> None:
    failure = refused(tracking_message(**{field: wrong}))
    assert failure.error_class == "wrong_type"
    assert failure.error == f"{field}: must be {TaskEvent.model_fields[field].description}"


def test_all_that_is_wrong_is_named_and_no_value_is_shown() -> None:
    failure = refused(tracking_message(event_id="Pat Roe <pat@example.com>", task_id=..., assignment_id={"secret": 1}))
    assert failure.error_class == "missing_field"
    assert failure.error == (
        "task_id: missing; "
        "event_id: must be 1 to 255 printable ASCII characters without spaces, because it is sent as an HTTP header; "
        "assignment_id: must be a whole number from 1 to 2^63-1, or its digits as text"
    )


def test_only_what_validates_is_skipped_for_its_task_id() -> None:
    other = record(tracking_message(task_id=24454))
    assert parse_event(other, NOW, task_ids=TASK_IDS) == Skip(other, "other_task")
    assert refused(tracking_message(task_id=24454, event_id=...)).error == "event_id: missing"
    also = parse_event(other, NOW, task_ids=frozenset({24454}))
    assert isinstance(also, TaskEvent)
    assert also.task_id == 24454


@given(st.binary(max_size=200))
def test_any_bytes_have_an_outcome(value: bytes) -> None:
    assert isinstance(parse_event(record(value), NOW, task_ids=TASK_IDS), Failure)
    assert isinstance(parse_claimx_event(record(value), NOW), Failure)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*TaskEvent.model_fields, "other"]), _JSON))
def test_any_values_have_an_outcome(changes: dict[str, Any]) -> None:
    outcome = parse_event(record(tracking_message(**changes)), NOW, task_ids=TASK_IDS)
    assert isinstance(outcome, TaskEvent | Failure | Skip)
    if isinstance(outcome, Failure):
        assert outcome.error_class in {"wrong_type", "not_json"}


def test_json_text_is_always_json() -> None:
    assert dump_json({"a": float("inf"), "b": [1, "é", None]}) == '{"a":null,"b":[1,"é",null]}'


# ---------------------------------------------------------------------------------------------------- ClaimX's events


def claimx_event(**changes: Any) -> dict[str, Any]:
    content = {
        "event_id": "e-1",
        "event_type": "CUSTOM_TASK_COMPLETED",
        "project_id": "5400001",
        "task_assignment_id": "5430007",
        **changes,
    }
    return {key: value for key, value in content.items() if value is not ...}


ROW = {"assignment_id": 5430007, "task_id": "32513", "status": "completed", "task_name": "A", "mfn": "x"}


def enriched(**changes: Any) -> ClaimXEvent:
    event = parse_claimx_event(record(claimx_event(**changes)), NOW)
    assert isinstance(event, ClaimXEvent), event
    return event


def test_an_event_with_an_assignment_alone() -> None:
    event = enriched()
    assert (event.task, event.task_assignment_id, event.assignment_id) == (None, 5430007, 5430007)


def test_an_event_with_its_task_row() -> None:
    event = enriched(task=ROW, task_assignment_id=..., project={"project_id": "5400001"})
    assert event.task == {**ROW, "task_id": 32513, "status": "COMPLETED"}
    assert (event.assignment_id, event.project) == (5430007, {"project_id": "5400001"})


def test_camel_case_keys_are_the_same_event() -> None:
    camel = {
        "eventId": "e-1",
        "eventType": "CUSTOM_TASK_COMPLETED",
        "projectId": 5400001,
        "taskAssignmentId": 5430007,
        "task": {"assignmentId": 5430007, "taskId": 32513, "status": "completed", "taskName": "A", "mfn": "x"},
    }
    assert parse_claimx_event(record(camel), NOW) == enriched(task=ROW)


def test_acronyms_in_camel_case() -> None:
    assert events._snake_keys({"getHTTPResponse": 1, "projectID": 2, "already_snake": 3}) == {
        "get_http_response": 1,
        "project_id": 2,
        "already_snake": 3,
    }


@pytest.mark.parametrize("event_type", ["PROJECT_CREATED", "VIDEO_COLLABORATION_COMPLETED", "custom_tasks"])
def test_other_events_are_skipped_if_they_are_events(event_type: str) -> None:
    other = record(claimx_event(event_type=event_type, task_assignment_id=..., task=[]))
    assert parse_claimx_event(other, NOW) == Skip(other, "not_a_task_event")
    nameless = parse_claimx_event(record(claimx_event(event_type=event_type, event_id=...)), NOW)
    assert isinstance(nameless, Failure)
    assert (nameless.error_class, nameless.error) == ("missing_field", "event_id: missing")


def test_a_task_event_of_a_new_kind_is_a_task_event() -> None:
    assert enriched(event_type="CUSTOM_TASK_CANCELLED").event_type == "CUSTOM_TASK_CANCELLED"


@pytest.mark.parametrize(
    ("changes", "error_class", "error"),
    [
        (
            {"task_assignment_id": None},
            "missing_field",
            "task and task_assignment_id are missing; one of them is needed",
        ),
        ({"task_assignment_id": "x"}, "wrong_type", "task_assignment_id: must be a whole number, its digits, or null"),
        (
            {"task": {"assignment_id": 1, "task_id": 32513}},
            "wrong_type",
            "task: must be an object with assignment_id, task_id and status, or null",
        ),
        ({"task": "32513"}, "wrong_type", "task: must be an object with assignment_id, task_id and status, or null"),
        ({"project": 5}, "wrong_type", "project: must be an object or null"),
    ],
)
def test_a_task_event_that_cannot_be_used(changes: dict[str, Any], error_class: str, error: str) -> None:
    failure = parse_claimx_event(record(claimx_event(**changes)), NOW)
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.error_class, failure.error) == ("parse", error_class, error)


# ------------------------------------------------------------------------------------------------- tracking messages

FIRED = datetime(2026, 1, 10, 16, 4, 9, 120000, timezone(timedelta(hours=1)))


def test_the_tracking_message() -> None:
    event = enriched(task=ROW, project={"project_id": "5400001"})
    assert event.task is not None
    message = events.make_tracking_message(event, event.task, "Rule", FIRED, include_task=True, include_project=True)
    assert message == {
        "trigger_name": "Rule",
        "event_id": "e-1",
        "event_type": "CUSTOM_TASK_COMPLETED",
        "project_id": "5400001",
        "task_id": 32513,
        "assignment_id": 5430007,
        "task_name": "A",
        "task_status": "COMPLETED",
        "timestamp": "2026-01-10T15:04:09.120000+00:00",
        "task": {**ROW, "task_id": 32513, "status": "COMPLETED"},
        "project": {"project_id": "5400001"},
    }
    consumed = parse_event(record(message), NOW, task_ids=TASK_IDS)
    assert isinstance(consumed, TaskEvent)
    assert (consumed.assignment_id, consumed.timestamp) == (5430007, FIRED)


def test_task_and_project_are_included_only_if_wanted() -> None:
    event = enriched(task=ROW, project={"project_id": "5400001"})
    assert event.task is not None
    assert {"task", "project"}.isdisjoint(events.make_tracking_message(event, event.task, "Rule", FIRED, False, False))
    assert "project" not in events.make_tracking_message(enriched(), event.task, "Rule", FIRED, True, True)


def test_the_headers_tell_where_it_came_from() -> None:
    event = enriched(task=ROW)
    assert event.task is not None
    message = events.make_tracking_message(event, event.task, "Rule é", FIRED)
    assert make_tracking_headers(message, record(b"")) == (
        ("x-trigger-name", "Rule é".encode()),
        ("x-task-id", b"32513"),
        ("x-event-type", b"CUSTOM_TASK_COMPLETED"),
        ("x-source", b"AbCdEfGhIjKlMnOpQrStUv/2/41"),
        *trace_message(record(b""), "publish"),
    )


def test_a_task_row_from_an_answer() -> None:
    row = make_task_row(answer(mfn="M", url="https://example.com/t", status=" completed", taskId="32513"))
    assert {key: value for key, value in row.items() if value is not None} == {
        "assignment_id": 5430007,
        "task_id": 32513,
        "task_name": "ITEL Cabinet Repair Form",
        "form_id": "65f0c1d2e3f4a5b6c7d8e9f0",
        "project_id": "5400001",
        "assignee_id": 911,
        "assignor_id": 912,
        "assignor_email": "adjuster@example.com",
        "date_assigned": "2026-01-09T09:00:00Z",
        "date_completed": "2026-01-10T15:03:58",
        "status": "COMPLETED",
        "form_response_id": "65f1c1d2e3f4a5b6c7d8e9f1",
        "mfn": "M",
        "task_url": "https://example.com/t",
    }
    assert row["cancelled_date"] is None
    assert json.loads(dump_json(row)) == row


def test_a_task_row_that_lacks_what_consumers_need() -> None:
    with pytest.raises(IncompleteTaskError) as error:
        make_task_row(answer(status=None, taskId=...))
    # An answer's absent keys are null in the row.
    assert str(error.value) == (
        "the task row is incomplete: task_id: must be a whole number from 1 to 2^63-1, or its digits as text; "
        "status: must be text of 1 to 255 characters without control characters"
    )
