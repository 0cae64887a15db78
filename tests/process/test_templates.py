"""Launch templates: what a mistake in one is told, what `run` makes of one, and what is rendered from one."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from jsonschema import Draft202012Validator

from itel_cabinet.pipeline.commands import app as cli
from itel_cabinet.pipeline.jobs import Job
from itel_cabinet.pipeline.launch import (
    Template,
    TemplateError,
    check_template,
    list_templates,
    load_template,
    parse_arguments,
    render_command,
    render_manifests,
    with_template,
)
from itel_cabinet.pipeline.options import ENVIRONMENT, OLD_NAMES, OptionError, option_fields, required_options
from tests.support.cabinet_samples import tracking_message
from tests.support.jobs import Stack

_PROJECT = Path(__file__).parents[2]
_CRD = Path(__file__).parents[1] / "support" / "kubernetes" / "flinkdeployments.flink.apache.org-v1.yaml"
_FLINK = [name for name in list_templates() if name.endswith(".flink")]
_ROOT = "--tables_root=abfss://lake@account.dfs.core.windows.net/tables"
SECRET = "hunter2-very-secret"

Write = Callable[..., Template]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*ENVIRONMENT.values(), "CLAIMX_API_TOKEN", "ITEL_CABINET_API_TOKEN"):
        monkeypatch.delenv(variable, raising=False)


def _changed(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The content of a shipped template with keys such as ``beam.parallelism`` changed; ``...`` takes one out."""
    content: dict[str, Any] = yaml.safe_load((_PROJECT / "templates" / f"{name}.yaml").read_text())
    for path, value in changes.items():
        *sections, key = path.split("/")
        place = content
        for section in sections:
            place = place[section]
        if value is ...:
            del place[key]
        else:
            place[key] = value
    return content


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """``write(name, {path: value})``: a shipped template with changes, in the file mine.yaml of the present folder."""
    monkeypatch.chdir(tmp_path)

    def writing(name: str, changes: dict[str, Any]) -> Template:
        Path("mine.yaml").write_text(yaml.safe_dump(_changed(name, changes), sort_keys=False))
        return load_template("mine.yaml")

    return writing


# ------------------------------------------------------------------------------------------------- the shipped ones


def test_there_is_one_template_a_job_for_each_runner() -> None:
    assert list_templates() == sorted(f"{job}.{where}" for job in Job for where in ("local", "flink"))
    found = {name: load_template(name) for name in list_templates()}
    assert {name: (template.job.value, template.runner) for name, template in found.items()} == {
        f"{job}.{where}": (job.value, runner)
        for job in Job
        for where, runner in (("local", "DirectRunner"), ("flink", "FlinkRunner"))
    }


@pytest.mark.parametrize("name", list_templates())
def test_a_shipped_template_has_no_problem_and_says_what_is_left_open(name: str) -> None:
    template = load_template(name)
    findings = check_template(template)
    assert findings.problems == ()
    assert findings.open == (tuple(required_options(template.job)) if name in _FLINK else ())
    assert load_template(str(_PROJECT / "templates" / f"{name}.yaml")).model_dump() == template.model_dump()


def test_what_each_job_requires() -> None:
    assert {job.value: required_options(job) for job in Job} == {
        "trigger": ["bootstrap_servers", "claimx_url"],
        "tracking": ["bootstrap_servers", "claimx_url", "tables_root"],
        "api": ["bootstrap_servers", "claimx_url", "itel_url"],
        "cabinet": ["bootstrap_servers", "claimx_url", "itel_url", "tables_root"],
    }


# ----------------------------------------------------------------------------------------------------------- mistakes

MISTAKES = {
    "unknown parameter": ({"parameters/shard": 4}, "parameters.shard: no such parameter: did you mean shards?"),
    "unknown, like nothing": (
        {"parameters/zzz": 4},
        "parameters.zzz: no such parameter: `itel-cabinet run --help` lists them",
    ),
    "Beam's among ours": (
        {"parameters/checkpointing_interval": 4},
        "parameters.checkpointing_interval: no such parameter: it is Beam's, move it under beam",
    ),
    "ours among Beam's": ({"beam/shards": 4}, "beam.shards: is no option of Beam's: move it under parameters"),
    "unknown to Beam": ({"beam/paralelism": 4}, "beam.paralelism: no such option: see `itel-cabinet run --help`"),
    "runner among Beam's": ({"beam/runner": "FlinkRunner"}, "beam.runner: stands beside job: move it there"),
    "blank among Beam's": (
        {"beam/savepoint_path": None},
        "beam.savepoint_path: is blank: give it a value or leave it out",
    ),
    "text for a number": (
        {"parameters/shards": "four"},
        "parameters.shards: must be a whole number, without quotes, not text",
    ),
    "truth for a number": (
        {"parameters/shards": True},
        "parameters.shards: must be a whole number, without quotes, not true or false",
    ),
    "fraction for a whole": (
        {"parameters/shards": 1.5},
        "parameters.shards: must be a whole number, without quotes, not a number",
    ),
    "number for text": (
        {"parameters/consumer_group": 7},
        "parameters.consumer_group: must be text (in quotes where YAML sees something else), not a number",
    ),
    "text for truth": (
        {"parameters/until_caught_up": "yes"},
        "parameters.until_caught_up: must be true or false, not text",
    ),
    "text for a list": (
        {"parameters/partition_by": "year,month"},
        "parameters.partition_by: must be a list of texts, such as [year, month], not text",
    ),
    "text for a mapping": (
        {"parameters/kafka_config": "{}"},
        "parameters.kafka_config: must be a mapping, such as {security.protocol: SSL}, not text",
    ),
    "text for Beam's number": (
        {"beam/parallelism": "two"},
        "beam.parallelism: invalid int value: 'two': see Beam's own options",
    ),
    "out of range": ({"parameters/shards": 0}, "parameters.shards: Input should be greater than or equal to 1"),
    "against the regex": (
        {"parameters/input_topic": "a topic"},
        "parameters.input_topic: String should match pattern '^[a-zA-Z0-9._-]{1,249}$'",
    ),
    "not of the enumeration": (
        {"parameters/claimx_on_outage": "panic"},
        "parameters.claimx_on_outage: Input should be 'wait' or 'divert'",
    ),
    "bad URL": (
        {"parameters/claimx_url": "claimx"},
        "parameters.claimx_url: must be http(s)://HOST[:PORT][/PATH], got 'claimx'",
    ),
    "required and not there": (
        {"parameters/tables_root": ...},
        "parameters.tables_root is missing: give the folder or object-store URI that holds the tables"
        "; or leave it blank in the template",
    ),
    "no checkpoints": (
        {"beam/checkpointing_interval": ...},
        "beam.checkpointing_interval is missing: without checkpoints nothing flows on Flink; "
        "give milliseconds, 2000 for example",
    ),
    "no job server": (
        {"beam/job_endpoint": ...},
        "beam.job_endpoint is missing: give host:port of Beam's job server for Flink",
    ),
    "relative secret file": (
        {"parameters/claimx_auth": "bearer:file:token"},
        "file:token is relative: in a container it must be absolute, file:/run/secrets/token",
    ),
}


@pytest.mark.parametrize(("changes", "line"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_that_names_the_parameter_and_the_mend(
    write: Write, changes: dict[str, Any], line: str
) -> None:
    assert check_template(write("cabinet.flink", changes)).problems == (line,)


def test_all_mistakes_are_told_at_once(write: Write) -> None:
    template = write(
        "cabinet.flink",
        {
            "parameters/shard": 1,
            "parameters/shards": "four",
            "parameters/max_retries": -1,
            "parameters/tables_root": ...,
            "parameters/claimx_auth": f"bearer:{SECRET}",
            "beam/paralelism": 2,
            "beam/checkpointing_interval": ...,
            "beam/job_endpoint": ...,
        },
    )
    problems = check_template(template).problems
    assert [re.split(r": | is ", problem)[0] for problem in problems] == [
        "parameters.shards",
        "parameters.shard",
        "beam.paralelism",
        "parameters.claimx_auth",
        "parameters.max_retries",
        "parameters.tables_root",
        "beam.checkpointing_interval",
        "beam.job_endpoint",
    ]
    assert SECRET not in "".join(problems)
    assert not any("\n" in problem for problem in problems)


UNREADABLE = {
    "no mapping": ("- job", "mine.yaml: is not a template: it must hold job, runner and parameters"),
    "nothing": ("", "mine.yaml: is not a template: it must hold job, runner and parameters"),
    "no YAML": ("job: [", "mine.yaml:1: is not YAML: expected the node content, but found '<stream end>'"),
    "code": ("job: !!python/name:os.system", "mine.yaml:1: is not YAML: "),
    "no job": ("description: x\nrunner: DirectRunner", "mine.yaml:1: job is missing: add it"),
    "no such job": (
        "description: x\nrunner: DirectRunner\njob: cabinets",
        "mine.yaml:3: job: Input should be 'trigger', 'tracking', 'api' or 'cabinet'",
    ),
    "no such runner": (
        "description: x\njob: api\nrunner: SparkRunner",
        "mine.yaml:3: runner: Input should be 'DirectRunner', 'PrismRunner' or 'FlinkRunner'",
    ),
    "no such key": (
        "description: x\njob: api\nrunner: DirectRunner\nparameter: {}",
        "mine.yaml:4: parameter: no such key: use description, job, runner, parameters, beam, kubernetes",
    ),
    "a number as a name": (
        "description: x\njob: api\nrunner: DirectRunner\nparameters: {5: x}",
        "mine.yaml:4: parameters.5: Input should be a valid string",
    ),
    "incomplete section": (
        "description: x\njob: api\nrunner: FlinkRunner\nkubernetes: {name: x}",
        "mine.yaml:4: kubernetes.image is missing: add it",
    ),
}


@pytest.mark.parametrize(("text", "line"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_template_is_refused_in_one_line(
    text: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    with pytest.raises(TemplateError) as refused:
        load_template("mine.yaml")
    lines = [str(problem) for problem in refused.value.problems]
    assert lines[0].startswith(line)
    assert not any("\n" in one for one in lines)


def test_every_mistake_in_the_shape_is_reported_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("job: cabinets\nrunner: Spark\nparameters: {}\nkubernetes:\n  name: x\n  imag: y\n")
    assert cli.main(["templates", "check", str(file)]) == 1
    places = [
        line.removeprefix(f"itel-cabinet: {file}:").split(": ")[:2] for line in capsys.readouterr().err.splitlines()
    ]
    assert places[:4] == [
        ["1", "description is missing"],
        ["1", "job"],
        ["2", "runner"],
        ["4", "kubernetes.image is missing"],
    ]
    assert places[-1] == ["6", "kubernetes.imag"]


def test_a_template_that_is_not_there() -> None:
    with pytest.raises(TemplateError, match=r"^no/such\.yaml: no such template: give a file, or one of api\.flink, "):
        load_template("no/such.yaml")


# ------------------------------------------------------------------------------------- what may be left, what is warned


def test_options_with_a_variable_may_be_missing_and_the_environment_does_not_matter(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = write("tracking.flink", {"parameters/bootstrap_servers": ..., "parameters/claimx_url": ...})
    monkeypatch.setenv("CLAIMX_API_BASE_URL", "not a URL")
    findings = check_template(template)
    assert (findings.problems, findings.open) == ((), ("bootstrap_servers", "claimx_url", "tables_root"))


def test_unresolved_secrets_are_no_problem(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(SECRET)
    monkeypatch.setenv("GIVEN", SECRET)
    template = write(
        "cabinet.local",
        {
            "parameters/claimx_auth": "basic:env:GIVEN:file:/no/such/file",
            "parameters/itel_auth": f"bearer:file:{tmp_path}/token",
            "parameters/kafka_config": {"sasl.username": "me", "sasl.password": "env:NO_PASSWORD"},
        },
    )
    findings = check_template(template)
    assert findings.problems == ()
    assert findings.unresolved == (
        "parameters.claimx_auth: file:/no/such/file cannot be read: No such file or directory",
        "parameters.kafka_config: env:NO_PASSWORD is not set: "
        "set this environment variable where the job's workers run",
    )


def test_secrets_of_what_the_job_does_not_call_are_not_asked_for(write: Write) -> None:
    assert check_template(
        write("cabinet.local", {"parameters/itel_url": "file:out", "parameters/itel_auth": ...})
    ) == check_template(load_template("cabinet.local"))


# ---------------------------------------------------------------------------------------------------------- launching


def test_a_template_stands_for_its_options_and_the_command_line_wins(write: Write) -> None:
    write(
        "cabinet.flink",
        {
            "parameters/shards": 3,
            "parameters/until_caught_up": True,
            "parameters/partition_by": ["year"],
            "parameters/kafka_config": {"security.protocol": "SSL"},
            "parameters/max_batch_seconds": 0.5,
            "beam/environment_config": {"command": "boot"},
            "beam/allow_non_restored_state": True,
            "beam/wait_until_finish": False,
        },
    )
    job, *arguments = with_template(
        shlex.split(
            "cabinet --bootstrap_servers k:9092 --claimx-url=https://c.example --template mine.yaml "
            "--itel_url=https://i.example --tables_root=/t --shards 8 --parallelism=6 --experiments=mine"
        )
    )
    settings, beam = parse_arguments(job, arguments)
    source = settings.source
    assert (source.bootstrap_servers, source.shards, source.until_caught_up) == ("k:9092", 8, True)
    assert (source.kafka_config, source.max_batch_seconds) == ({"security.protocol": "SSL"}, 0.5)
    assert (settings.claimx.base_url, settings.tables.partition_by) == ("https://c.example", ("year",))
    options = beam.get_all_options(drop_default=True)
    assert options["runner"] == "FlinkRunner"
    assert options["parallelism"] == 6
    assert options["checkpointing_interval"] == 10_000
    assert json.loads(options["environment_config"]) == {"command": "boot"}
    assert options["experiments"] == ["disable_logging_submission_environment", "mine"]
    assert options["allow_non_restored_state"] is True
    assert "wait_until_finish" not in options


def test_an_option_mends_what_is_wrong_in_the_template(write: Write) -> None:
    write("tracking.flink", {"parameters/shards": "four", "beam/checkpointing_interval": ...})
    arguments = with_template(["tracking", "--template=mine.yaml", "--shards=2", "--checkpointing_interval=500"])
    assert arguments[-2:] == ["--shards=2", "--checkpointing_interval=500"]
    assert not [argument for argument in arguments if "four" in argument]


def test_without_a_template_nothing_changes() -> None:
    given = ["cabinet", "--shards", "2", "--streaming", "--tables_root=x"]
    assert with_template(given) == given


REFUSED_LAUNCHES = {
    "another job": (
        ["api", "--template=mine.yaml"],
        "--template: mine.yaml is for the job cabinet: itel-cabinet run cabinet",
    ),
    "no file": (["cabinet", "--template=nowhere"], "nowhere: no such template: give a file, or one of api.flink, "),
    "no value": (["cabinet", "--template"], "--template: give one template: --template=FILE"),
    "two": (
        ["cabinet", "--template=mine.yaml", "--template=mine.yaml"],
        "--template: give one template: --template=FILE",
    ),
    "a mistake": (["cabinet", "--template=mine.yaml"], "mine.yaml:11: parameters.shards: Input should be greater than"),
}


@pytest.mark.parametrize(("given", "line"), REFUSED_LAUNCHES.values(), ids=REFUSED_LAUNCHES)
def test_a_launch_that_is_refused(
    write: Write, given: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("cabinet.flink", {"parameters/shards": 0})
    assert cli.main(["run", *given]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"itel-cabinet: {line}")
    assert printed.err.count("\n") == 1


def test_an_unresolved_secret_of_a_template_fails_the_launch(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write("cabinet.local", {"parameters/claimx_auth": "bearer:env:NO_SUCH_TOKEN"})
    assert cli.main(["run", "cabinet", "--template=mine.yaml"]) == 1
    assert capsys.readouterr().err == (
        "itel-cabinet: --claimx_auth: env:NO_SUCH_TOKEN is not set: "
        "set this environment variable where the job's workers run\n"
    )


def test_a_job_runs_from_a_template(stack: Stack, tmp_path: Path) -> None:
    options = dict(argument[2:].split("=", 1) for argument in stack.command("tracking")[4:])
    file = tmp_path / "mine.yaml"
    parameters: dict[str, Any] = {**options, "form_wait_seconds": 0.1, "tables_root": None}
    file.write_text(
        yaml.safe_dump(
            {"description": "x", "job": "tracking", "runner": "DirectRunner", "parameters": parameters},
        )
    )
    stack.tell(tracking_message(assignment_id=5430001, event_id="evt-1"))
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "itel_cabinet.pipeline.commands", "run", "tracking"),
            *(f"--template={file}", f"--tables_root={stack.tables_root}", "--until_caught_up"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert [(row["event_id"], row["assignment_id"]) for row in stack.tracking()] == [("evt-1", 5430001)]


# ------------------------------------------------------------------------------------------------ rendering a command


def test_the_rendered_command_is_quoted_and_says_the_same_as_the_template() -> None:
    given = ["--bootstrap_servers", "k:9092", "--tables_root=/a folder/it's", "--claimx_url=https://c.example"]
    text, left_open = render_command(load_template("tracking.flink"), given)
    assert left_open == []
    assert text.splitlines()[0] == "python -m itel_cabinet.pipeline.launch tracking \\"
    python, *rest = shlex.split(text.replace("\\\n", ""))  # as a shell does
    assert [python, *rest[:2]] == ["python", "-m", "itel_cabinet.pipeline.launch"]
    assert rest[2:] == with_template(["tracking", "--template=tracking.flink", *given])
    assert parse_arguments(rest[2], rest[3:])[0].tables.root == "/a folder/it's"


def test_the_rendered_command_runs(write: Write) -> None:
    """As far as the first thing that a shell's quoting cannot break: the secret that is not there."""
    template = write(
        "cabinet.local",
        {"parameters/claimx_auth": "bearer:env:NO_SUCH_TOKEN", "parameters/kafka_config": {"client.id": "it's $HOME"}},
    )
    text, _ = render_command(template)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["sh", "-c", text], capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": path}, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("itel-cabinet: --claimx_auth: env:NO_SUCH_TOKEN is not set")


def test_rendering_says_what_is_left_open_and_refuses_what_a_launch_would() -> None:
    template = load_template("cabinet.flink")
    text, left_open = render_command(template, ["--claimx_url=https://c.example"])
    assert left_open == ["bootstrap_servers", "itel_url", "tables_root"]
    assert "unknown-yet" not in text
    for argument, line in (
        ("--shards=0", "--shards: Input should be greater than or equal to 1"),
        ("--shard=1", "--shard: no such option; did you mean --shards?"),
        ("--checkpointing_interval=0", "--checkpointing_interval is missing: "),
    ):
        with pytest.raises(OptionError, match=f"^{re.escape(line)}"):
            render_command(template, [argument])


# ---------------------------------------------------------------------------------------------------------- manifests


def _strict(schema: Any) -> Any:
    """A schema of the Kubernetes API as strict field validation reads it: what is not named is an error."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        strict["additionalProperties"] = False
    return strict


@pytest.fixture(scope="module")
def crd() -> dict[str, Any]:
    version = yaml.safe_load(_CRD.read_text())["spec"]["versions"][0]
    assert version["name"] == "v1beta1"
    strict: dict[str, Any] = _strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    return strict


@pytest.fixture(scope="module")
def pod(crd: dict[str, Any]) -> dict[str, Any]:
    """The specification of any pod, as the operator's API has it."""
    found: dict[str, Any] = crd["properties"]["taskManager"]["properties"]["podTemplate"]["properties"]["spec"]
    return found


def _errors(schema: dict[str, Any], document: Any) -> Iterator[str]:
    for error in Draft202012Validator(schema).iter_errors(document):
        yield f"{error.json_path}: {error.message}"


def _rendered(name: str, *given: str, application: bool = False) -> list[dict[str, Any]]:
    template = load_template(name)
    root = [_ROOT] if template.job.writes_tables else []
    return render_manifests(template, [*root, *given], application=application)


@pytest.mark.parametrize("name", _FLINK)
@pytest.mark.parametrize("application", [False, True], ids=["session", "application"])
def test_the_flink_deployment_is_what_the_operator_takes(crd: dict[str, Any], name: str, application: bool) -> None:
    deployment = _rendered(name, application=application)[0]
    assert (deployment["apiVersion"], deployment["kind"]) == ("flink.apache.org/v1beta1", "FlinkDeployment")
    assert set(deployment) == {"apiVersion", "kind", "metadata", "spec"}
    assert [*_errors(crd, deployment["spec"])] == []


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        ("taskManager/replica", 2, "$.taskManager: Additional properties are not allowed ('replica' was unexpected)"),
        ("flinkVersion", "1.19", "$.flinkVersion: '1.19' is not one of "),
        ("flinkConfiguration/taskmanager.numberOfTaskSlots", 1, "1 is not of type 'string'"),
        ("taskManager/resource/cpu", "1", "$.taskManager.resource.cpu: '1' is not of type 'number'"),
        ("taskManager/podTemplate/spec/containers", {}, "$.taskManager.podTemplate.spec.containers: {} is not of type"),
    ],
)
def test_the_operators_schema_finds_mistakes(crd: dict[str, Any], path: str, value: object, error: str) -> None:
    spec = _rendered("cabinet.flink")[0]["spec"]
    *sections, key = path.split("/")
    place = spec
    for section in sections:
        place = place[section]
    place[key] = value
    (found,) = _errors(crd, spec)
    assert error in found


@pytest.mark.parametrize("name", _FLINK)
def test_the_submitting_job_has_the_shape_of_a_job(pod: dict[str, Any], name: str) -> None:
    """Its pod by the schema that the operator has for pods; the few keys around that by hand."""
    _, job = _rendered(name)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert set(job["spec"]) == {"backoffLimit", "activeDeadlineSeconds", "template"}
    assert job["spec"]["backoffLimit"] == 0
    assert set(job["spec"]["template"]) == {"metadata", "spec"}
    spec = job["spec"]["template"]["spec"]
    assert [*_errors(pod, spec)] == []
    assert spec["restartPolicy"] == "Never"
    assert all({"name", "image"} <= set(container) for container in (*spec["initContainers"], *spec["containers"]))


def test_what_the_session_cluster_is_configured_to() -> None:
    deployment, _ = _rendered("cabinet.flink", "--checkpointing_interval=7000")
    assert deployment["metadata"]["name"] == "itel-cabinet-cabinet"
    spec = deployment["spec"]
    assert "job" not in spec
    assert spec["flinkConfiguration"] == {
        "taskmanager.numberOfTaskSlots": "1",
        "execution.checkpointing.interval": "7000 ms",
        "execution.checkpointing.mode": "EXACTLY_ONCE",
        "execution.checkpointing.timeout": "10 min",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "state.backend.type": "hashmap",
        "state.checkpoints.dir": "file:///flink-state/cabinet/checkpoints",
        "state.checkpoints.num-retained": "3",
        "state.savepoints.dir": "file:///flink-state/cabinet/savepoints",
        "restart-strategy.type": "exponential-delay",
        "restart-strategy.exponential-delay.initial-backoff": "1 s",
        "restart-strategy.exponential-delay.max-backoff": "1 min",
        "high-availability.type": "kubernetes",
        "high-availability.storageDir": "file:///flink-state/cabinet/high-availability",
        "classloader.resolve-order": "parent-first",
        "metrics.reporter.prom.factory.class": "org.apache.flink.metrics.prometheus.PrometheusReporterFactory",
        "metrics.reporter.prom.port": "9249",
    }
    for manager in ("jobManager", "taskManager"):
        pod = spec[manager]["podTemplate"]["spec"]
        assert pod["containers"][0] == {
            "name": "flink-main-container",
            "ports": [{"name": "flink-metrics", "containerPort": 9249}],
            "volumeMounts": [{"name": "flink-state", "mountPath": "/flink-state/cabinet"}],
        }
        claim = {"claimName": "itel-cabinet-flink-state"}
        volumes = [volume for volume in pod["volumes"] if volume["name"] != "temporary"]
        assert volumes == [{"name": "flink-state", "persistentVolumeClaim": claim}]
        assert pod["securityContext"] == {"fsGroup": 9999}


def _from_secret(name: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": "itel-cabinet", "key": name}}}


def _from_config(name: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"configMapKeyRef": {"name": "itel-cabinet", "key": name}}}


CONFINEMENT = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}
_TOKENS = [_from_secret("CLAIMX_API_TOKEN"), _from_secret("ITEL_CABINET_API_TOKEN")]


def test_the_harness_is_a_pool_of_python_workers_beside_each_task_manager() -> None:
    deployment, _ = _rendered("cabinet.flink")
    harness = deployment["spec"]["taskManager"]["podTemplate"]["spec"]["containers"][1]
    assert harness == {
        "name": "python-harness",
        "image": "itel-cabinet:0.1.0",
        "command": ["python", "-m", "apache_beam.runners.worker.worker_pool_main"],
        "args": ["--service_port=50000", "--container_executable=itel-cabinet-worker"],
        "ports": [
            {"name": "harness-pool", "containerPort": 50000},
            {"name": "metrics", "containerPort": 9400},
        ],
        "env": _TOKENS,
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
        "securityContext": CONFINEMENT,
        "volumeMounts": [{"name": "temporary", "mountPath": "/tmp"}],
    }


def test_the_job_submits_the_templates_options_to_the_job_server_beside_it() -> None:
    _, job = _rendered(
        "cabinet.flink", "--bootstrap_servers=k:9092", "--job_endpoint=elsewhere:1", "--environment_type", "PROCESS"
    )
    spec = job["spec"]["template"]["spec"]
    launcher, server = spec["containers"][0], spec["initContainers"][1]
    assert launcher["image"] == "itel-cabinet:0.1.0"
    assert launcher["command"] == ["python", "-m", "itel_cabinet.pipeline.launch"]
    name, *arguments = launcher["args"]
    options = parse_arguments(name, [*arguments, "--claimx_url=https://from.env", "--itel_url=https://from.env"])[
        1
    ].get_all_options(drop_default=True)
    decided = {
        "job_endpoint": "localhost:8099",
        "environment_type": "EXTERNAL",
        "environment_config": "localhost:50000",
        "flink_master": "itel-cabinet-cabinet-rest:8081",
    }
    assert {key: options[key] for key in decided} == decided
    assert [argument for argument in arguments if "elsewhere" in argument or "PROCESS" in argument] == []
    # Given on the command line, the brokers are no variable any more; the rest comes from the config map.
    assert launcher["env"] == [
        _from_config("CLAIMX_API_BASE_URL"),
        _from_config("ITEL_CABINET_API_BASE_URL"),
        *_TOKENS,
    ]
    assert server["restartPolicy"] == "Always"
    assert server["args"][:3] == [
        "--flink-master=itel-cabinet-cabinet-rest:8081",
        "--job-host=localhost",
        "--job-port=8099",
    ]
    assert spec["initContainers"][0]["command"][-1] == (
        "import socket; socket.create_connection(('itel-cabinet-cabinet-rest', 8081), 5)"
    )


def test_secrets_reach_the_pods_by_reference_only(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CLAIMX_API_TOKEN", "KAFKA_PASSWORD", "AZURE_STORAGE_ACCOUNT_KEY"):
        monkeypatch.setenv(variable, SECRET)
    template = write(
        "cabinet.flink",
        {
            "parameters/itel_auth": "api_key:X-Key:file:/run/secrets/itel-key",
            "parameters/kafka_config": {"security.protocol": "SASL_SSL", "sasl.password": "env:KAFKA_PASSWORD"},
            "kubernetes/secret_environment": ["AZURE_STORAGE_ACCOUNT_KEY"],
            "kubernetes/secret": "vault",
            "kubernetes/state_dir": "s3://bucket/flink",
            "kubernetes/state_claim": ...,
        },
    )
    deployment, job = render_manifests(template, [_ROOT])
    harness = deployment["spec"]["taskManager"]["podTemplate"]["spec"]
    launcher = job["spec"]["template"]["spec"]
    for pod_spec, container in ((harness, harness["containers"][1]), (launcher, launcher["containers"][0])):
        secrets = {
            variable["name"]: variable["valueFrom"]["secretKeyRef"]
            for variable in container["env"]
            if "secretKeyRef" in variable["valueFrom"]
        }
        assert secrets == {
            name: {"name": "vault", "key": name}
            for name in ("CLAIMX_API_TOKEN", "KAFKA_PASSWORD", "AZURE_STORAGE_ACCOUNT_KEY")
        }
        # The folder, not the file: a rotated secret would never arrive by a subPath.
        assert container["volumeMounts"] == [
            {"name": "temporary", "mountPath": "/tmp"},
            {"name": "secrets", "mountPath": "/run/secrets", "readOnly": True},
        ]
        items = [{"key": "itel-key", "path": "itel-key"}]
        assert pod_spec["volumes"] == [
            {"name": "temporary", "emptyDir": {"sizeLimit": "2Gi"}},
            {"name": "secrets", "secret": {"secretName": "vault", "items": items}},
        ]
    assert SECRET not in json.dumps([deployment, job])
    assert deployment["spec"]["flinkConfiguration"]["state.savepoints.dir"] == "s3://bucket/flink/savepoints"
    assert "flink-state" not in json.dumps(deployment)


def test_a_value_cannot_break_out_of_its_place(write: Write, crd: dict[str, Any]) -> None:
    nasty = "a: [}\n  image: 'evil' # ${x} $name"
    template = write("tracking.flink", {"kubernetes/image": nasty, "parameters/consumer_group": nasty})
    deployment, job = render_manifests(template, [_ROOT])
    assert deployment["spec"]["taskManager"]["podTemplate"]["spec"]["containers"][1]["image"] == nasty
    assert f"--consumer_group={nasty}" in job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [*_errors(crd, deployment["spec"])] == []


def test_an_application_is_the_cluster_with_the_job_in_it() -> None:
    (application,) = _rendered("tracking.flink", "--parallelism=3", application=True)
    session, _ = _rendered("tracking.flink", "--parallelism=3")
    assert application["spec"].pop("job") == {
        "jarURI": "local:///opt/flink/usrlib/tracking.jar",
        "entryClass": "org.apache.beam.runners.flink.FlinkPipelineRunner",
        "parallelism": 3,
        "upgradeMode": "savepoint",
        "state": "running",
    }
    assert application == session


UNRENDERABLE = {
    "no Flink": ("cabinet.local", {}, "mine.yaml: Kubernetes needs runner: FlinkRunner and a section kubernetes"),
    "open": ("tracking.flink", {}, "--tables_root is left open by mine.yaml: give it"),
    "a claim for a bucket": (
        "trigger.flink",
        {"kubernetes/state_dir": "s3://bucket/x"},
        "mine.yaml:25: kubernetes.state_claim: goes with a state_dir that begins with file:///: leave one out",
    ),
    "a secret in a folder that is not its own": (
        "trigger.flink",
        {"parameters/claimx_auth": "bearer:file:/run/x"},
        "mine.yaml: file:/run/x: its folder is mounted whole, so it must be one of its own: file:/run/secrets/x",
    ),
    "two secrets, one key": (
        "trigger.flink",
        {
            "parameters/claimx_auth": "bearer:file:/a/x/token",
            "parameters/kafka_config": {"sasl.password": "file:/b/x/token"},
        },
        "mine.yaml: file:/b/x/token: another secret's file is called token too: rename one of them",
    ),
}


@pytest.mark.parametrize(("name", "changes", "line"), UNRENDERABLE.values(), ids=UNRENDERABLE)
def test_what_cannot_be_rendered(write: Write, name: str, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(OptionError) as refused:
        render_manifests(write(name, changes))
    assert str(refused.value) == line


# ------------------------------------------------------------------------------------------------------------- schema


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    committed: dict[str, Any] = json.loads((_PROJECT / "templates" / "template.schema.json").read_text())
    Draft202012Validator.check_schema(committed)
    return committed


def test_the_schema_is_made_of_the_options(schema: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["templates", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema, (
        "the options have changed: itel-cabinet templates schema > templates/template.schema.json"
    )
    options = schema["properties"]["parameters"]["properties"]
    assert {*options} == {*option_fields(), *OLD_NAMES} - {"job"}
    assert all(option["description"] for option in options.values())
    assert options["shards"] == {
        "anyOf": [{"maximum": 1024, "minimum": 1, "type": "integer"}, {"type": "null"}],
        "default": 1,
        "description": "Shards that read side by side; partitions are dealt out.",
    }
    assert options["claimx_on_outage"]["anyOf"][0] == {"enum": ["wait", "divert"], "type": "string"}
    assert options["world_retry_seconds"]["deprecated"]


@pytest.mark.parametrize("name", list_templates())
def test_a_shipped_template_names_the_schema_and_keeps_to_it(schema: dict[str, Any], name: str) -> None:
    text = (_PROJECT / "templates" / f"{name}.yaml").read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=template.schema.json"
    jsonschema.validate(yaml.safe_load(text), schema)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"job": "cabinets"}, "'cabinets' is not one of "),
        ({"parameters": {"shard": 1}}, "Additional properties are not allowed ('shard' was unexpected)"),
        ({"parameters": {"shards": "four"}}, "'four' is not valid under any of the given schemas"),
        ({"parameters": {"shards": 0}}, "0 is not valid under any of the given schemas"),
        ({"parameters": {"input_topic": "a topic"}}, "'a topic' is not valid under any of the given schemas"),
        ({"parameters": {"partition_by": "year"}}, "'year' is not valid under any of the given schemas"),
        ({"parameter": {}}, "Additional properties are not allowed ('parameter' was unexpected)"),
    ],
)
def test_the_schema_finds_mistakes(schema: dict[str, Any], change: dict[str, Any], error: str) -> None:
    template = {"description": "Mine.", "job": "api", "runner": "DirectRunner", **change}
    (found,) = Draft202012Validator(schema).iter_errors(template)
    assert found.message.startswith(error)


# ----------------------------------------------------------------------------------------------------- on the command


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["templates", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list_templates()
    assert rows[-2] == {
        "name": "trigger.flink",
        "job": "trigger",
        "runner": "FlinkRunner",
        "description": "ClaimX's events into task events.",
        "given_at_launch": ["bootstrap_servers", "claimx_url"],
    }
    assert cli.main(["templates", "list"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in (*list_templates(), "bootstrap_servers", "tables_root"))


def test_check_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["templates", "check"]) == 0
    printed = capsys.readouterr()
    assert [line.partition(":")[0] for line in printed.out.splitlines()] == list_templates()
    assert "trigger.flink: fine; to be given at launch: bootstrap_servers, claimx_url\n" in printed.out
    assert printed.err.splitlines()[0] == (
        "itel-cabinet: warning: api.flink:9: parameters.claimx_auth: env:CLAIMX_API_TOKEN is not set: "
        "set this environment variable where the job's workers run"
    )


def test_check_of_files_with_mistakes(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write("trigger.local", {"parameters/shards": "four", "parameters/max_retrys": 2})
    written = Path("mine.yaml").read_text().splitlines()
    assert cli.main(["templates", "check", "mine.yaml", "nowhere.yaml", "api.local"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "api.local: fine\n"
    lines = printed.err.splitlines()
    assert lines[:2] == [
        f"itel-cabinet: mine.yaml:{written.index('  shards: four') + 1}: parameters.shards: must be a whole number, "
        "without quotes, not text",
        f"itel-cabinet: mine.yaml:{written.index('  max_retrys: 2') + 1}: parameters.max_retrys: no such parameter: "
        "did you mean max_retries?",
    ]
    assert lines[2].startswith("itel-cabinet: nowhere.yaml: no such template: ")
    assert len(lines) == 3


def test_render(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["templates", "render", "trigger.flink", "--shards", "9"]) == 0
    printed = capsys.readouterr()
    assert shlex.split(printed.out)[:4] == ["python", "-m", "itel_cabinet.pipeline.launch", "trigger"]
    assert shlex.split(printed.out)[-1] == "--shards=9"
    assert printed.err == "itel-cabinet: left open, to be added: --bootstrap_servers, --claimx_url\n"

    assert cli.main(["templates", "render", "trigger.flink", "--format=kubernetes", "--shards", "9"]) == 0
    assert [*yaml.safe_load_all(capsys.readouterr().out)] == render_manifests(
        load_template("trigger.flink"), ["--shards=9"]
    )

    assert cli.main(["templates", "render", "trigger.flink", "--format", "application"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["spec"]["job"]["upgradeMode"] == "savepoint"


@pytest.mark.parametrize(
    ("given", "status", "line"),
    [
        (["nowhere"], 1, "nowhere: no such template: "),
        (["trigger.local", "--format=kubernetes"], 1, "trigger.local: Kubernetes needs runner: FlinkRunner and "),
        (["trigger.flink", "--shards=0"], 2, "--shards: Input should be greater than or equal to 1"),
        (["tracking.flink", "--format=kubernetes"], 2, "--tables_root is left open by tracking.flink: give it"),
        (
            ["trigger.flink", "--format=helm"],
            2,
            "Invalid value for '--format': Value error, 'helm' is not one of 'command', ",
        ),
    ],
)
def test_render_refuses_in_one_line(
    given: list[str], status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["templates", "render", *given]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"itel-cabinet: {line}")
    assert printed.err.count("\n") == 1


# --------------------------------------------------------------------------------------------------------- the image


def test_the_image_has_the_versions_and_the_rooms_of_the_project() -> None:
    dockerfile = (_PROJECT / "Dockerfile").read_text()
    (beam,) = re.findall(r"^apache-beam==(\S+)$", (_PROJECT / "constraints.txt").read_text(), re.MULTILINE)
    assert f"ARG BEAM={beam}\n" in dockerfile
    (rooms,) = re.findall(r"^ROOMS = (\(.*\))$", (_PROJECT / "setup.py").read_text(), re.MULTILINE)
    for room in re.findall(r'"(\w+)"', rooms):
        assert f"COPY {room} {room}\n" in dockerfile
    (version,) = re.findall(r'^version = "(.*)"$', (_PROJECT / "pyproject.toml").read_text(), re.MULTILINE)
    for name in _FLINK:
        kubernetes = load_template(name).kubernetes
        assert kubernetes is not None
        assert kubernetes.image == f"itel-cabinet:{version}"
        assert kubernetes.job_server_image.endswith(f":{beam}")
