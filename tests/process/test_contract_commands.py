"""`itel-cabinet contract ...`, and what `preview` and `run` make of a contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from itel_cabinet.pipeline.commands import main
from itel_cabinet.pipeline.options import OptionError, Settings
from itel_cabinet.transforms.contracts import SHIPPED
from tests.pure.test_contracts import ADJUSTER, GATE, PROJECT
from tests.support.cabinet_samples import answer, group, question, tracking_message
from tests.support.printed import Printed

VARS = '{"carrier_id": "C-1", "subscription_key": "env:ITEL_KEY"}'
TASK = answer(
    GATE,
    group("Damage Description", question("Enter Damaged Description", {"type": "text", "text": "Leak"})),
    group("Photos", question("Upload Overview Photo(s)", [11, 12])),
    ADJUSTER,
    taskId=32615,
)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Printed:
    return Printed(capsys, monkeypatch)


def written(folder: Path, name: str, content: Any) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def copy_of_vendor(folder: Path, printed: Printed, **changes: Any) -> str:
    content = yaml.safe_load(printed.stdout("contract", "show", "vendor"))
    content["request"] |= changes.pop("request", {})
    content["body"] |= changes.pop("body", {})
    return written(folder, "mine.yaml", yaml.safe_dump({**content, **changes}))


def test_the_shipped_ones_are_listed(printed: Printed) -> None:
    listed = json.loads(printed.stdout("contract", "list", "--json"))
    assert [(one["name"], one["tasks"], one["questions"]) for one in listed] == [
        ("cabinet_repair", [32513], 36),
        ("vendor", [32615, 24454], 36),
    ]
    assert [row[0] for row in printed.cells("contract", "list")][-2:] == [*SHIPPED]


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shown_can_be_checked_again(name: str, printed: Printed, tmp_path: Path) -> None:
    shown = printed.stdout("contract", "show", name)
    file = written(tmp_path, "copy.yaml", yaml.safe_dump(yaml.safe_load(shown)))
    assert printed.stdout("contract", "check", file).startswith(f"{file}: contract {name} 1 is in order (sha256 ")
    jsonschema.validate(yaml.safe_load(shown), json.loads(printed.stdout("contract", "schema")))


def test_check_reports_each_mistake_on_a_line_of_its_own(
    printed: Printed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copy_of_vendor(tmp_path, printed, body={"claim_number": {"from": "form.nothing"}, "cat_code": 7})
    text = Path(file).read_text(encoding="utf-8").splitlines()
    assert main(["contract", "check", file, "--vars={}"]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    places = {
        "body.claim_number.from: nothing is called 'form.nothing'": "from: form.nothing",
        "vars: carrier_id is not given": "vars:",
        "vars: subscription_key is not given": "vars:",
    }
    for line, (said, stands) in zip(
        sorted(errors.splitlines(), key=lambda line: line.partition(": body")[1] == ""), places.items(), strict=True
    ):
        number = next(n for n, one in enumerate(text, 1) if stands in one)
        assert line.startswith(f"itel-cabinet: {file}: line {number}: {said}"), line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["check", "no/such.yaml"],
            "no/such.yaml: line 1: cannot be read (No such file or directory): give a file, or",
        ),
        (["check", "vendor", "--vars=[1]"], "--contract_vars: must be a JSON object"),
        (["show", "nothing"], "nothing cannot be read"),
    ],
)
def test_what_cannot_be_read(arguments: list[str], said: str, printed: Printed) -> None:
    status = 1 if said.startswith("no/such") else 2
    assert printed.error(status, "contract", *arguments).startswith(said)


def test_preview_shows_body_request_and_gate(printed: Printed, tmp_path: Path) -> None:
    media = [{"mediaID": 11, "fullDownloadLink": "https://claimx.example/11?expires=1"}]
    message = tracking_message(event_id="e-1", task_id=32615)
    found = json.loads(
        printed.stdout(
            "preview",
            written(tmp_path, "task.json", TASK),
            "--contract=vendor",
            f"--contract_vars={VARS}",
            f"--event={written(tmp_path, 'event.json', message)}",
            f"--project={written(tmp_path, 'project.json', PROJECT)}",
            f"--media={written(tmp_path, 'media.json', {'data': media})}",
        )
    )
    assert found.keys() == {"form", "attachments", "payload", "request", "gate", "warnings"}
    assert found["payload"]["integration_test_id"] == "5430007-e-1"
    assert found["payload"]["insured"]["name"] == "Pat Roe"
    assert found["payload"]["images"] == [{"image_type": "overview", "url": media[0]["fullDownloadLink"]}]
    assert found["request"] == {
        "method": "POST",
        "path": "/cabinet-repair-orv",
        "headers": {
            "Content-Type": "application/json",
            "Ocp-Apim-Subscription-Key": "env:ITEL_KEY",
            "Authorization": "oauth2:https://login.itel.example/oauth2/token:env:ITEL_CLIENT_ID:"
            "env:ITEL_CLIENT_CREDENTIAL:scope=cabinet-repair",
        },
    }
    assert found["gate"] == {"passed": True, "reason": "the condition tasks.gate holds"}
    assert found["warnings"] == ["1 photos have no link, and are not sent"]


def test_preview_follows_a_changed_copy(printed: Printed, tmp_path: Path) -> None:
    file = copy_of_vendor(
        tmp_path,
        printed,
        request={"path": "/v2/{project_id}/{assignment_id}", "method": "PUT", "headers": {"X-Team": "west"}},
        body={"service_level": "one_day"},
    )
    found = json.loads(printed.stdout("preview", written(tmp_path, "task.json", TASK), f"--contract={file}"))
    assert found["payload"]["service_level"] == "one_day"
    assert (found["request"]["method"], found["request"]["path"]) == ("PUT", "/v2/5400001/5430007")
    assert found["request"]["headers"]["X-Team"] == "west"
    assert found["warnings"][:2] == [
        f"the var {name} is not given, so it is empty here; `run` refuses that"
        for name in ("carrier_id", "subscription_key")
    ]


def test_preview_says_what_the_gate_holds_back(printed: Printed, tmp_path: Path) -> None:
    task = written(
        tmp_path, "task.json", answer(group("G", question("Kitchen cabinet damage present", "No")), taskId=24454)
    )
    found = json.loads(printed.stdout("preview", task, "--contract=vendor"))
    assert found["payload"] is None
    assert found["form"]["task_id"] == 24454
    assert found["gate"] == {"passed": False, "reason": "the condition tasks.gate does not hold"}
    assert found["warnings"][-1] == "not submitted: the gate holds it back"


@pytest.mark.parametrize(
    ("option", "content", "said"),
    [
        ("event", {**tracking_message(), "assignment_id": 7, "task_id": 32615}, "assignment_id is not the answer's"),
        ("event", [1], "the value is JSON, but not an object"),
        ("project", [1], "JSON, but not an object"),
        ("media", "{", "ClaimX's answer is not JSON"),
    ],
)
def test_preview_names_the_file_at_fault(
    option: str, content: Any, said: str, printed: Printed, tmp_path: Path
) -> None:
    task, other = written(tmp_path, "task.json", TASK), written(tmp_path, "other.json", content)
    line = printed.error(1, "preview", task, "--contract=vendor", f"--{option}={other}")
    assert line == f"{other}: {said}"


# ----------------------------------------------------------------------------------------------------------------- run

GIVEN = {"job": "cabinet", "bootstrap_servers": "b:9092", "claimx_url": "https://claimx.example", "tables_root": "/t"}


def test_run_takes_what_the_contract_says_and_options_win() -> None:
    settings = Settings.of(
        {**GIVEN, "contract": "vendor", "contract_vars": VARS, "itel_url": "https://itel.example", "itel_method": "PUT"}
    )
    itel = settings.itel_settings()
    assert (itel.path, itel.method, itel.idempotency_header) == ("/cabinet-repair-orv", "PUT", "")
    assert itel.connection.secret_headers == (("Ocp-Apim-Subscription-Key", "env:ITEL_KEY"),)
    assert itel.connection.auth.startswith("oauth2:https://login.itel.example/")
    assert [(rule.statuses, rule.field, rule.means) for rule in itel.rules] == [
        (("400",), "integration_test_id", "duplicate")
    ]
    assert settings.export_settings().project_path == "/export/project/{project_id}"
    default = Settings.of({**GIVEN, "itel_url": "https://itel.example"}).itel_settings()
    assert (default.path, default.method, default.idempotency_header) == ("/api/v1/tasks", "POST", "Idempotency-Key")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"contract": "vendor"}, "--contract_vars: carrier_id is not given: the carrier's id at iTel"),
        ({"contract": "no/such"}, "--contract: no/such: line 1: cannot be read (No such file or directory)"),
        ({"contract": "vendor", "contract_vars": '{"carrier_id": 1, "subscription_key": "abc"}'},
         "--contract_vars: subscription_key is a secret: give it as env:NAME or file:PATH"),
        ({"contract_vars": '{"a": 1}'}, "--contract_vars: a is given, and the contract has no such var"),
        ({"contract_vars": "x"}, "--contract_vars: must be a JSON object"),
    ],
)  # fmt: skip
def test_run_refuses_a_contract_by_name(given: dict[str, str], said: str) -> None:
    with pytest.raises(OptionError) as refusal:
        Settings.of({**GIVEN, "itel_url": "https://itel.example", **given})
    assert any(line.startswith(said) for line in str(refusal.value).splitlines()), str(refusal.value)


def test_a_file_that_is_broken_is_refused_at_launch_with_every_line(printed: Printed, tmp_path: Path) -> None:
    file = copy_of_vendor(
        tmp_path, printed, body={"claim_number": {"from": "form.nothing"}, "claim_type": {"from": "x"}}
    )
    with pytest.raises(OptionError) as refusal:
        Settings.of({**GIVEN, "itel_url": "https://itel.example", "contract": file, "contract_vars": VARS})
    assert len(refusal.value.problems) == 2
    assert all(problem.field == "contract" for problem in refusal.value.problems)
