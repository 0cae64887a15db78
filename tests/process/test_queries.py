"""The queries: what each of them answers about a history that is known, on a folder and on an object store."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlglot
from deltalake import DeltaTable, write_deltalake
from pyarrow import parquet
from sqlglot import exp

from itel_cabinet.io.delta import FencedTable
from itel_cabinet.pipeline.commands import main
from itel_cabinet.pipeline.queries import Query, QueryError, Session, bind, catalogue, find
from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS, LEDGER, TRACKING
from itel_cabinet.transforms.enrichment import make_task
from itel_cabinet.transforms.rows import make_form_rows
from tests.support import known_history
from tests.support.cabinet_samples import details, event, group, parse_form, question, record
from tests.support.known_history import HOSTILE, NOW, PROJECTS

_QUERIES = Path(__file__).parents[2] / "queries"
P1, P2 = "5400001", "5400002"
_PLACE = ("itel.cabinet.task.tracking", "AbCdEfGhIjKlMnOpQrStUv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The known history in a folder; not to be written to."""
    root = str(tmp_path_factory.mktemp("history"))
    known_history.write(root)
    return root


@pytest.fixture(params=["folder", pytest.param("azure", marks=pytest.mark.services)])
def root(request: pytest.FixtureRequest) -> str:
    """The known history in a folder, and then on an object store."""
    place = str(request.getfixturevalue(request.param))
    if request.param == "azure":
        known_history.write(place)
    return place


Told = Callable[..., str]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Runs the command and gives what it printed."""

    def run(*arguments: str) -> str:
        assert main(["query", *arguments]) == 0, capsys.readouterr().err
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command and gives its exit status and its one line."""

    def run(*arguments: str) -> tuple[int, str]:
        status = main(["query", *arguments])
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert len(printed.err) < 600
        return status, printed.err.removeprefix("itel-cabinet: ").rstrip("\n")

    return run


def row(event_id: str, when: str, kind: str, assignment: int, status: str, user: int | None, lag: int = 2) -> Any:
    """A row of an event, as two of the queries show it."""
    event_time = known_history.at(when)
    return {
        "event_timestamp": event_time.isoformat().replace("+00:00", "Z"),
        "event_type": f"CUSTOM_TASK_{kind}",
        "assignment_id": assignment,
        "project_id": PROJECTS[assignment],
        "task_status": status,
        "assigned_to_user_id": user,
        "processed_timestamp": event_time.replace(second=lag).isoformat().replace("+00:00", "Z"),
        "event_id": event_id,
    }


def rows(columns: str, *values: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(columns.split(), one, strict=True)) for one in values]


ANSWERS: dict[str, tuple[dict[str, str], list[dict[str, Any]]]] = {
    "latest-events": (
        {"limit": "3"},
        [
            row("f1", "02-09T12:00", "ASSIGNED", 106, "ASSIGNED", 11),
            row("g1", "02-05T01:00", "COMPLETED", 107, "COMPLETED", 13),
            row("e2", "02-02T00:00", "CANCELLED", 105, "CANCELLED", 12),
        ],
    ),
    "timeline": (
        {"assignment_id": "102"},
        rows(
            "event_timestamp event_type task_status minutes_since_previous assigned_to_user_id assigned_by_user_id "
            "event_id",
            ("2026-01-07T12:00:00Z", "CUSTOM_TASK_ASSIGNED", "ASSIGNED", None, 11, 900, "b1"),
            ("2026-01-08T12:00:00Z", "CUSTOM_TASK_ASSIGNED", "ASSIGNED", 1440.0, 12, 900, "b2"),
            ("2026-02-01T12:00:00Z", "CUSTOM_TASK_COMPLETED", "COMPLETED", 34560.0, 12, 900, "b3"),
        ),
    ),
    "statuses": (
        {"month": "2026-01"},
        rows("task_status events assignments", ("COMPLETED", 5, 4), ("ASSIGNED", 4, 3), ("ON_HOLD", 1, 1)),
    ),
    "completion-times": (
        {},
        rows(
            "assignment_id project_id created_at completed_at days hours",
            (102, P1, "2026-01-07T11:00:00Z", "2026-02-01T11:00:00Z", 25.0, 600.0),
            (101, P1, "2026-01-05T08:00:00Z", "2026-01-06T10:00:00Z", 1.08, 26.0),
            (108, P1, "2026-01-10T00:00:00Z", "2026-01-10T05:30:00Z", 0.23, 5.5),
            (109, P2, "2025-12-31T22:00:00Z", "2026-01-01T00:30:00Z", 0.1, 2.5),
        ),
    ),
    "daily": (
        {},
        rows(
            "day assigned completed",
            ("2025-12-31", 1, 0),
            ("2026-01-01", 0, 1),
            ("2026-01-05", 1, 0),
            ("2026-01-06", 0, 1),
            ("2026-01-07", 1, 0),
            ("2026-01-08", 1, 0),
            ("2026-01-10", 0, 1),
            ("2026-01-12", 0, 1),
            ("2026-01-20", 1, 0),
            ("2026-01-25", 0, 0),
            ("2026-01-31", 0, 1),
            ("2026-02-01", 1, 1),
            ("2026-02-02", 0, 0),
            ("2026-02-05", 0, 1),
            ("2026-02-09", 1, 0),
        ),
    ),
    "users": (
        {},
        rows(
            "user_id assigned completed completion_rate",
            (11, 3, 1, 0.333),
            (12, 3, 2, 0.667),
            (13, 2, 1, 0.5),
            (14, 1, 1, 1.0),
        ),
    ),
    "open-tasks": (
        {"now": NOW},
        rows(
            "assignment_id project_id task_status assigned_to_user_id last_event_at idle_days",
            (103, P2, "ON_HOLD", 13, "2026-01-25T00:00:00Z", 16.0),
            (106, HOSTILE, "ASSIGNED", 11, "2026-02-09T12:00:00Z", 0.5),
        ),
    ),
    "projects": (
        {},
        rows(
            "project_id tasks completed active mean_hours_to_complete",
            (P1, 4, 4, 0, 210.5),
            (P2, 4, 2, 1, 2.5),
            (HOSTILE, 1, 0, 1, None),
        ),
    ),
    "processing-lag": (
        {"year": "2026"},
        rows(
            "day events mean_seconds max_seconds",
            ("2026-01-01", 1, 2.0, 2.0),
            ("2026-01-05", 1, 2.0, 2.0),
            ("2026-01-06", 1, 2.0, 2.0),
            ("2026-01-07", 1, 4.0, 4.0),
            ("2026-01-08", 1, 2.0, 2.0),
            ("2026-01-10", 1, 2.0, 2.0),
            ("2026-01-12", 1, 2.0, 2.0),
            ("2026-01-20", 1, 2.0, 2.0),
            ("2026-01-25", 1, 2.0, 2.0),
            ("2026-01-31", 1, 2.0, 2.0),
            ("2026-02-01", 2, 3.5, 5.0),
            ("2026-02-02", 1, 2.0, 2.0),
            ("2026-02-05", 1, 2.0, 2.0),
            ("2026-02-09", 1, 2.0, 2.0),
        ),
    ),
    "transitions": (
        {},
        rows(
            "from_status to_status transitions assignments",
            ("CREATED", "ASSIGNED", 6, 6),
            ("ASSIGNED", "COMPLETED", 3, 3),
            ("CREATED", "COMPLETED", 3, 3),
            ("ASSIGNED", "ASSIGNED", 1, 1),
            ("ASSIGNED", "CANCELLED", 1, 1),
            ("ASSIGNED", "ON_HOLD", 1, 1),
            ("COMPLETED", "COMPLETED", 1, 1),
        ),
    ),
    "time-travel": (
        {"version": "1"},
        [
            {**row("b3", "02-01T12:00", "COMPLETED", 102, "COMPLETED", 12, 5), "kafka_partition": 1, "kafka_offset": 1},
            {**row("c1", "01-20T00:00", "ASSIGNED", 103, "ASSIGNED", 13), "kafka_partition": 2, "kafka_offset": 0},
            {**row("b2", "01-08T12:00", "ASSIGNED", 102, "ASSIGNED", 12), "kafka_partition": 1, "kafka_offset": 2},
            {**row("b1", "01-07T12:00", "ASSIGNED", 102, "ASSIGNED", 11, 4), "kafka_partition": 1, "kafka_offset": 0},
            {**row("a2", "01-06T10:30", "COMPLETED", 101, "COMPLETED", 11), "kafka_partition": 0, "kafka_offset": 1},
            {**row("a1", "01-05T09:00", "ASSIGNED", 101, "ASSIGNED", 11), "kafka_partition": 0, "kafka_offset": 0},
            {**row("i2", "01-01T01:00", "COMPLETED", 109, "COMPLETED", 14), "kafka_partition": 2, "kafka_offset": 2},
            {
                **row("i1", "2025-12-31T23:00", "ASSIGNED", 109, "ASSIGNED", 14),
                "kafka_partition": 2,
                "kafka_offset": 1,
            },
        ],
    ),
    "quality": (
        {},
        rows(
            "problem events",
            ("without assignment id", 0),
            ("without project id", 0),
            ("completed, without creation time", 1),
            ("completed, without completion time", 1),
            ("completed before it was created", 1),
            ("rows that repeat an event", 2),
        ),
    ),
    "funnel": (
        {},
        rows("stage tasks", ("seen", 9), ("completed", 6), ("form kept", 4), ("with photos", 1)),
    ),
    "completion-hours": (
        {},
        rows(
            "took tasks",
            ("under 1 hour", 0),
            ("1 to 4 hours", 1),
            ("4 to 24 hours", 1),
            ("1 to 3 days", 1),
            ("3 to 7 days", 0),
            ("7 days or more", 1),
        ),
    ),
    "open-ages": (
        {"now": NOW},
        rows(
            "idle tasks",
            ("under 1 day", 1),
            ("1 to 3 days", 0),
            ("3 to 7 days", 0),
            ("7 to 14 days", 0),
            ("14 to 30 days", 1),
            ("30 days or more", 0),
        ),
    ),
    "drifted-forms": ({}, []),
    "damage": (
        {},
        rows(
            "section forms damaged_boxes linear_feet",
            ("lower", 1, 3, 12.5),
            ("upper", 1, 2, 8.0),
            ("full height", 1, 0, 7.3),
            ("island", 1, 2, 6.5),
        ),
    ),
    "completed-forms": ({"until": "2026-02-05T01:00"}, [{"completed": 6}]),
    "unreconciled": (
        {},
        rows(
            "event_timestamp event_id assignment_id project_id outcome reason tried_at superseded tracked kafka_topic "
            "kafka_topic_id kafka_partition kafka_offset",
            ("2026-01-10T06:00:00Z", "h1", 108, P1, "held", None, "2026-01-10T06:01:00Z", True, True, *_PLACE, 1, 4),
            ("2026-01-31T23:31:00Z", "d1", 104, P2, "refused", "no_form", "2026-01-31T23:32:00Z", False, True,
             *_PLACE, 0, 4),
            ("2026-02-01T12:00:00Z", "b3", 102, P1, "refused", "timeout", "2026-02-01T12:01:00Z", False, True,
             *_PLACE, 1, 1),
            ("2026-02-05T01:00:00Z", "g1", 107, P1, "never_tried", None, None, False, True, *_PLACE, 1, 3),
        ),
    ),
    "submissions": (
        {"assignment_id": "108", "limit": "2"},
        rows(
            "answered_at assignment_id event_id outcome reason status attempts created_id latency_ms resubmission "
            "kafka_topic_id kafka_partition kafka_offset",
            ("2026-01-12T00:01:00Z", 108, "h2", "duplicate", None, None, None, None, 60.0, None, _PLACE[1], 1, 5),
            ("2026-01-12T00:01:00Z", 108, "h2", "shadow", None, None, None, None, 80.0, None, _PLACE[1], 1, 5),
        ),
    ),
    "submission-outcomes": (
        {},
        rows(
            "outcome reason submissions assignments mean_ms newest_at",
            ("accepted", None, 2, 2, 150.0, "2026-01-06T10:31:00Z"),
            ("refused", "timeout", 2, 2, 30_000.0, "2026-02-01T12:01:00Z"),
            ("duplicate", None, 1, 1, 60.0, "2026-01-12T00:01:00Z"),
            ("held", None, 1, 1, None, "2026-01-10T06:01:00Z"),
            ("refused", "no_form", 1, 1, None, "2026-01-31T23:32:00Z"),
            ("shadow", None, 1, 1, 80.0, "2026-01-12T00:01:00Z"),
        ),
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- answers


def test_every_query_answers_as_the_history_says(root: str, told: Told) -> None:
    assert {*ANSWERS, "history"} == {query.name for query in catalogue()}
    for name, (parameters, expected) in ANSWERS.items():
        params = [f"--param={key}={value}" for key, value in parameters.items()]
        assert json.loads(told(name, f"--tables_root={root}", *params, "--format=json")) == expected, name


def test_the_history_of_the_table(root: str, told: Told) -> None:
    began = datetime.now(UTC)
    versions = json.loads(told("history", f"--tables_root={root}", "--format=json"))
    assert [(one["version"], one["operation"]) for one in versions] == [
        (2, "WRITE"),
        (1, "WRITE"),
        (0, "CREATE TABLE"),
    ]
    times = [datetime.fromisoformat(one["timestamp"]) for one in versions]
    assert sorted(times, reverse=True) == times
    assert times[0] <= began
    assert json.loads(told("time-travel", f"--tables_root={root}", "--param=version=0", "--format=json")) == []


def test_the_twelve_have_their_numbers() -> None:
    assert [query.number for query in catalogue()] == [*range(1, 12), 11, 12, *[None] * 9]
    assert [find(str(number)).name for number in (1, 7, 11, 12)] == [
        "latest-events",
        "open-tasks",
        "time-travel",
        "quality",
    ]
    assert find("Open_Tasks") is find("open-tasks") is find("7")


def test_what_is_missing_is_counted(tmp_path: Path, told: Told) -> None:
    """The jobs' own tables forbid what another writer may have left."""
    known_history.write(str(tmp_path))
    table = tmp_path / TRACKING
    there = DeltaTable(str(table)).to_pyarrow_table()
    lax = there.cast(pa.schema([field.with_nullable(True) for field in there.schema])).to_pylist()
    for number, (event_id, lacks) in enumerate([("x", "assignment_id"), ("y", "project_id"), ("z", "project_id")]):
        lax.append(
            {**lax[0], "event_id": event_id, "kafka_offset": 100 + number, lacks: " " if event_id == "z" else None}
        )
    shutil.rmtree(table)
    write_deltalake(
        str(table), pa.Table.from_pylist(lax, schema=pa.schema([f.with_nullable(True) for f in there.schema]))
    )
    found = {
        one["problem"]: one["events"]
        for one in json.loads(told("quality", f"--tables_root={tmp_path}", "--format=json"))
    }
    assert (found["without assignment id"], found["without project id"]) == (1, 2)
    tasks = json.loads(told("funnel", f"--tables_root={tmp_path}", "--format=json"))[0]
    assert tasks == {"stage": "seen", "tasks": 9}, "an event of no assignment makes no task"


def test_a_session_keeps_to_one_state_of_the_tables(tmp_path: Path) -> None:
    known_history.write(str(tmp_path))
    with Session(known_history.specs(str(tmp_path))) as session:
        before = list(session.run(find("funnel"), {}).rows)
        write_deltalake(
            str(tmp_path / TRACKING),
            DeltaTable(str(tmp_path / TRACKING), version=0).to_pyarrow_table(),
            mode="overwrite",
        )
        assert list(session.run(find("funnel"), {}).rows) == before
    with Session(known_history.specs(str(tmp_path))) as session:
        assert next(session.run(find("funnel"), {}).rows) == ("seen", 0)


def test_only_the_columns_of_a_query_are_read(tmp_path: Path, told: Told) -> None:
    """The texts in JSON are most of a table: here they cannot be read, and nobody minds."""
    known_history.write(str(tmp_path))
    ruined = 0
    for file in (tmp_path / TRACKING).rglob("*.parquet"):
        chunk = next(
            chunk
            for chunk in map(parquet.read_metadata(file).row_group(0).column, range(30))
            if chunk.path_in_schema == "claimx_task_full"
        )
        with file.open("r+b") as content:
            content.seek(min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset))))
            content.write(b"\0" * chunk.total_compressed_size)
        with pytest.raises(OSError, match=r"."):
            parquet.read_table(file, columns=["claimx_task_full"])
        ruined += 1
    assert ruined > 5
    for name in ("users", "latest-events"):
        parameters, expected = ANSWERS[name]
        params = [f"--param={key}={value}" for key, value in parameters.items()]
        assert json.loads(told(name, f"--tables_root={tmp_path}", *params, "--format=json")) == expected


# ------------------------------------------------------------------------------------------------------------- formats


def test_an_empty_table_has_an_empty_answer(tmp_path: Path, told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "create", f"--tables_root={tmp_path}"]) == 0
    capsys.readouterr()
    told_nothing = {"timeline": "--param=assignment_id=1", "statuses": "--param=month=2026-01"}
    for name in ("latest-events", "timeline", "statuses", "completion-times", "users", "open-tasks", "transitions"):
        more = [told_nothing[name]] if name in told_nothing else []
        printed = told(name, f"--tables_root={tmp_path}", *more, "--format=csv")
        assert printed.splitlines()[1:] == []
        assert printed.split(",")[0] in {*re.findall(r"\w+", find(name).sql)}
        assert json.loads(told(name, f"--tables_root={tmp_path}", *more, "--format=json")) == []
        assert len(told(name, f"--tables_root={tmp_path}", *more).splitlines()) > 2


def test_csv_is_harmless_in_a_spreadsheet_and_else_exact(folder: str, told: Told) -> None:
    given = ["open-tasks", f"--tables_root={folder}", f"--param=now={NOW}"]
    exact = json.loads(told(*given, "--format=json"))
    read = list(csv.DictReader(io.StringIO(told(*given, "--format=csv"))))
    assert [one["project_id"] for one in read] == [P2, f"'{HOSTILE}"]
    assert [{**one, "project_id": one["project_id"].lstrip("'")} for one in read] == [
        {key: str(value) for key, value in one.items()} for one in exact
    ]


def test_a_table_shows_nothing_for_nothing(folder: str, told: Told) -> None:
    printed = told("projects", f"--tables_root={folder}")
    assert re.search(r"│ 5400002 +│ +4 │ +2 │ +1 │ +2\.5 │", printed)
    assert re.search(r"│ +1 │ +0 │ +1 │ +- +│", printed)


def test_a_table_cuts_nothing_off(folder: str, told: Told) -> None:
    printed = told("time-travel", f"--tables_root={folder}", "--param=version=1")
    assert "…" not in printed
    shown = "".join(line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│"))
    assert shown.startswith("2026-02-01T12:00:00Z2026-01-20T00:00:00Z"), "over several lines, but whole"


def test_without_a_name_the_queries_are_listed(told: Told) -> None:
    listed = json.loads(told("--format=json"))
    assert [one["query"] for one in listed] == [query.name for query in catalogue()]
    assert listed[1] == {
        "number": 2,
        "query": "timeline",
        "tells": "The events of one assignment, oldest first, with the minutes since the one before.",
        "parameters": "assignment_id (integer)",
    }


def test_the_docs_list_the_queries_and_show_an_answer(folder: str, told: Told) -> None:
    page = (_QUERIES.parent / "docs" / "queries.md").read_text(encoding="utf-8")
    listed = [
        f"| {query.number or '-'} | `{query.name}` | {query.purpose} | {', '.join(p.usage for p in query.parameters)} |"
        for query in catalogue()
    ]
    assert [line.replace(" |  |", " | |") for line in listed] == re.findall(r"^\| [\d-]+ \| `.+$", page, re.MULTILINE)
    shown = re.findall(r"```csv\n(.+?)```", page, re.DOTALL)
    assert shown == [told("transitions", f"--tables_root={folder}", "--format=csv")]


# ---------------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("query", "given", "complaint"),
    [
        ("timeline", {}, "query timeline needs assignment_id, the assignment: --param assignment_id=5430007"),
        ("timeline", {"assignment_id": "1 OR 1=1"}, "parameter assignment_id must be a whole number"),
        ("timeline", {"assignment_id": "-1"}, "parameter assignment_id must be a whole number"),
        ("timeline", {"assignment_id": str(2**63)}, "parameter assignment_id must be a whole number"),
        ("timeline", {"assignment_id": "\u0661"}, "parameter assignment_id must be a whole number"),
        ("timeline", {"assignment_id": ""}, "parameter assignment_id must be a whole number"),
        ("timeline", {"assignment_id": "1", "asignment": "2"}, "query timeline has no parameter 'asignment': it takes"),
        ("users", {"limit": "1"}, "query users has no parameter 'limit': it takes none"),
        ("statuses", {"month": "2026-13"}, "parameter month must be a month such as 2026-01, got '2026-13'"),
        ("statuses", {"month": "0000-01"}, "parameter month must be a month such as 2026-01"),
        ("statuses", {"month": "January"}, "parameter month must be a month such as 2026-01"),
        ("open-tasks", {"now": "soon"}, "parameter now must be a date and time such as"),
        ("time-travel", {}, "query time-travel needs version, a version, as listed by `history`: --param version=0"),
        ("time-travel", {"version": "7 days"}, "parameter version must be a whole number"),
    ],
)
def test_a_wrong_parameter_is_refused(query: str, given: dict[str, str], complaint: str) -> None:
    with pytest.raises(QueryError, match=re.escape(complaint)):
        bind(find(query), given, now=datetime.now(UTC))


def test_parameters_have_their_types() -> None:
    now = datetime(2026, 2, 10, 3, 4, tzinfo=UTC)
    assert bind(find("statuses"), {"month": "2026-02"}, now=now) == {"month": datetime(2026, 2, 1, tzinfo=UTC)}
    assert bind(find("open-tasks"), {}, now=now) == {"now": now}
    assert bind(find("open-tasks"), {"now": "2026-02-10T01:00+01:00"}, now=now)["now"] == known_history.at(
        "02-10T00:00"
    )
    assert bind(find("daily"), {}, now=now) == {"year": None}
    assert bind(find("time-travel"), {"version": "3"}, now=now) == {"version": 3, "limit": 1000}


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["opentasks"], 2, "there is no query 'opentasks': did you mean open-tasks or open-ages?"),
        (["13"], 2, "there is no query '13': see which there are without a name"),
        (["timeline", "--param=assignment_id"], 2, "--param: must be NAME=VALUE, got 'assignment_id'"),
        (["timeline", "--param=limit=1", "--param=limit=2"], 2, "--param: limit is given twice"),
        (["users"], 2, "--tables_root is missing: give the folder or object-store URI of the tables"),
        (
            ["users", "--tables_root=."],
            1,
            f"--tables_root: there is no table ./{TRACKING}: `itel-cabinet tables create`",
        ),
        (["users", "--tables_root=.", "--storage_options=["], 2, "--storage_options"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str],
    status: int,
    complaint: str,
    refused: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    told = refused(*arguments)
    assert told[0] == status
    assert told[1].startswith(complaint)


# ------------------------------------------------------------------------------------------------------------ failures


def test_a_version_that_is_not_there(tmp_path: Path, refused: Callable[..., tuple[int, str]]) -> None:
    known_history.write(str(tmp_path))
    table = tmp_path / TRACKING
    asked = ["time-travel", f"--tables_root={tmp_path}"]
    assert refused(*asked, "--param=version=3") == (
        1,
        f"--tables_root: Delta table {table}: there is no version 3 yet, the newest is 2",
    )
    DeltaTable(str(table)).create_checkpoint()
    (table / "_delta_log" / f"{0:020}.json").unlink()
    status, line = refused(*asked, "--param=version=0")
    assert status == 1
    assert line.startswith(f"--tables_root: Delta table {table}: version 0 can no longer be read (")
    assert line.endswith("); `itel-cabinet query history` tells which versions there are")


def test_what_another_contract_does_not_ask_is_null(tmp_path: Path, told: Told) -> None:
    known_history.write(str(tmp_path))
    forms = DeltaTable(str(tmp_path / FORMS)).to_pyarrow_table()
    without = forms.drop_columns(["upper_cabinets_lf", "upper_cabinets_damaged"])
    write_deltalake(str(tmp_path / FORMS), without, mode="overwrite", schema_mode="overwrite")
    found = {one["section"]: one for one in json.loads(told("damage", f"--tables_root={tmp_path}", "--format=json"))}
    assert found["upper"] == {"section": "upper", "forms": 0, "damaged_boxes": 0, "linear_feet": 0.0}
    assert found["lower"] == {"section": "lower", "forms": 1, "damaged_boxes": 3, "linear_feet": 12.5}


def test_a_table_of_someone_else(tmp_path: Path, refused: Callable[..., tuple[int, str]]) -> None:
    write_deltalake(str(tmp_path / TRACKING), pa.table({"event_id": ["a"], "kafka_offset": [1]}))
    status, line = refused("users", f"--tables_root={tmp_path}")
    assert status == 1
    assert line.startswith(f"--tables_root: {tmp_path}: the tables are not as the jobs make them (")
    assert "event_type" in line


def test_a_file_that_is_gone(tmp_path: Path, refused: Callable[..., tuple[int, str]]) -> None:
    known_history.write(str(tmp_path))
    for file in (tmp_path / TRACKING).rglob("*.parquet"):
        file.unlink()
    status, line = refused("users", f"--tables_root={tmp_path}")
    assert status == 1
    assert line.startswith(f"--tables_root: {tmp_path}: reading failed, try again: ")
    assert str(tmp_path / TRACKING) in line


def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, refused: Callable[..., tuple[int, str]]) -> None:
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", "http://127.0.0.1:1")
    options = '{"max_retries": "0", "retry_timeout": "1s"}'
    status, line = refused("users", "--tables_root=az://tables/none", f"--storage_options={options}")
    assert status == 1
    assert line.startswith(f"--tables_root: Delta table az://tables/none/{TRACKING}: ")
    assert "Connection refused" in line


# --------------------------------------------------------------------------------------------------------- portability


@pytest.mark.parametrize("file", sorted(_QUERIES.glob("*.sql")), ids=lambda file: file.stem)
def test_spark_reads_a_query_as_duckdb_does(file: Path) -> None:
    """The two dialects make the same of the text, but for where nulls are sorted, which the session sets to Spark's,
    and for divisions by zero and casts that fail, of which there are none: divisors are constants or counts above zero.
    """
    sql = file.read_text(encoding="utf-8")
    readings = []
    for dialect in ("spark", "duckdb"):
        statements = sqlglot.parse(sql, read=dialect, error_level=sqlglot.ErrorLevel.RAISE)
        assert statements
        for statement in statements:
            assert isinstance(statement, exp.Select | exp.Create)
            assert not list(statement.find_all(exp.Command, exp.Anonymous)), "a function that the dialect does not know"
            for ordered in statement.find_all(exp.Ordered):
                ordered.set("nulls_first", None)
            for division in statement.find_all(exp.Div):
                division.set("safe", None)
            for cast in statement.find_all(exp.TryCast):
                cast.replace(exp.Cast(**cast.args))
        readings.append(statements)
    assert readings[0] == readings[1]


def test_every_parameter_is_told_of_and_used() -> None:
    for query in catalogue():
        statement = "\n".join(line for line in query.sql.splitlines() if not line.startswith("--"))
        used = set(re.findall(r":(\w+)", statement))
        assert used == {p.name for p in query.parameters if p.kind != "version"}, query.name
        assert query.purpose.endswith(".")
        assert query.reads([TRACKING, FORMS, ATTACHMENTS, LEDGER]) or query.name == "history"


def test_nulls_are_sorted_as_spark_sorts_them(folder: str) -> None:
    with Session(known_history.specs(folder)) as session:
        for direction, first in (("ASC", True), ("DESC", False)):
            sql = f"SELECT x FROM (VALUES (1), (NULL)) AS t(x) ORDER BY x {direction}"
            answer = session.run(Query("nulls", None, "", (), sql), {})
            assert (list(answer.rows).index((None,)) == 0) is first


# -- questions that are not known


def test_unknown_questions_are_ranked_with_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path)
    forms = FencedTable(known_history.specs(root)[FORMS])
    drift = group("Cabinet Types Damaged", question("Lower Cabinets Broken?", "Yes"))
    known = group("Damage Description", question("Enter Damaged Description", "leak"))
    tasks = []
    for number, groups in enumerate([(drift,), (known,), (drift, group("G", question("Who's there?", 1)))], start=1):
        one, told_event = record(b"", offset=number), event(assignment_id=number, event_id=f"e{number}")
        tasks.append(make_task(one, told_event, details(*groups), read_form=parse_form))
    forms.write(make_form_rows(tasks, clock=lambda: 1_770_000_000.0))
    assert main(["questions", f"--tables_root={root}", "--format=json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [(row["forms"], row["question"], row["group"], row["assignments"]) for row in rows] == [
        (2, "Lower Cabinets Broken?", "Cabinet Types Damaged", "3 1"),
        (1, "Who's there?", "G", "3"),
    ]


def test_without_unknown_questions_there_is_nothing_to_rank(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["questions", f"--tables_root={root}", "--format=csv"])
    assert (status, capsys.readouterr().out.splitlines()) == (
        0,
        ["forms,question,group,first_at,last_at,assignments"],
    )
