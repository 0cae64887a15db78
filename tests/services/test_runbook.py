"""The runbook, run: every block of commands in docs/operations.md, as it stands and in its order."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from deltalake import DeltaTable

from itel_cabinet.local.samples import Generator, Receipt, Shares, produce
from itel_cabinet.local.services import Broker, FlinkCluster, free_port
from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator
from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS, TRACKING
from tests.support.cabinet_samples import answer, group, question
from tests.support.jobs import wait_for

RUNBOOK = Path(__file__).parents[2] / "docs" / "operations.md"
TOPIC = "itel.cabinet.task.tracking"
GROUP = "itel_cabinet_group"
CLAIMX_TOKEN, ITEL_TOKEN, NEW_ITEL_TOKEN = "claimx-0", "itel-0", "itel-1"

Section = tuple[str, str]


def sections() -> list[Section]:
    """Each heading of the runbook that has commands, with all of them."""
    found: list[Section] = []
    for part in re.split(r"^##+ ", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```sh\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
        assert part.count("```") == 2 * len(blocks), "a block that is not run"
        if blocks:
            found.append((part.partition("\n")[0], "".join(blocks)))
    return found


def test_what_is_indented_is_no_command() -> None:
    """Commands stand in fences, since only those are run."""
    prose = re.sub(r"^```sh\n.*?^```", "", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^    \S.*", prose, re.MULTILINE) == []


@dataclass
class Operator:
    """Who has the runbook in hand: runs its sections in a shell of its own each, and keeps what they print."""

    environment: dict[str, str]
    run: Path
    set_up: str = ""
    printed: dict[str, str] = field(default_factory=dict)

    def knows(self, script: str) -> None:
        """Take in the definitions of a block that is run once; its exported values are this test's own."""
        exported = set(re.findall(r"\b([A-Z_]+)=", "\n".join(re.findall(r"^export .*", script, re.MULTILINE))))
        assert exported <= self.environment.keys()
        self.set_up += re.sub(r"^export .*\n", "", script, flags=re.MULTILINE)

    def does(self, heading: str, script: str) -> str:
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.set_up + script],
            env={**os.environ, **self.environment},
            cwd=self.run,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        log = self.run / "cabinet.log"
        assert ended.returncode == 0, f"{heading}:\n{ended.stdout}\n{log.read_text()[-3000:] if log.exists() else ''}"
        self.printed[heading] = ended.stdout
        return ended.stdout

    def ends(self) -> None:
        """Kill the job that is still running."""
        with suppress(OSError, ValueError):
            os.kill(int((self.run / "cabinet.pid").read_text()), signal.SIGKILL)


@dataclass
class Site:
    """The runbook's world: a broker with the topics by their real names, ClaimX and iTel, tables, an operator."""

    broker: Broker
    claimx: ClaimXSimulator
    itel: ItelSimulator
    operator: Operator
    folder: Path
    receipts: list[Receipt] = field(default_factory=list)
    # One for all: a second one would change what ClaimX answers about the assignments of the first.
    generator: Generator = field(
        default_factory=lambda: Generator(9, start=datetime.now(UTC), shares=Shares(assigned=0.3))
    )

    def produce(self, n: int) -> None:
        messages = self.generator.tracking_messages(n)
        self.receipts += produce(self.broker.bootstrap_servers, TOPIC, messages, self.claimx)

    def settle(self, group: str = GROUP) -> None:
        # The ends as they are at each look: what a command has only just written may not be among them at the first.
        def settled() -> bool:
            return self.broker.committed(group, TOPIC) == self.broker.end_offsets(TOPIC)

        wait_for(settled, f"{group} at the end of {TOPIC}", 120, pause=0.1)

    def rows(self, table: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = DeltaTable(self.folder / "tables" / table).to_pyarrow_table().to_pylist()
        return rows

    def check_rows(self) -> None:
        """Every event that is to have a row has it, once."""
        wanted = {(r.partition, r.offset) for r in self.receipts if r.produced.expect in ("tracked", "submitted")}
        wanted |= {(r.partition, r.offset) for r in self.receipts if r.produced.kind == "completed_without_form"}
        rows = [(row["kafka_partition"], row["kafka_offset"]) for row in self.rows(TRACKING)]
        assert sorted(rows) == sorted(wanted)

    def submitted(self) -> set[str]:
        return {submission.idempotency_key for submission in self.itel.submissions()}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    for name, token in (("claimx", CLAIMX_TOKEN), ("itel", ITEL_TOKEN)):
        (tmp_path / "secrets").mkdir(exist_ok=True)
        (tmp_path / "secrets" / name).write_text(token)
    run = tmp_path / "run"
    run.mkdir()
    port = str(free_port())
    with (
        Broker.start(tmp_path / "broker") as broker,
        ClaimXSimulator(token=CLAIMX_TOKEN) as claimx,
        ItelSimulator(token=ITEL_TOKEN) as itel,
    ):
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "REPLICATION": "1",
            "CLAIMX_API_BASE_URL": claimx.url,
            "ITEL_CABINET_API_BASE_URL": itel.url,
            "TABLES": str(tmp_path / "tables"),
            "MEDIA": str(tmp_path / "media"),
            "PHOTO_HOSTS": "127.0.0.1",
            "SECRETS": str(tmp_path / "secrets"),
            "RUN": str(run),
            "METRICS_PORT": port,
            "METRICS": f"http://localhost:{port}",
            "OLD_GROUP": "an-old-worker",
            "NEW_ITEL_TOKEN": NEW_ITEL_TOKEN,
        }
        operator = Operator(environment, run)
        try:
            yield Site(broker, claimx, itel, operator, tmp_path)
        finally:
            operator.ends()


# What is to be done before a section, and what shows from outside that it has worked. Each is named by its heading.


def _first_records(site: Site) -> None:
    site.produce(150)


def _is_well(site: Site) -> None:
    printed = site.operator.printed["Is it well?"]
    assert "healthy" in printed
    assert re.findall(r"^itel_cabinet_reader_lag_records.* (\S+)$", printed, re.MULTILINE) == ["0.0"] * 3
    assert '"status": "ok"' in printed


def _started(site: Site) -> None:
    site.settle()
    site.check_rows()


def _more_records(site: Site) -> None:
    site.produce(60)


def _mend_the_forms(site: Site) -> None:
    """ClaimX has the forms now that were missing."""
    for receipt in site.receipts:
        if receipt.produced.kind == "completed_without_form":
            event = json.loads(receipt.produced.value or b"")
            cabinets = group("Linear Feet Capture", question("Lower Cabinets (linear feet)", 12.5))
            mended = answer(cabinets, assignmentId=event["assignment_id"], projectId=int(event["project_id"]))
            site.claimx.put_task(mended)


def _replayed(site: Site) -> None:
    site.settle()
    formless = [r.produced for r in site.receipts if r.produced.kind == "completed_without_form"]
    assert formless
    wait_for(lambda: {one.event_id for one in formless} <= site.submitted(), "iTel has what was replayed")
    site.check_rows()


def _reconciled(site: Site) -> None:
    found = json.loads((site.operator.run / "reconcile.json").read_text())
    assert found["settled"] > 0
    assert found["completed"] == found["settled"] + found["superseded"] + found["lacking"] + found["left_out"]


def _traced(site: Site) -> None:
    printed = site.operator.printed["What happened to it?"]
    assert re.search(r"^[\w-]+: (accepted|duplicate|unchanged|refused|dead_letter)", printed, re.MULTILINE)
    assert "outcome: " in printed
    assert "body: " in (site.operator.run / "body.txt").read_text()


def _with_photos(site: Site) -> None:
    active = [row for row in site.rows(ATTACHMENTS) if row["is_active"]]
    assert active
    assert {row["claim_media_id"] for row in active if row["blob_path"] is None} == set()


def _forms_as_they_were(site: Site) -> None:
    site.operator.printed["forms before"] = json.dumps(_forms(site))


def _forms(site: Site) -> list[list[Any]]:
    columns = ("assignment_id", "event_timestamp", "kafka_partition", "kafka_offset", "raw_data")
    return sorted([str(row[column]) for column in columns] for row in site.rows(FORMS))


def _rebuilt(site: Site) -> None:
    site.settle()
    assert _forms(site) == json.loads(site.operator.printed["forms before"])
    site.check_rows()


def _an_answer(site: Site) -> None:
    unknown = group("A new section", question("A new question", "Yes"))
    (site.operator.run / "answer.json").write_text(json.dumps(answer(unknown)))


def _previewed(site: Site) -> None:
    assert json.loads(site.operator.printed["A new question on the form"])["form"]["raw_data"].count("A new question")


def _new_token(site: Site) -> None:
    site.itel.token = NEW_ITEL_TOKEN


def _renewed(site: Site) -> None:
    site.produce(40)
    site.settle()
    # By one event or another: iTel gets no form twice.
    new = {
        r.produced.event_id: r.produced.assignment_id for r in site.receipts[-40:] if r.produced.expect == "submitted"
    }
    assert new.keys() & site.submitted()
    sent = {r.produced.assignment_id for r in site.receipts if r.produced.event_id in site.submitted()}
    assert {*new.values()} <= sent


def _upkept(site: Site) -> None:
    site.produce(40)
    _started(site)


def _asked(site: Site) -> None:
    page = (site.operator.run / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page


def _an_old_worker(site: Site) -> None:
    """Its group is halfway through the topic, as Kafka's own clients leave it."""
    worker = Consumer({"bootstrap.servers": site.broker.bootstrap_servers, "group.id": "an-old-worker"})
    half = [TopicPartition(TOPIC, p, end // 2) for p, end in site.broker.end_offsets(TOPIC).items()]
    try:
        worker.commit(offsets=half, asynchronous=False)
    finally:
        worker.close()


def _taken_over(site: Site) -> None:
    site.settle()
    site.check_rows()


BEFORE: dict[str, Callable[[Site], None]] = {
    "Start": _first_records,
    "Stop, and go on": _more_records,
    "Records that failed": _mend_the_forms,
    "Rebuild a table": _forms_as_they_were,
    "A new question on the form": _an_answer,
    "Renew credentials": _new_token,
    "From the old workers to this": _an_old_worker,
}
AFTER: dict[str, Callable[[Site], None]] = {
    "Start": _started,
    "Is it well?": _is_well,
    "Stop, and go on": _started,
    "A new version, or other options": _started,
    "Records that failed": _replayed,
    "Does iTel have every form?": _reconciled,
    "What happened to it?": _traced,
    "Photos that are missing": _with_photos,
    "Read again from a moment": _started,
    "Rebuild a table": _rebuilt,
    "Another number of shards": _started,
    "A new question on the form": _previewed,
    "Renew credentials": _renewed,
    "Upkeep of the tables": _upkept,
    "Ask the tables": _asked,
    "From the old workers to this": _taken_over,
}
FLINK = "On a Flink cluster"


@pytest.mark.services
@pytest.mark.timeout(900)
def test_every_block_on_one_machine(site: Site) -> None:
    of_one_machine = sections()[: [heading for heading, _ in sections()].index(FLINK)]
    assert {*BEFORE, *AFTER} <= {heading for heading, _ in of_one_machine}
    [(first, definitions), *rest] = of_one_machine
    assert first == "Set once"
    site.operator.knows(definitions)
    for heading, script in rest:
        BEFORE.get(heading, lambda _: None)(site)
        site.operator.does(heading, script)
        AFTER.get(heading, lambda _: None)(site)


@pytest.mark.services
@pytest.mark.timeout(900)
def test_every_block_on_a_cluster(site: Site, cluster: FlinkCluster) -> None:
    [(_, definitions), *rest] = sections()
    at = [heading for heading, _ in rest].index(FLINK)
    [(_, of_flink), *rest] = rest[at:]
    options = cluster.beam_options() | {"checkpointing_interval": "2000"}
    del options["runner"]
    site.operator.environment |= {
        "FLINK": options["flink_master"],
        "FLINK_OPTIONS": " ".join(f"--{name}={value.replace(' ', '')}" for name, value in options.items()),
        "SAVEPOINTS": (site.folder / "savepoints").as_uri(),
    }
    site.operator.knows(definitions)
    site.operator.does("before", "itel-cabinet topics create --replication_factor=1")
    site.operator.knows(of_flink)
    site.produce(100)
    group_name = "itel_cabinet_tracking_worker_group"
    done = {}
    for heading, script in rest:
        done[heading] = site.operator.does(heading, script)
        if heading != "Stop for good" and "submit" in script:
            site.settle(group_name)
            site.check_rows()
            site.produce(60)
    assert [*done] == [
        "Start, and what it starts from",
        "Stop with a savepoint",
        "Go on, with other resources or a new version",
        "Stop for good",
    ]
    assert done["Start, and what it starts from"].strip().splitlines()[-1] in {job.id for job in cluster.jobs()}
    wait_for(lambda: not any(job.active for job in cluster.jobs()), "the job is cancelled")
