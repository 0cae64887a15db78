"""People erased from what the jobs have stored: every byte is looked through, and nothing brings them back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import obstore
import pytest
from deltalake import DeltaTable
from obstore.store import from_url

from itel_cabinet.local.services import free_port
from itel_cabinet.local.simulators import MediaFault
from itel_cabinet.pipeline.commands import main
from itel_cabinet.pipeline.tables import ATTACHMENTS, BODIES, FORMS, LEDGER, TRACKING
from tests.support.cabinet_samples import group, question, tracking_message
from tests.support.jobs import Stack, wait_for
from tests.support.markers import find_markers
from tests.support.printed import Printed

TABLES = (TRACKING, FORMS, ATTACHMENTS, LEDGER, BODIES)
WHO = 5430007
OTHERS = (5430008, 5430009)
PROJECT = "5400001"
MARKERS = [b"Zsuzsanna", b"Querfurt", b"zq@marker.example", b"5557654321", b"17 Markerstrasse", b"MARKER-IN-THE-PHOTO"]


def tell(stack: Stack, who: int, event_id: str, *, marked: bool = False) -> None:
    """One completed form with two photos; its texts are the markers', or those of somebody else."""
    name, family, mail, phone, street, photo = (
        [marker.decode() for marker in MARKERS]
        if marked
        else ["Pat", "Roe", "pat@example.com", "5550100", "1 Main Street", "a photo"]
    )
    for media_id in (who * 10, who * 10 + 1):
        stack.claimx.media_faults[media_id] = MediaFault(body=b"\xff\xd8\xff\xe0" + photo.encode() * 50 + b"\xff\xd9")
    project = PROJECT if who == WHO else "5400002"
    message = tracking_message(
        event_id=event_id,
        assignment_id=who,
        project_id=project,
        project={"project_id": project, "address": street, "insured": f"{name} {family}"},
        task={"assignment_id": who, "task_id": 32513, "status": "COMPLETED", "assignor_email": mail},
    )
    stack.tell(
        message,
        group("Lower Cabinets", question("Lower Cabinets Damaged?", "Yes"), question("Additional notes", street)),
        group("Photos", question("Captured Lower Cabinet Box", [who * 10, who * 10 + 1])),
        projectId=int(project),
        externalLinkData={"firstName": name, "lastName": family, "email": mail, "phone": phone},
    )


def options(stack: Stack) -> dict[str, str]:
    return {"media_root": stack.media_uri, "media_allowed_hosts": "127.0.0.1", "media_deadline_seconds": "60"}


def erase_command(stack: Stack, *more: str) -> list[str]:
    return ["erase", f"--tables_root={stack.tables_uri}", f"--media_root={stack.media_uri}", *more]


def rows_of_others(stack: Stack) -> dict[str, list[Any]]:
    return {
        name: sorted(
            (row for row in stack.table(name).to_pylist() if row["assignment_id"] != WHO),
            key=lambda row: json.dumps(row, default=str, sort_keys=True),
        )
        for name in TABLES
        if DeltaTable.is_deltatable(f"{stack.tables_uri}/{name}")
    }


def find_stored(stack: Stack, part: str = "") -> list[str]:
    """The markers that are in tables and media, or in the ``part`` of them, wherever those are."""
    if stack.store is None:
        return find_markers(stack.folder / part, MARKERS)
    with tempfile.TemporaryDirectory(dir=stack.folder) as folder:
        store = from_url(f"{stack.store}/{part}", client_options={"allow_http": True})
        for entry in (entry for page in obstore.list(store) for entry in page):
            copy = Path(folder, entry["path"])
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(obstore.get(store, entry["path"]).bytes())
        return find_markers(Path(folder), MARKERS)


def vacuum(stack: Stack) -> None:
    arguments = ["--retention_hours=0", "--allow_short_retention", f"--tables_root={stack.tables_uri}"]
    assert main(["tables", "vacuum", *arguments]) == 0


def plant(stack: Stack) -> None:
    """A job stores the person's two events beside those of others."""
    stack.options = options(stack)
    tell(stack, WHO, "e-1", marked=True)
    for number, other in enumerate(OTHERS):
        tell(stack, other, f"o-{number}")
    # Not valid, so that a letter is all that becomes of it.
    stack.tell(tracking_message(assignment_id=WHO, event_type=..., task_name=MARKERS[0].decode()))
    tell(stack, WHO, "e-2", marked=True)
    stack.run("cabinet")
    assert {marker.split(": ")[-1] for marker in find_stored(stack, "tables")} == {
        repr(marker) for marker in MARKERS[:5]
    }
    assert find_stored(stack, "media")


@pytest.fixture
def planted(stack: Stack) -> Stack:
    plant(stack)
    return stack


@contextmanager
def metrics(stack: Stack, job: str) -> Iterator[Any]:
    """A running job, and what its worker says at ``/metrics``."""
    port = free_port()
    with stack.running(job, metrics_port=port) as running:

        def read(path: str = "metrics") -> str:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as reply:
                return str(reply.read().decode())
            return ""  # nobody listens there yet

        wait_for(read, "the metrics of a running job")
        yield running, read


def test_after_an_erasure_and_a_vacuum_no_byte_is_left_and_nothing_brings_them_back(
    planted: Stack, printed: Printed
) -> None:
    stack, before = planted, rows_of_others(planted)
    photos = {file.name for file in Path(stack.media_uri).rglob("*.*")}
    theirs = {name: [row["assignment_id"] for row in stack.table(name).to_pylist()].count(WHO) for name in TABLES}
    servers = f"--bootstrap_servers={stack.broker.bootstrap_servers}"
    ids, topic = f"--assignment_id={WHO}", f"--topic={stack.topic('tracking')}"

    dry = json.loads(printed.stdout(*erase_command(stack, ids, servers, "--dry_run", "--json")))
    assert rows_of_others(stack) == before
    assert len(stack.tracking()) == 4

    with metrics(stack, "cabinet") as (job, read):
        receipt = json.loads(printed.stdout(*erase_command(stack, ids, servers, topic, "--json")))
        # What is produced again, and what is new of them, is skipped, while others' events are written.
        tell(stack, WHO, "e-3", marked=True)
        tell(stack, OTHERS[0], "o-9")
        stack.settle("cabinet")
        assert json.loads(read("healthz"))["skipped"] == {"suppressed": 1}
        texts = read() + read("healthz") + job.errors
        assert not [marker for marker in MARKERS if marker.decode() in texts]
    assert receipt["rows"] == theirs == dry["rows"]
    assert [theirs[name] for name in (TRACKING, FORMS, ATTACHMENTS)] == [2, 1, 2]
    assert min(theirs.values()) > 0
    assert receipt["photos"] == {"looked_for": True, "files": 2, "bytes": dry["photos"]["bytes"]}
    assert (receipt["newly_suppressed"], receipt["not_found"]) == (1, [])
    assert receipt["left"]["itel"]["submissions"] == theirs[LEDGER]
    kept = {one["topic"]: one["kept_days"] for one in receipt["left"]["topics"]}
    assert kept[stack.topic("tracking")] == 7
    assert all("tables vacuum" in step["command"] for step in receipt["to_finish"])

    errors = (f"--dead_letter_topic={stack.topic('errors')}", f"--itel_errors_topic={stack.topic('itel_errors')}")
    replay = ("dead-letters", "replay", servers, *errors, f"--tables_root={stack.tables_uri}", "--json")
    replayed = json.loads(printed.stdout(*replay))
    assert (replayed["erased"], replayed["replayed"]) == (1, 0)

    vacuum(stack)
    assert find_markers(stack.folder, MARKERS) == []
    after = rows_of_others(stack)
    assert [row for row in after[TRACKING] if row["event_id"] != "o-9"] == before[TRACKING]
    assert {file.name for file in Path(stack.media_uri).rglob("*.*")} == {p for p in photos if str(WHO) not in p}

    calls = [one.times for one in stack.itel.submissions() if one.assignment_id == WHO]
    stack.rewind("cabinet")
    stack.run("cabinet")
    stack.run("api", media="off", tables_root=stack.tables_uri)  # a group that begins at the start
    assert [one.times for one in stack.itel.submissions() if one.assignment_id == WHO] == calls
    assert main(["tables", "rederive", f"--tables_root={stack.tables_uri}"]) == 0
    vacuum(stack)
    assert find_markers(stack.folder, MARKERS) == []
    again = rows_of_others(stack)
    assert again[TRACKING] == after[TRACKING]
    assert again[BODIES] == after[BODIES]
    # A receipt is kept, without the ids.
    kept_rows = DeltaTable(f"{stack.tables_uri}/itel_cabinet_erasures").to_pyarrow_table().to_pylist()
    assert [(row["assignments"], row["photos"]) for row in kept_rows] == [(1, 2)]
    assert str(WHO) not in str(kept_rows)


@pytest.mark.parametrize("kind", ["s3", pytest.param("azure", marks=pytest.mark.slow)])
def test_no_object_of_a_store_has_a_byte_of_the_erased(
    stack: Stack, kind: str, printed: Printed, request: pytest.FixtureRequest
) -> None:
    stack.store = str(request.getfixturevalue(kind))
    plant(stack)
    before = rows_of_others(stack)
    erase = erase_command(stack, f"--assignment_id={WHO}", "--json")
    receipts = [json.loads(printed.stdout(*erase)) for _ in range(2)]
    gone = [(one["newly_suppressed"], sum(one["rows"].values()), one["photos"]["files"]) for one in receipts]
    assert gone == [(1, 9, 2), (0, 0, 0)]
    printed.stdout(
        "tables", "vacuum", f"--tables_root={stack.tables_uri}", "--retention_hours=0", "--allow_short_retention"
    )
    assert find_stored(stack) == []
    stack.rewind("cabinet")
    job = stack.run("cabinet")
    assert job.counters["skipped:suppressed"] == 2
    assert find_stored(stack) == []
    assert rows_of_others(stack) == before
    assert not stack.tables_root.exists()


POINTS = [
    "after-suppression",
    "after-announcement",
    "after-files",
    *(f"{when}-delete:{table}" for when in ("before", "after") for table in (BODIES, FORMS, TRACKING)),
    "before-receipt",
    "after-receipt",
]


@pytest.mark.slow
def test_killed_anywhere_and_run_again_it_ends_the_same(planted: Stack) -> None:
    """One run after the other is killed, each at the next point, as an operator would repeat it."""
    stack, before = planted, rows_of_others(planted)
    command = [sys.executable, "-m", "itel_cabinet.pipeline.commands", *erase_command(stack, f"--project_id={PROJECT}")]
    for point in POINTS:
        done = subprocess.run(command, env={**os.environ, "ITEL_CABINET_CRASH_AT": point}, capture_output=True)
        # What an earlier run has deleted is not deleted again.
        is_over = "-delete:" in point and done.returncode == 0
        assert done.returncode == -signal.SIGKILL or is_over, (point, done.stderr)
    assert subprocess.run(command, capture_output=True).returncode == 0
    vacuum(stack)
    assert find_markers(stack.folder, MARKERS) == []
    assert rows_of_others(stack) == before
    stack.rewind("cabinet")
    stack.run("cabinet")
    vacuum(stack)
    assert find_markers(stack.folder, MARKERS) == []
    assert rows_of_others(stack) == before
