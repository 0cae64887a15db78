"""From records to events: what is read, what is left to another group, what costs no lookup."""

from __future__ import annotations

from typing import Any

import pytest

from itel_cabinet.transforms.events import (
    ClaimXEvent,
    TaskEvent,
    parse_claimx_events,
    parse_task_events,
    skip_other_statuses,
)
from itel_cabinet.transforms.records import Failure, Record, Skip
from itel_cabinet.transforms.replays import REPLAY_FOR
from tests.support.cabinet_samples import event, record, tracking_message

GROUP = "itel_cabinet_group"
NOW = 1_768_057_500.0


def claimx_event(**changes: Any) -> dict[str, Any]:
    content = {"event_id": "e1", "event_type": "CUSTOM_TASK_ASSIGNED", "project_id": "5400001", "taskAssignmentId": 7}
    return {**content, **changes}


def task_events(*records: Record) -> list[Any]:
    return list(parse_task_events(records, group=GROUP, task_ids=frozenset({32513}), clock=lambda: NOW))


def claimx_events(*records: Record) -> list[Any]:
    return list(parse_claimx_events(records, group=GROUP, clock=lambda: NOW))


def test_each_record_has_its_outcome_in_its_place() -> None:
    good, bad = record(tracking_message(), offset=1), record(b"{", offset=2)
    other, last = record(tracking_message(task_id=1), offset=3), record(tracking_message(event_id="last"), offset=4)
    first, failed, skipped, second = task_events(good, bad, other, last)
    assert first == (good, event())
    assert isinstance(failed, Failure)
    assert (failed.record, failed.stage, failed.error_class) == (bad, "parse", "not_json")
    assert (failed.first_at, failed.last_at, failed.attempts) == (NOW, NOW, 1)
    assert skipped == Skip(other, "other_task")
    assert second == (last, event(event_id="last"))


def test_claimx_events_likewise() -> None:
    good, empty = record(claimx_event(), offset=1), record(b"", offset=2)
    file_added = record(claimx_event(event_type="PROJECT_FILE_ADDED"), offset=3)
    (origin, parsed), failed, skipped = claimx_events(good, empty, file_added)
    assert origin == good
    assert isinstance(parsed, ClaimXEvent)
    assert (parsed.event_id, parsed.event_type, parsed.project_id) == ("e1", "CUSTOM_TASK_ASSIGNED", "5400001")
    assert (parsed.task, parsed.assignment_id) == (None, 7)
    assert (failed.record, failed.error_class, failed.last_at) == (empty, "empty", NOW)
    assert skipped == Skip(file_added, "not_a_task_event")


@pytest.mark.parametrize(("parse", "content"), [(task_events, tracking_message()), (claimx_events, claimx_event())])
@pytest.mark.parametrize(
    ("headers", "read"),
    [
        ((), True),
        (((REPLAY_FOR, GROUP.encode()),), True),
        ((("x-replay-of", b"T/0/1"), (REPLAY_FOR, GROUP.encode())), True),
        (((REPLAY_FOR, b"itel_cabinet_api_worker_group"),), False),
        (((REPLAY_FOR, GROUP.encode() + b"_2"),), False),
        (((REPLAY_FOR, b""),), False),
        (((REPLAY_FOR, None),), False),
        ((("x-other", b"itel_cabinet_api_worker_group"),), True),
    ],
)
def test_a_replay_is_read_by_the_group_it_is_for(parse: Any, content: Any, headers: Any, read: bool) -> None:
    one = record(content, headers=headers)
    (outcome,) = parse(one)
    if read:
        assert outcome[0] == one
        assert outcome[1].event_id == content["event_id"]
    else:
        assert outcome == Skip(one, "replay_for_another_group")


def test_a_bad_replay_for_another_group_is_no_failure_here() -> None:
    poison = record(b"\xff", headers=((REPLAY_FOR, b"another"),))
    assert task_events(poison) == [Skip(poison, "replay_for_another_group")]


def test_nothing_gives_nothing() -> None:
    assert task_events() == claimx_events() == []


def test_other_statuses_are_skipped_before_they_cost_a_lookup() -> None:
    events: list[tuple[Record, TaskEvent]] = [
        (record(b"", offset=offset), event(task_status=status))
        for offset, status in enumerate(["COMPLETED", "assigned", "completed", "IN_PROGRESS", "Cancelled"])
    ]
    completed = list(skip_other_statuses(events, statuses=frozenset({"COMPLETED"})))
    assert completed == [
        events[0],
        Skip(events[1][0], "status_not_submitted"),
        events[2],
        Skip(events[3][0], "status_not_submitted"),
        Skip(events[4][0], "status_not_submitted"),
    ]
    both = list(skip_other_statuses(events, statuses=frozenset({"COMPLETED", "CANCELLED"})))
    assert [one for one in both if not isinstance(one, Skip)] == [events[0], events[2], events[4]]


@pytest.mark.parametrize("task_id", [32513, 32615, 24454])
def test_the_task_templates_that_are_wanted_flow(task_id: int) -> None:
    one = record(tracking_message(task_id=task_id))
    wanted = frozenset({32615, 24454})
    (outcome,) = parse_task_events([one], group=GROUP, task_ids=wanted, clock=lambda: NOW)
    if task_id in wanted:
        assert isinstance(outcome, tuple)
        assert outcome[1].task_id == task_id
    else:
        assert outcome == Skip(one, "other_task")
