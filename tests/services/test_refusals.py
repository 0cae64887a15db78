"""A job that cannot run says so: one line on stderr with the option and the mend, no traceback, exit status 1 or 2."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from itel_cabinet.local.samples import Generator, produce
from itel_cabinet.local.services import Broker, FlinkCluster, free_port
from itel_cabinet.local.services.artifacts import BOOT, KAFKA
from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator
from itel_cabinet.pipeline.launch import job as launch
from itel_cabinet.pipeline.launch import parse_arguments
from itel_cabinet.pipeline.tables import FORMS, TRACKING
from tests.support.jobs import Stack, wait_for

_SECONDS = 30.0
_COMMAND = [sys.executable, "-m", "itel_cabinet.pipeline.commands.app", "run"]
# A test's own environment must not fill in what the test leaves out.
_UNSET = (
    "KAFKA_BOOTSTRAP_SERVERS",
    "CLAIMX_API_BASE_URL",
    "CLAIMX_API_TOKEN",
    "ITEL_CABINET_API_BASE_URL",
    "ITEL_CABINET_API_TOKEN",
)


def refusal(
    given: Sequence[str], status: int, env: Mapping[str, str] | None = None, *, seconds: float = _SECONDS
) -> str:
    """The one line that `itel-cabinet run GIVEN` refuses with."""
    environment = {name: value for name, value in os.environ.items() if name not in _UNSET} | dict(env or {})
    ended = subprocess.run(
        [*_COMMAND, *given], capture_output=True, text=True, timeout=seconds, env=environment, check=False
    )
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("itel-cabinet: "), ended.stderr
    assert ended.returncode == status, ended.stderr
    assert ended.stdout == ""
    return lines[0].removeprefix("itel-cabinet: ")


def complete(**options: str | None) -> list[str]:
    """The `cabinet` job with all it needs, on a broker that is not there; None leaves an option out."""
    settings: dict[str, str | None] = {
        "bootstrap_servers": f"127.0.0.1:{free_port()}",
        "claimx_url": "http://127.0.0.1:9",
        "claimx_auth": "none",
        "itel_url": "http://127.0.0.1:9",
        "itel_auth": "none",
        "tables_root": "tables",
        **options,
    }
    return ["cabinet", *(f"--{name}={value}" for name, value in settings.items() if value is not None)]


def arguments(stack: Stack, job: str, **options: object) -> list[str]:
    """The same for a job on a stack that is all there."""
    command = stack.command(job, **options)
    return command[command.index(job) :]


def checked(given: Sequence[str]) -> str:
    """What `check` alone refuses with, in this process."""
    with pytest.raises(launch.LaunchError) as refused:
        launch.check(parse_arguments(given[0], given[1:])[0])
    line = str(refused.value)
    assert "\n" not in line
    return line


WRONG_USE = {
    "no job": ([], "the job is missing: itel-cabinet run JOB"),
    "unknown job": (["cabinets"], "cabinets: no such job: use one of trigger, tracking, api, cabinet"),
    "no broker named": (complete(bootstrap_servers=None), "--bootstrap_servers is missing: .* KAFKA_BOOTSTRAP_SERVERS"),
    "no ClaimX": (complete(claimx_url=None), "--claimx_url is missing: .* CLAIMX_API_BASE_URL"),
    "no iTel": (complete(itel_url=None), "--itel_url is missing: .* ITEL_CABINET_API_BASE_URL .*file:DIR"),
    "no tables": (complete(tables_root=None), "--tables_root is missing: give the folder or object-store URI"),
    "unknown option": (
        [*complete(), "--claimx_ulr=http://x"],
        "--claimx_ulr: no such option; did you mean --claimx_url",
    ),
    "unknown option, alone": ([*complete(), "--nonsense"], "--nonsense: no such option: see `itel-cabinet run --help`"),
    "not an option": ([*complete(), "fast"], "fast: not an option: options are written --name=value"),
    "no value": ([*complete(), "--shards"], "--shards: a value is missing: write --shards=VALUE"),
    "wrong type": (complete(shards="many"), "--shards: .* valid integer"),
    "out of range": (complete(shards="0"), "--shards: .* greater than or equal to 1"),
    "wrong choice": (complete(claimx_on_outage="panic"), "--claimx_on_outage: .* 'wait' or 'divert'"),
    "wrong topic": (complete(input_topic="a topic"), "--input_topic: .*pattern"),
    "ClaimX's URL": (complete(claimx_url="claimx.example.com"), r"--claimx_url: must be http\(s\)://HOST"),
    "iTel's URL": (complete(itel_url="ftp://itel.example.com"), r"--itel_url: must be http\(s\)://HOST"),
    "unknown authentication": (complete(claimx_auth="digest:env:X"), "--claimx_auth: must be none, bearer:REF"),
    "kafka_config: not JSON": (complete(kafka_config="security=ssl"), "--kafka_config: must be a JSON object"),
    "kafka_config: ours": (
        complete(kafka_config='{"enable.auto.commit": true}'),
        "--kafka_config: enable.auto.commit cannot be set: offsets are committed after the sinks",
    ),
    "kafka_config: a password": (
        complete(kafka_config='{"sasl.password": "hunter2"}'),
        "--kafka_config: sasl.password must be a reference, env:NAME or file:PATH",
    ),
}


@pytest.mark.parametrize(("given", "line"), WRONG_USE.values(), ids=WRONG_USE)
def test_wrong_use(
    given: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in _UNSET:
        monkeypatch.delenv(name, raising=False)
    assert launch.main(given) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert re.search(f"^itel-cabinet: {line}", told)


@pytest.mark.parametrize("case", ["no broker named", "unknown option", "ClaimX's URL"])
def test_wrong_use_as_a_process(case: str) -> None:
    given, line = WRONG_USE[case]
    assert re.search(f"^{line}", refusal(given, 2))


def test_a_secret_given_as_such_is_not_repeated() -> None:
    line = refusal(complete(claimx_auth="bearer:hunter2", kafka_config='{"sasl.password": "hunter2"}'), 2)
    assert "hunter2" not in line
    assert line.startswith("--claimx_auth: a secret must be referred to as env:NAME or file:PATH")


UNRESOLVED = {
    "ClaimX, not set": ({"claimx_auth": "bearer:env:NO_TOKEN"}, "--claimx_auth: env:NO_TOKEN is not set: set this"),
    "ClaimX, by default": ({"claimx_auth": None}, "--claimx_auth: env:CLAIMX_API_TOKEN is not set: set this"),
    "iTel, empty": ({"itel_auth": "api_key:X-Key:env:EMPTY"}, "--itel_auth: env:EMPTY is empty: put the secret there"),
    "iTel, no file": ({"itel_auth": "bearer:file:no/such"}, "--itel_auth: file:no/such cannot be read: No such file"),
    "Kafka": (
        {"kafka_config": '{"sasl.password": "env:NO_TOKEN"}'},
        "--kafka_config: env:NO_TOKEN is not set: set this environment variable",
    ),
}


@pytest.mark.parametrize(("options", "line"), UNRESOLVED.values(), ids=UNRESOLVED)
def test_unresolved_secrets(options: dict[str, str | None], line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLAIMX_API_TOKEN", raising=False)
    monkeypatch.setenv("EMPTY", "")
    assert checked(complete(**options)).startswith(line)


def test_an_unresolved_secret_as_a_process() -> None:
    assert refusal(complete(claimx_auth=None), 1) == (
        "--claimx_auth: env:CLAIMX_API_TOKEN is not set: set this environment variable where the job's workers run"
    )


def test_an_unreachable_broker() -> None:
    servers = f"127.0.0.1:{free_port()}"
    line = refusal(complete(bootstrap_servers=servers), 1)
    assert line.startswith(f"--bootstrap_servers: no broker answers at {servers} (")
    assert "start it, or give the address of one that runs" in line


def test_a_setting_that_librdkafka_does_not_know() -> None:
    line = refusal(complete(kafka_config='{"sasl.pasword": "x"}'), 1)
    assert line == '--kafka_config: librdkafka refuses it: No such configuration property: "sasl.pasword"'


def test_a_folder_for_itel_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = checked(complete(itel_url=f"file:{tmp_path}/file/itel"))
    assert line == f"--itel_url: {tmp_path}/file/itel cannot be written: Not a directory: give another folder"


def test_a_missing_topic(stack: Stack) -> None:
    assert refusal(arguments(stack, "cabinet", input_topic="no.such.topic"), 1) == (
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
        assert checked(given).startswith(f"--{option}: topic no.such.topic does not exist at ")


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
        assert checked(arguments(stack, "trigger", triggers=rules)).startswith(line)


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
    told = checked(arguments(stack, "tracking", partition_by="year,week"))
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


def on_flink(**options: str | None) -> list[str]:
    """The `cabinet` job with all it needs, but for a broker, on a cluster that is not there."""
    cluster = {
        "runner": "FlinkRunner",
        "job_endpoint": f"127.0.0.1:{free_port()}",
        "checkpointing_interval": "2000",
        "environment_type": "PROCESS",
        "environment_config": '{"command": "boot"}',
    }
    return complete(**{**cluster, **options})


def test_flink_without_checkpoints() -> None:
    assert refusal(on_flink(checkpointing_interval=None), 2) == (
        "--checkpointing_interval is missing: without checkpoints nothing flows on Flink; "
        "give milliseconds, 2000 for example"
    )


def test_a_job_server_that_is_not_there() -> None:
    line = refusal(on_flink(job_endpoint=(address := f"127.0.0.1:{free_port()}")), 1)
    assert line.startswith(f"--job_endpoint: Beam's job server does not answer at {address}: Connection refused")


@pytest.mark.parametrize(
    ("lines", "line"),
    {
        "an unknown parameter": ("  shard: 4\n", "parameters.shard: no such parameter: did you mean shards?"),
        "a wrong type": ('  shards: "4"\n', "parameters.shards: must be a whole number, without quotes, not text"),
        "no checkpoints": ("", "beam.checkpointing_interval is missing: without checkpoints nothing flows on Flink; "),
    }.values(),
)
def test_a_template_with_a_mistake(lines: str, line: str, tmp_path: Path) -> None:
    interval = "checkpointing_interval: 2000, " if lines else ""
    template = tmp_path / "mine.yaml"
    template.write_text(
        f"description: Mine.\njob: trigger\nrunner: FlinkRunner\nparameters:\n  bootstrap_servers: 127.0.0.1:9\n"
        f"  claimx_url: http://127.0.0.1:9\n{lines}beam: {{{interval}job_endpoint: 127.0.0.1:9}}\n"
    )
    assert refusal(["trigger", f"--template={template}"], 2).startswith(f"{template}: {line}")


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
    told = refusal(arguments(stack, "trigger", **given), 1, seconds=300)
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
        timeout=_SECONDS * 4,
        env={**os.environ, "ITEL_CABINET_LOCAL": str(tmp_path)},
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        f"demo: {BOOT.name} {BOOT.version} is not in {tmp_path / BOOT.folder.name}: run `make setup-tests`, "
        "or point ITEL_CABINET_LOCAL at the folder that holds it\n"
    )
