"""`itel-cabinet tables purge`: rows and photos by age."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from itel_cabinet.io.delta import FencedTable, TableSpec
from itel_cabinet.io.objects import ObjectStoreSettings, get_objects
from itel_cabinet.pipeline.operate import purge
from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS, TRACKING
from itel_cabinet.transforms.rows import make_photo_rows
from tests.support import cabinet_samples as samples
from tests.support.known_history import specs
from tests.support.photo_history import fill
from tests.support.printed import Printed

BEFORE = datetime(2025, 6, 10, 12, tzinfo=UTC)
TIMES = {
    1: "2024-12-31T23:59:59",
    2: "2025-06-09T23:00:00",
    3: "2025-06-10T11:59:59",
    4: "2025-06-10T12:00:00",
    5: "2025-11-02T00:00:00",
}
OLD, YOUNG = (1, 2, 3), (4, 5)


def assignments(spec: TableSpec) -> set[int]:
    return {row["assignment_id"] for row in FencedTable(spec).select(["assignment_id"], "true")}


def photos_in(media: Path) -> set[int]:
    return {int(file.name.partition("_")[0]) for file in media.rglob("*.jpg")}


@pytest.fixture
def media(tmp_path: Path) -> Path:
    return tmp_path / "media"


@pytest.fixture
def tables(tmp_path: Path, media: Path) -> dict[str, TableSpec]:
    there = {name: spec for name, spec in specs(f"{tmp_path}/tables").items() if name in (TRACKING, FORMS, ATTACHMENTS)}
    fill(there, media, TIMES, {})
    return there


def test_what_is_older_goes_and_the_rest_stays(tables: dict[str, TableSpec], media: Path) -> None:
    left = media / "itel_cabinet_form_attachments/5400001/32513/77/77_x.jpg"  # by a run that was cut off
    left.parent.mkdir()
    left.write_bytes(b"")
    os.utime(left, (BEFORE.timestamp() - 1, BEFORE.timestamp() - 1))
    roots = [get_objects(ObjectStoreSettings(str(media)))]
    dry = purge([*tables.values()], BEFORE, media=roots, dry_run=True)
    assert (dry.rows, dry.photos, dry.photo_bytes) == ({TRACKING: 3, FORMS: 3, ATTACHMENTS: 3}, 4, 300)
    assert photos_in(media) == {1, 2, 3, 4, 5, 77}
    assert purge([*tables.values()], BEFORE, media=roots) == dry
    for spec in tables.values():
        assert assignments(spec) == {*YOUNG}
    assert photos_in(media) == {*YOUNG}
    again = purge([*tables.values()], BEFORE, media=roots)
    assert (again.rows, again.photos) == ({TRACKING: 0, FORMS: 0, ATTACHMENTS: 0}, 0)


def test_each_table_has_an_age_of_its_own(tables: dict[str, TableSpec], media: Path, printed: Printed) -> None:
    root = f"--tables_root={Path(tables[TRACKING].uri).parent}"
    days = (datetime.now(UTC) - datetime(2025, 8, 1, tzinfo=UTC)).days
    purged = printed.stdout("tables", "purge", root, f"--older_than={days}d", f"--table={FORMS}", "--json")
    assert json.loads(purged)["rows"] == {FORMS: 4}
    assert assignments(tables[FORMS]) == {5}
    assert assignments(tables[TRACKING]) == assignments(tables[ATTACHMENTS]) == {*OLD, *YOUNG}
    assert photos_in(media) == {*OLD, *YOUNG}


def test_killed_at_each_point_and_run_again_it_ends_the_same(
    tables: dict[str, TableSpec], tmp_path: Path, media: Path, printed: Printed
) -> None:
    """The photos were stored later than what is purged, so that only their rows say that they are to go."""
    days = (datetime.now(UTC) - datetime(2025, 8, 1, tzinfo=UTC)).days
    given = [f"--tables_root={tmp_path}/tables", f"--media_root={media}", f"--older_than={days}d", "--json"]
    command = [sys.executable, "-m", "itel_cabinet.pipeline.commands", "tables", "purge", *given]
    points = [f"{when}-delete:{name}" for name in (TRACKING, FORMS, ATTACHMENTS) for when in ("before", "after")]
    for point in ("after-purged-photos", *points):
        done = subprocess.run(command, env={**os.environ, "ITEL_CABINET_CRASH_AT": point}, capture_output=True)
        assert done.returncode == -signal.SIGKILL, (point, done.stderr)
        assert photos_in(media) == {5}
    last = json.loads(printed.stdout("tables", "purge", *given))
    assert (last["rows"], last["photos"]) == (dict.fromkeys(tables, 0), {"files": 0, "bytes": 0})
    for spec in tables.values():
        assert assignments(spec) == {5}


def test_what_cannot_be_purged_is_said_before_anything_is(
    tables: dict[str, TableSpec], tmp_path: Path, printed: Printed
) -> None:
    purge_all = ("tables", "purge", f"--tables_root={Path(tables[TRACKING].uri).parent}")
    assert printed.error(1, *purge_all, "--older_than=1d").startswith(
        "--media_root: rows name 5 photo files that are in none of the roots given"
    )
    (tmp_path / "other").mkdir()
    assert "rows name 5" in printed.error(1, *purge_all, "--older_than=1d", f"--media_root={tmp_path}/other")
    assert printed.error(1, *purge_all, "--older_than=1d", "--media_root=/no/such").startswith("--media_root: there is")
    for age in ("400", "0d", "-1d", "99999d", "a year"):
        assert printed.error(2, *purge_all, f"--older_than={age}").startswith("--older_than: must be an age such as")
    assert assignments(tables[TRACKING]) == {*OLD, *YOUNG}


def test_a_photo_that_a_newer_row_names_stays(tables: dict[str, TableSpec], media: Path) -> None:
    """A newer form of an old assignment keeps its photo's file."""
    changes = {"event_id": "e9", "assignment_id": 1, "timestamp": "2026-01-01T00:00:00+00:00"}
    record, event = samples.record(samples.tracking_message(**changes), offset=9), samples.event(**changes)
    group = samples.group("Photos", samples.question("Captured Lower Cabinet Box", [1]))
    form = samples.parse_form(samples.details(group))
    FencedTable(tables[ATTACHMENTS]).write(make_photo_rows(record, event, form, event.timestamp))
    purged = purge([*tables.values()], BEFORE, media=[get_objects(ObjectStoreSettings(str(media)))])
    assert purged.rows == {TRACKING: 3, FORMS: 3, ATTACHMENTS: 2}
    assert photos_in(media) == {1, *YOUNG}
