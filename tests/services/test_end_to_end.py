"""Each job from a real broker to its outputs, as a process of its own.

What generated records must become is said by the pure transforms, on what ClaimX knows; that these are right is told by
:func:`test_every_column_of_one_event`, which spells out one event's rows, and by the tests of the transforms.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from itel_cabinet.io.kafka import Cluster
from itel_cabinet.local.samples import Generator, Receipt, Shares, produce
from itel_cabinet.local.simulators import ClaimXSimulator
from itel_cabinet.transforms.events import TaskEvent, parse_event
from itel_cabinet.transforms.forms import Form, TaskDetails, parse_details
from itel_cabinet.transforms.records import Record
from itel_cabinet.transforms.rows import make_form_row, make_photo_rows, make_tracking_row
from tests.support.cabinet_samples import TASK_IDS, build_payload, group, parse_form, question, tracking_message
from tests.support.jobs import Stack, wait_for

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CLOCK_COLUMNS = {"processed_timestamp", "ingested_at", "created_at", "updated_at"}
TRACEPARENT = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-01")
MANY_RESUBMISSIONS = Shares(assigned=0.2, resubmitted=0.2, late=0.1, repeated=0.1)

Row = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """An event on the tracking topic with what ClaimX knows of its task when all is said and done."""

    record: Record
    event: TaskEvent
    details: TaskDetails

    @cached_property
    def form(self) -> Form | None:
        completed = self.event.task_status == "COMPLETED" and self.details.has_form
        return parse_form(self.details) if completed else None

    @property
    def at(self) -> tuple[int, int]:
        return self.record.partition, self.record.offset

    @property
    def payload(self) -> bytes:
        assert self.form is not None
        return build_payload(self.details, self.form, self.event)


def known_events(stack: Stack, receipts: Iterable[Receipt]) -> list[Known]:
    """The records that must get a row, in order within each partition."""
    wanted = {(r.partition, r.offset) for r in receipts if r.produced.expect in ("tracked", "submitted")}
    topic = stack.topic("tracking")
    topic_id = Cluster({"bootstrap.servers": stack.broker.bootstrap_servers}).topic(topic).topic_id
    found = []
    for message in stack.broker.read(topic):
        if (message.partition, message.offset) not in wanted:
            continue
        record = Record(
            topic, topic_id, message.partition, message.offset, message.timestamp, message.key, message.value
        )
        event = parse_event(record, 0.0, task_ids=TASK_IDS)
        assert isinstance(event, TaskEvent)
        task = stack.claimx.task(event.assignment_id)
        assert task is not None
        found.append(Known(record, event, parse_details(json.dumps(task).encode(), event.assignment_id)))
    return found


def newest_forms(events: Iterable[Known]) -> list[Known]:
    """The last completed event of each assignment that has a form."""
    newest: dict[int, Known] = {}
    for known in sorted(events, key=lambda known: (known.event.timestamp, *known.at)):
        if known.form is not None:
            newest[known.event.assignment_id] = known
    return list(newest.values())


def unclocked(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """``rows`` in an order of their own, without the columns that tell when they were written."""
    bare = [{name: value for name, value in row.items() if name not in CLOCK_COLUMNS} for row in rows]
    return sorted(bare, key=lambda row: (row["assignment_id"], row["kafka_partition"], row["kafka_offset"], str(row)))


def at(receipts: Iterable[Receipt], *expects: str) -> list[tuple[int, int]]:
    """The sorted coordinates of the records of which one of ``expects`` is expected."""
    return sorted((r.partition, r.offset) for r in receipts if r.produced.expect in expects)


def produce_tracking(stack: Stack, n: int, seed: int, shares: Shares | None = None) -> list[Receipt]:
    events = Generator(seed, start=datetime.now(UTC), shares=shares).tracking_messages(n)
    return produce(stack.broker.bootstrap_servers, stack.topic("tracking"), events, stack.claimx)


def check_tables(stack: Stack, events: list[Known]) -> None:
    """The three tables hold what ``events`` say, to the column."""
    newest = newest_forms(events)
    assert unclocked(stack.tracking()) == unclocked(
        make_tracking_row(k.record, k.event, k.details, EPOCH) for k in events
    )
    assert unclocked(stack.forms()) == unclocked(
        make_form_row(k.record, k.event, k.details, k.form, EPOCH) for k in newest if k.form
    )
    photos = [row for k in newest if k.form for row in make_photo_rows(k.record, k.event, k.form, EPOCH)]
    assert unclocked(row for row in stack.attachments() if row["is_active"]) == unclocked(
        row for row in photos if row["is_active"]
    )


def check_submissions(stack: Stack, events: list[Known], *, ledger: bool) -> None:
    """iTel and the success topic have every form that was completed, by content; with a ledger, what is written twice
    is sent and reported once."""
    submitted = [known for known in events if known.form is not None]
    assert {s.idempotency_key: s.body for s in stack.itel.submissions()} == {
        known.event.event_id: json.loads(known.payload) for known in submitted
    }
    assert stack.itel.overlaps == 0
    results = [(message, json.loads(message.value or b"")) for message in stack.broker.read(stack.topic("success"))]
    found = Counter(
        (message.key, dict(message.headers)["x-assignment-id"], result["event_id"], result["payload_sha256"])
        for message, result in results
    )
    expected = [
        (
            known.event.event_id.encode(),
            str(known.event.assignment_id).encode(),
            known.event.event_id,
            hashlib.sha256(known.payload).hexdigest(),
        )
        for known in submitted
    ]
    assert {*found} == {*expected}
    # Without a ledger what is written twice is sent twice, unless both are in one batch.
    assert found == Counter({*expected}) if ledger else found <= Counter(expected)
    assert {result["status"] for _, result in results} <= {200, 201}


def check_failures(stack: Stack, receipts: list[Receipt], role: str) -> None:
    """``role`` has one dead letter for each bad record, with its bytes, and no others."""
    bad = {(r.partition, r.offset): r.produced for r in receipts if r.produced.expect == "dead_letter"}
    letters = [letter for letter in stack.dead_letters(role) if letter.error_class != "no_form"]
    assert sorted((letter.partition, letter.offset) for letter in letters) == sorted(bad)
    for letter in letters:
        produced = bad[letter.partition, letter.offset]
        assert letter.record().value == (None if letter.value_omitted else produced.value)
        assert letter.value_omitted == (produced.kind == "huge_garbage")
        assert (letter.record().key, letter.record().headers) == (produced.key, produced.headers)


def formless(receipts: Iterable[Receipt]) -> list[tuple[int, int]]:
    return sorted((r.partition, r.offset) for r in receipts if r.produced.kind == "completed_without_form")


def test_cabinet(stack: Stack) -> None:
    stack.itel.faults.latency_seconds = 0.01
    receipts = produce_tracking(stack, 300, 7, MANY_RESUBMISSIONS)
    ended = stack.run("cabinet")
    events = known_events(stack, receipts)
    assert len(events) == len(at(receipts, "tracked", "submitted"))
    assert sum(known.form is not None for known in events) == len(at(receipts, "submitted"))
    check_tables(stack, events)
    check_submissions(stack, events, ledger=True)
    check_failures(stack, receipts, "errors")
    no_form = stack.dead_letters("itel_errors")
    assert sorted((letter.partition, letter.offset) for letter in no_form) == formless(receipts)
    assert {(letter.stage, letter.error_class) for letter in no_form} == {("payload", "no_form")}
    assert stack.committed("cabinet") == stack.ends()
    assert f"skipped:other_task: {len(at(receipts, 'skipped'))}" in ended.errors

    tables = [stack.tracking(), stack.forms(), stack.attachments()]
    keys = Counter({s.idempotency_key: s.times for s in stack.itel.submissions()})
    stack.rewind("cabinet")
    stack.run("cabinet")
    assert [stack.tracking(), stack.forms(), stack.attachments()] == tables, "a replay changes no table"
    assert Counter({s.idempotency_key: s.times for s in stack.itel.submissions()}) == keys
    assert stack.committed("cabinet") == stack.ends()


def test_tracking_and_api_side_by_side(stack: Stack) -> None:
    receipts = produce_tracking(stack, 200, 8)
    stack.run("tracking", tracking_success_topic=stack.topic("tracked"))
    events = known_events(stack, receipts)
    check_tables(stack, events)
    check_failures(stack, receipts, "errors")
    assert stack.itel.calls.total() == 0
    assert [stack.ends(role) for role in ("itel_errors", "success")] == [{0: 0}, {0: 0}]
    told = [(message.key, json.loads(message.value or b"")) for message in stack.broker.read(stack.topic("tracked"))]
    assert sorted(told, key=lambda one: (one[1]["kafka_partition"], one[1]["kafka_offset"])) == [
        (
            known.event.event_id.encode(),
            {
                "version": 1,
                "event_id": known.event.event_id,
                "assignment_id": known.event.assignment_id,
                "task_status": known.event.task_status,
                "event_timestamp": known.event.timestamp.isoformat().replace("+00:00", "Z"),
                "kafka_topic": known.record.topic,
                "kafka_topic_id": known.record.topic_id,
                "kafka_partition": known.record.partition,
                "kafka_offset": known.record.offset,
            },
        )
        for known in sorted(events, key=lambda known: known.at)
    ]
    assert stack.committed("tracking") == stack.ends()

    before = stack.claimx.calls
    tables = [stack.tracking(), stack.forms(), stack.attachments()]
    stack.run("api")
    check_submissions(stack, events, ledger=False)
    check_failures(stack, receipts, "itel_errors")
    completed = {known.event.assignment_id for known in events if known.event.task_status == "COMPLETED"}
    others = {known.event.assignment_id for known in events} - completed
    looked_up = stack.claimx.calls - before
    assert others
    assert [one for one in others if looked_up[f"/customTasks/assignment/{one}"]] == []
    assert [one for one in completed if not looked_up[f"/customTasks/assignment/{one}"]] == []
    no_form = [letter for letter in stack.dead_letters("itel_errors") if letter.error_class == "no_form"]
    assert sorted((letter.partition, letter.offset) for letter in no_form) == formless(receipts)
    assert [stack.tracking(), stack.forms(), stack.attachments()] == tables
    assert stack.committed("api") == stack.ends()


def test_api_writes_no_tables(stack: Stack, tmp_path: Path) -> None:
    """``--itel_url=file:DIR`` works without an endpoint, and a repeat is harmless."""
    receipts = produce_tracking(stack, 60, 9)
    folder = tmp_path / "payloads"
    stack.run("api", itel_url=f"file:{folder}")
    wanted = {
        f"{known.event.assignment_id}-{known.event.event_id}.json": known.payload
        for known in known_events(stack, receipts)
        if known.form is not None
    }
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
    stack.rewind("api")
    stack.run("api", itel_url=f"file:{folder}")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
    assert not stack.tables_root.exists()
    assert stack.itel.calls.total() == 0


def test_trigger_feeds_tracking(stack: Stack) -> None:
    began = datetime.now(UTC)
    events = list(Generator(11, start=began).claimx_events(200))
    receipts = produce(stack.broker.bootstrap_servers, stack.topic("enriched"), events, stack.claimx)
    topic_id = Cluster({"bootstrap.servers": stack.broker.bootstrap_servers}).topic(stack.topic("enriched")).topic_id
    stack.run("trigger")

    messages = stack.broker.read(stack.topic("tracking"))
    published = {dict(message.headers)["x-source"]: message for message in messages}
    assert len(messages) == len(published)
    expected = {
        f"{topic_id}/{r.partition}/{r.offset}".encode(): r.produced
        for r in receipts
        if r.produced.expect == "published"
    }
    assert sorted(published) == sorted(expected)
    for source, message in published.items():
        produced, value = expected[source], json.loads(message.value or b"")
        told = json.loads(produced.value or b"")
        # An event that names the assignment alone is told as ClaimX has it when it is looked up.
        details = produced.details if told.get("task") else stack.claimx.task(produced.assignment_id or 0)
        assert details is not None
        assert message.key == str(produced.assignment_id).encode()
        headers = dict(message.headers)
        assert TRACEPARENT.fullmatch((headers.pop("traceparent") or b"").decode())
        assert headers == {
            "x-trigger-name": b"iTel Cabinet Repair Form Task",
            "x-task-id": b"32513",
            "x-event-type": told["event_type"].encode(),
            "x-source": source,
        }
        assert began <= datetime.fromisoformat(value.pop("timestamp")) <= datetime.now(UTC)
        row = value.pop("task")
        assert (row["assignment_id"], row["form_id"]) == (produced.assignment_id, details["formId"])
        assert row["assignor_email"] == details["assignor"]
        value.pop("project", None)
        assert value == {
            "trigger_name": "iTel Cabinet Repair Form Task",
            "event_id": produced.event_id,
            "event_type": told["event_type"],
            "project_id": str(details["projectId"]),
            "task_id": 32513,
            "assignment_id": produced.assignment_id,
            "task_name": details["taskName"],
            "task_status": details["status"],
        }
    check_failures(stack, receipts, "errors")
    assert stack.committed("trigger") == stack.ends("enriched")

    stack.run("tracking")
    assert Counter(row["event_id"] for row in stack.tracking()) == Counter(p.event_id for p in expected.values())


def test_completed_within_the_cache_minute(stack: Stack) -> None:
    """The answer that an ASSIGNED event has just left in the cache is not taken for the form of its COMPLETED event."""
    now = datetime.now(UTC)
    with stack.running("cabinet", claimx_cache_seconds=600) as job:
        assigned = tracking_message(event_id="assigned", task_status="ASSIGNED", timestamp=now.isoformat())
        stack.tell(assigned, response=None, status="ASSIGNED")
        wait_for(lambda: stack.tracked("assigned"), "the row of the ASSIGNED event")
        # An event may be delayed on its way here: its own time is then older than the cached answer.
        completed = tracking_message(event_id="completed", timestamp=(now - timedelta(seconds=30)).isoformat())
        stack.tell(completed, group("Damage Description", question("Enter Damaged Description", "Leak")))
        wait_for(lambda: stack.itel.submissions(), "the submission")
        stack.settle("cabinet")
        assert job.stop() == 0
    assert [(row["event_id"], row["damage_description"]) for row in stack.forms()] == [("completed", "Leak")]
    assert [(s.idempotency_key, s.body["damageDescription"]) for s in stack.itel.submissions()] == [
        ("completed", "Leak")
    ]
    assert stack.dead_letters("itel_errors") == []


def test_every_column_of_one_event(stack: Stack, claimx: ClaimXSimulator) -> None:
    groups = [
        group("Damage Description", question("Enter Damaged Description", {"type": "text", "text": "No, it leaks"})),
        group("Linear Feet Capture", question("Lower Cabinets (linear feet)", 12.5)),
        group("Cabinet Types Damaged", question("Lower Cabinets Damaged?", "Yes, all")),
        group("Photos", question(" Captured Lower Cabinet Box ", [97000012, 97000011])),
    ]
    message = tracking_message(task_status="completed", event_id="one", timestamp="2026-01-10T10:04:09.12-05:00")
    stack.tell(message, *groups)
    began = datetime.now(UTC)
    stack.run("cabinet")

    [tracked] = stack.tracking()
    topic_id = tracked["kafka_topic_id"]
    assert (
        topic_id
        == Cluster({"bootstrap.servers": stack.broker.bootstrap_servers}).topic(stack.topic("tracking")).topic_id
    )
    [partition] = [partition for partition, end in stack.ends().items() if end]
    origin = {
        "event_timestamp": datetime(2026, 1, 10, 15, 4, 9, 120_000, tzinfo=UTC),
        "kafka_topic": stack.topic("tracking"),
        "kafka_topic_id": topic_id,
        "kafka_partition": partition,
        "kafka_offset": 0,
    }
    assert began <= tracked.pop("processed_timestamp") <= datetime.now(UTC)
    assert json.loads(tracked.pop("claimx_task_full")) == claimx.task(5430007)
    assert json.loads(tracked.pop("original_event")) == message
    assert json.loads(tracked.pop("project_data")) == {"project_id": "5400001"}
    assert tracked == {
        **origin,
        "event_id": "one",
        "event_type": "CUSTOM_TASK_COMPLETED",
        "task_id": 32513,
        "assignment_id": 5430007,
        "project_id": "5400001",
        "task_status": "COMPLETED",
        "task_name": "ITEL Cabinet Repair Form",
        "assigned_to_user_id": 911,
        "assigned_by_user_id": 912,
        "task_created_at": datetime(2026, 1, 9, 9, tzinfo=UTC),
        "task_completed_at": datetime(2026, 1, 10, 15, 3, 58, tzinfo=UTC),
        "tracking_version": "1.0",
        "source": "claimx_itel_plugin",
        "year": 2026,
        "month": 1,
        "day": 10,
    }

    [form] = stack.forms()
    raw_data = json.loads(form.pop("raw_data"))
    assert raw_data["Linear Feet Capture"] == [{"q": "Lower Cabinets (linear feet)", "a": 12.5, "id": "control-1"}]
    assert raw_data["Cabinet Types Damaged"] == [{"q": "Lower Cabinets Damaged?", "a": True, "id": "control-1"}]
    assert json.loads(form.pop("parse_warnings")) == []
    assert {name: value for name, value in form.items() if value is not None and name not in CLOCK_COLUMNS} == {
        **origin,
        "assignment_id": 5430007,
        "task_id": 32513,
        "task_name": "ITEL Cabinet Repair Form",
        "project_id": "5400001",
        "form_id": "65f0c1d2e3f4a5b6c7d8e9f0",
        "form_response_id": "65f1c1d2e3f4a5b6c7d8e9f1",
        "status": "COMPLETED",
        "event_id": "one",
        "date_assigned": datetime(2026, 1, 9, 9, tzinfo=UTC),
        "date_completed": datetime(2026, 1, 10, 15, 3, 58, tzinfo=UTC),
        "customer_first_name": "Pat",
        "customer_last_name": "Roe",
        "customer_email": "pat@example.com",
        "customer_phone": "5550100",
        "assignor_email": "adjuster@example.com",
        "external_link_url": "https://example.com/l/1",
        "damage_description": "No, it leaks",
        "lower_cabinets_lf": 12.5,
        "lower_cabinets_damaged": True,
    }

    photos = sorted(stack.attachments(), key=lambda row: row["display_order"])
    assert [{name: value for name, value in row.items() if name not in CLOCK_COLUMNS} for row in photos] == [
        {
            **origin,
            "assignment_id": 5430007,
            "project_id": "5400001",
            "event_id": "one",
            "control_id": "control-1",
            "question_key": "lower_cabinet_box",
            "question_text": "Captured Lower Cabinet Box",
            "topic_category": "Lower Cabinets",
            "claim_media_id": media_id,
            "blob_path": None,
            "display_order": order,
            "is_active": True,
            "media_type": "image/jpeg",
            "media_warning": None,
        }
        for order, media_id in ((1, 97000012), (2, 97000011))
    ]

    [submission] = stack.itel.submissions()
    assert (submission.idempotency_key, submission.assignment_id) == ("one", 5430007)
    body = dict(submission.body)
    lower = body.pop("lowerCabinets")
    assert {name: value for name, value in body.items() if value not in (None, [])} == {
        "assignmentId": 5430007,
        "projectId": 5400001,
        "formId": "65f0c1d2e3f4a5b6c7d8e9f0",
        "formResponseId": "65f1c1d2e3f4a5b6c7d8e9f1",
        "status": "COMPLETED",
        "dateAssigned": "2026-01-09T09:00:00+00:00",
        "dateCompleted": "2026-01-10T15:03:58+00:00",
        "assignorEmail": "adjuster@example.com",
        "damageDescription": "No, it leaks",
        "customer": {"firstName": "Pat", "lastName": "Roe", "email": "pat@example.com", "phone": "5550100"},
    }
    assert {name: value for name, value in lower.items() if value is not None} == {
        "damaged": True,
        "linearFeet": 12.5,
        "media": [
            {
                "questionKey": "lower_cabinet_box",
                "questionText": "Captured Lower Cabinet Box",
                "claimMediaIds": [97000012, 97000011],
            }
        ],
    }


def test_one_completion_that_two_events_report_is_submitted_once(stack: Stack) -> None:
    form = group("Damage Description", question("Enter Damaged Description", "Leak"))
    for event_id in ("first", "second"):
        stack.tell(tracking_message(event_id=event_id), form, partition=0)
    stack.tell(tracking_message(event_id="another", assignment_id=7), form, partition=0)
    with stack.running("cabinet", itel_unchanged="skip") as job:
        stack.settle("cabinet")
        stack.tell(tracking_message(event_id="third"), form, partition=0)
        stack.settle("cabinet")
        changed = group("Damage Description", question("Enter Damaged Description", "Fire"))
        stack.tell(tracking_message(event_id="fourth"), changed, partition=0)
        stack.settle("cabinet")
        assert job.stop() == 0
    # Two assignments are submitted side by side.
    assert sorted((s.idempotency_key, s.body["damageDescription"], s.times) for s in stack.itel.submissions()) == [
        ("another", "Leak", 1), ("first", "Leak", 1), ("fourth", "Fire", 1)
    ]  # fmt: skip
    assert sum(n for name, n in job.counters.items() if name.endswith("skipped:unchanged")) == 2
    assert sorted(row["event_id"] for row in stack.tracking()) == ["another", "first", "fourth", "second", "third"]
