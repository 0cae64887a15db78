"""docs/going-live.md, run: every block as it stands, in its order, on the history of jobs under the old contract."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import DeltaTable

from itel_cabinet.local.samples import Generator, Shares, produce
from itel_cabinet.local.services import HOST, Broker, free_port
from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator
from itel_cabinet.pipeline.tables import FORMS
from itel_cabinet.pipeline.topics import CLAIMX_EVENTS, ITEL_ERRORS, TASK_EVENTS, TOPICS
from itel_cabinet.transforms.contracts import load_shipped
from tests.pure.test_contracts import ADJUSTER, GATE, PROJECT
from tests.support.cabinet_samples import answer

PAGE = Path(__file__).parents[2] / "docs" / "going-live.md"
SHARES = Shares(late=0, repeated=0, other_task=0, bad=0, completed_without_form=0)


def blocks() -> str:
    found = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert PAGE.read_text(encoding="utf-8").count("```") == 2 * len(found), "a block that is not run"
    # What an operator sets is this test's own.
    return "set -euo pipefail\n" + re.sub(r"^export .*\n", "", "".join(found), flags=re.MULTILINE)


def in_shell(script: str, folder: Path, environment: dict[str, str]) -> str:
    ended = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.mark.services
@pytest.mark.timeout(400)
def test_from_a_specification_to_production(tmp_path: Path) -> None:
    run, port = tmp_path / "run", free_port()
    run.mkdir()
    (run / "answer.json").write_text(json.dumps(answer(GATE, ADJUSTER, taskId=32615)))
    (run / "project.json").write_text(json.dumps(PROJECT))
    (run / "media.json").write_text("[]")
    with (
        Broker.start(tmp_path / "broker") as broker,
        ClaimXSimulator(token="claimx-token", photo_store="https://photos.s3.amazonaws.com") as claimx,
        ItelSimulator() as itel,
    ):
        for topic in TOPICS:
            broker.create_topic(topic.name, topic.partitions, topic.config)
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TABLES": str(tmp_path / "tables"),
            "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "CLAIMX_API_BASE_URL": claimx.url,
            "CLAIMX_API_TOKEN": "claimx-token",
            "ITEL_URL": itel.url,
            "NEW_ITEL_URL": f"http://{HOST}:{port}",
            "ITEL_AUTH": "none",
            "NEW_ITEL_AUTH": "none",
            "ITEL_KEY": "subscription-key",
            "PHOTO_HOSTS": f"*.amazonaws.com,{HOST}",
        }
        old = Generator(3, shares=SHARES)
        produce(broker.bootstrap_servers, TASK_EVENTS, old.tracking_messages(80), claimx)
        in_shell(
            "itel-cabinet run cabinet --until_caught_up --tables_root=$TABLES --itel_url=$ITEL_URL --itel_auth=none",
            run,
            environment,
        )
        submitted = len(itel.submissions())
        # While both endpoints get what comes, more of the old tasks come; by then the new ones have begun too.
        produce(broker.bootstrap_servers, TASK_EVENTS, old.tracking_messages(20), claimx)
        new = Generator(4, shares=SHARES, contract=load_shipped("vendor"))
        orders = [*new.claimx_events(40)]
        produce(broker.bootstrap_servers, CLAIMX_EVENTS, orders, claimx)
        listed = "curl -s $NEW_ITEL_URL/_sim/submissions > received.json\nkill $SIMULATOR\n"
        printed = in_shell(blocks().replace("kill $SIMULATOR\n", listed), run, environment)
        assert len(itel.submissions()) > submitted
        letters = broker.read(ITEL_ERRORS)
    assert "in order" in printed
    preview = json.loads((run / "preview.json").read_text())
    assert preview["request"]["path"] == "/orders/cabinet-repair"
    assert preview["gate"]["passed"]
    assert preview["payload"]["claim_number"] == "CLM-77"
    backtest = json.loads((run / "backtest.json").read_text())
    assert backtest["contract"] == "itel_orders 1"
    assert backtest["changed_fields"] == []
    assert backtest["held"] + backtest["without_form"] == backtest["answers"] > 40
    received = json.loads((run / "received.json").read_text())["submissions"]
    # The forms of 32513 do not have the gate's question, so the new endpoint gets the new tasks alone.
    completed = {one.assignment_id for one in orders if b"COMPLETED" in (one.value or b"") and one.details_json}
    assert {one["assignment_id"] for one in received} <= completed
    assert len(received) > 10
    assert letters == []
    forms = DeltaTable(str(tmp_path / "tables" / FORMS)).to_pyarrow_table().to_pylist()
    assert {row["task_id"] for row in forms} == {32513, 32615, 24454}
    assert "claimx_itel_forms: of" in printed
