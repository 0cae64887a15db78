"""From ClaimX events to tracking messages: whose task row, which rule, and what is published byte for byte."""

from __future__ import annotations

import itertools
import json
import logging
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from itel_cabinet.transforms.enrichment import KnownTask, TaskLookupError, look_up_missing_tasks
from itel_cabinet.transforms.events import ClaimXEvent, TaskEvent, parse_claimx_event, parse_event
from itel_cabinet.transforms.forms import TaskDetails
from itel_cabinet.transforms.records import Failure, Record, Skip
from itel_cabinet.transforms.trace_context import trace_message
from itel_cabinet.transforms.triggers import Publication, Rules, apply_rules, load_default_rules, load_rules
from tests.support.cabinet_samples import TASK_IDS, details, record

NOW_HERE = 77.5
NOW = datetime(2026, 1, 10, 15, 4, 9, 120_000, UTC)
TASK_ROW = {"assignment_id": 7, "task_id": 32513, "status": "ASSIGNED", "task_name": "ITEL Cabinet Repair Form"}


def claimx_event(offset: int = 41, **changes: Any) -> tuple[Record, ClaimXEvent]:
    content = {"event_id": "e1", "event_type": "CUSTOM_TASK_ASSIGNED", "project_id": "5400001", **changes}
    one = record(content, offset=offset)
    parsed = parse_claimx_event(one, 0.0)
    assert isinstance(parsed, ClaimXEvent), parsed
    return one, parsed


class Lookup:
    """ClaimX by assignment id; notes what it is asked."""

    def __init__(self, answers: dict[int, TaskDetails | TaskLookupError]) -> None:
        self.answers = answers
        self.calls: list[tuple[Any, ...]] = []

    def now(self) -> float:
        return NOW_HERE

    def calls_at_once(self) -> int:
        return 1

    def task(self, assignment_id: int, *, not_before: float, fresh: bool = False, **_: object) -> TaskDetails:
        self.calls.append((assignment_id, not_before, fresh))
        answer = self.answers[assignment_id]
        if isinstance(answer, TaskLookupError):
            raise answer
        return answer


def look_up(items: list[tuple[Record, ClaimXEvent]], lookup: Lookup) -> list[KnownTask | Failure]:
    clock = itertools.count(500.0).__next__
    with ThreadPoolExecutor(1) as executor:
        pool: Executor = executor
        return look_up_missing_tasks(
            items, lookup=lambda: lookup, pool=lambda: pool, form_wait=lambda *_: None, clock=clock
        )


def rules(text: str) -> Rules:
    return load_rules(f"triggers:\n  - name: My rule\n    task_id: 32513\n    {text}", "rules.yaml")


def apply(*tasks: KnownTask, rules: Rules, topic: str = "") -> list[Publication | Skip]:
    return list(apply_rules(tasks, rules=rules, topic=topic, clock=NOW.timestamp))


def known(offset: int = 41, row: dict[str, Any] = TASK_ROW, **changes: Any) -> KnownTask:
    one, event = claimx_event(offset, task=row, **changes)
    assert event.task is not None
    return KnownTask(one, event, event.task)


# -- the task row


def test_an_events_own_task_row_needs_no_lookup() -> None:
    one, event = claimx_event(task={"assignmentId": "7", "taskId": 32513, "status": "assigned", "mfn": "M-1"})
    lookup = Lookup({})
    assert look_up([(one, event)], lookup) == [
        KnownTask(
            one,
            event,
            {"assignment_id": 7, "task_id": 32513, "status": "ASSIGNED", "task_name": None, "mfn": "M-1"},
        )
    ]
    assert lookup.calls == []


def test_an_event_that_names_only_the_assignment_is_looked_up() -> None:
    one, event = claimx_event(taskAssignmentId=5430007)
    lookup = Lookup({5430007: details(status="assigned", mfn="M-1")})
    (task,) = look_up([(one, event)], lookup)
    assert isinstance(task, KnownTask)
    assert (task.record, task.event) == (one, event)
    wanted = {
        "assignment_id": 5430007,
        "task_id": 32513,
        "project_id": "5400001",
        "status": "ASSIGNED",
        "task_name": "ITEL Cabinet Repair Form",
        "assignee_id": 911,
        "assignor_email": "adjuster@example.com",
        "date_completed": "2026-01-10T15:03:58",
        "mfn": "M-1",
        "cancelled_date": None,
    }
    assert {column: task.task[column] for column in wanted} == wanted
    assert lookup.calls == [(5430007, NOW_HERE, False)]  # a cached answer may do, if it is younger than the arrival


@pytest.mark.parametrize("status", ["IN_PROGRESS", "assigned", "CANCELLED"])
def test_a_completed_task_is_not_published_with_a_status_from_before(status: str) -> None:
    one, event = claimx_event(taskAssignmentId=5430007, event_type="Custom_Task_Completed")
    lookup = Lookup({5430007: details(status=status)})
    (failed,) = look_up([(one, event)], lookup)
    assert isinstance(failed, Failure)
    assert (failed.record, failed.stage, failed.error_class) == (one, "enrich", "not_completed_yet")
    assert failed.error == f"ClaimX still says {status.upper()}; replay the event once it says COMPLETED"
    assert lookup.calls == [(5430007, NOW_HERE, False), (5430007, NOW_HERE, True)]


def test_outcomes_are_in_input_order_and_refusals_are_values() -> None:
    items = [
        claimx_event(1, taskAssignmentId=1),
        claimx_event(2, taskAssignmentId=2),
        claimx_event(3, task=TASK_ROW),
        claimx_event(4, taskAssignmentId=1),
    ]
    refused = TaskLookupError("unknown_assignment", "ClaimX knows no such assignment (status 404)", 2)
    first, failed, own, last = look_up(items, Lookup({1: details(status="COMPLETED"), 2: refused}))
    assert isinstance(failed, Failure)
    assert (failed.record, failed.stage, failed.error_class) == (items[1][0], "enrich", "unknown_assignment")
    assert (failed.error, failed.attempts) == ("ClaimX knows no such assignment (status 404)", 2)
    assert 500 <= failed.first_at < failed.last_at
    found = [task for task in (first, own, last) if isinstance(task, KnownTask)]
    assert [(task.record.offset, task.task["status"]) for task in found] == [
        (1, "COMPLETED"),
        (3, "ASSIGNED"),
        (4, "COMPLETED"),
    ]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"taskId": ...}, "task_id: must be a whole number from 1 to 2^63-1, or its digits as text"),
        ({"status": ["pat@example.com"]}, "status: must be text of 1 to 255 characters without control characters"),
    ],
)
def test_an_incomplete_answer_is_the_records_failure(answer: dict[str, Any], error: str) -> None:
    one, event = claimx_event(taskAssignmentId=5430007)
    (failed,) = look_up([(one, event)], Lookup({5430007: details(**answer)}))
    assert isinstance(failed, Failure)
    assert (failed.record, failed.stage, failed.error_class) == (one, "enrich", "wrong_shape")
    assert failed.error == f"ClaimX's answer: the task row is incomplete: {error}"


# -- what the rules make of it


def test_a_message_is_published_as_the_other_jobs_read_it() -> None:
    task = known(project={"project_id": "5400001"})
    (publication,) = apply(task, rules=load_default_rules(TASK_IDS))
    assert isinstance(publication, Publication)
    assert (publication.record, publication.topic, publication.key) == (task.record, "itel.cabinet.task.tracking", b"7")
    assert json.loads(publication.value) == {
        "trigger_name": "iTel Cabinet Repair Form Task",
        "event_id": "e1",
        "event_type": "CUSTOM_TASK_ASSIGNED",
        "project_id": "5400001",
        "task_id": 32513,
        "assignment_id": 7,
        "task_name": "ITEL Cabinet Repair Form",
        "task_status": "ASSIGNED",
        "timestamp": "2026-01-10T15:04:09.120000+00:00",
        "task": TASK_ROW,
        "project": {"project_id": "5400001"},
    }
    assert publication.headers == (
        ("x-trigger-name", b"iTel Cabinet Repair Form Task"),
        ("x-task-id", b"32513"),
        ("x-event-type", b"CUSTOM_TASK_ASSIGNED"),
        ("x-source", b"AbCdEfGhIjKlMnOpQrStUv/2/41"),
        *trace_message(task.record, "publish"),
    )
    event = parse_event(record(publication.value), 0.0, task_ids=TASK_IDS)
    assert isinstance(event, TaskEvent)
    assert (event.assignment_id, event.task_status, event.timestamp) == (7, "ASSIGNED", NOW)


def test_names_of_any_language_survive() -> None:
    (publication,) = apply(known(row={**TASK_ROW, "task_name": "Küche 修理"}), rules=load_default_rules(TASK_IDS))
    assert isinstance(publication, Publication)
    assert "Küche 修理".encode() in publication.value


@pytest.mark.parametrize(
    ("includes", "present"),
    [
        ("include_task_data: false", set()),
        ("include_project_data: true", {"task", "project"}),
        ("include_project_data: false", {"task"}),
    ],
)
def test_task_and_project_go_along_as_the_rule_says(includes: str, present: set[str]) -> None:
    rule = rules(f"{includes}\n    on_any: {{publish_to_topic: t}}")
    (publication,) = apply(known(project={"project_id": "5400001"}), rules=rule)
    assert isinstance(publication, Publication)
    assert set(json.loads(publication.value)) & {"task", "project"} == present


def test_a_rule_names_the_topic_unless_the_job_does() -> None:
    rule = rules("on_any: {publish_to_topic: theirs}")
    assert [one.topic for one in apply(known(), rules=rule) if isinstance(one, Publication)] == ["theirs"]
    assert [one.topic for one in apply(known(), rules=rule, topic="ours") if isinstance(one, Publication)] == ["ours"]


def test_what_no_rule_asks_for_is_skipped_in_its_place() -> None:
    rule = rules("on_completed: {publish_to_topic: t}")
    other = {**TASK_ROW, "task_id": 24454}
    tasks = [
        known(1, event_type="CUSTOM_TASK_COMPLETED"),
        known(2),
        known(3, row=other, event_type="CUSTOM_TASK_COMPLETED"),
        known(4, event_type="CUSTOM_TASK_COMPLETED"),
    ]
    outcomes = apply(*tasks, rules=rule)
    assert [one.record.offset for one in outcomes] == [1, 2, 3, 4]
    assert outcomes[1:3] == [Skip(tasks[1].record, "no_rule"), Skip(tasks[2].record, "no_rule")]
    assert [type(one) for one in outcomes[::3]] == [Publication, Publication]


def test_a_log_action_writes_its_line_and_the_record_is_accounted_for(caplog: pytest.LogCaptureFixture) -> None:
    rule = rules('on_any: {log: {level: warning, message: "{event_id} of {assignment_id} is {task_status}"}}')
    task = known()
    with caplog.at_level(logging.DEBUG):
        assert apply(task, rules=rule, topic="ours") == [Skip(task.record, "logged_only")]
    assert [(line.levelname, line.getMessage()) for line in caplog.records] == [("WARNING", "e1 of 7 is ASSIGNED")]


def test_a_rule_may_publish_and_log(caplog: pytest.LogCaptureFixture) -> None:
    rule = rules('on_assigned: {publish_to_topic: t, log: "{project_id}"}')
    with caplog.at_level(logging.INFO):
        outcomes = apply(known(1), known(2), rules=rule)
    assert [one.record.offset for one in outcomes if isinstance(one, Publication)] == [1, 2]
    assert [(line.levelname, line.getMessage()) for line in caplog.records] == [("INFO", "5400001")] * 2
