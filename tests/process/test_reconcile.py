"""What the ledger answers: which forms iTel lacks, and what became of each submission."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from itel_cabinet.io.worker import metrics
from itel_cabinet.pipeline.commands import main
from itel_cabinet.pipeline.reconciliation_watch import look_at_forms
from itel_cabinet.pipeline.tables import BODIES, FORMS, LEDGER, TRACKING
from tests.support.filed_submissions import START, append, event, filed, make_tables
from tests.support.printed import Printed

COMMAND = str(Path(sys.executable).with_name("itel-cabinet"))
FORMS_IN_ALL = 100_000
# By hand: which of them are not to be found with iTel, and why.
REFUSED = range(1_000, 41_000, 1_000)
HELD = range(1_500, 31_500, 1_000)
LOST = range(2_200, 92_200, 4_500)
DELETED = range(7, 99_007, 9_900)
# And which look as if, and are not.
LATE_SUCCESSES = range(3_300, 53_300, 1_000)
SUPERSEDED = range(61_701, 91_701, 2_000)
SHADOWED = range(90_100, 90_150, 10)

Answer = Callable[..., tuple[int, Any]]


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    """Runs a command with --json, and gives its exit status and what it printed."""

    def run(*arguments: str) -> tuple[int, Any]:
        status = main([*arguments, "--json"])
        printed = capsys.readouterr()
        assert printed.err == ""
        return status, json.loads(printed.out)

    return run


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A hundred thousand completed forms with their submissions, but for what was planted; not to be written to."""
    root = tmp_path_factory.mktemp("planted")
    specs = make_tables(root)
    events = [event(number) for number in range(FORMS_IN_ALL)]
    # The forms that a newer one of the assignment has superseded: the next event's.
    for number in SUPERSEDED:
        events[number + 1]["assignment_id"] = events[number]["assignment_id"]
    append(specs[TRACKING], events)
    append(specs[FORMS], [one for number, one in enumerate(events) if number not in SUPERSEDED])
    not_settled = {*REFUSED, *HELD, *LOST, *SUPERSEDED}
    rows = [filed(one, "accepted") for number, one in enumerate(events) if number not in not_settled]
    rows += [filed(events[number], "refused", "timeout") for number in (*REFUSED, *SUPERSEDED)]
    rows += [filed(events[number], "held") for number in HELD]
    rows += [filed(events[number], "refused", "no_form") for number in LATE_SUCCESSES]
    rows += [filed(events[number], "shadow") for number in (*SHADOWED, *LOST)]
    append(specs[LEDGER], rows)
    deleted = ", ".join(f"'{events[number]['event_id']}'" for number in DELETED)
    DeltaTable(specs[LEDGER].uri).delete(f"event_id IN ({deleted})")
    return str(root)


MEASURED = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


def test_exactly_the_planted_gaps_among_a_hundred_thousand_forms(planted: str) -> None:
    began = time.monotonic()
    # By way of a small process: the system counts as a child's memory what its parent had when it started it.
    command = [sys.executable, "-I", "-S", "-c", MEASURED, COMMAND, "reconcile", f"--tables_root={planted}", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    seconds = time.monotonic() - began
    assert ended.returncode == 1, ended.stderr
    found = json.loads(ended.stdout)
    lacking: dict[tuple[str, str | None], list[str]] = {}
    for one in found["forms"]:
        lacking.setdefault((one["outcome"], one["reason"]), []).append(one["event_id"])
    assert lacking == {
        ("refused", "timeout"): [f"evt-{number:06}" for number in REFUSED],
        ("held", None): [f"evt-{number:06}" for number in HELD],
        ("never_tried", None): [f"evt-{number:06}" for number in sorted({*LOST, *DELETED})],
    }
    gaps = len(REFUSED) + len(HELD) + len(LOST) + len(DELETED)
    assert found["completed"] == FORMS_IN_ALL
    assert (found["lacking"], found["older"]) == (gaps, gaps)
    assert found["superseded"] == len(SUPERSEDED)
    assert found["settled"] == FORMS_IN_ALL - gaps - len(SUPERSEDED)
    assert seconds < 30, "seconds, on a machine that does nothing else"
    assert int(ended.stderr) < 1_000_000, "kilobytes"


def test_the_query_says_the_same(planted: str, answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = answer("reconcile", f"--tables_root={planted}")
    assert main(["query", "unreconciled", f"--tables_root={planted}", "--format=json"]) == 0
    asked = json.loads(capsys.readouterr().out)
    assert [one["event_id"] for one in asked if not one["superseded"]] == [one["event_id"] for one in found["forms"]]
    assert sum(one["superseded"] for one in asked) == found["superseded"]
    assert main(["query", "completed-forms", f"--tables_root={planted}", "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"completed": FORMS_IN_ALL}]


def test_a_stretch_of_time_alone(planted: str, answer: Answer) -> None:
    status, found = answer(
        "reconcile", f"--tables_root={planted}", f"--since={(START + timedelta(days=60)).isoformat()}"
    )
    first = 60 * 24 * 60
    assert status == 1
    assert found["completed"] == FORMS_IN_ALL - first
    wanted = [*(n for n in LOST if n >= first), *(n for n in DELETED if n >= first)]
    assert [one["event_id"] for one in found["forms"]] == [f"evt-{number:06}" for number in sorted(wanted)]


# ------------------------------------------------------------------------------------------------------- small tables


def ago(minutes: float) -> dict[str, Any]:
    """The columns of an event so long ago."""
    at = datetime.now(UTC) - timedelta(minutes=minutes)
    return {"event_timestamp": at, "year": at.year, "month": at.month, "day": at.day}


def test_only_what_is_older_than_the_limit_fails(tmp_path: Path, answer: Answer, printed: Printed) -> None:
    specs = make_tables(tmp_path)
    old, new, there = event(1, **ago(90)), event(2, **ago(30)), event(3, **ago(120))
    append(specs[TRACKING], [old, new, there, event(4, task_status="ASSIGNED", **ago(500))])
    append(specs[LEDGER], [filed(there, "unchanged"), filed(new, "refused", "no_form")])
    at = f"--tables_root={tmp_path}"
    status, found = answer("reconcile", at)
    assert (status, found["completed"], found["settled"], found["lacking"], found["older"]) == (1, 3, 1, 2, 1)
    assert [(one["event_id"], one["outcome"], one["reason"]) for one in found["forms"]] == [
        ("evt-000001", "never_tried", None),
        ("evt-000002", "refused", "no_form"),
    ]
    assert [(one["outcome"], one["reason"], one["forms"], one["older"]) for one in found["reasons"]] == [
        ("never_tried", None, 1, 1),
        ("refused", "no_form", 1, 0),
    ]
    assert 90 * 60 <= found["forms"][0]["age_seconds"] < 92 * 60
    assert answer("reconcile", at, "--older_than=2h")[0] == 0
    assert answer("reconcile", at, "--older_than=10m")[1]["older"] == 2
    assert answer("reconcile", at, "--since=1h")[0] == 0
    status, found = answer("reconcile", at, "--leave_out=never_tried", "--leave_out=held")
    assert (status, found["lacking"], found["left_out"]) == (0, 1, 1)
    lines = printed.stdout("reconcile", at, "--older_than=2h", "--limit=1").splitlines()
    assert lines[:2] == [
        "3 completed forms, of which iTel has 1",
        "2 that iTel lacks, 0 of them for more than 2h",
    ]
    assert lines[-1] == "and 1 more: raise --limit, or take --json"


def test_other_statuses_may_be_the_submitted_ones(tmp_path: Path, answer: Answer) -> None:
    specs = make_tables(tmp_path)
    append(specs[TRACKING], [event(1, task_status="SIGNED_OFF"), event(2), event(3, task_status="SIGNED.OFF")])
    given = [f"--tables_root={tmp_path}", "--itel_statuses=signed_off,closed"]
    assert [one["event_id"] for one in answer("reconcile", *given)[1]["forms"]] == ["evt-000001"]


def test_what_only_the_forms_have_is_found_and_an_event_counts_once(tmp_path: Path, answer: Answer) -> None:
    specs = make_tables(tmp_path)
    append(specs[TRACKING], [event(1), event(9, event_id="evt-000001"), event(2)])
    append(specs[FORMS], [event(2), event(3)])
    append(specs[LEDGER], [filed(event(2), "duplicate")])
    _, found = answer("reconcile", f"--tables_root={tmp_path}")
    assert (found["completed"], found["settled"]) == (3, 1)
    places = [(one["event_id"], one["coordinates"].rpartition("/")[2]) for one in found["forms"]]
    assert places == [("evt-000001", "1"), ("evt-000003", "3")]


def test_nothing_is_lacking_where_there_is_nothing(tmp_path: Path, answer: Answer, printed: Printed) -> None:
    make_tables(tmp_path)
    status, found = answer("reconcile", f"--tables_root={tmp_path}")
    assert (status, found["completed"], found["forms"]) == (0, 0, [])
    assert printed.stdout("reconcile", f"--tables_root={tmp_path}").splitlines()[-1] == (
        "0 that iTel lacks, 0 of them for more than 1h"
    )


@pytest.mark.parametrize(
    ("given", "status", "line"),
    [
        (["--older_than=soon"], 2, "--older_than: must be a number and s, m, h or d, such as 1h or 30d, got 'soon'"),
        (["--since=3x"], 2, "--since: must be a number and s, m, h or d, such as 1h or 30d, got '3x'"),
        (["--leave_out=some"], 2, "--leave_out: must be one of never_tried, refused, held, got 'some'"),
        (["--itel_statuses=a b"], 2, "--itel_statuses: must be statuses with commas between them, got 'a b'"),
        (["--resubmit"], 2, "--bootstrap_servers is missing: --resubmit writes to a topic"),
        (["--dry_run"], 2, "--dry_run: goes with --resubmit: without it nothing is changed"),
    ],
)
def test_wrong_use_is_one_line(printed: Printed, tmp_path: Path, given: list[str], status: int, line: str) -> None:
    assert printed.error(status, "reconcile", f"--tables_root={tmp_path}", *given) == line


def test_tables_that_are_not_there(printed: Printed, tmp_path: Path) -> None:
    for command in (["reconcile"], ["submissions", "list"], ["submissions", "show", "1"]):
        line = printed.error(1, *command, f"--tables_root={tmp_path}")
        assert line.startswith(f"--tables_root: there is no table {tmp_path}/")


def test_the_watch_counts_what_is_lacking_since_there_is_a_ledger(tmp_path: Path) -> None:
    specs = make_tables(tmp_path)
    made = datetime.now(UTC)
    earlier, held, refused, untried = (event(number, **at(made, number - 4.5)) for number in range(4, 8))
    there = event(9, **at(made, 9))
    append(specs[TRACKING], [earlier, held, refused, untried, there])
    append(specs[LEDGER], [filed(held, "held"), filed(refused, "refused", "timeout"), filed(there, "accepted")])

    def seen(days: float) -> dict[str, tuple[float, float]]:
        look_at_forms(specs, frozenset({"COMPLETED"}), made + timedelta(days=days))
        gauges = (metrics.UNRECONCILED_FORMS, metrics.OLDEST_UNRECONCILED)
        return {
            outcome: tuple(gauge.labels(outcome)._value.get() for gauge in gauges)  # type: ignore[misc]
            for outcome in ("never_tried", "refused", "held")
        }

    assert seen(1) == {
        "never_tried": (1, untried["event_timestamp"].timestamp()),
        "refused": (1, refused["event_timestamp"].timestamp()),
        "held": (1, pytest.approx(held["event_timestamp"].timestamp(), abs=0.001)),
    }
    assert seen(30) == dict.fromkeys(("never_tried", "refused", "held"), (0, 0))


def at(moment: datetime, minutes: float) -> dict[str, Any]:
    """The columns of an event so long after a moment."""
    return ago((datetime.now(UTC) - moment).total_seconds() / 60 - minutes)


# ----------------------------------------------------------------------------------------------------------- the ledger


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    """Submissions of four events, and two bodies; a second and a third event are of one assignment."""
    specs = make_tables(tmp_path)
    sent = {"body_sha256": "ab" * 32, "contract_name": "cabinet_repair", "attempts": 1, "status": 201}
    again = event(3, assignment=5_000_002)
    rows = [
        filed(event(1), "accepted", created_id="ITEL-1", latency_ms=31.5, **sent),
        filed(event(2), "refused", "timeout", **{**sent, "status": None, "attempts": 4}),
        filed(again, "refused", "no_form", attempts=0),
        filed(again, "accepted", answered_at=START + timedelta(hours=1), **{**sent, "body_sha256": "cd" * 32}),
        filed(event(4, event_id="5000001"), "held"),
    ]
    append(specs[LEDGER], rows)
    append(specs[BODIES], [{**rows[0], "body": '{"insured": "Pat"}'}, {**rows[3], "body": '{"insured": "Kim"}'}])
    return f"--tables_root={tmp_path}"


def test_submissions_are_listed_newest_first_and_filtered(ledger: str, answer: Answer, printed: Printed) -> None:
    def listed(*given: str) -> list[tuple[str, str]]:
        status, found = answer("submissions", "list", ledger, *given)
        assert status == 0
        return [(one["event_id"], one["outcome"]) for one in found]

    assert listed() == [
        ("evt-000003", "accepted"),
        ("5000001", "held"),
        ("evt-000003", "refused"),
        ("evt-000002", "refused"),
        ("evt-000001", "accepted"),
    ]
    assert listed("--limit=1") == [("evt-000003", "accepted")]
    assert listed("--outcome=refused", "--outcome=held") == listed()[1:4]
    assert listed("--reason=timeout") == [("evt-000002", "refused")]
    assert listed("--assignment_id=5000002") == [listed()[0], *listed()[2:4]]
    assert listed("--since=2026-01-01T00:30") == listed("--limit=1")
    assert listed("--until=2026-01-01T00:02") == [("evt-000001", "accepted")]
    assert listed("--reason=x' OR 'a' = 'a") == []
    cells = printed.cells("submissions", "list", ledger, "--limit=2")
    assert cells[0] == ["2026-01-01T01:00:00.000Z", "5000002", "evt-000003", "accepted", "-", "201", "1", "-", "-"]
    assert printed.error(2, "submissions", "list", ledger, "--outcome=lost").startswith("--outcome: must be one of acc")


def test_a_body_is_shown_on_demand_alone(ledger: str, answer: Answer, printed: Printed) -> None:
    status, found = answer("submissions", "show", "evt-000001", ledger)
    assert (status, len(found), found[0]["created_id"]) == (0, 1, "ITEL-1")
    assert "body" not in found[0]
    assert "Pat" not in printed.stdout("submissions", "show", "evt-000001", ledger)
    assert answer("submissions", "show", "evt-000001", ledger, "--body")[1][0]["body"] == '{"insured": "Pat"}'
    # An id may be an assignment's, and an event's.
    assert [one["event_id"] for one in answer("submissions", "show", "5000001", ledger)[1]] == ["evt-000001", "5000001"]
    bodies = [one["body"] for one in answer("submissions", "show", "5000002", ledger, "--body")[1]]
    assert bodies == [None, None, '{"insured": "Kim"}']
    shown = printed.stdout("submissions", "show", "5000002", ledger, "--body").splitlines()
    assert [line for line in shown if line.startswith("body: ")] == [
        "body: not kept",
        "body: nothing was sent",
        'body: {"insured": "Kim"}',
    ]
    assert printed.error(1, "submissions", "show", "nobody", ledger) == (
        "nobody: the ledger has nothing of such an assignment or event: see `itel-cabinet trace` for what else is known"
    )


def test_the_ledger_is_queried(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(name: str, *given: str) -> list[dict[str, Any]]:
        assert main(["query", name, ledger, "--format=json", *given]) == 0
        rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        return rows

    assert [(one["event_id"], one["outcome"]) for one in asked("submissions", "--param=assignment_id=5000002")] == [
        ("evt-000003", "accepted"),
        ("evt-000003", "refused"),
        ("evt-000002", "refused"),
    ]
    counted = [
        (one["outcome"], one["reason"], one["submissions"], one["mean_ms"]) for one in asked("submission-outcomes")
    ]
    assert counted == [
        ("accepted", None, 2, 32.0),
        ("held", None, 1, None),
        ("refused", "no_form", 1, None),
        ("refused", "timeout", 1, None),
    ]
