"""A launch that is refused without a broker: lines on stderr with the option and what to do, exit status 1 or 2.

What each option refuses is in tests/pure/test_options.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from itel_cabinet.local.services import free_port
from tests.support.refusals import UNSET, complete, lines_of, refusal, refusal_of_process


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)


def test_wrong_use_as_a_process() -> None:
    line = refusal_of_process(complete(bootstrap_servers=None), 2)
    assert line == "--bootstrap_servers is missing: give it or set KAFKA_BOOTSTRAP_SERVERS"


def test_no_job() -> None:
    assert refusal([], 2).startswith("the job is missing: itel-cabinet run JOB")


def test_each_mistake_has_a_line() -> None:
    given = complete(claimx_auth="bearer:hunter2", kafka_config='{"sasl.password": "hunter2"}', tables_root=None)
    lines = lines_of([*given, "--shards=0", "--nonsense"], 2)
    assert [line.split(":")[0] for line in lines] == [
        "--nonsense",
        "--kafka_config",
        "--shards",
        "--claimx_auth",
        "--tables_root is missing",
    ]
    assert "hunter2" not in "".join(lines)


@pytest.mark.parametrize("place", ["command line", "template"])
def test_the_old_name_of_an_option_works_and_is_reported(place: str, tmp_path: Path) -> None:
    given = complete(claimx_auth="bearer:env:NO_TOKEN")
    if place == "template":
        template = tmp_path / "mine.yaml"
        template.write_text(
            "description: Mine.\njob: cabinet\nrunner: DirectRunner\nparameters: {world_retry_seconds: 7}\n"
        )
        given.append(f"--template={template}")
    else:
        given.append("--world_retry_seconds=7")
    warning, refused = lines_of(given, 1)
    assert warning == "--world_retry_seconds is the old name of --outage_patience_seconds: use that"
    assert refused.startswith("--claimx_auth: env:NO_TOKEN is not set")


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
    monkeypatch.setenv("EMPTY", "")
    assert refusal(complete(**options), 1).startswith(line)


def test_an_unresolved_secret_as_a_process() -> None:
    assert refusal_of_process(complete(claimx_auth=None), 1) == (
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
    line = refusal(complete(itel_url=f"file:{tmp_path}/file/itel"), 1)
    assert line == f"--itel_url: {tmp_path}/file/itel cannot be written: Not a directory: give another folder"


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
    assert refusal(["trigger", f"--template={template}"], 2).startswith(f"{template}:7: {line}")
