"""Photos end to end: a job fetches them beside the tables, a backfill what is missing; on a folder and on Azurite."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import from_url

from itel_cabinet.local.samples import Generator, Receipt, Shares, produce
from itel_cabinet.local.simulators import MediaFault, media_bytes
from itel_cabinet.pipeline.commands import main
from tests.support.accounting import assert_everything_accounted_for
from tests.support.cabinet_samples import group, question, tracking_message
from tests.support.jobs import Stack, wait_for

MANY_RESUBMISSIONS = Shares(assigned=0.2, resubmitted=0.2, late=0.1, repeated=0.1)
PHOTOS = group("Photos", question("Captured Lower Cabinet Box", [11, 12]))
PATH = "itel_cabinet_form_attachments/5400001/32513/5430007/{0}_kitchen_{0}.jpg"


@pytest.fixture(params=["folder", "azure"])
def shop(request: pytest.FixtureRequest, stack: Stack) -> Stack:
    """A stack whose jobs fetch photos; tables and photos are in a folder, or on Azurite."""
    if request.param == "azure":
        stack.store = request.getfixturevalue("azure")
    stack.options = media_options(stack)
    return stack


@pytest.fixture
def folder(stack: Stack) -> Stack:
    stack.options = media_options(stack)
    return stack


def media_options(stack: Stack) -> dict[str, str]:
    return {
        "media_root": stack.media_uri,
        "media_allowed_hosts": "127.0.0.1",
        "media_deadline_seconds": "120",
        "max_batch_records": "50",
    }


def produced(stack: Stack, n: int, seed: int) -> list[Receipt]:
    events = Generator(seed, start=datetime.now(UTC), shares=MANY_RESUBMISSIONS).tracking_messages(n)
    return produce(stack.broker.bootstrap_servers, stack.topic("tracking"), events, stack.claimx)


def stored(stack: Stack) -> dict[str, bytes]:
    """Every object below the media root, by its path there."""
    root = stack.media_uri if stack.store else Path(stack.media_uri).as_uri()
    store = from_url(root)
    entries = [entry for chunk in obstore.list(store) for entry in chunk]
    return {entry["path"]: bytes(obstore.get(store, entry["path"]).bytes()) for entry in entries}


def assert_photos_stored(stack: Stack) -> None:
    """Each photo of a form has its file, where its row says, and there is no other file."""
    rows = [row for row in stack.attachments() if row["is_active"]]
    objects = stored(stack)
    assert rows
    assert {row["media_warning"] for row in rows} == {None}
    for row in rows:
        relative = row["blob_path"].removeprefix(f"{stack.media_uri}/")
        expected = f"{row['project_id']}/32513/{row['assignment_id']}/{row['claim_media_id']}_kitchen_"
        assert relative == f"itel_cabinet_form_attachments/{expected}{row['claim_media_id']}.jpg"
        assert objects[relative] == media_bytes(row["claim_media_id"])
    # Photos that a form once had were stored as well.
    known = {row["blob_path"].removeprefix(f"{stack.media_uri}/") for row in stack.attachments() if row["blob_path"]}
    assert objects.keys() >= known


ON_AZURE_AGAIN = ["folder", pytest.param("azure", marks=pytest.mark.slow)]


@pytest.mark.parametrize("shop", ON_AZURE_AGAIN, indirect=True)
def test_each_photo_is_stored_once_and_its_row_says_where(shop: Stack) -> None:
    receipts = produced(shop, 120, 7)
    shop.run("cabinet")
    assert_everything_accounted_for(shop, receipts)
    assert_photos_stored(shop)

    tables, calls = [shop.tracking(), shop.forms(), shop.attachments()], shop.claimx.calls
    shop.rewind("cabinet")
    shop.run("cabinet")
    assert [shop.tracking(), shop.forms(), shop.attachments()] == tables
    asked = {path: n for path, n in (shop.claimx.calls - calls).items() if "media" in path}
    assert asked == {}, "a replay fetches nothing again"


def test_photos_behind_the_login_of_claimx_are_fetched_with_it(folder: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.claimx.token, folder.claimx.photos_ask_token = "claimx-token", True
    monkeypatch.setenv("CLAIMX_API_TOKEN", "claimx-token")
    folder.tell(tracking_message(event_id="e-1"), PHOTOS)
    folder.run("cabinet", claimx_auth="bearer:env:CLAIMX_API_TOKEN")
    assert {row["claim_media_id"] for row in folder.attachments()} == {11, 12}
    assert_photos_stored(folder)


@pytest.mark.parametrize(
    ("shop", "point"),
    [
        ("folder", "after-photo:40"),
        ("azure", "before-commit:claimx_itel_attachments:2"),
        pytest.param("folder", "before-commit:claimx_itel_attachments:2", marks=pytest.mark.slow),
        pytest.param("azure", "after-photo:40", marks=pytest.mark.slow),
    ],
    indirect=["shop"],
)
def test_killed_while_photos_are_fetched(shop: Stack, point: str) -> None:
    receipts = produced(shop, 120, 5)
    with shop.running("cabinet", env={"ITEL_CABINET_CRASH_AT": point}, until_caught_up="true") as job:
        assert job.wait() == -signal.SIGKILL, job.errors
    assert shop.committed("cabinet") != shop.ends(), "killed too late to prove anything"
    before = shop.claimx.calls

    shop.run("cabinet")
    assert_everything_accounted_for(shop, receipts)
    assert_photos_stored(shop)
    again = {path for path in (shop.claimx.calls - before) if path.startswith("/media/") and before[path]}
    assert len(again) <= 8, "but for those under way, what was stored is not fetched again"


def photo_rows(stack: Stack) -> dict[int, tuple[Any, Any]]:
    return {row["claim_media_id"]: (row["blob_path"], row["media_warning"]) for row in stack.attachments()}


def test_a_photo_that_is_refused_costs_a_warning_and_nothing_else(folder: Stack) -> None:
    folder.claimx.media_faults[11] = MediaFault(link="http://169.254.169.254/latest/meta-data/")
    folder.tell(tracking_message(), PHOTOS)
    job = folder.run("cabinet")
    assert photo_rows(folder) == {
        11: (None, "refused: 169.254.169.254 is not an allowed host"),
        12: (f"{folder.media_uri}/{PATH.format(12)}", None),
    }
    assert [form["assignment_id"] for form in folder.forms()] == [5430007]
    assert len(folder.itel.submissions()) == 1
    [warning] = [line["message"] for line in job.lines if line["level"] == "WARNING"]
    assert warning.startswith("assignment 5430007: photo 11: refused: 169.254.169.254 is not an allowed host")
    assert "media:refused: 1" in job.errors
    assert "media:stored: 1" in job.errors
    assert folder.dead_letters() == []


def test_the_simulators_own_address_is_refused_unless_it_is_allowed(folder: Stack) -> None:
    folder.tell(tracking_message(), PHOTOS)
    folder.run("cabinet", media_allowed_hosts="*.amazonaws.com")
    refused = (None, "refused: 127.0.0.1 is not an allowed host")
    assert photo_rows(folder) == {11: refused, 12: refused}
    assert stored(folder) == {}


def test_photos_are_off_where_no_root_is_given_or_it_is_said(stack: Stack) -> None:
    stack.tell(tracking_message(), PHOTOS)
    stack.run("cabinet", media_root=stack.media_uri, media="off")
    assert photo_rows(stack) == {11: (None, None), 12: (None, None)}
    assert stack.claimx.calls["/export/project/5400001/media"] == 0
    assert not Path(stack.media_uri).exists()


def test_slow_photos_do_not_hold_the_tables_up(folder: Stack) -> None:
    """The tables have the event while a photo of it still takes its time, and a backfill finds the photo."""
    folder.claimx.media_faults[11] = MediaFault(seconds=300)
    folder.tell(tracking_message(), PHOTOS)
    with folder.running("cabinet", media_deadline_seconds=3) as job:
        wait_for(lambda: folder.committed("cabinet") == folder.ends(), "the event is through", 60)
        found = photo_rows(folder)
        assert job.stop() == 0
    assert found[11] == (None, "deadline: not stored in time; `itel-cabinet media backfill` fetches it")
    assert found[12] == (f"{folder.media_uri}/{PATH.format(12)}", None)
    assert len(folder.itel.submissions()) == 1


# The backfill


def backfill_arguments(stack: Stack, *more: str) -> list[str]:
    given = {
        "tables_root": stack.tables_uri,
        "claimx_url": stack.claimx.url,
        "claimx_auth": "none",
        "media_root": stack.media_uri,
        "media_allowed_hosts": "127.0.0.1",
        "max_retries": "0",
    }
    return ["media", "backfill", *(f"--{name}={value}" for name, value in given.items()), *more]


@pytest.fixture
def without_files(shop: Stack) -> Stack:
    """A stack whose tables know two photos that nobody has fetched."""
    del shop.options["media_root"]
    shop.tell(tracking_message(), PHOTOS)
    shop.run("cabinet")
    assert photo_rows(shop) == {11: (None, None), 12: (None, None)}
    return shop


def test_a_backfill_fetches_what_is_missing(without_files: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    stack = without_files
    paths = {i: f"{stack.media_uri}/{PATH.format(i)}" for i in (11, 12)}
    before = {row["claim_media_id"]: row for row in stack.attachments()}

    assert main(backfill_arguments(stack, "--dry-run")) == 0
    assert capsys.readouterr().out == "2 photos of 1 assignment without a file\n"
    assert stack.claimx.calls["/export/project/5400001/media"] == 0

    stack.claimx.media_faults[11] = MediaFault(content_type="text/html")
    assert main(backfill_arguments(stack)) == 0
    assert capsys.readouterr().out == "2 photos of 1 assignment without a file\n  stored: 1\n  wrong_type: 1\n"
    assert photo_rows(stack) == {11: (None, "wrong_type: the answer is no image"), 12: (paths[12], None)}

    assert main(backfill_arguments(stack)) == 1, "it fetched nothing of what it was to fetch"
    assert capsys.readouterr().out == "1 photo of 1 assignment without a file\n  wrong_type: 1\n"

    stack.claimx.media_faults.clear()
    assert main(backfill_arguments(stack)) == 0
    assert capsys.readouterr().out == "1 photo of 1 assignment without a file\n  stored: 1\n"
    assert photo_rows(stack) == {i: (paths[i], None) for i in (11, 12)}
    assert stored(stack) == {PATH.format(i): media_bytes(i) for i in (11, 12)}
    set_by_it = {"blob_path", "media_warning", "updated_at"}
    for row in stack.attachments():
        assert {name for name, value in row.items() if value != before[row["claim_media_id"]][name]} <= set_by_it

    calls = stack.claimx.calls
    assert main(backfill_arguments(stack)) == 0
    assert capsys.readouterr().out == "0 photos of 0 assignments without a file\n"
    assert stack.claimx.calls == calls


@pytest.mark.parametrize("shop", ON_AZURE_AGAIN, indirect=True)
def test_after_a_backfill_newer_forms_still_win_and_replays_add_nothing(without_files: Stack) -> None:
    stack = without_files
    assert main(backfill_arguments(stack)) == 0
    tables = [stack.tracking(), stack.forms(), stack.attachments()]
    stack.rewind("cabinet")
    stack.run("cabinet")
    assert [stack.tracking(), stack.forms(), stack.attachments()] == tables, "a replay changes no table"

    later = (datetime(2026, 1, 10, 15, 4, 9, tzinfo=UTC) + timedelta(hours=1)).isoformat()
    again = group("Photos", question("Captured Lower Cabinet Box", [12, 13]))
    stack.tell(tracking_message(event_id="later", timestamp=later), again)
    stack.run("cabinet")
    assert {row["claim_media_id"]: (row["is_active"], row["blob_path"]) for row in stack.attachments()} == {
        11: (False, f"{stack.media_uri}/{PATH.format(11)}"),
        12: (True, f"{stack.media_uri}/{PATH.format(12)}"),
        13: (True, None),
    }


def test_a_backfill_that_can_fetch_nothing_stops_with_one_line(
    folder: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    del folder.options["media_root"]
    folder.tell(tracking_message(), PHOTOS)
    folder.run("cabinet")
    folder.claimx.faults.error_status = 503
    assert main(backfill_arguments(folder)) == 1
    assert capsys.readouterr().err == (
        "itel-cabinet: metadata: ClaimX answers with status 503; 0 of 2 photos were tried\n"
    )
    assert photo_rows(folder) == {11: (None, None), 12: (None, None)}


@pytest.mark.parametrize(
    ("changed", "status", "line"),
    [
        ({"media_root": ""}, 2, "--media_root is missing: give the folder or object-store URI for photos"),
        ({"media_root": "ftp://x/y"}, 2, "--media_root: must be a folder or a URI of az"),
        ({"media_allowed_hosts": "https://x"}, 2, "--media_allowed_hosts: 'https://x' is no host name"),
        ({"claimx_media_path": "/x"}, 2, "--claimx_media_path: must begin with / and hold {project_id}"),
        ({"media_storage_options": '{"sas_token": "x"}'}, 2, "--media_storage_options: sas_token is a secret"),
        ({}, 1, "--tables_root: there is no table "),
    ],
)
def test_a_backfill_refuses_in_one_line(
    tmp_path: Path, changed: dict[str, str], status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"tables_root": tmp_path / "t", "media_root": tmp_path / "m", "claimx_url": "http://claimx.example"}
    arguments = [f"--{name}={value}" for name, value in (given | {"claimx_auth": "none"} | changed).items() if value]
    assert main(["media", "backfill", *arguments]) == status
    told = capsys.readouterr().err
    assert told.startswith(f"itel-cabinet: {line}")
    assert told.count("\n") == 1
    assert [*tmp_path.iterdir()] == []
