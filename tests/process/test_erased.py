"""Who was erased, as the jobs ask: at the step that reads, and when a photo is stored."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from itel_cabinet.io.delta import SuppressionList, Suppressions
from itel_cabinet.io.erased import get_erased
from itel_cabinet.io.objects import ObjectStoreSettings
from itel_cabinet.transforms.events import parse_claimx_events, parse_task_events, read_ids
from itel_cabinet.transforms.photos import Album, album_folder
from itel_cabinet.transforms.records import Record, Skip
from itel_cabinet.transforms.suppression import ASSIGNMENT, PROJECT, leave_out_erased
from tests.support.cabinet_samples import TASK_IDS, record, tracking_message

IDS = ((ASSIGNMENT, "assignment_id"), (PROJECT, "project_id"))


@pytest.fixture
def place(tmp_path: Path) -> SuppressionList:
    """The list, with one assignment and one project on it."""
    there = SuppressionList(f"{tmp_path}/list", IDS)
    Suppressions(there).add([(ASSIGNMENT, 11), (PROJECT, "P-2")], datetime.now(UTC))
    return there


def messages() -> list[Record]:
    """Of the assignment, of another one, and of a third in the project."""
    who = ((11, "P-1"), (12, "P-1"), (13, "P-2"))
    return [record(tracking_message(assignment_id=one, project_id=project)) for one, project in who]


def test_events_of_the_erased_are_skipped_and_their_albums_emptied(place: SuppressionList, tmp_path: Path) -> None:
    media = tmp_path / "media"
    files = [
        media / album_folder(Album(project, 32513, one, ())) / "7_x.jpg"
        for one, project in ((11, "P-1"), (12, "P-1"), (13, "P-2"))
    ]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x")
    erased = partial(get_erased, place, 0.0, ObjectStoreSettings(str(media)))
    parse = partial(parse_task_events, group="g", task_ids=TASK_IDS, clock=lambda: 0.0)
    outcomes = [*leave_out_erased(messages(), parse=parse, erased=erased)]
    assert [one.reason if isinstance(one, Skip) else one[1].assignment_id for one in outcomes] == [
        "suppressed",
        12,
        "suppressed",
    ]
    assert [file.exists() for file in files] == [False, True, False]
    # Without tables there is no list to look at.
    assert len([one for one in leave_out_erased(messages(), parse=parse, erased=None) if isinstance(one, Skip)]) == 0


def test_events_of_claimx_are_skipped_before_they_are_published(place: SuppressionList) -> None:
    event = {"event_type": "CUSTOM_TASK_COMPLETED", "project_id": "P-1"}
    events = [record({**event, "event_id": f"e{one}", "taskAssignmentId": one}) for one in (11, 12)]
    parse = partial(parse_claimx_events, group="g", clock=lambda: 0.0)
    skipped, kept = leave_out_erased(events, parse=parse, erased=partial(get_erased, place, 0.0, None))
    assert isinstance(skipped, Skip)
    assert isinstance(kept, tuple)


@pytest.mark.parametrize(
    ("message", "ids"),
    [
        (tracking_message(assignment_id=11, project_id="P-1"), {"assignment_id": 11, "project_id": "P-1"}),
        ({"assignmentId": "11", "projectId": 5}, {"assignment_id": 11, "project_id": "5"}),
        ({"task_assignment_id": 11}, {"assignment_id": 11}),
        ({"task": {"assignmentId": 11, "projectId": "P-1"}}, {"assignment_id": 11, "project_id": "P-1"}),
        ({"task": "none", "assignment_id": -3, "project_id": None}, {}),
        ([], {}),
    ],
)
def test_ids_of_a_record_that_need_not_be_valid(message: object, ids: dict[str, object]) -> None:
    assert read_ids(record(message)) == ids
