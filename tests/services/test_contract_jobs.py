"""The `cabinet` job under other contracts: what is sent and kept, what no answer may carry back, a second endpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from itel_cabinet.local.samples import Generator, Shares, produce
from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator, Request, Response
from itel_cabinet.pipeline.contracts import load_contract
from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS
from itel_cabinet.transforms.contracts import Body, compile_contract, shipped_text
from itel_cabinet.transforms.forms import parse_details
from tests.process.test_history import changed_contract
from tests.pure.test_contracts import ADJUSTER, GATE, VARS
from tests.support.cabinet_samples import answer, event, group, question, tracking_message
from tests.support.jobs import Stack, every, wait_for
from tests.support.stored_history import specs_at, stored_rows

pytestmark = pytest.mark.services

COMMAND = str(Path(sys.executable).with_name("itel-cabinet"))
KEY = "subscription-s3cr3t"
VENDOR = compile_contract(shipped_text("vendor"), "vendor", VARS, True)
PHOTOS = group("Photos", question("Upload Overview Photo(s)", [11, 12]))
UNDER_VENDOR = {
    "contract": "vendor",
    "contract_vars": json.dumps(dict(VARS)),
    "media_allowed_hosts": "*.amazonaws.com,127.0.0.1",
    "itel_auth": "none",
}


class Refusing(ItelSimulator):
    """Refuses some: with a reason, or by repeating what was sent."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.refused: dict[int, str] = {}

    def answer(self, request: Request) -> Response:
        reason = next((self.refused[one] for one in self._assignment_ids(request.body) if one in self.refused), None)
        match reason:
            case None:
                return super().answer(request)
            case "as sent":
                return Response(400, b'{"error": "not valid", "input": ' + request.body + b"}")
            case "escaped":
                return Response.of(400, {"error": "not valid", "input": json.loads(request.body)})
        return Response.of(400, {"service_level": [reason]})


@pytest.fixture
def claimx() -> Iterator[ClaimXSimulator]:
    with ClaimXSimulator(token="claimx-token", photo_store="https://photos.s3.amazonaws.com") as simulator:
        yield simulator


@pytest.fixture
def itel() -> Iterator[Refusing]:
    with Refusing(contract=VENDOR, headers={"Ocp-Apim-Subscription-Key": KEY}) as simulator:
        yield simulator


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch, stack: Stack) -> None:
    monkeypatch.setenv("ITEL_KEY", KEY)
    monkeypatch.setenv("CLAIMX_TOKEN", "claimx-token")
    stack.options = {"claimx_auth": "bearer:env:CLAIMX_TOKEN"}


def tell(stack: Stack, assignment_id: int, *groups: Any, task_id: int = 32615, **changes: Any) -> None:
    message = tracking_message(event_id=f"e-{assignment_id}", assignment_id=assignment_id, task_id=task_id)
    stack.tell(message, *groups, taskId=task_id, **changes)


def test_the_vendor_s_orders(stack: Stack, itel: Refusing, claimx: ClaimXSimulator) -> None:
    no = group("Damage", question("Kitchen cabinet damage present", "No"))
    itel.refused = {4: "no such level"}
    tell(stack, 1, GATE, PHOTOS, ADJUSTER)
    tell(stack, 2, GATE, ADJUSTER, task_id=24454)
    tell(stack, 3, no, ADJUSTER)
    tell(stack, 4, GATE, ADJUSTER)
    tell(stack, 5, GATE, ADJUSTER, task_id=32513)
    tell(stack, 6, GATE, group("Upper Cabinets", question("Enter Number of Damaged Upper Boxes", -1)))
    job = stack.run("cabinet", **UNDER_VENDOR)
    sent = {one.assignment_id: one for one in itel.submissions()}
    assert sorted(sent) == [1, 2]
    assert [one.idempotency_key for one in sent.values()] == [f"{n}-e-{n}" for n in sent]
    found = parse_details(json.dumps(answer(GATE, PHOTOS, ADJUSTER, assignmentId=1, taskId=32615)).encode(), 1)
    project = {"data": {"project": json.loads(claimx.answer(_get("/export/project/5400001")).body)["data"]["project"]}}
    links = {media_id: f"https://photos.s3.amazonaws.com/{media_id}.jpg" for media_id in (11, 12)}
    about = event(event_id="e-1", assignment_id=1)
    body = VENDOR.build(found, VENDOR.read_form(found), about, project, links)
    assert isinstance(body, Body)
    assert sent[1].body == json.loads(body.payload)
    assert sent[1].body["claim_number"] == "CLM-5400001"
    # Each but that of another task has its rows, and each that cannot be sent a letter with the reason.
    assert sorted(row["assignment_id"] for row in stack.forms()) == [1, 2, 3, 4, 6]
    letters = {
        json.loads(letter.record().value or b"")["assignment_id"]: letter
        for letter in stack.dead_letters("itel_errors")
    }
    assert {number: (one.stage, one.error_class) for number, one in letters.items()} == {
        4: ("submit", "refused"),
        6: ("payload", "invalid_payload"),
    }
    assert "no such level" in letters[4].error
    assert "cabinet_repair_specs.upper_cabinets_damaged_count" in letters[6].error
    skipped = {name.rpartition(":")[2]: n for name, n in job.counters.items() if "skipped:" in name}
    assert skipped == {"other_task": 1, "held_by_gate": 1}
    # Read again by another group iTel calls them known, by the key in the body.
    stack.run("api", **UNDER_VENDOR, itel_unchanged="send")
    assert {one.assignment_id: one.times for one in itel.submissions()} == {1: 2, 2: 2}
    assert len(stack.broker.read(stack.topic("success"))) == 4


def _get(path: str) -> Request:
    return Request("GET", path, {}, {}, b"")


# ------------------------------------------------------------------------------------------------------ personal data

PERSONAL = ("Zoelia", "Quastenberg", "zoelia.q@private.example", "5557654321", "Privatstraße 9", "boss@private.example")


def renamed(folder: Path) -> str:
    """A contract whose body calls nothing as the others do."""
    content = yaml.safe_load(shipped_text("cabinet_repair"))
    names = iter(f"f{number}" for number in range(1_000))
    content["body"] = {"f": {"object": {next(names): one for one in content["body"].values()}}}
    content["body"]["upper"] = {
        "join": [{"from": "customer.first_name"}, {"from": "customer.last_name"}], "do": ["upper"],
    }  # fmt: skip
    content["body"]["digits"] = {"from": "customer.phone", "do": ["digits"]}
    content["schema"] = {}
    file = folder / "renamed.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(file)


class Echoing(ItelSimulator):
    """Repeats all that it is sent, as it is or escaped."""

    def answer(self, request: Request) -> Response:
        if len(self.calls) % 2:
            return Response(400, b'{"input": ' + request.body + b"}")
        return Response.of(400, {"input": json.loads(request.body)})


@pytest.mark.parametrize("name", ["cabinet_repair", "vendor", "renamed"])
def test_nothing_about_people_comes_back(name: str, stack: Stack, tmp_path: Path) -> None:
    first, last, email, phone, street, assignor = PERSONAL
    person = {"firstName": first, "lastName": last, "email": email, "phone": phone, "url": "https://x.example/l/1"}
    description = group("Damage Description", question("Enter Damaged Description", {"type": "text", "text": street}))
    contract = renamed(tmp_path) if name == "renamed" else name
    task_id = 32615 if name == "vendor" else 32513
    with Echoing() as itel:
        for number in range(1, 5):
            tell(
                stack, number, GATE, description, ADJUSTER, task_id=task_id, externalLinkData=person, assignor=assignor
            )
        given = UNDER_VENDOR if name == "vendor" else {"contract": contract, "itel_auth": "none"}
        job = stack.run("cabinet", **{**given, "itel_url": itel.url}, max_retries=0)
    letters = stack.dead_letters("itel_errors")
    assert len(letters) == 4
    adjuster = ("Acme", "Kim", "Lee", "kim@example.com") if name == "vendor" else ()
    for said in (job.errors, *(json.dumps([one.error, one.error_class]) for one in letters)):
        for private in (*PERSONAL, *adjuster, "Springfield" if name == "vendor" else first):
            for form in (private, json.dumps(private)[1:-1]):
                assert form.lower() not in said.lower(), (form, said)
    assert all("[redacted]" in one.error for one in letters)


# --------------------------------------------------------------------------------------------------- a second endpoint


def test_each_submission_goes_to_a_second_endpoint_too(stack: Stack, itel: Refusing) -> None:
    with ItelSimulator() as first:
        for number in (1, 2, 3):
            tell(stack, number, GATE, ADJUSTER, task_id=32513)
        itel.refused = {2: "not yet"}
        options = {
            "itel_url": first.url,
            "itel_shadow_url": itel.url,
            "itel_shadow_contract": "vendor",
            "itel_shadow_vars": json.dumps(dict(VARS)),
            "itel_shadow_auth": "none",
        }
        with stack.running("cabinet", **options) as job:
            stack.settle("cabinet")
            wait_for(lambda: len(itel.submissions()) == 2, "the second endpoint has what it takes")
            assert job.stop() == 0
        assert sorted(one.assignment_id for one in first.submissions()) == [1, 2, 3]
    assert sorted(one.idempotency_key for one in itel.submissions()) == ["1-e-1", "3-e-3"]
    assert stack.dead_letters("itel_errors") == []
    assert len(stack.broker.read(stack.topic("success"))) == 3


# ----------------------------------------------------------------------------------------------------- forms made again


def test_forms_are_made_again_beside_a_job_that_writes(stack: Stack, tmp_path: Path) -> None:
    """Killed twice; at the end the rows are those of a job that had the contract from the start."""
    _, contract = changed_contract(tmp_path)
    shares = Shares(late=0, repeated=0, other_task=0, bad=0, completed_without_form=0, resubmitted=0.15)
    generator = Generator(6, start=datetime.now(UTC), shares=shares)

    def feed(number: int) -> None:
        messages = generator.tracking_messages(number)
        produce(stack.broker.bootstrap_servers, stack.topic("tracking"), messages, stack.claimx)

    def rederive(crash_at: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [
            COMMAND,
            "tables",
            "rederive",
            f"--tables_root={stack.tables_uri}",
            f"--contract={contract}",
            "--json",
        ]
        environment = {**os.environ, **({"ITEL_CABINET_CRASH_AT": crash_at} if crash_at else {})}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    feed(150)
    stack.run("tracking")
    with stack.running("tracking", contract=contract), every(0.2, lambda: feed(10)):
        wait_for(lambda: stack.table(FORMS).num_rows > 60, "the job under the new contract writes")
        for point in (f"before-commit:{FORMS}", f"after-commit:{FORMS}"):
            assert rederive(point).returncode == -signal.SIGKILL
        ended = rederive()
        assert ended.returncode == 0, ended.stderr
    stack.run("tracking", contract=contract)
    assert rederive().returncode == 0
    specs = specs_at(Path(stack.tables_uri), load_contract(contract, complete=False))
    stack.run("tracking", contract=contract, tables_root=tmp_path / "expected", consumer_group=f"{stack.prefix}.again")
    expected = specs_at(tmp_path / "expected", load_contract(contract, complete=False))
    kept = [{k: v for k, v in row.items() if k != "additional_notes"} for row in stored_rows(specs[FORMS])]
    assert kept == stored_rows(expected[FORMS])
    assert stored_rows(specs[ATTACHMENTS], active=True) == stored_rows(expected[ATTACHMENTS], active=True)
    again = json.loads(rederive().stdout)
    assert [(one["changed"], one["added"], one["removed"]) for one in again["tables"]] == [(0, 0, 0)] * 2


def test_a_new_question_is_a_column_from_the_launch_on_and_another_type_is_refused(
    stack: Stack, tmp_path: Path
) -> None:
    _, contract = changed_contract(tmp_path)
    tell(stack, 1, GATE, task_id=32513)
    stack.run("tracking")
    assert "morning" not in stack.table(FORMS).schema.names
    stack.run("tracking", contract=contract)  # no record is left for it
    assert stack.table(FORMS).column("morning").to_pylist() == [None]
    content = yaml.safe_load(Path(contract).read_text(encoding="utf-8"))
    next(one for one in content["form"]["questions"] if one["column"] == "countertops_lf")["type"] = "text"
    content["body"]["countertopsLf"] = None  # else the file contradicts itself, and is refused before that
    Path(contract).write_text(yaml.safe_dump(content), encoding="utf-8")
    with stack.running("tracking", contract=contract, until_caught_up="true") as job:
        assert job.wait(60) == 1
    (line,) = [one for one in job.errors.splitlines() if "countertops_lf" in one]
    assert "column 'countertops_lf' is double in the table, and 'countertops_lf' is string in the job" in line
