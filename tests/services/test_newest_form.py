"""The forms and attachments tables hold each assignment's newest completed form, whatever order events come in."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from deltalake import DeltaTable

from itel_cabinet.pipeline.tables import TRACKING
from tests.support.cabinet_samples import group, question, tracking_message
from tests.support.jobs import Stack

FIRST, SECOND = 5430007, 5430008
START = datetime(2026, 1, 10, 15, tzinfo=UTC)


def message(event_id: str, minute: float, status: str = "COMPLETED", **changes: Any) -> dict[str, Any]:
    """An event of FIRST at so many minutes after START."""
    when = (START + timedelta(minutes=minute)).isoformat()
    return tracking_message(event_id=event_id, timestamp=when, task_status=status, **changes)


def form(description: str, *media_ids: int) -> tuple[dict[str, Any], ...]:
    return (
        group("Damage Description", question("Enter Damaged Description", description)),
        group("Photos", question("Upload Overview Photo(s)", list(media_ids))),
    )


def current(stack: Stack) -> list[list[dict[str, Any]]]:
    """Every column of the two tables."""
    return [
        sorted(stack.forms(), key=lambda row: row["assignment_id"]),
        sorted(stack.attachments(), key=lambda row: (row["assignment_id"], row["claim_media_id"])),
    ]


def photos(stack: Stack, assignment_id: int = FIRST) -> dict[int, tuple[bool, int]]:
    """Media id -> (whether it is active, its place) of an assignment's photos."""
    return {
        row["claim_media_id"]: (row["is_active"], row["display_order"])
        for row in stack.attachments()
        if row["assignment_id"] == assignment_id and row["question_key"]
    }


@pytest.fixture
def tracking(stack: Stack) -> Iterator[Stack]:
    """A stack whose tracking job runs."""
    with stack.running("tracking", max_batch_seconds=0.05) as job:
        yield stack
        assert job.stop() == 0, job.errors


def test_only_a_newer_form_changes_the_tables(tracking: Stack) -> None:
    def tell(event: dict[str, Any], *groups: Any, **details: Any) -> None:
        tracking.tell(event, *groups, **details)
        tracking.settle("tracking")

    tell(message("newest", 10), *form("Leak", 11, 12))
    [[row], attachments] = before = current(tracking)
    assert (row["event_id"], row["damage_description"], row["status"]) == ("newest", "Leak", "COMPLETED")
    assert photos(tracking) == {11: (True, 1), 12: (True, 2)}
    assert {photo["event_id"] for photo in attachments} == {"newest"}

    no_form = {"response": None, "status": "ASSIGNED"}
    for event, groups, details in (
        (message("late-assigned", 1, "ASSIGNED"), (), no_form),
        (message("assigned-again", 11, "ASSIGNED"), (), no_form),
        (message("assigned-with-form", 12, "assigned"), form("Draft", 15), {}),
        (message("in-progress", 13, "IN_PROGRESS"), form("Draft", 15), {}),
        (message("completed-without-form", 14), (), {"response": None}),
        (message("late-with-more-photos", 5), form("Drip", 11, 12, 13, 14), {"partition": 0}),
        (message("late-without-photos", 6), form("Drip"), {"partition": 1}),
        (message("late-with-another-photo", 7), form("Drip", 16), {"partition": 2}),
    ):
        tell(event, *groups, **details)
        assert current(tracking) == before, event["event_id"]
    assert len(tracking.tracking()) == 9

    tell(message("resubmitted", 20), *form("Flood", 17, 12))
    assert photos(tracking) == {11: (False, 1), 12: (True, 2), 17: (True, 1)}
    [[again], attachments] = current(tracking)
    assert (again["event_id"], again["damage_description"]) == ("resubmitted", "Flood")
    assert again["created_at"] == row["created_at"]
    assert again["updated_at"] > row["updated_at"]
    assert {photo["event_id"] for photo in attachments} == {"resubmitted"}

    tell(message("without-photos", 30), *form("Flood, no photos"))
    assert photos(tracking) == {11: (False, 1), 12: (False, 2), 17: (False, 1)}
    before = current(tracking)
    assert [row["event_id"] for row in before[0]] == ["without-photos"]
    tell(message("older-with-photos", 25), *form("Drip", 12, 18))
    assert current(tracking) == before

    tell(message("a-photo-comes-back", 40), *form("Flood again", 11))
    assert photos(tracking) == {11: (True, 1), 12: (False, 2), 17: (False, 1)}


def test_a_first_form_without_photos_is_newer_than_a_late_one_with_photos(tracking: Stack) -> None:
    tracking.tell(message("newest", 10), *form("Leak"))
    tracking.settle("tracking")
    before = current(tracking)
    assert photos(tracking) == {}
    tracking.tell(message("late", 5), *form("Drip", 11))
    tracking.settle("tracking")
    assert current(tracking) == before
    assert [row for row in before[1] if row["is_active"]] == []


def test_one_row_for_an_assignment_that_is_twice_in_a_bundle(stack: Stack) -> None:
    """Whatever the order and the partitions; of two events of the same moment the later in Kafka's order wins."""
    for event_id, minute, assignment_id, partition in (
        ("first-older", 1, FIRST, 0),
        ("first-newest", 3, FIRST, 0),
        ("first-late", 2, FIRST, 0),
        ("second-newest", 3, SECOND, 1),
        ("second-other-partition", 2, SECOND, 2),
        ("third-tie", 5, SECOND + 1, 0),
        ("third-tie-later", 5, SECOND + 1, 0),
        ("fourth-tie-later-partition", 5, SECOND + 2, 2),
        ("fourth-tie", 5, SECOND + 2, 1),
    ):
        event = message(event_id, minute, assignment_id=assignment_id)
        stack.tell(event, *form("Leak", 11, 12), partition=partition)
    stack.run("cabinet", max_batch_seconds=1)
    assert DeltaTable(str(stack.tables_root / TRACKING)).version() == 1, "all in one bundle"
    winners = ["first-newest", "second-newest", "third-tie-later", "fourth-tie-later-partition"]
    assert [row["event_id"] for row in current(stack)[0]] == winners
    assert [row["event_id"] for row in current(stack)[1]] == [winner for winner in winners for _ in range(2)]
    assert len(stack.tracking()) == 9
    order = [s.idempotency_key for s in stack.itel.submissions() if s.assignment_id == FIRST]
    assert order == ["first-older", "first-newest", "first-late"], "iTel is told in Kafka's order"
    assert stack.itel.overlaps == 0
