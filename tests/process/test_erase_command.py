"""`itel-cabinet erase` on tables and folders alone: what it finds, refuses and says; beside jobs it is tested in
tests/services/test_erasure_jobs.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from itel_cabinet.io.delta import FencedTable
from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS, TRACKING
from itel_cabinet.transforms.rows import make_tracking_rows
from tests.support import known_history
from tests.support.markers import find_markers
from tests.support.photo_history import fill
from tests.support.printed import Printed
from tests.support.stored_history import stored_rows


@pytest.fixture
def root(tmp_path: Path) -> str:
    """The known history: assignments 101, 102, 107 and 108 are project 5400001's, among others."""
    known_history.write(f"{tmp_path}/tables")
    return f"{tmp_path}/tables"


def assignments(root: str, name: str = TRACKING) -> set[int]:
    return set(DeltaTable(f"{root}/{name}").to_pyarrow_table()["assignment_id"].to_pylist())


def erase(printed: Printed, root: str, *more: str) -> Any:
    return json.loads(printed.stdout("erase", f"--tables_root={root}", "--json", *more))


def test_whom_and_of_whom_nothing_was_found(root: str, printed: Printed) -> None:
    before = assignments(root)
    receipt = erase(printed, root, "--assignment_id=103,104", "--assignment_id=4711", "--project_id=5400001")
    assert (receipt["newly_suppressed"], receipt["not_found"]) == (4, ["assignment 4711"])
    assert assignments(root) == before - {101, 102, 103, 104, 107, 108}
    for name in (FORMS, ATTACHMENTS):
        assert assignments(root, name).isdisjoint({101, 102, 103, 104, 107, 108})
    again = erase(printed, root, "--assignment_id=103")
    assert (again["newly_suppressed"], again["rows"][TRACKING]) == (0, 0)


def test_a_trace_says_that_an_assignment_was_erased(root: str, printed: Printed) -> None:
    erase(printed, root, "--assignment_id=103")
    now = f"{datetime.now(UTC):%Y-%m-%d}"
    assert printed.error(1, "trace", "103", f"--tables_root={root}").startswith(f"103: erased on {now} at ")
    assert printed.error(1, "trace", "4711", f"--tables_root={root}").startswith("4711: nothing is known of such")


def test_an_odd_project_is_erased_and_no_other(root: str, printed: Printed) -> None:
    before = assignments(root)
    erase(printed, root, f"--project_id={known_history.HOSTILE}")
    assert assignments(root) == before - {106}


def test_a_restore_brings_back_who_was_erased_and_it_is_erased_again(root: str, printed: Printed) -> None:
    before, version = assignments(root), DeltaTable(f"{root}/{TRACKING}").version()
    assert printed.stdout("erase", f"--tables_root={root}", "--again") == "nobody who was erased is in a table\n"
    erase(printed, root, "--assignment_id=103", "--project_id=5400001")
    after = assignments(root)
    restore = ["tables", "restore", f"--tables_root={root}", f"--table={TRACKING}", f"--version={version}"]
    said = printed.stdout(*restore, "--watch_seconds=0", "--accept_loss")
    assert (
        "people were erased from these tables, and may be back with this version: `itel-cabinet erase --again" in said
    )
    assert assignments(root) == before
    receipt = erase(printed, root, "--again")
    assert (receipt["assignments"], receipt["projects"], receipt["newly_suppressed"]) == ([103], ["5400001"], 0)
    assert assignments(root) == after
    # A job that goes on knows all of them, although the restore has undone what the table said.
    rows = make_tracking_rows([one.task() for one in known_history._FIRST], clock=lambda: 0.0).to_pylist()
    result = FencedTable(known_history.specs(root)[TRACKING]).write(rows)
    assert result.suppressed == sum(row["assignment_id"] == 103 or row["project_id"] == "5400001" for row in rows) > 0
    assert assignments(root) == after


def test_payload_files_of_the_person_go(root: str, tmp_path: Path, printed: Printed) -> None:
    folder = tmp_path / "payloads"
    folder.mkdir()
    theirs = ("101-e1.json", "101-e2.json", ".101-e3.json.7.8.partial", "102-e9.json")
    others = ("1010-e1.json", "103-e1.json", "notes.txt")
    for name in (*theirs, *others):
        (folder / name).write_text("{}")
    receipt = erase(printed, root, "--project_id=5400001", f"--itel_url=file:{folder}")
    assert receipt["payloads"] == {"files": 4, "bytes": 8}
    assert {file.name for file in folder.iterdir()} == {*others}


def test_the_receipt_for_people_says_what_is_left(root: str, printed: Printed) -> None:
    said = printed.stdout("erase", f"--tables_root={root}", "--assignment_id=101")
    assert "1 assignment and 0 projects erased; 1 of them are new on the list of who stays out" in said
    assert "photos: not looked for, since no --media_root is given" in said
    assert (
        "topic itel.cabinet.task.tracking: as long as it keeps its records (--bootstrap_servers says how long)" in said
    )
    assert said.count(f"itel-cabinet tables vacuum --tables_root={root}") == 1  # log and versions end at one date


@pytest.mark.parametrize(
    ("status", "given", "error"),
    [
        (2, [], "give --assignment_id or --project_id, or --again alone"),
        (2, ["--assignment_id=1", "--again"], "give --assignment_id or --project_id, or --again alone"),
        (2, ["--assignment_id=one"], "--assignment_id: must be whole numbers such as 4711"),
        (2, ["--assignment_id=9223372036854775808"], "--assignment_id: must be whole numbers such as 4711"),
        (2, ["--assignment_id=1", "--media_root=ftp://x/y"], "--media_root: must be a folder or a URI of"),
        (1, ["--assignment_id=1", "--media_root=/no/such"], "--media_root: there is no folder /no/such"),
        (2, ["--assignment_id=1", "--media_storage_options=x"], "--media_storage_options: must be a JSON object"),
        (2, ["--assignment_id=1", "--itel_url=file:"], "--itel_url: file: must be followed by a folder"),
    ],
)
def test_what_is_refused_erases_nothing(root: str, printed: Printed, status: int, given: list[str], error: str) -> None:
    before = assignments(root)
    assert printed.error(status, "erase", f"--tables_root={root}", *given).startswith(error)
    assert assignments(root) == before
    assert not DeltaTable.is_deltatable(f"{root}/itel_cabinet_suppressions")


def test_a_root_without_tables_is_refused(tmp_path: Path, printed: Printed) -> None:
    line = printed.error(1, "erase", f"--tables_root={tmp_path}/nothing", "--assignment_id=1")
    assert line.startswith("--tables_root: there is no table")
    assert not (tmp_path / "nothing").exists()


POINTS = [
    *("after-suppression", "after-announcement", "after-files"),
    *(f"{when}-delete:{table}" for table in (ATTACHMENTS, FORMS, TRACKING) for when in ("before", "after")),
    *("before-receipt", "after-receipt"),
]


def test_killed_at_each_point_in_turn_it_ends_the_same(tmp_path: Path, printed: Printed) -> None:
    """An operator's command is killed, and run again, and killed at the next point: ten times."""
    root, media = f"{tmp_path}/tables", tmp_path / "media"
    tables = known_history.specs(root)
    fill(tables, media, dict.fromkeys((1, 2, 3), "2026-01-05T10:00:00"), {2: "Zsuzsanna"})
    others = {name: stored_rows(tables[name]) for name in (TRACKING, FORMS, ATTACHMENTS)}
    others = {name: [row for row in rows if row["assignment_id"] != 2] for name, rows in others.items()}
    assert len(find_markers(tmp_path, [b"Zsuzsanna"])) == 3  # the history, the form, the photo
    options = ["erase", f"--tables_root={root}", "--assignment_id=2", f"--media_root={media}"]
    command = [sys.executable, "-m", "itel_cabinet.pipeline.commands", *options]
    for point in POINTS:
        done = subprocess.run(command, env={**os.environ, "ITEL_CABINET_CRASH_AT": point}, capture_output=True)
        assert done.returncode == -signal.SIGKILL, (point, done.stderr)
    receipt = json.loads(printed.stdout(*options, "--json"))
    assert (receipt["newly_suppressed"], sum(receipt["rows"].values()), receipt["photos"]["files"]) == (0, 0, 0)
    printed.stdout("tables", "vacuum", f"--tables_root={root}", "--retention_hours=0", "--allow_short_retention")
    assert find_markers(tmp_path, [b"Zsuzsanna"]) == []
    for name, rows in others.items():
        assert stored_rows(tables[name]) == rows
    assert sorted(file.name for file in media.rglob("*.jpg")) == ["1_kitchen.jpg", "3_kitchen.jpg"]
