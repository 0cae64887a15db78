"""The demo as a newcomer runs it, and the books by which it decides whether all adds up."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import DeltaTable

from itel_cabinet.local.ledger import End, Entry, Ledger
from itel_cabinet.local.services.artifacts import home
from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS, TRACKING
from tests.support.jobs import wait_for

_RECORDS = 60
_TOTAL = re.compile(r"^produced (\d+) = (.+)$", re.MULTILINE)


def _demo(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "itel_cabinet.local.demo", *options],
        cwd=folder,
        env={**os.environ, "ITEL_CABINET_LOCAL": str(home()), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(folder: Path, *options: str, seconds: float = 180) -> tuple[int, str, str]:
    with _demo(folder, *options) as process:
        output, errors = process.communicate(timeout=seconds)
        return process.returncode, output, errors


def _terms(output: str) -> list[tuple[int, dict[str, int]]]:
    """Of each ``produced N = a x + b y`` line: N, and a and b by x and y."""
    return [
        (int(total), {what: int(count) for count, what in (term.split(" ", 1) for term in terms.split(" + "))})
        for total, terms in _TOTAL.findall(output)
    ]


def _processes_in(folder: Path) -> list[str]:
    """The command lines of the processes that work in a folder, as all that a demo starts do."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append((process / "cmdline").read_text())
    return found


def _assert_every_record_accounted_for(found: Path, output: str) -> None:
    """``found`` is the demo's folder, ``output`` what it printed."""
    assert output.rstrip().endswith("all of it adds up")

    (events, trigger), (messages, cabinet) = _terms(output)
    assert events == sum(trigger.values()) == _RECORDS
    assert messages == sum(cabinet.values()) == _RECORDS + trigger["published"]
    assert trigger["skipped (no_rule)"] == trigger["skipped (not_a_task_event)"] == 3
    assert cabinet["row in Delta and dead letter (no_form)"] == 1
    assert cabinet["dead letter (not_json)"] >= 1

    rows = {
        name: DeltaTable(str(found / "tables" / name)).to_pyarrow_table().num_rows
        for name in (TRACKING, FORMS, ATTACHMENTS)
    }
    assert rows[TRACKING] == sum(count for what, count in cabinet.items() if what.startswith("row in Delta"))
    assert all(f"{name}: {count} rows" in output for name, count in rows.items())

    submitted = [json.loads(path.read_bytes()) for path in (found / "itel").glob("*.json")]
    assert {one["assignmentId"] for one in submitted} == set(
        DeltaTable(str(found / "tables" / FORMS)).to_pyarrow_table()["assignment_id"].to_pylist()
    )
    letters = [json.loads(line) for line in (found / "dead-letters.jsonl").read_text().splitlines()]
    dead = sum(count for terms in (trigger, cabinet) for what, count in terms.items() if "dead letter" in what)
    assert len(letters) == dead
    assert {letter["job"] for letter in letters} == {"trigger", "cabinet"}
    assert sorted(path.name for path in (found / "logs").iterdir()) == ["cabinet.log", "trigger.log"]


@pytest.mark.services
def test_the_demo_accounts_for_every_record_and_can_be_run_again(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        status, output, errors = _run(tmp_path, f"--records={_RECORDS}", f"--seed={seed}")
        assert (status, errors) == (0, "")
        _assert_every_record_accounted_for(tmp_path / "demo-output", output)
    assert not _processes_in(tmp_path)


@pytest.mark.slow
@pytest.mark.services
def test_the_demo_under_another_contract(tmp_path: Path) -> None:
    status, output, errors = _run(tmp_path, f"--records={_RECORDS}", "--contract=vendor")
    assert (status, errors) == (0, "")
    assert output.rstrip().endswith("all of it adds up")
    (_, trigger), (messages, cabinet) = _terms(output)
    assert messages == sum(cabinet.values()) == _RECORDS + trigger["published"]
    assert cabinet["row in Delta and held by the gate"] >= 1
    orders = [json.loads(path.read_bytes()) for path in (tmp_path / "demo-output" / "itel").glob("*.json")]
    assert len(orders) >= 10
    assert all(order["adjuster"]["carrier_id"] == "demo-carrier_id" for order in orders)
    assert all(image["url"].startswith("https://claimx-photos.s3.") for order in orders for image in order["images"])


@pytest.mark.flink
@pytest.mark.timeout(900)
def test_the_demo_on_a_flink_cluster(tmp_path: Path) -> None:
    status, output, errors = _run(tmp_path, "--flink", f"--records={_RECORDS}", seconds=800)
    assert (status, errors) == (0, "")
    _assert_every_record_accounted_for(tmp_path / "demo-output", output)
    for job in ("trigger", "cabinet"):
        assert f"itel-cabinet run {job} --template={job}.flink" in output
    parts = re.findall(r"^│ (\S.*?) +│ +([0-9.]+) │$", output[output.index("how long each part took") :], re.MULTILINE)
    assert [part for part, _ in parts] == [
        "cluster up",
        *(
            f"{job}: {part}"
            for job in ("trigger", "cabinet")
            for part in ("submit to running", "submit to first commit", "submit to all through", "cancelled")
        ),
        "cluster down",
    ]
    assert not _processes_in(tmp_path)


@pytest.mark.slow
@pytest.mark.flink
@pytest.mark.timeout(600)
def test_a_stopped_demo_leaves_no_process_of_its_cluster(tmp_path: Path) -> None:
    """Once more: the next test shows it without a cluster, and TestGuard (test_flink.py) of what starts a cluster's
    processes.
    """
    with _demo(tmp_path, "--flink", f"--records={_RECORDS}") as process:
        wait_for((tmp_path / "demo-output" / "logs" / "trigger.log").exists, "the trigger job is started", 240)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert errors == "the demo was stopped\n"
    wait_for(lambda: not _processes_in(tmp_path), "what guards have let go of is gone", 60)


@pytest.mark.services
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_demo_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    with _demo(tmp_path, f"--records={_RECORDS}") as process:
        wait_for((tmp_path / "demo-output" / "logs" / "trigger.log").exists, "the trigger job is started", 150)
        process.send_signal(number)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert errors == "the demo was stopped\n"
    wait_for(lambda: not _processes_in(tmp_path), "what guards have let go of is gone", 60)


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "demo-output" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    status, _, errors = _run(tmp_path)
    assert status == 1
    assert errors == "demo: demo-output is not a demo's: give another folder with --folder, or move it away\n"
    assert precious.read_text() == "mine"


# ------------------------------------------------------------------------------------------------------- the books

_ENTRIES = {
    "t/0/0": Entry("assigned", (End.ROW,)),
    "t/0/1": Entry("completed", (End.ROW, End.ACCEPTED)),
    "t/0/2": Entry("not_json", (End.DEAD_LETTER,)),
    "t/0/3": Entry("other_task", ()),
}


def _books(skipped: int = 1) -> Ledger:
    books = Ledger(_ENTRIES, {"other_task": skipped})
    books.found("t/0/0", End.ROW)
    books.found("t/0/1", End.ACCEPTED)
    books.found("t/0/1", End.ROW)
    books.found("t/0/2", End.DEAD_LETTER, "not_json")
    return books


def test_books_that_add_up() -> None:
    books = _books()
    assert books.problems() == []
    assert books.rows() == [
        ("assigned", "row in Delta", 1),
        ("completed", "row in Delta and accepted by iTel", 1),
        ("other_task", "skipped", 1),
        ("not_json", "dead letter (not_json)", 1),
    ]
    assert books.totals() == {
        "row in Delta": 1,
        "row in Delta and accepted by iTel": 1,
        "skipped (other_task)": 1,
        "dead letter (not_json)": 1,
    }


def test_a_record_without_a_trace_is_missed() -> None:
    assert _books(skipped=0).problems() == ["4 records went in, 3 are accounted for"]


def test_a_row_too_many_is_noticed() -> None:
    books = _books()
    books.found("t/0/0", End.ROW)
    assert books.problems() == ["assigned t/0/0: row in Delta and row in Delta; expected: row in Delta"]


def test_a_record_that_nobody_produced_is_noticed() -> None:
    books = _books()
    books.found("t/1/0", End.ROW)
    assert books.problems() == ["4 records went in, 5 are accounted for", "nobody produced t/1/0: row in Delta"]


def test_a_wrong_end_is_noticed() -> None:
    books = Ledger(_ENTRIES, {})
    for coordinates in _ENTRIES:
        books.found(coordinates, End.ROW)
    assert books.problems() == [
        "completed t/0/1: row in Delta; expected: row in Delta and accepted by iTel",
        "not_json t/0/2: row in Delta; expected: dead letter",
        "other_task t/0/3: row in Delta; expected: skipped",
    ]


def test_counts_that_contradict_each_other_are_noticed() -> None:
    books = _books()
    books.compare("calls, results", 3, 3)
    books.compare("assignments, forms", 3, 2)
    assert books.problems() == ["assignments, forms: 3, 2"]
