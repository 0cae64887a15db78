"""A job that cannot run says so: one line on stderr with the option and what to do, no traceback, exit status 1 or 2.

What needs no broker for this is in tests/process/test_refusals.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from itel_cabinet.local.samples import Generator, produce
from itel_cabinet.local.services import Broker, FlinkCluster
from itel_cabinet.local.services.artifacts import BOOT, KAFKA
from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator
from itel_cabinet.pipeline.tables import FORMS, TRACKING
from tests.support.jobs import Stack, wait_for
from tests.support.refusals import refusal, refusal_of_process


def arguments(stack: Stack, job: str, **options: object) -> list[str]:
    """A job with all it needs, on a stack that is all there."""
    command = stack.command(job, **options)
    return command[command.index(job) :]


def test_a_missing_topic(stack: Stack) -> None:
    assert refusal_of_process(arguments(stack, "cabinet", input_topic="no.such.topic"), 1) == (
        f"--input_topic: topic no.such.topic does not exist at {stack.broker.bootstrap_servers}: "
        "create it with `itel-cabinet topics create`"
    )


def test_other_missing_topics(stack: Stack, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("triggers: [{name: T, task_id: 32513, on_any: {publish_to_topic: no.such.topic}}]")
    for option, given in {
        "dead_letter_topic": arguments(stack, "tracking", dead_letter_topic="no.such.topic"),
        "tracking_success_topic": arguments(stack, "tracking", tracking_success_topic="no.such.topic"),
        "itel_errors_topic": arguments(stack, "api", itel_errors_topic="no.such.topic"),
        "itel_success_topic": arguments(stack, "cabinet", itel_success_topic="no.such.topic"),
        "output_topic": arguments(stack, "trigger", triggers=rules, output_topic=""),
    }.items():
        assert refusal(given, 1).startswith(f"--{option}: topic no.such.topic does not exist at ")


def test_bad_rules(stack: Stack, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("triggers: [{name: T, task_id: 32513, on_all: {log: x}}]")
    told = refusal(arguments(stack, "trigger", triggers=rules), 1)
    assert told == f"--triggers: {rules}: triggers[0].on_all: unknown key; remove it or correct its name"


def test_other_bad_rules(stack: Stack, tmp_path: Path) -> None:
    for content, line in {
        b"triggers: [": f"--triggers: {tmp_path}/rules: not YAML: ",
        b"\xff": f"--triggers: {tmp_path}/rules is not UTF-8 text",
        None: f"--triggers: {tmp_path}/rules cannot be read: No such file or directory",
    }.items():
        rules = tmp_path / "rules"
        rules.unlink(missing_ok=True)
        if content is not None:
            rules.write_bytes(content)
        assert refusal(arguments(stack, "trigger", triggers=rules), 1).startswith(line)


def test_latest_without_offsets(stack: Stack) -> None:
    told = refusal(arguments(stack, "tracking", start_offset="latest"), 1)
    assert told.startswith(f"--start_offset=latest: the group {stack.prefix}.tracking has no offsets yet, ")
    assert told.endswith("start with earliest, or set the group's offsets first")


def test_tables_below_a_file(stack: Stack) -> None:
    # Not in tmp_path, whose length may leave no room in the line for the reason.
    with tempfile.NamedTemporaryFile() as file:
        told = refusal(arguments(stack, "cabinet", tables_root=f"{file.name}/tables"), 1)
    assert told.startswith(f"--tables_root: Delta table {file.name}/tables/{TRACKING}: ")
    assert "NotADirectory" in told
    assert told.endswith(": give a folder or object-store URI that can be written")


def test_a_table_whose_fences_would_expire(stack: Stack) -> None:
    DeltaTable.create(
        str(stack.tables_root / FORMS),
        schema=pa.schema([("assignment_id", pa.int64())]),
        configuration={"delta.setTransactionRetentionDuration": "interval 7 days"},
    )
    told = refusal(arguments(stack, "cabinet"), 1)
    assert told.startswith(
        f"--tables_root: Delta table {stack.tables_root}/{FORMS}: its property delta.setTransactionRet"
    )
    assert "ALTER TABLE ... UNSET TBLPROPERTIES" in told


def test_a_table_of_another_shape(stack: Stack) -> None:
    table = stack.tables_root / FORMS
    DeltaTable.create(str(table), schema=pa.schema([("assignment_id", pa.string())]))
    told = refusal(arguments(stack, "tracking"), 1)
    assert told.startswith(f"--tables_root: Delta table {table}: column 'assignment_id' is string in the table, ")
    assert told.endswith("rewrite the column, or write to another table")
    assert DeltaTable(str(table)).version() == 0


def test_a_partition_column_that_is_none(stack: Stack) -> None:
    told = refusal(arguments(stack, "tracking", partition_by="year,week"), 1)
    assert told.startswith("--partition_by: ")
    assert "'week'" in told


def test_an_unknown_runner(stack: Stack) -> None:
    assert refusal(arguments(stack, "tracking", runner="HamsterRunner"), 1).startswith("--runner: ")


@pytest.mark.slow  # test_outages.py has each of them away for longer
def test_a_broker_that_goes_away_for_longer_than_the_patience(
    tmp_path: Path, claimx: ClaimXSimulator, itel: ItelSimulator
) -> None:
    with Broker.start(tmp_path / "broker") as broker:
        stack = Stack(broker, claimx, itel, tmp_path, "lost")
        for role in ("tracking", "errors"):
            broker.create_topic(stack.topic(role), 2)
        with stack.running("tracking", outage_patience_seconds=3) as job:
            produce(broker.bootstrap_servers, stack.topic("tracking"), Generator(7).tracking_messages(20), claimx)
            stack.settle("tracking")
            broker.stop()
            assert job.wait(90) == 1, job.errors
        last = job.errors.splitlines()[-1]
        assert last.startswith(f"itel-cabinet: Kafka at {broker.bootstrap_servers}")
        assert re.search(r"; gave up after \d+ s$", last)
        assert "Traceback" not in job.errors


# ------------------------------------------------------------------------------------------------------------ on Flink


def test_a_secret_of_a_flink_template_that_is_not_there(stack: Stack, cluster: FlinkCluster) -> None:
    options = {**cluster.beam_options(), "checkpointing_interval": "2000", "claimx_auth": "bearer:env:NO_SUCH_TOKEN"}
    given = arguments(stack, "trigger", **options)
    assert refusal(["trigger", "--template=trigger.flink", *given[1:]], 1) == (
        "--claimx_auth: env:NO_SUCH_TOKEN is not set: set this environment variable where the job's workers run"
    )
    assert not any(job.active for job in cluster.jobs())


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("options", "line"),
    {
        "no JobManager": (
            {"flink_master": "http://127.0.0.1:9"},
            r"--flink_master: Flink's JobManager does not answer at 127\.0\.0\.1:9: Connection refused",
        ),
        "no savepoint": (
            {"savepoint_path": "file:///no/such/savepoint"},
            r"--savepoint_path: job \S+ ended as FAILED: Cannot find checkpoint or savepoint file/directory "
            r"'file:///no/such/savepoint' on file system 'file'; give the URI of a savepoint of this job ",
        ),
        "no class for the job server": (
            {"pipeline_resources_detector_factory_class": "NoSuchClass"},
            r"--job_endpoint: Beam's job server at \S+ does not take the job \(INTERNAL: no reason given\): "
            r"see its log; --pipeline_resources_detector_factory_class=NoSuchClass must be on its class path$",
        ),
        "no boot": (
            {"environment_config": '{"command": "/no/such/boot"}'},
            r'--environment_config: job \S+ does not start and is cancelled: Cannot run program "/no/such/boot": '
            r"error=2, No such file or directory; give what starts Beam's Python workers on the TaskManagers$",
        ),
        "no worker pool": (
            {"environment_type": "EXTERNAL", "environment_config": "127.0.0.1:9"},
            r"--environment_config: job \S+ does not start and is cancelled: .*Connection refused: /127\.0\.0\.1:9; ",
        ),
    }.values(),
)
def test_a_cluster_that_cannot_run_the_job(
    options: dict[str, str], line: str, stack: Stack, cluster: FlinkCluster
) -> None:
    given = {**cluster.beam_options(), "checkpointing_interval": "2000", **options}
    told = refusal_of_process(arguments(stack, "trigger", **given), 1, seconds=300)
    assert re.search(f"^{line}", told), told
    wait_for(lambda: not any(job.active for job in cluster.jobs()), "no job of it is left", 60)


@pytest.mark.services
def test_jars_that_were_not_fetched(tmp_path: Path) -> None:
    # What the demo needs before the cluster is there.
    (tmp_path / KAFKA.folder.name).symlink_to(KAFKA.folder)
    ended = subprocess.run(
        [sys.executable, "-m", "itel_cabinet.local.demo", "--flink", f"--folder={tmp_path / 'demo'}"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "ITEL_CABINET_LOCAL": str(tmp_path)},
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        f"demo: {BOOT.name} {BOOT.version} is not in {tmp_path / BOOT.folder.name}: run `make setup-tests`, "
        "or point ITEL_CABINET_LOCAL at the folder that holds it\n"
    )
