"""Letters with an address: replayed only where a group still needs them, exported, and sent again as a person fixed
them."""

from __future__ import annotations

import hashlib
import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from itel_cabinet.io.delta import FencedTable, create_table
from itel_cabinet.pipeline.commands import main
from itel_cabinet.pipeline.commands.shared import tables_at
from itel_cabinet.pipeline.tables import LEDGER, TRACKING
from itel_cabinet.transforms.enrichment import CabinetTask
from itel_cabinet.transforms.ledger import ContractName, Entry, Outcome, make_ledger_rows
from itel_cabinet.transforms.records import Skip
from itel_cabinet.transforms.rows import make_tracking_rows
from itel_cabinet.transforms.trace_context import read_own_trace
from tests.services.test_replay import FORM, Letters
from tests.support.accounting import topic_id
from tests.support.cabinet_samples import answer, details, event, record, tracking_message
from tests.support.jobs import Stack


@pytest.fixture
def letters(stack: Stack, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Letters:
    monkeypatch.setenv("COLUMNS", "240")
    return Letters(stack, capsys)


def message(event_id: str, assignment_id: int = 1, **changes: Any) -> bytes:
    return json.dumps(tracking_message(event_id=event_id, assignment_id=assignment_id, **changes)).encode()


def sha256(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


# ------------------------------------------------------------------------------------------------ by ledger and history


def write_row(stack: Stack, event_id: str, offset: int) -> None:
    """The history has a row of the event, from the record at ``offset``."""
    spec = tables_at(stack.tables_uri, "{}")[TRACKING]
    create_table(spec)
    at = record(b"{}", topic=stack.topic("tracking"), topic_id="AnEarlierTopicOfThatName", partition=0, offset=offset)
    tasks = [CabinetTask(at, event(event_id=event_id), details(), None)]
    FencedTable(spec).write(make_tracking_rows(tasks, clock=lambda: 0.0))


def write_outcome(stack: Stack, event_id: str, offset: int, outcome: Outcome) -> None:
    """The ledger has an outcome of the event."""
    spec = tables_at(stack.tables_uri, "{}")[LEDGER]
    create_table(spec)
    at = record(b"{}", topic=stack.topic("tracking"), topic_id="AnEarlierTopicOfThatName", partition=0, offset=offset)
    entry = Entry(at, event(event_id=event_id), outcome, 0.0, 0.0)
    end = Skip(at, "", entries=(entry,))
    FencedTable(spec).write(make_ledger_rows([end], contract=ContractName("c", "1", "0"), clock=lambda: 0.0))


def test_what_ledger_and_history_have_is_left_out_and_what_one_lacks_goes_to_the_group_that_needs_it(
    stack: Stack, letters: Letters
) -> None:
    of = {"topic_id": "AnEarlierTopicOfThatName"}
    submit = {"stage": "submit", "error_class": "outage", "role": "itel_errors", **of}
    letters.write(0, message("api-settled"), job="api", group="api", **submit)
    letters.write(1, message("api-refused"), job="api", group="api", **submit)
    letters.write(2, message("done"), job="cabinet", group="cabinet", **submit)
    letters.write(3, message("row-alone"), job="cabinet", group="cabinet", **submit)
    letters.write(4, message("settled-alone"), job="cabinet", group="cabinet", stage="enrich", **of)
    letters.write(5, message("row-by-another-record"), job="cabinet", group="cabinet", stage="enrich", **of)
    letters.write(6, message("tracked"), job="tracking", group="tracking", stage="enrich", **of)
    letters.write(7, b"not JSON", job="api", group="api", **of)
    for number, event_id in enumerate(("done", "row-alone", "row-by-another-record", "tracked")):
        write_row(stack, event_id, 100 + number)
    settled = ((Outcome.ACCEPTED, "api-settled"), (Outcome.DUPLICATE, "done"), (Outcome.UNCHANGED, "settled-alone"))
    for number, (outcome, event_id) in enumerate((*settled, (Outcome.REFUSED, "api-refused"))):
        write_outcome(stack, event_id, 100 + number, outcome)

    dry = letters.replay("--dry_run")
    assert letters.replay() == dry == {"settled": 2, "in_the_table": 1, "replayed": 5}
    found = {
        json.loads(m.value)["event_id"] if m.value != b"not JSON" else "": dict(m.headers)
        for m in letters.replays()
        if m.value is not None
    }
    assert {name: headers["x-replay-for"] for name, headers in found.items()} == {
        "api-refused": b"api",
        "row-alone": b"cabinet",
        "settled-alone": b"cabinet",
        "row-by-another-record": b"cabinet",
        "": b"api",
    }
    # Only those without a row get one.
    assert {name for name, headers in found.items() if "x-replay-tracked" in headers} == {
        "row-alone",
        "row-by-another-record",
    }


def test_two_letters_of_one_record_reach_the_group_that_does_both_jobs_once(letters: Letters) -> None:
    of = {"topic_id": "AnEarlierTopicOfThatName", "stage": "enrich"}
    for number in range(2):
        letters.write(number, message(f"e{number}", number + 1), job="tracking", group="old-tracking", **of)
        letters.write(number, message(f"e{number}", number + 1), job="api", group="old-api", role="itel_errors", **of)
    letters.read_on(0, "g")
    assert letters.replay("--to_group=g", "--offset=0", "--job=tracking", "--tables_root=", warnings=1) == {
        "replayed": 1
    }
    # One was brought by the run before, the other by this one.
    assert letters.replay("--to_group=g", "--tables_root=", warnings=1) == {"already_replayed": 3, "replayed": 1}
    assert sorted(json.loads(m.value or b"")["event_id"] for m in letters.replays()) == ["e0", "e1"]
    assert {row["state"] for row in letters.list()} == {"replayed"}
    assert letters.replay("--to_group=g", "--tables_root=", warnings=1) == {"already_replayed": 4}


# ------------------------------------------------------------------------------------------------------ export and edit


def test_a_letter_is_exported_fixed_by_hand_and_processed_with_a_mark(
    stack: Stack, letters: Letters, tmp_path: Path
) -> None:
    broken = message("e").replace(b'"task_status"', b'"status\xff"')
    letters.produce(broken)
    stack.claimx.put_task(answer(*FORM, assignmentId=1))
    stack.run("cabinet")
    [row] = letters.list()
    at, file = row["coordinates"], tmp_path / "letter.json"

    dry, _ = letters.run("export", at, f"--to={file}", "--dry_run", "--json")
    assert (json.loads(dry)["dry_run"], file.exists()) == (True, False)
    out, err = letters.run("export", at, f"--to={file}", "--json")
    assert (json.loads(out), err) == (
        {
            "dry_run": False,
            "coordinates": at,
            "topic": stack.topic("tracking"),
            "group": f"{stack.prefix}.cabinet",
            "file": str(file),
            "size": len(broken),
            "sha256": sha256(broken),
        },
        [],
    )
    assert file.read_bytes() == broken
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    _, [refused] = letters.run("export", at, f"--to={file}", status=1)
    assert refused == f"itel-cabinet: --to: {file} is there already: give another name, or remove it"

    _, [same] = letters.run("edit", at, f"--from={file}", status=1)
    assert same.startswith(f"itel-cabinet: --from: {file} is the value as it was: change it, or ")
    file.write_bytes(b'{"event_id": "e"}')
    _, [unreadable] = letters.run("edit", at, f"--from={file}", status=1)
    assert unreadable.startswith(f"itel-cabinet: --from: {file}: its job could not read it: missing_field: ")

    fixed = message("e")
    file.write_bytes(fixed)
    tables = f"--tables_root={stack.tables_root}"
    letters.run("edit", at, f"--from={file}", tables, "--edited_by=Pat Roe", "--dry_run")
    assert letters.replays() == []
    before = datetime.now(UTC).replace(microsecond=0)
    out, err = letters.run("edit", at, f"--from={file}", tables, "--edited_by=Pat Roe", "--json")
    report = json.loads(out)
    edit = report.pop("edit")
    assert report == {
        "dry_run": False,
        "outcome": "replayed",
        "reason": None,
        "topic": stack.topic("tracking"),
        "group": f"{stack.prefix}.cabinet",
    }
    assert before <= datetime.fromisoformat(edit.pop("at")) <= datetime.now(UTC)
    assert edit == {"by": "Pat Roe", "of": at, "before": sha256(broken), "after": sha256(fixed)}
    [sent] = letters.replays()
    headers = dict(sent.headers)
    assert (sent.value, sent.key, headers["x-edited-by"]) == (fixed, b"5430007", b"Pat Roe")
    assert headers["x-edit-of"] == f"{at} {sha256(broken)} {sha256(fixed)}".encode()

    stack.run("cabinet")
    [tracked] = stack.tracking()
    assert (tracked["event_id"], tracked["source"]) == ("e", f"edited by Pat Roe: {at}")
    assert {s.idempotency_key: s.times for s in stack.itel.submissions()} == {"e": 1}
    [filed] = stack.table(LEDGER).to_pylist()
    assert (filed["outcome"], filed["resubmission"]) == ("accepted", f"edited by Pat Roe: {at}")
    shown = json.loads(letters.run("show", at)[0])
    assert [one["by"] for one in shown["edits"]] == ["Pat Roe"]
    assert (shown["state"], shown["edited"]) == ("replayed", None)
    own = read_own_trace(record(sent.value, headers=sent.headers))
    assert own is not None
    assert shown["trace_id"] == own.trace_id == filed["traceparent"][3:35]

    _, [already] = letters.run("edit", at, f"--from={file}", tables, status=1)
    assert already == f"itel-cabinet: {at}: not sent: already_replayed: --again sends it once more"


def test_an_edited_record_that_fails_again_says_so(stack: Stack, letters: Letters, tmp_path: Path) -> None:
    letters.produce(b"not JSON")
    stack.run("tracking")
    [first] = letters.list()
    file = tmp_path / "letter"
    file.write_bytes(message("unknown"))
    letters.run("edit", first["coordinates"], f"--from={file}", "--edited_by=pat", f"--tables_root={stack.tables_root}")
    stack.run("tracking")
    [second] = [row for row in letters.list() if row["state"] == "open"]
    shown = json.loads(letters.run("show", second["coordinates"])[0])
    assert (shown["edited"]["by"], shown["edited"]["of"], shown["edits"]) == ("pat", first["coordinates"], [])
    assert shown["times_replayed"] == 1


def test_a_value_without_room_is_exported_from_its_topic_while_that_has_it(
    stack: Stack, letters: Letters, tmp_path: Path
) -> None:
    value = bytes(range(256)) * 40
    letters.produce(value)
    letters.write(0, value, max_bytes=5_000)
    letters.write(1, value, max_bytes=5_000, topic_id="AnEarlierTopicOfThatName")
    file = tmp_path / "letter"
    out, _ = letters.run("export", f"{topic_id(stack)}/0/0", f"--to={file}")
    assert out.startswith(f"written: {file}, 10240 bytes, SHA-256 {sha256(value)}\n")
    assert file.read_bytes() == value
    gone = "AnEarlierTopicOfThatName/0/1"
    for command in (["export", gone, f"--to={tmp_path}/other"], ["edit", gone, f"--from={file}"]):
        _, [line] = letters.run(*command, status=1)
        assert line == (
            f"itel-cabinet: {gone}: gone: the dead letter has not all of the record (10240 bytes), and topic "
            f"{stack.topic('tracking')} no longer has it"
        )
    assert not (tmp_path / "other").exists()


def test_a_record_that_two_groups_gave_up_is_edited_for_one_after_the_other(letters: Letters, tmp_path: Path) -> None:
    of = {"topic_id": "AnEarlierTopicOfThatName"}
    letters.write(0, b"{", job="tracking", group="t", **of)
    letters.write(0, b"{", job="api", group="a", role="itel_errors", **of)
    at, file = "AnEarlierTopicOfThatName/0/0", tmp_path / "letter"
    file.write_bytes(message("e"))
    _, [line] = letters.run("edit", at, f"--from={file}", status=1)
    assert line == (
        f"itel-cabinet: {at}: the groups a and t have each given it up: take one after the other, with --consumer_group"
    )
    for group in "at":
        letters.run("edit", at, f"--from={file}", f"--consumer_group={group}")
    assert [dict(m.headers)["x-replay-for"] for m in letters.replays()] == [b"a", b"t"]


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["export", "T/0/1", "--to=x"], 1, "T/0/1: has no dead letter in "),
        (["edit", "T/0/1", "--from=/no/such/file"], 1, "--from: /no/such/file cannot be read: No such file"),
        (
            ["edit", "T/0/1", "--from=/dev/null", "--edited_by="],
            2,
            "--edited_by: must be a name of 1 to 100 characters",
        ),
        (["edit", "T/0/1", "--from=/dev/null", "--edited_by=a\nb"], 2, "--edited_by: must be a name of 1 to 100"),
    ],
)
def test_refusals_are_one_line(letters: Letters, arguments: list[str], status: int, told: str) -> None:
    letters.capsys.readouterr()
    assert main(letters.command(*arguments)) == status
    out, err = letters.capsys.readouterr()
    [line] = err.splitlines()
    assert (out, line[: len(told) + 14]) == ("", f"itel-cabinet: {told}")


def test_what_is_missing_is_wrong_use(letters: Letters) -> None:
    for arguments in (["export", "T/0/1"], ["edit", "T/0/1"], ["export", "--to=x"]):
        assert main(letters.command(*arguments)) == 2


def test_a_folder_that_is_not_there_is_one_line(stack: Stack, letters: Letters, tmp_path: Path) -> None:
    letters.write(0, b"{")
    _, [line] = letters.run("export", f"{topic_id(stack)}/0/0", f"--to={tmp_path}/none/letter", status=1)
    assert line == f"itel-cabinet: --to: {tmp_path}/none/letter cannot be written: No such file or directory"
