"""What is made of ClaimX's stored answers: `contract backtest`, and `tables rederive` beside a job that writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from deltalake import DeltaTable

from itel_cabinet.pipeline.commands import main
from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS
from itel_cabinet.transforms.contracts import Contract, compile_contract, load_shipped, shipped_text
from tests.support.printed import Printed
from tests.support.stored_history import known_events, specs_at, stored_rows, write_bundle

COMMAND = str(Path(sys.executable).with_name("itel-cabinet"))
OLD = load_shipped()


def changed_contract(folder: Path) -> tuple[Contract, str]:
    """A copy with a new column, a question that is read otherwise, a column that is gone, and a photo's new key."""
    content = yaml.safe_load(shipped_text("cabinet_repair"))
    questions = content["form"]["questions"]
    for one in questions:
        if one["column"] == "num_damaged_lower_boxes":
            one["type"] = "integer"
            one["question"] = "Are The Lower Cabinets Detached?"
        if one["column"] == "lower_cabinets_detached":
            one["question"] = "Enter Number of Damaged Lower Boxes"
    questions.append(
        {
            "column": "morning",
            "type": "text",
            "group": "Other Details and Information",
            "question": "Is anybody at home in the morning?",
        }
    )
    content["form"]["questions"] = [one for one in questions if one["column"] != "additional_notes"]
    content["body"]["additionalNotes"] = None
    for photo in content["form"]["photos"]:
        if photo["key"] == "island_cabinet_box":
            photo["key"] = "island_boxes"
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return compile_contract(file.read_text(encoding="utf-8"), str(file)), str(file)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Printed:
    return Printed(capsys, monkeypatch)


# ------------------------------------------------------------------------------------------------------------ backtest


def test_the_history_through_a_contract(tmp_path: Path, printed: Printed) -> None:
    events = known_events(150, OLD)
    write_bundle(specs_at(tmp_path, OLD), events, OLD, 1e9)
    completed = [one for one in events if one[1].task_status == "COMPLETED"]
    with_form = [one for one in completed if one[2].has_form]
    unknown = Counter(text for *_, details in with_form for text in OLD.read_form(details).unknown_questions)
    found = json.loads(
        printed.stdout("contract", "backtest", "--contract=cabinet_repair", f"--tables_root={tmp_path}", "--json")
    )
    assert (found["answers"], found["valid"], found["without_form"]) == (
        len(completed),
        len(with_form),
        len(completed) - len(with_form),
    )
    assert (found["held"], found["invalid"], found["unreadable"], found["other_tasks"]) == (0, 0, 0, {})
    assert [(one["question"], one["count"]) for one in found["unknown_questions"]] == sorted(
        unknown.items(), key=lambda item: (-item[1], item[0])
    )
    assert found["forms_per_second"] > 0
    assert found["memory_mb"] > 0


def test_a_form_that_drifted_is_found_and_what_it_breaks_is_named(
    tmp_path: Path, printed: Printed, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bundle(specs_at(tmp_path, OLD), known_events(120, OLD), OLD, 1e9)
    content = yaml.safe_load(shipped_text("cabinet_repair"))
    content["form"]["questions"][2]["question"] = "Countertops (feet)"  # what the forms no longer ask
    content["form"]["questions"][2]["missing"] = "warn"
    content["body"]["countertopsLf"] = {"from": "form.countertops_lf", "required": True}
    content["body"]["status"] = "DONE"
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    arguments = ["contract", "backtest", f"--contract={tmp_path}/new.yaml", "--against=cabinet_repair"]
    assert main([*arguments, f"--tables_root={tmp_path}", "--json", "--processes=1"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["valid"] == 0
    assert [(one["error_class"], one["field"]) for one in found["invalid_by_field"]] == [
        ("incomplete", "countertopsLf")
    ]
    assert found["invalid_by_field"][0]["count"] == found["invalid"] == found["only_old"]
    assert found["unknown_questions"][0]["question"] == "countertops (linear feet)"
    assert found["unknown_questions"][0]["count"] == found["invalid"]

    content["body"]["countertopsLf"] = None
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    found = json.loads(printed.stdout(*arguments, f"--tables_root={tmp_path}", "--json", "--processes=1"))
    assert {one["field"]: one["examples"][0]["new"] for one in found["changed_fields"]} == {
        "status": '"DONE"',
        "countertopsLf": "null",
    }
    shown = printed.stdout(*arguments, f"--tables_root={tmp_path}", "--sample=20", "--since=2026-01-01")
    assert "countertops (linear feet)" in shown
    assert "status" in shown


def test_examples_hold_nothing_about_people(tmp_path: Path, printed: Printed) -> None:
    write_bundle(specs_at(tmp_path, OLD), known_events(60, OLD), OLD, 1e9)
    content = yaml.safe_load(shipped_text("cabinet_repair"))
    content["body"]["customer"]["email"] = {"from": "customer.email", "do": ["upper"]}
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    shown = printed.stdout(
        "contract", "backtest", f"--contract={tmp_path}/new.yaml", "--against=cabinet_repair",
        f"--tables_root={tmp_path}", "--json",
    )  # fmt: skip
    (changed,) = json.loads(shown)["changed_fields"]
    assert changed["field"] == "customer.email"
    assert "example.com" not in shown.lower()
    assert changed["examples"][0]["new"] == '"[redacted]"'


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--contract=cabinet_repair", "--tables_root=/no/such"], "--tables_root: there is no table /no/such/"),
        (["--contract=cabinet_repair", "--tables_root=/tmp", "--since=soon"], "--since: must be a date and time"),
        (["--contract=nothing", "--tables_root=/tmp"], "nothing: line 1: cannot be read"),
    ],
)
def test_what_cannot_be_tried(arguments: list[str], said: str, printed: Printed) -> None:
    assert printed.error(2 if "since" in said else 1, "contract", "backtest", *arguments).startswith(said)


# ------------------------------------------------------------------------------------------------------------ rederive


def test_a_table_that_is_as_the_contract_has_it_is_left_alone(tmp_path: Path, printed: Printed) -> None:
    specs, events = specs_at(tmp_path, OLD), known_events(120, OLD)
    for start in range(0, 120, 40):
        write_bundle(specs, events[start : start + 40], OLD, 1e9)
    versions = [DeltaTable(specs[name].uri).version() for name in (FORMS, ATTACHMENTS)]
    found = json.loads(printed.stdout("tables", "rederive", f"--tables_root={tmp_path}", "--json"))
    assert [(one["changed"], one["added"], one["removed"], one["left_alone"]) for one in found["tables"]] == [
        (0, 0, 0, 0)
    ] * 2
    assert [DeltaTable(specs[name].uri).version() for name in (FORMS, ATTACHMENTS)] == versions


def test_rederived_beside_a_job_and_killed_twice_it_ends_as_if_the_contract_had_been_there(tmp_path: Path) -> None:
    new, file = changed_contract(tmp_path)
    events = known_events(240, OLD)
    bundles = [events[start : start + 20] for start in range(0, 240, 20)]
    with_new = specs_at(tmp_path / "tables", new)
    for number, bundle in enumerate(bundles[:6]):
        write_bundle(specs_at(tmp_path / "tables", OLD), bundle, OLD, 1e9 + number)
    for number, bundle in enumerate(bundles):
        write_bundle(specs_at(tmp_path / "expected", new), bundle, new, 1e9 + number)

    turn = threading.Semaphore(0)

    def job() -> None:
        for number, bundle in enumerate(bundles[6:], 6):
            turn.acquire()
            write_bundle(with_new, bundle, new, 1e9 + number)

    command = [COMMAND, "tables", "rederive", f"--tables_root={tmp_path}/tables", f"--contract={file}", "--json"]

    def run(crash_at: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **({"ITEL_CABINET_CRASH_AT": crash_at} if crash_at else {})}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    running = threading.Thread(target=job)
    running.start()
    try:
        for point in (f"before-commit:{FORMS}", f"after-commit:{FORMS}"):
            turn.release(2)
            assert run(point).returncode == -signal.SIGKILL
        turn.release(2)
        ended = run()
        assert ended.returncode == 0, ended.stderr
    finally:
        turn.release(100)
        running.join()
    assert run().returncode == 0
    expected = specs_at(tmp_path / "expected", new)
    # A column that the contract has dropped stays in the table, null.
    without = [{k: v for k, v in row.items() if k != "additional_notes"} for row in stored_rows(with_new[FORMS])]
    assert without == stored_rows(expected[FORMS])
    assert {row["additional_notes"] for row in stored_rows(with_new[FORMS])} == {None}
    assert stored_rows(with_new[ATTACHMENTS], active=True) == stored_rows(expected[ATTACHMENTS], active=True)
    assert not {row["question_key"] for row in stored_rows(with_new[ATTACHMENTS])} & {"island_cabinet_box"}
    found = json.loads(run().stdout)
    assert [(one["changed"], one["added"], one["removed"]) for one in found["tables"]] == [(0, 0, 0)] * 2


def test_fences_stay_and_a_newer_row_is_left_alone(tmp_path: Path, printed: Printed) -> None:
    new, file = changed_contract(tmp_path)
    specs, events = specs_at(tmp_path, OLD), known_events(80, OLD)
    write_bundle(specs, events, OLD, 1e9)
    fence = specs[FORMS].fence_id("AbCdEfGhIjKlMnOpQrStUv", 0)
    before = DeltaTable(specs[FORMS].uri).transaction_version(fence)
    # A row of an event that the history does not have, as a replay writes it.
    forms = stored_rows(specs[FORMS])
    from itel_cabinet.io.delta import FencedTable

    stray = next(row for row in DeltaTable(specs[FORMS].uri).to_pyarrow_table().to_pylist())
    FencedTable(specs[FORMS]).write([{**stray, "kafka_offset": 10_000, "island_counter_type": "from elsewhere"}])
    moved = DeltaTable(specs[FORMS].uri).transaction_version(fence)
    found: dict[str, Any] = json.loads(
        printed.stdout("tables", "rederive", f"--tables_root={tmp_path}", f"--contract={file}", "--json")
    )
    assert found["tables"][0]["left_alone"] == 1
    assert found["tables"][0]["columns"]["morning"] > 0
    assert (before, moved) == (80, 10_001)
    assert DeltaTable(specs[FORMS].uri).transaction_version(fence) == moved
    kept = [row for row in stored_rows(specs_at(tmp_path, new)[FORMS]) if row["kafka_offset"] == 10_000]
    assert [row["island_counter_type"] for row in kept] == ["from elsewhere"]
    assert len(stored_rows(specs[FORMS])) == len(forms)
