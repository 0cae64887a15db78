"""Every option: what it falls back to, what it refuses, and that a refusal is one line with the mend in it."""

from __future__ import annotations

from typing import Any

import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, SetupOptions, StandardOptions
from pydantic import BaseModel

from itel_cabinet.io.http import BreakerSettings, TlsFiles
from itel_cabinet.pipeline.jobs import Job
from itel_cabinet.pipeline.launch import parse_arguments
from itel_cabinet.pipeline.launch.arguments import find_old_names
from itel_cabinet.pipeline.options import ENVIRONMENT, OptionError, Settings, option_fields

SECRET = "hunter2-very-secret"
ENOUGH = (
    "--bootstrap_servers=broker:9092",
    "--claimx_url=https://claimx.example",
    "--itel_url=https://itel.example",
    "--tables_root=/data/tables",
)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)


def parse(*arguments: str, job: str = "cabinet") -> Settings:
    return parse_arguments(job, [*ENOUGH, *arguments])[0]


def by_option(settings: Settings) -> dict[str, Any]:
    """The values by the names of their options."""
    groups = settings.model_dump(by_alias=True)
    flat = {name: value for name, value in groups.items() if not isinstance(getattr(settings, name), BaseModel)}
    for name in groups.keys() - flat.keys():
        flat |= groups[name]
    return flat


def refusal(*arguments: str, job: str = "cabinet", given: tuple[str, ...] = ENOUGH) -> str:
    """What is said of these arguments."""
    with pytest.raises(OptionError) as caught:
        parse_arguments(job, [*given, *arguments])
    return str(caught.value)


def without(option: str) -> tuple[str, ...]:
    return tuple(argument for argument in ENOUGH if not argument.startswith(f"--{option}="))


# -- defaults


@pytest.mark.parametrize(
    ("job", "defaults"),
    [
        (
            "trigger",
            {
                "input_topic": "claimx.events.enriched",
                "consumer_group": "itel_cabinet_trigger_group",
                "max_batch_records": 500,
                "max_batch_seconds": 0.02,
                "dead_letter_topic": "itel.cabinet.task.tracking.errors",
            },
        ),
        (
            "tracking",
            {
                "input_topic": "itel.cabinet.task.tracking",
                "consumer_group": "itel_cabinet_tracking_worker_group",
                "max_batch_records": 10_000,
                "max_batch_seconds": 0.5,
                "dead_letter_topic": "itel.cabinet.task.tracking.errors",
            },
        ),
        (
            "api",
            {
                "input_topic": "itel.cabinet.task.tracking",
                "consumer_group": "itel_cabinet_api_worker_group",
                "max_batch_records": 500,
                "max_batch_seconds": 0.5,
                "dead_letter_topic": "itel.cabinet.api.errors",
            },
        ),
        (
            "cabinet",
            {
                "input_topic": "itel.cabinet.task.tracking",
                "consumer_group": "itel_cabinet_group",
                "max_batch_records": 500,
                "max_batch_seconds": 0.5,
                "dead_letter_topic": "itel.cabinet.task.tracking.errors",
            },
        ),
    ],
)
def test_each_job_has_its_defaults(job: str, defaults: dict[str, Any]) -> None:
    settings = parse(job=job)
    assert settings.job is Job(job)
    assert by_option(settings).items() >= defaults.items()


def test_the_defaults_that_all_jobs_share() -> None:
    shared = {
        "start_offset": "earliest",
        "shards": 1,
        "until_caught_up": False,
        "outage_patience_seconds": 120.0,
        "claimx_auth": "bearer:env:CLAIMX_API_TOKEN",
        "claimx_task_path": "/customTasks/assignment/{assignment_id}?full=true",
        "claimx_cache_seconds": 60.0,
        "claimx_on_outage": "wait",
        "claimx_deadline_seconds": 30.0,
        "form_wait_seconds": 1.0,
        "itel_auth": "bearer:env:ITEL_CABINET_API_TOKEN",
        "itel_idempotency_header": "Idempotency-Key",
        "itel_statuses": ("COMPLETED",),
        "itel_deadline_seconds": 30.0,
        "max_retries": 9,
        "dead_letter_max_bytes": 900_000,
        "itel_errors_topic": "itel.cabinet.api.errors",
        "itel_success_topic": "itel.cabinet.api.success",
        "tracking_success_topic": "",
        "partition_by": ("year", "month", "day"),
        "kafka_config": {},
    }
    for job in Job:
        assert by_option(parse(job=job)).items() >= shared.items()


def test_a_given_option_wins_over_the_jobs() -> None:
    source = parse("--input_topic=mine", "--max_batch_records=7", "--max_batch_seconds=0.5").source
    assert (source.topic, source.max_batch_records, source.max_batch_seconds) == ("mine", 7, 0.5)
    assert source.group == "itel_cabinet_group"


def test_every_option_is_described_in_a_sentence() -> None:
    for name, field in option_fields().items():
        assert field.description, name
        assert field.description[-1] in ".", name


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse().source.shards = 2


# -- how options are written


@pytest.mark.parametrize(
    "arguments", [("--shards=4",), ("--shards", "4"), ("--shards=2", "--shards=4")], ids=["equals", "space", "last"]
)
def test_a_value_may_follow_an_equals_sign_or_a_space(arguments: tuple[str, ...]) -> None:
    assert parse(*arguments).source.shards == 4


def test_hyphens_do_for_underscores() -> None:
    assert parse("--max-batch-records=4").source.max_batch_records == 4


def test_a_value_may_hold_an_equals_sign() -> None:
    settings = parse("--claimx_task_path=/a/{assignment_id}?full=true&x=1")
    assert settings.claimx.task_path == "/a/{assignment_id}?full=true&x=1"


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (("--until_caught_up",), True),
        (("--until_caught_up", "--shards=2"), True),
        (("--until_caught_up=true",), True),
        (("--until_caught_up", "true"), True),
        (("--until_caught_up=false",), False),
        (("--until_caught_up", "false", "--shards=2"), False),
        ((), False),
    ],
)
def test_a_switch_needs_no_value(arguments: tuple[str, ...], value: bool) -> None:
    assert parse(*arguments).source.until_caught_up is value


def test_lists_and_objects() -> None:
    settings = parse(
        "--itel_statuses= completed, In_Progress,",
        '--kafka_config={"security.protocol": "SASL_SSL", "socket.keepalive.enable": true, "retries": 5}',
        '--storage_options={"allow_http": true, "aws_access_key_id": "AKIA1", "azure_federated_token_file": "/t"}',
        "--partition_by=year",
    )
    assert settings.itel.statuses == ("completed", "In_Progress")
    assert settings.submitted_statuses == frozenset({"COMPLETED", "IN_PROGRESS"})
    assert settings.source.kafka_config == {
        "security.protocol": "SASL_SSL",
        "socket.keepalive.enable": "true",
        "retries": "5",
    }
    assert settings.tables.storage_options["allow_http"] == "true"
    assert settings.tables.partition_by == ("year",)


# -- the environment


def test_the_briefs_environment_names_are_fallbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "env:9092")
    monkeypatch.setenv("CLAIMX_API_BASE_URL", "https://claimx.env.example")
    monkeypatch.setenv("ITEL_CABINET_API_BASE_URL", "https://itel.env.example")
    from_environment, _ = parse_arguments("cabinet", ["--tables_root=t"])
    assert (
        from_environment.source.bootstrap_servers,
        from_environment.claimx.base_url,
        from_environment.itel.base_url,
    ) == (
        "env:9092",
        "https://claimx.env.example",
        "https://itel.env.example",
    )
    given = parse()
    assert (given.source.bootstrap_servers, given.claimx.base_url, given.itel.base_url) == (
        "broker:9092",
        "https://claimx.example",
        "https://itel.example",
    )


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAIMX_API_BASE_URL", "")
    assert refusal(given=without("claimx_url")).startswith("--claimx_url is missing")


def test_a_bad_url_in_the_environment_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAIMX_API_BASE_URL", "claimx.example")
    assert refusal(given=without("claimx_url")) == (
        "--claimx_url: must be http(s)://HOST[:PORT][/PATH], got 'claimx.example'"
    )


# -- refusals


@pytest.mark.parametrize(
    ("option", "job", "line"),
    [
        (
            "bootstrap_servers",
            "trigger",
            "--bootstrap_servers is missing: give it or set KAFKA_BOOTSTRAP_SERVERS",
        ),
        ("claimx_url", "trigger", "--claimx_url is missing: give ClaimX's base URL or set CLAIMX_API_BASE_URL"),
        (
            "itel_url",
            "api",
            "--itel_url is missing: give iTel's base URL or set ITEL_CABINET_API_BASE_URL "
            "(file:DIR writes the payloads to a folder)",
        ),
        (
            "tables_root",
            "tracking",
            "--tables_root is missing: give the folder or object-store URI that holds the tables",
        ),
    ],
)
def test_a_missing_option_is_named_with_its_mend(option: str, job: str, line: str) -> None:
    assert refusal(job=job, given=without(option)) == line


@pytest.mark.parametrize(
    ("job", "unneeded"),
    [
        ("trigger", ["itel_url", "tables_root"]),
        ("tracking", ["itel_url"]),
        ("api", ["tables_root"]),
    ],
)
def test_a_job_asks_only_for_what_it_uses(job: str, unneeded: list[str]) -> None:
    given = [argument for argument in ENOUGH if argument[2:].partition("=")[0] not in unneeded]
    settings, _ = parse_arguments(job, given)
    assert not any(by_option(settings)[option] for option in unneeded)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        # unknown
        (["--max_batch_record=5"], "--max_batch_record: no such option; did you mean --max_batch_records?"),
        (["--consumer-grup", "x"], "--consumer-grup: no such option; did you mean --consumer_group?"),
        (["--zzz=1"], "--zzz: no such option: see `itel-cabinet run --help`"),
        (["shards=4"], "shards=4: not an option: options are written --name=value"),
        (["-s", "4"], "-s: not an option: options are written --name=value"),
        (["--job=api"], "--job: the job's name stands before the options: itel-cabinet run JOB --name=value"),
        # without a value
        (["--shards"], "--shards: a value is missing: write --shards=VALUE"),
        (["--input_topic", "--shards=2"], "--input_topic: a value is missing: write --input_topic=VALUE"),
        # of a wrong type or out of range
        (["--shards=four"], "--shards: Input should be a valid integer, unable to parse string as an integer"),
        (["--shards=0"], "--shards: Input should be greater than or equal to 1"),
        (["--max_retries=-1"], "--max_retries: Input should be greater than or equal to 0"),
        (["--claimx_deadline_seconds=0"], "--claimx_deadline_seconds: Input should be greater than 0"),
        (["--itel_read_timeout_seconds=0"], "--itel_read_timeout_seconds: Input should be greater than 0"),
        (["--itel_calls_per_second=-1"], "--itel_calls_per_second: Input should be greater than or equal to 0"),
        (["--itel_client_key=/k"], "--itel_client_key: has no use without client_cert"),
        (["--breaker_failure_share=2"], "--breaker_failure_share: Input should be less than or equal to 1"),
        (
            ["--claimx_auth=oauth2:id.example/token:env:A:env:B"],
            "--claimx_auth: the token URL of oauth2 must be http(s)://HOST[:PORT][/PATH], without a user",
        ),
        (["--max_batch_seconds=inf"], "--max_batch_seconds: Input should be a finite number"),
        (["--max_batch_seconds=nan"], "--max_batch_seconds: Input should be a finite number"),
        (
            ["--until_caught_up=maybe"],
            "--until_caught_up: Input should be a valid boolean, unable to interpret input",
        ),
        (["--start_offset=newest"], "--start_offset: Input should be 'earliest' or 'latest'"),
        (["--claimx_on_outage=skip"], "--claimx_on_outage: Input should be 'wait' or 'divert'"),
        (["--input_topic=a topic"], "--input_topic: String should match pattern '^[a-zA-Z0-9._-]{1,249}$'"),
        (["--consumer_group="], "--consumer_group: String should have at least 1 character"),
        (["--itel_statuses=,"], "--itel_statuses: Tuple should have at least 1 item after validation, not 0"),
        # bad JSON
        *[
            (
                [f"--{option}={value}"],
                f'--{option}: must be a JSON object of texts and numbers such as {{"name": "value"}}',
            )
            for option in ("kafka_config", "storage_options")
            for value in ("{", "[]", "3", "", "a=b", '{"a": {"b": 1}}', '{"a": null}', "[" * 100_000)
        ],
        # bad URLs and paths
        (["--claimx_url=claimx"], "--claimx_url: must be http(s)://HOST[:PORT][/PATH], got 'claimx'"),
        (["--itel_url=ftp://itel"], "--itel_url: must be http(s)://HOST[:PORT][/PATH], got 'ftp://itel'"),
        (["--itel_url="], "--itel_url: must be http(s)://HOST[:PORT][/PATH], got ''"),
        (["--itel_url=file:"], "--itel_url: file: must be followed by a folder, got 'file:'"),
        (["--itel_url=file://host/x"], "--itel_url: write file:DIR or file:///DIR, got 'file://host/x'"),
        (["--claimx_task_path=/task"], "--claimx_task_path: must begin with / and hold {assignment_id}, got '/task'"),
        (["--tables_root="], "--tables_root is missing: give the folder or object-store URI that holds the tables"),
        # contradictions
        (
            ['--kafka_config={"enable.auto.commit": true}'],
            "--kafka_config: enable.auto.commit cannot be set: offsets are committed after the sinks, never by a timer",
        ),
        (
            ['--kafka_config={"bootstrap.servers": "x:1"}'],
            "--kafka_config: bootstrap.servers cannot be set: use --bootstrap_servers",
        ),
        (['--kafka_config={"group.id": "x"}'], "--kafka_config: group.id cannot be set: use --consumer_group"),
        (
            ['--kafka_config={"isolation.level": "read_uncommitted"}'],
            "--kafka_config: isolation.level cannot be set: aborted transactions must not be read",
        ),
    ],
    ids=lambda value: value[0][:50] if isinstance(value, list) else "",
)
def test_a_refusal_is_one_line_that_names_the_option(arguments: list[str], line: str) -> None:
    assert refusal(*arguments) == line
    assert "\n" not in line


def test_a_job_that_does_not_exist() -> None:
    assert refusal(job="tracker") == "tracker: no such job: use one of trigger, tracking, api, cabinet"


@pytest.mark.parametrize(
    ("argument", "option"),
    [
        (f"--claimx_auth={SECRET}", "--claimx_auth: "),
        (f"--claimx_auth=bearer:{SECRET}", "--claimx_auth: "),
        (f"--claimx_auth=basic:env:USER:{SECRET}", "--claimx_auth: "),
        (f"--itel_auth=api_key:X-Key:{SECRET}", "--itel_auth: "),
        (f"--itel_auth=bearer:env:{SECRET}", "--itel_auth: "),
        (f"--claimx_url=https://user:{SECRET}@claimx.example", "--claimx_url: "),
        (f'--kafka_config={{"sasl.password": "{SECRET}"}}', "--kafka_config: sasl.password "),
        (f'--storage_options={{"azure_storage_account_key": "{SECRET}"}}', "--storage_options: azure_storage_acc"),
        (f'--storage_options={{"AWS_SECRET_ACCESS_KEY": "{SECRET}"}}', "--storage_options: AWS_SECRET_ACCESS_KEY "),
        (f'--storage_options={{"sas_token": "{SECRET}"}}', "--storage_options: sas_token "),
    ],
)
@pytest.mark.parametrize("more", [(), ("--itel_url=file:out",)], ids=["api", "folder"])
def test_a_secret_in_an_option_is_refused_and_not_repeated(argument: str, option: str, more: tuple[str, ...]) -> None:
    line = refusal(*more, argument)
    assert line.startswith(option)
    assert SECRET not in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "auth",
    ["none", "bearer:env:TOKEN", "bearer:file:/run/secrets/t", "basic:env:U:file:/p", "api_key:X-Key:env:KEY"],
)
def test_references_are_kept_as_they_are(auth: str) -> None:
    settings = parse(f"--claimx_auth={auth}", f"--itel_auth={auth}", '--kafka_config={"sasl.password": "env:P"}')
    assert settings.claimx_connection().auth == settings.itel_connection().auth == auth
    assert settings.source.kafka_config == {"sasl.password": "env:P"}


def test_every_mistake_is_reported() -> None:
    with pytest.raises(OptionError) as caught:
        parse_arguments("cabinet", ["fast", "--shard=2", "--shards=0", "--itel_url=itel", "--itel_batch_size"])
    assert [problem.field for problem in caught.value.problems] == [
        None,
        "itel_batch_size",
        "shard",
        "bootstrap_servers",
        "shards",
        "claimx_url",
        "itel_url",
        "tables_root",
    ]
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("given", [("--world_retry_seconds=7",), ("--world-retry-seconds", "7")])
def test_an_old_name_still_works(given: tuple[str, ...]) -> None:
    assert parse(*given).outage_patience_seconds == 7.0
    assert find_old_names(given) == {"world_retry_seconds": "outage_patience_seconds"}
    mapped = {"job": "trigger", "bootstrap_servers": "b:1", "claimx_url": "https://c.example"}
    assert Settings.of({**mapped, "world_retry_seconds": 7}).outage_patience_seconds == 7.0


def test_settings_from_a_mapping_are_checked_likewise() -> None:
    given = {"job": "tracking", "bootstrap_servers": "b:1", "claimx_url": "https://c.example", "tables_root": "t"}
    assert Settings.of(given).source.group == "itel_cabinet_tracking_worker_group"
    with pytest.raises(OptionError, match=r"^--shard: no such option; did you mean --shards\?$"):
        Settings.of({**given, "shard": 2})
    with pytest.raises(OptionError, match=r"^--job is missing: give it$"):
        Settings.of({name: value for name, value in given.items() if name != "job"})
    with pytest.raises(OptionError, match=r"^--job: Input should be 'trigger', 'tracking', 'api' or 'cabinet'$"):
        Settings.of({**given, "job": "tracker"})


# -- what the settings become


def test_the_connections_take_their_options() -> None:
    settings = parse(
        "--claimx_deadline_seconds=5",
        "--itel_deadline_seconds=6",
        "--max_retries=2",
        "--http_concurrency=3",
        "--itel_auth=none",
    )
    claimx, itel = settings.claimx_connection(), settings.itel_connection()
    assert (claimx.name, claimx.base_url, claimx.auth) == (
        "claimx",
        "https://claimx.example",
        "bearer:env:CLAIMX_API_TOKEN",
    )
    assert (itel.name, itel.base_url, itel.auth) == ("itel", "https://itel.example", "none")
    assert (claimx.deadline_seconds, itel.deadline_seconds) == (5.0, 6.0)
    assert (claimx.max_retries, itel.max_retries, claimx.concurrency, itel.concurrency) == (2, 2, 3, 3)


@pytest.mark.parametrize("api", ["claimx", "itel"])
def test_each_connection_has_its_own_bounds_and_files(api: str) -> None:
    settings = parse(
        f"--{api}_connect_timeout_seconds=1",
        f"--{api}_read_timeout_seconds=2",
        f"--{api}_calls_per_second=3.5",
        f"--{api}_ca=/tls/ca.pem",
        f"--{api}_client_cert=/tls/job.crt",
        f"--{api}_client_key=/tls/job.key",
        "--breaker_failure_share=0.5",
        "--breaker_window_seconds=30",
        "--breaker_open_seconds=0",
    )
    links = {"claimx": settings.claimx_connection(), "itel": settings.itel_connection()}
    link = links.pop(api)
    assert (link.connect_timeout_seconds, link.read_timeout_seconds, link.calls_per_second) == (1.0, 2.0, 3.5)
    assert link.tls == TlsFiles("/tls/ca.pem", "/tls/job.crt", "/tls/job.key")
    [other] = links.values()
    assert (other.connect_timeout_seconds, other.read_timeout_seconds, other.calls_per_second) == (5.0, 10.0, 0.0)
    assert other.tls == TlsFiles()
    assert link.breaker == other.breaker == BreakerSettings(0.5, 30.0, 0.0)


def test_beams_own_options_pass_through() -> None:
    settings, beams = parse_arguments(
        "cabinet",
        [
            *ENOUGH,
            "--runner",
            "FlinkRunner",
            "--shards=2",
            "--streaming",
            "--setup_file=./setup.py",
            "--direct_num_workers",
            "2",
            "--parallelism=4",  # known to Beam's job server alone
            "--checkpointing_interval",
            "10000",
        ],
    )
    assert settings.source.shards == 2
    assert isinstance(beams, PipelineOptions)
    assert (beams.view_as(StandardOptions).runner, beams.view_as(StandardOptions).streaming) == ("FlinkRunner", True)
    assert beams.view_as(SetupOptions).setup_file == "./setup.py"
    assert beams.view_as(DirectOptions).direct_num_workers == 2
    kept = beams.get_all_options(retain_unknown_options=True)
    assert (str(kept["parallelism"]), str(kept["checkpointing_interval"])) == ("4", "10000")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--direct_num_workers=x"], "--direct_num_workers: invalid int value: 'x': see Beam's own options"),
        (["--direct_num_workers"], "--direct_num_workers: expected one argument: see Beam's own options"),
        (["--runnr=FlinkRunner"], "--runnr: no such option: see `itel-cabinet run --help`"),
        (["--parallelisms=4"], "--parallelisms: no such option: see `itel-cabinet run --help`"),
    ],
)
def test_a_wrong_option_of_beams_is_one_line_too(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(*arguments) == line
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
