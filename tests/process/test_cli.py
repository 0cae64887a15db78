"""Each command of `itel-cabinet`, by what it prints and what it leaves behind."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import requests
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from deltalake import DeltaTable
from pydantic_core import to_json

from itel_cabinet.io.delta import FencedTable
from itel_cabinet.io.kafka import Cluster
from itel_cabinet.local.samples import Generator, Shares, produce
from itel_cabinet.local.services import Broker, free_port
from itel_cabinet.local.simulators import ClaimXSimulator
from itel_cabinet.pipeline.commands import main
from itel_cabinet.pipeline.commands.app import root_command
from itel_cabinet.pipeline.commands.examples import EXAMPLES
from itel_cabinet.pipeline.launch import parse_arguments, with_template
from itel_cabinet.pipeline.operate import NotAnAnswerError, preview_answer
from itel_cabinet.pipeline.options import ENVIRONMENT, Settings, option_fields
from itel_cabinet.pipeline.tables import ATTACHMENTS, BODIES, FORMS, LEDGER, TRACKING, table_specs
from itel_cabinet.pipeline.topics import TOPICS
from itel_cabinet.transforms.rows import make_tracking_row
from tests.conftest import TopicFactory
from tests.support.cabinet_samples import EXAMPLE, answer, event, group, question, record
from tests.support.jobs import Stack, wait_for
from tests.support.printed import Printed

COMMAND = str(Path(sys.executable).with_name("itel-cabinet"))
NOW = datetime(2026, 1, 10, 16, tzinfo=UTC)
TABLES = (TRACKING, FORMS, ATTACHMENTS, LEDGER, BODIES)
# What a row has from its event, or from the moment it is written.
OF_THE_RUN = {"event_id", "event_timestamp", "ingested_at", "created_at", "updated_at"} | {
    f"kafka_{part}" for part in ("topic", "topic_id", "partition", "offset")
}


# --------------------------------------------------------------------------------------------------------- the command


def test_version_of_the_installed_command() -> None:
    assert subprocess.check_output([COMMAND, "--version"], text=True, timeout=60) == version("itel-cabinet") + "\n"


# What takes longest to import, of what a command may be able to do without.
HEAVY = ("apache_beam", "confluent_kafka", "deltalake", "duckdb", "obstore", "pyarrow", "pydantic", "requests", "rich")
IMPORTS = {
    "--version": "",
    "--help": "rich",
    **dict.fromkeys((f"{name} --help" for name in (
        *("query", "lag", "topics", "topics create", "tables", "tables fence set", "media backfill", "contract check"),
        *("dead-letters", "dead-letters replay", "offsets reset", "monitoring export", "templates list"),
    )), "pydantic rich"),
    "contract show vendor": "pydantic rich",
    "preview {answer}": "pyarrow pydantic",
    "lag --bootstrap_servers=127.0.0.1:1": "confluent_kafka pydantic rich",
    "topics create --bootstrap_servers=127.0.0.1:1": "confluent_kafka pydantic rich",
    "offsets show --group=g --topic=t --bootstrap_servers=127.0.0.1:1": "confluent_kafka pydantic rich",
    "tables create --tables_root={root}": "confluent_kafka deltalake obstore pyarrow pydantic requests rich",
    "query latest-events --tables_root={root}":
        "confluent_kafka deltalake duckdb obstore pyarrow pydantic requests rich",
}  # fmt: skip
WATCHED = """
import sys
from itel_cabinet.pipeline.commands import main, shared
shared.BROKER_SECONDS = 0.1
main(sys.argv[1:])
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize("command", IMPORTS)
def test_a_command_imports_no_more_than_it_needs(command: str, tmp_path: Path, form_answer: bytes) -> None:
    (tmp_path / "answer.json").write_bytes(form_answer)
    given = shlex.split(command.format(answer=tmp_path / "answer.json", root=tmp_path / "tables"))
    ended = subprocess.run(
        [sys.executable, "-c", WATCHED, *given], capture_output=True, text=True, timeout=60, check=True
    )
    assert {*ended.stderr.splitlines()[-1].split()} & {*HEAVY} <= {*IMPORTS[command].split()}


def test_no_module_behind_a_command_imports_beam_but_for_running_a_job() -> None:
    program = """
import importlib, sys
for part in ("commands.status_view", "queries", "topics", *(
    "operate." + part for part in ("dead_letters", "observation", "replay", "report", "topics", "verdict")
)):
    importlib.import_module("itel_cabinet.pipeline." + part)
for part in ("delta.fences", "delta.maintenance", "kafka.groups"):
    importlib.import_module("itel_cabinet.io." + part)
sys.exit("apache_beam" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def loaded(name: str, group: Any) -> Any:
    """A command as it is run; lists have a stand-in."""
    return group.resolve_command(group.make_context(group.name, [name]), [name])[1]


def test_the_list_of_commands_says_of_each_what_it_says_itself(printed: Printed) -> None:
    listed = printed.stdout("--help")
    root = root_command()
    context = root.make_context("itel-cabinet", ["run"])
    names = root.list_commands(context)
    assert {"run", "produce", "simulate", "preview", "topics", "tables", "lag", "status"} <= {*names}
    for name in names:
        first = inspect.cleandoc(loaded(name, root).help).partition("\n\n")[0]
        assert root.get_command(context, name).help.partition("\n\n")[0].split() == first.split()
        assert re.search(rf"│ {name}\s", listed)


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name in group.list_commands(None):
        command = loaded(name, group) if not path else group.get_command(None, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def test_each_command_has_examples_that_it_takes() -> None:
    known = dict(commands(root_command()))
    assert known.keys() == EXAMPLES.keys()
    for name, command in known.items():
        for example in EXAMPLES[name]:
            given = shlex.split(example.removeprefix(name))
            command.make_context(name, given, parent=root_command().make_context("itel-cabinet", [name]))
    for example in EXAMPLES["run"]:
        job, *options = with_template(shlex.split(example.removeprefix("run ")))
        parse_arguments(job, ["--bootstrap_servers=b:1", "--claimx_url=https://c", "--itel_url=https://i", *options])


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_help_shows_the_examples(name: str, printed: Printed) -> None:
    shown = "".join(printed.stdout(*name.split(), "--help").split())
    for example in EXAMPLES[name]:
        assert "".join(f"itel-cabinet {example}".split()) in shown


def test_a_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> list[str]:
        env = {"_ITEL_CABINET_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return subprocess.check_output([COMMAND], text=True, timeout=60, env={**os.environ, **env}).split()

    assert completed("itel-cabinet dead") == ["dead-letters"]
    assert completed("itel-cabinet dead-letters re") == ["replay"]
    assert completed("itel-cabinet dead-letters replay --max") == ["--max_replays"]


def test_values_are_whole_where_stdout_is_no_terminal(tmp_path: Path) -> None:
    root = tmp_path / ("a-long-name" * 15)
    subprocess.run([COMMAND, "tables", "create", f"--tables_root={root}"], check=True, timeout=60, capture_output=True)
    told = subprocess.check_output(
        [COMMAND, "tables", "describe", f"--tables_root={root}"],
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
    )
    assert f"{root}/{TRACKING}: version 0" in told
    assert re.search(r"│ event_timestamp +│ timestamp\[us, tz=UTC\] +│", told)


WRONG_USE = {
    "no command": ([], "Missing command: see `itel-cabinet --help`"),
    "unknown command": (["rum"], "No such command 'rum'. Did you mean 'run'?: see `itel-cabinet --help`"),
    "no broker": (
        ["topics", "create"],
        "Missing option '--bootstrap_servers' (env var: 'KAFKA_BOOTSTRAP_SERVERS'): "
        "see `itel-cabinet topics create --help`",
    ),
    "unknown option": (
        ["tables", "create", "--tables_root=t", "--dry"],
        "No such option: --dry (Possible options: --dry_run): see `itel-cabinet tables create --help`",
    ),
    "no table store": (
        ["tables", "describe"],
        "Missing option '--tables_root': see `itel-cabinet tables describe --help`",
    ),
    "storage options": (
        ["tables", "create", "--tables_root=t", "--storage_options=x"],
        '--storage_options: must be a JSON object of texts and numbers such as {"name": "value"}',
    ),
    "a secret": (
        ["tables", "describe", "--tables_root=t", '--storage_options={"aws_secret_access_key": "hunter2"}'],
        "--storage_options: aws_secret_access_key is a secret: set it in the environment of the job's workers instead",
    ),
    "kafka_config": (
        ["lag", "--bootstrap_servers=127.0.0.1:1", "--kafka_config=[]"],
        '--kafka_config: must be a JSON object of texts and numbers such as {"name": "value"}',
    ),
    "kafka_config: ours": (
        ["topics", "describe", "--bootstrap_servers=127.0.0.1:1", '--kafka_config={"group.id": "x"}'],
        "--kafka_config: group.id cannot be set: use --consumer_group",
    ),
    "a group for several jobs": (
        ["lag", "api", "tracking", "--group=g", "--bootstrap_servers=127.0.0.1:1"],
        "--consumer_group: goes with one JOB: ask for each job by itself",
    ),
    "tables of a job without": (
        ["status", "trigger", "--tables_root=t", "--bootstrap_servers=127.0.0.1:1"],
        "--tables_root: the job trigger writes no tables: leave it out",
    ),
    "no address": (
        ["status", "api", "--metrics_url=localhost:9400", "--bootstrap_servers=127.0.0.1:1"],
        "--metrics_url: must be http(s)://HOST[:PORT][/PATH], got 'localhost:9400'",
    ),
    "no such file": (["preview", "no/such.json"], "no/such.json cannot be read: No such file or directory"),
    "a token": (
        ["simulate", "--claimx_token=hunter2"],
        "--claimx_token: a secret must be referred to as env:NAME or file:PATH (what was given is not shown)",
    ),
}


@pytest.mark.parametrize(("given", "line"), WRONG_USE.values(), ids=WRONG_USE)
def test_wrong_use_is_told_in_one_line(printed: Printed, given: list[str], line: str) -> None:
    assert printed.error(2, *given) == line


@pytest.mark.parametrize("command", [["topics", "create"], ["topics", "describe"], ["lag", "api"], ["produce"]])
def test_an_unreachable_broker(printed: Printed, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itel_cabinet.pipeline.commands.shared.BROKER_SECONDS", 1.0)
    servers = f"127.0.0.1:{free_port()}"
    assert printed.error(1, *command, f"--bootstrap-servers={servers}").startswith(
        f"--bootstrap_servers: no broker answers at {servers} ("
    )


# ----------------------------------------------------------------------------------------------------------------- run


def test_run_hands_on_its_arguments_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[Sequence[str]] = []

    def took(arguments: Sequence[str]) -> int:
        handed.append(arguments)
        return 7

    monkeypatch.setattr("itel_cabinet.pipeline.launch.main", took)
    arguments = ["api", "--claimx-url", "http://x", "--until_caught_up", '--kafka_config={"a": "-b"}', "-x", "last"]
    assert main(["run", *arguments]) == 7
    assert handed == [arguments]


@pytest.mark.parametrize("given", [["run", "--help"], ["run", "cabinet", "--help"], ["run", "cabinet", "-h"]])
def test_run_help_lists_every_option(printed: Printed, given: list[str]) -> None:
    listed = printed.stdout(*given)
    entries = dict(re.findall(r"^  (--\w+) +(.+?) *$", listed, re.MULTILINE))
    assert list(entries) == [f"--{name}" for name in option_fields() if name != "job"]
    for name, entry in entries.items():
        field = option_fields()[name.removeprefix("--")]
        assert entry.startswith(str(field.description)), name
        assert ENVIRONMENT.get(name.removeprefix("--"), "") in entry
        assert "Undefined" not in entry
    assert entries["--max_batch_records"].endswith("Default: 500 (trigger, api, cabinet); 10000 (tracking).")
    assert entries["--claimx_on_outage"].endswith("One of wait, divert. Default: wait.")
    assert entries["--partition_by"].endswith("Default: year,month,day.")
    assert entries["--until_caught_up"].endswith("Default: false.")
    assert entries["--topic_epoch"].endswith("Default: 0.")
    for job in ("trigger", "tracking", "api", "cabinet"):
        assert re.search(rf"^  {job}  +\w", listed, re.MULTILINE)


# ------------------------------------------------------------------------------------------------------------- preview


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A table's row as preview has it."""
    kept: dict[str, Any] = json.loads(to_json({name: value for name, value in row.items() if name not in OF_THE_RUN}))
    return kept


def by_photo(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["question_key"], row["claim_media_id"]


def test_preview_is_what_a_run_stores_and_sends(stack: Stack, printed: Printed, tmp_path: Path) -> None:
    only_forms = Shares(0, 0, 0, resubmitted=0.2, late=0, repeated=0, completed_without_form=0, other_task=0, bad=0)
    events = Generator(11, start=datetime.now(UTC), shares=only_forms).tracking_messages(30)
    receipts = produce(stack.broker.bootstrap_servers, stack.topic("tracking"), events, stack.claimx)
    stack.run("cabinet")
    forms = {row["assignment_id"]: row for row in stack.forms()}
    photos = [row for row in stack.attachments() if row["is_active"]]
    # Of an assignment that was submitted twice ClaimX has the later answer only.
    sent = {s.assignment_id: s.body for s in stack.itel.submissions()}
    again = {r.produced.assignment_id for r in receipts if r.produced.kind == "resubmitted"}
    assert len(forms) >= 20
    for assignment_id, form in forms.items():
        path = tmp_path / f"{assignment_id}.json"
        path.write_text(json.dumps(stack.claimx.task(assignment_id)))
        previewed = json.loads(printed.stdout("preview", str(path)))
        assert list(previewed) == ["form", "attachments", "payload", "request", "gate", "warnings"]
        assert previewed["form"] == shown(form)
        stored = [shown(row) for row in photos if row["assignment_id"] == assignment_id]
        assert sorted(previewed["attachments"], key=by_photo) == sorted(stored, key=by_photo)
        if assignment_id not in again:
            assert previewed["payload"] == sent[assignment_id]
        assert previewed["warnings"] == json.loads(form["parse_warnings"])


def test_preview_leaves_out_what_an_answer_does_not_have(form_answer: bytes) -> None:
    found = preview_answer(form_answer, now=NOW)
    assert not OF_THE_RUN & {*found["form"]}
    assert not OF_THE_RUN & {*found["attachments"][0]}
    assert (found["form"]["assignment_id"], found["form"]["status"]) == (5430007, "COMPLETED")
    assert [(row["question_key"], row["claim_media_id"]) for row in found["attachments"]] == [("overview_photos", 12)]
    assert found["warnings"] == []


@pytest.fixture
def form_answer() -> bytes:
    return json.dumps(answer(group("Photos", question("Upload Overview Photo(s)", [12])))).encode()


def test_preview_reads_stdin(form_answer: bytes) -> None:
    ended = subprocess.run([COMMAND, "preview", "-"], input=form_answer, capture_output=True, timeout=60, check=True)
    assert json.loads(ended.stdout) == json.loads(to_json(preview_answer(form_answer, now=NOW)))
    assert ended.stderr == b""


def changed(text: bytes, **changes: Any) -> bytes:
    return json.dumps({**json.loads(text), **changes}).encode()


def test_preview_says_why_nothing_is_sent(form_answer: bytes) -> None:
    incomplete = preview_answer(changed(form_answer, formId=None, dateAssigned=None), now=NOW)
    assert incomplete["form"]["form_response_id"]
    assert len(incomplete["attachments"]) == 1
    assert incomplete["payload"] is None
    assert incomplete["warnings"] == ["not submitted: required by iTel but missing: formId, dateAssigned"]

    nothing: dict[str, Any] = {"form": None, "attachments": [], "payload": None}
    nothing |= {"request": incomplete["request"], "gate": {"passed": False, "reason": "there is no completed form"}}
    assert preview_answer(changed(form_answer, response=None), now=NOW) == {
        **nothing,
        "warnings": ["not submitted: ClaimX has no form for this task yet; replay the event once it has"],
    }
    assert preview_answer(changed(form_answer, status="assigned"), now=NOW) == {
        **nothing,
        "warnings": ["not submitted: the status is ASSIGNED, and only a COMPLETED task's form is read"],
    }
    assert preview_answer(changed(form_answer, taskId=24454), now=NOW) == {
        **nothing,
        "request": None,
        "gate": None,
        "warnings": [
            "the task is not one of contract cabinet_repair 1, which are 32513: its events are skipped",
        ],
    }


def test_a_form_without_photos_has_no_attachments(form_answer: bytes) -> None:
    groups = [{"name": "Linear Feet Capture", "questionAndAnswers": []}]
    found = preview_answer(changed(form_answer, response={"groups": groups}), now=NOW)
    assert found["attachments"] == []
    assert found["form"]["assignment_id"] == 5430007


NO_ANSWERS = {
    "not JSON": (b'{"assignmentId": 1', "not JSON: EOF while parsing"),
    "not an object": (b"[]", "no ClaimX answer about a task: a JSON object with an assignmentId is expected"),
    "something else": (b'{"event_id": "x"}', "no ClaimX answer about a task: a JSON object with an assignmentId"),
    "no task": (b'{"assignmentId": 1}', "the task row is incomplete: task_id: must be a whole number"),
    "no project": (b'{"assignmentId": 1, "taskId": 32513, "status": "ASSIGNED"}', "project_id: must be "),
    "wrong shape": (b'{"assignmentId": 1, "response": "x"}', "response is neither an object nor null"),
}


@pytest.mark.parametrize(("text", "reason"), NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_preview_of_what_is_no_answer(printed: Printed, tmp_path: Path, text: bytes, reason: str) -> None:
    (tmp_path / "task.json").write_bytes(text)
    assert printed.error(1, "preview", f"{tmp_path}/task.json").startswith(f"{tmp_path}/task.json: {reason}")
    with pytest.raises(NotAnAnswerError):
        preview_answer(text, now=NOW)


# -------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("dry_run", ["--dry-run", "--dry_run"])
def test_tables_create_dry_run(printed: Printed, tmp_path: Path, dry_run: str) -> None:
    root = tmp_path / "tables"
    lines = printed.stdout("tables", "create", "--tables-root", str(root), dry_run).splitlines()
    assert lines == [
        f"{root}/{TRACKING}: would be created (25 columns, partitioned by year, month, day)",
        f"{root}/{FORMS}: would be created (62 columns)",
        f"{root}/{ATTACHMENTS}: would be created (20 columns)",
        f"{root}/{LEDGER}: would be created (32 columns, partitioned by year, month, day)",
        f"{root}/{BODIES}: would be created (14 columns, partitioned by year, month, day)",
    ]
    assert not root.exists()


def test_tables_create_and_again(printed: Printed, tmp_path: Path) -> None:
    arguments = ["tables", "create", f"--tables_root={tmp_path}", "--partition-by=year,month"]
    first = printed.stdout(*arguments).splitlines()
    assert first[0] == f"{tmp_path}/{TRACKING}: created (25 columns, partitioned by year, month)"
    assert DeltaTable(str(tmp_path / TRACKING)).metadata().partition_columns == ["year", "month"]
    assert printed.stdout(*arguments).splitlines() == [f"{tmp_path}/{name}: exists, left alone" for name in TABLES]
    assert [DeltaTable(str(tmp_path / name)).version() for name in TABLES] == [0] * len(TABLES)


def test_tables_create_refuses_in_one_line(printed: Printed, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = printed.error(1, "tables", "create", f"--tables_root={tmp_path}/file/tables")
    assert told.startswith(f"--tables_root: Delta table {tmp_path}/file/tables/{TRACKING}: ")
    assert told.endswith("give a folder or object-store URI that can be written")
    told = printed.error(2, "tables", "create", f"--tables_root={tmp_path}/tables", "--partition_by=week")
    assert told.startswith("--partition_by: ")
    assert "'week'" in told
    printed.stdout("tables", "create", f"--tables_root={tmp_path}/tables")
    told = printed.error(1, "tables", "create", f"--tables_root={tmp_path}/tables", "--partition_by=year")
    assert "is partitioned by (year, month, day), the job by (year)" in told


def test_tables_describe(printed: Printed, tmp_path: Path) -> None:
    printed.stdout("tables", "create", f"--tables_root={tmp_path}")
    settings = {"job": "tracking", "bootstrap_servers": "x", "claimx_url": "http://x", "tables_root": str(tmp_path)}
    table = FencedTable(table_specs(Settings.of(settings))[TRACKING])
    table.write([make_tracking_row(record({}, topic_id="ThisTopic", partition=2, offset=41), event(), None, NOW)])
    told = printed.stdout("tables", "describe", f"--tables_root={tmp_path}")
    assert re.search(
        rf"{tmp_path}/{TRACKING}: version 1, 1 file \([\d.]+ kB\), partitioned by year, month, day\n", told
    )
    assert re.search(
        r"  version 1 at 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC: WRITE\n  version 0 at .* CREATE TABLE\n", told
    )
    assert "  fence itel-cabinet/1/ThisTopic/2: 42\n" in told
    assert "  delta.logRetentionDuration = interval 7 days\n" in told
    assert f"{tmp_path}/{FORMS}: version 0, 0 files (0 bytes)\n" in told
    for column in table.spec.schema:
        assert re.search(rf"│ {column.name} +│ [^│]+│ {'' if column.nullable else 'not null'} *│", told), column.name

    (tracking, *others) = json.loads(printed.stdout("tables", "describe", f"--tables_root={tmp_path}", "--json"))[
        "tables"
    ]
    assert (tracking["uri"], tracking["version"], tracking["files"]) == (f"{tmp_path}/{TRACKING}", 1, 1)
    assert tracking["fences"] == {"itel-cabinet/1/ThisTopic/2": 42}
    assert [commit["version"] for commit in tracking["commits"]] == [1, 0]
    assert [column["name"] for column in tracking["columns"]] == table.spec.schema.names
    assert [one["version"] for one in others] == [0, 0, 0, 0]


def test_tables_describe_what_is_missing(printed: Printed, tmp_path: Path) -> None:
    assert printed.stdout("tables", "describe", f"--tables_root={tmp_path}") == (
        f"missing: {', '.join(TABLES)}; `itel-cabinet tables create` makes them\n"
    )


# -------------------------------------------------------------------------------------------------------------- topics


def test_topics_and_the_lag_of_each_job_in_them(printed: Printed, tmp_path: Path) -> None:
    """On a broker of its own: the topics' names are the users', not the test's."""
    with Broker.start(tmp_path / "broker") as broker:
        servers = f"--bootstrap_servers={broker.bootstrap_servers}"
        names = [topic.name for topic in TOPICS]
        missing = f"missing: {', '.join(names)}; `itel-cabinet topics create` makes them\n"

        told = printed.stdout("topics", "create", servers, "--replication-factor=1", "--dry-run").splitlines()
        assert told == [
            "claimx.events.enriched: would be created (partitions: 3, replicas: 1, kept 7 days)",
            "itel.cabinet.task.tracking: would be created (partitions: 3, replicas: 1, kept 7 days)",
            "itel.cabinet.task.tracking.success: would be created (partitions: 1, replicas: 1, kept 3 days)",
            "itel.cabinet.task.tracking.errors: would be created (partitions: 1, replicas: 1, kept 30 days)",
            "itel.cabinet.api.success: would be created (partitions: 1, replicas: 1, kept as the broker says)",
            "itel.cabinet.api.errors: would be created (partitions: 1, replicas: 1, kept 30 days)",
        ]
        longer = printed.stdout(
            "topics", "create", servers, "--replication-factor=1", "--dry-run", "--letter_retention_days=90"
        )
        assert longer.count("kept 90 days") == 2
        assert printed.stdout("topics", "describe", servers).endswith(missing)
        assert printed.error(1, "topics", "create", servers) == (
            f"--replication_factor: more than there are brokers at {broker.bootstrap_servers}; one broker needs 1"
        )

        broker.create_topic("itel.cabinet.api.errors", 2)
        told = printed.stdout("topics", "create", servers, "--replication_factor=1").splitlines()
        assert [line.partition(": ")[2].partition(" (")[0] for line in told] == [*["created"] * 5, "exists, left alone"]
        again = printed.stdout("topics", "create", servers, "--replication_factor=1").splitlines()
        assert again == [f"{name}: exists, left alone" for name in names]

        broker_default = "7"
        cells = printed.cells("topics", "describe", servers)
        assert [[name, *counts] for name, _, *counts in cells] == [
            ["claimx.events.enriched", "3", "7", "0"],
            ["itel.cabinet.task.tracking", "3", "7", "0"],
            ["itel.cabinet.task.tracking.success", "1", "3", "0"],
            ["itel.cabinet.task.tracking.errors", "1", "30", "0"],
            ["itel.cabinet.api.success", "1", broker_default, "0"],
            ["itel.cabinet.api.errors", "2", broker_default, "0"],
        ]
        assert len({topic_id for _, topic_id, *_ in cells}) == len(TOPICS)
        report = json.loads(printed.stdout("topics", "describe", servers, "--json"))
        assert report["missing"] == []
        assert [(one["topic"], one["partitions"], one["kept_days"], one["records"]) for one in report["topics"]] == [
            (name, int(partitions), float(days), int(records))
            for name, partitions, days, records in ((name, *counts) for name, _, *counts in cells)
        ]

        reports = json.loads(printed.stdout("lag", "trigger", "tracking", "api", "cabinet", "api", servers, "--json"))
        assert [(report["job"], report["group"], report["topic"]) for report in reports] == [
            ("trigger", "itel_cabinet_trigger_group", "claimx.events.enriched"),
            ("tracking", "itel_cabinet_tracking_worker_group", "itel.cabinet.task.tracking"),
            ("api", "itel_cabinet_api_worker_group", "itel.cabinet.task.tracking"),
            ("cabinet", "itel_cabinet_group", "itel.cabinet.task.tracking"),
        ]
        (report,) = json.loads(printed.stdout("lag", servers, "--json"))
        assert report["job"] == "cabinet"


# ----------------------------------------------------------------------------------------------------------------- lag


def _committed(consumer: Consumer, position: TopicPartition) -> bool:
    try:
        consumer.commit(offsets=[position], asynchronous=False)
    except KafkaException:
        return False
    return True


def test_lag(broker: Broker, topic: TopicFactory, printed: Printed) -> None:
    name = topic(2)
    producer = broker.producer()
    for partition, records in {0: 5, 1: 3}.items():
        for _ in range(records):
            producer.produce(name, b"x", partition=partition)
    producer.flush(30)
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": f"{name}.group"})
    wait_for(lambda: _committed(consumer, TopicPartition(name, 0, 4)), "the group has a coordinator")
    consumer.close()
    arguments = [
        "lag",
        "api",
        f"--bootstrap_servers={broker.bootstrap_servers}",
        f"--topic={name}",
        "--group",
        f"{name}.group",
    ]
    (report,) = json.loads(printed.stdout(*arguments, "--json"))
    ages = [part.pop("oldest_unread_seconds") for part in report["partitions"]]
    assert all(0 <= age < 300 for age in ages)
    assert report.pop("oldest_unread_seconds") == max(ages)
    no_offset = "no offset: it starts as --start_offset says"
    assert report == {
        "job": "api",
        "group": f"{name}.group",
        "topic": name,
        "topic_id": Cluster({"bootstrap.servers": broker.bootstrap_servers}).topic(name).topic_id,
        "lag": 4,
        "threshold": 1000,
        "behind": False,
        "partitions": [
            {"partition": 0, "start": 0, "end": 5, "committed": 4, "lag": 1, "note": ""},
            {"partition": 1, "start": 0, "end": 3, "committed": None, "lag": 3, "note": no_offset},
        ],
    }
    rows = [[*cells[:5], cells[6]] for cells in printed.cells(*arguments)]
    assert rows == [["0", "0", "4", "5", "1", ""], ["1", "0", "-", "3", "3", no_offset]]
    assert printed.stdout(*arguments, "--threshold=4").startswith(f"api: {name}.group in {name}: 4 behind, the oldest ")
    assert main([*arguments, "--threshold=3"]) == 1


def test_lag_tells_what_is_odd_about_an_offset(broker: Broker, topic: TopicFactory, printed: Printed) -> None:
    name = topic(4)
    producer = broker.producer()
    for partition in range(4):
        for _ in range(5):
            producer.produce(name, b"x", partition=partition)
    assert producer.flush(30) == 0
    servers = {"bootstrap.servers": broker.bootstrap_servers}
    admin = AdminClient(servers)
    (deleted,) = admin.delete_records([TopicPartition(name, 1, 3)]).values()
    deleted.result(30)
    consumer = Consumer({**servers, "group.id": f"{name}.group"})
    topic_id = Cluster(servers).topic(name).topic_id
    for place in (
        TopicPartition(name, 0, 4, "AnEarlierTopicOfTheName"),
        TopicPartition(name, 1, 1, topic_id),
        TopicPartition(name, 2, 9, topic_id),
        TopicPartition(name, 3, 5, topic_id),
    ):
        wait_for(functools.partial(_committed, consumer, place), "the group has a coordinator")
    consumer.close()
    options = [f"--bootstrap_servers={broker.bootstrap_servers}", f"--topic={name}", f"--group={name}.group"]
    (report,) = json.loads(printed.stdout("lag", *options, "--json"))
    seen = [[part[key] for key in ("start", "committed", "end", "lag", "note")] for part in report["partitions"]]
    assert seen == [
        [0, None, 5, 5, "no offset (4 is of an earlier topic of this name): it starts as --start_offset says"],
        [3, 1, 5, 2, "2 offsets lost to retention"],
        [0, 9, 5, 0, "beyond the end: the log was cut, and the job refuses to read on"],
        [0, 5, 5, 0, ""],
    ]


def test_watching_lag_ends_on_ctrl_c_with_its_exit_status(broker: Broker, topic: TopicFactory) -> None:
    name = topic(1)
    producer = broker.producer()
    producer.produce(name, b"x")
    assert producer.flush(30) == 0
    options = [f"--bootstrap_servers={broker.bootstrap_servers}", f"--topic={name}", f"--group={name}.group"]
    command = [COMMAND, "lag", *options, "--threshold=0", "--watch", "--every=0.1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        try:
            assert watching.stdout is not None
            assert [json.loads(watching.stdout.readline())[0]["lag"] for _ in range(2)] == [1, 1]
            watching.send_signal(signal.SIGINT)
            _, errors = watching.communicate(timeout=60)
        finally:
            watching.kill()
    assert (watching.returncode, errors) == (1, "")


def test_lag_in_no_topic(broker: Broker, printed: Printed) -> None:
    servers = f"--bootstrap_servers={broker.bootstrap_servers}"
    assert printed.error(1, "lag", servers, "--input_topic=no.such.topic") == (
        "--topic: topic 'no.such.topic' does not exist: create it with `itel-cabinet topics create`"
    )


# ------------------------------------------------------------------------------------------------- produce and simulate


def test_produce_task_events(broker: Broker, topic: TopicFactory, claimx: ClaimXSimulator, printed: Printed) -> None:
    name = topic(3)
    servers = f"--bootstrap_servers={broker.bootstrap_servers}"
    cells = printed.cells("produce", servers, f"--topic={name}", "--count=40", "--seed=5", f"--claimx_url={claimx.url}")
    expected = [*Generator(5).tracking_messages(40)]
    kinds = Counter((made.kind, made.expect) for made in expected)
    assert {(kind, expect): int(number) for kind, expect, number in cells} == kinds
    assert Counter(message.key for message in broker.read(name)) == Counter(made.key for made in expected)
    known = {made.assignment_id for made in expected if made.details_json is not None and made.assignment_id}
    assert known
    for assignment_id in known:
        assert (claimx.task(assignment_id) or {})["assignmentId"] == assignment_id


def test_produce_claimx_events(broker: Broker, topic: TopicFactory, printed: Printed) -> None:
    name = topic(1)
    servers = f"--bootstrap_servers={broker.bootstrap_servers}"
    told = printed.stdout("produce", servers, "--topic", name, "--count=20", "--flavour=claimx", "--rate=1000")
    assert f"20 records written to {name}" in told
    assert len(broker.read(name)) == 20
    assert "with_task" in told
    report = json.loads(printed.stdout("produce", servers, "--topic", name, "--count=20", "--flavour=claimx", "--json"))
    assert (report["topic"], report["records"], sum(one["records"] for one in report["kinds"])) == (name, 20, 20)


def test_no_event_is_dated_in_the_future(broker: Broker, topic: TopicFactory, printed: Printed) -> None:
    name = topic(1)
    printed.stdout("produce", f"--bootstrap_servers={broker.bootstrap_servers}", "--topic", name, "--count=200")
    times = []
    for message in broker.read(name):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            times.append(datetime.fromisoformat(json.loads(message.value or b"")["timestamp"]))
    assert len(times) > 100
    assert max(times) <= datetime.now(UTC)


def test_produce_refuses_in_one_line(broker: Broker, topic: TopicFactory, printed: Printed) -> None:
    servers = f"--bootstrap_servers={broker.bootstrap_servers}"
    assert printed.error(1, "produce", servers, "--topic=no.such.topic") == (
        "--topic: topic 'no.such.topic' does not exist: create it with `itel-cabinet topics create`"
    )
    url = f"http://127.0.0.1:{free_port()}"
    assert printed.error(1, "produce", servers, f"--topic={topic(1)}", f"--claimx_url={url}") == (
        f"--claimx_url: no ClaimX simulator takes the forms at {url} (ConnectionError): "
        "start one with `itel-cabinet simulate`"
    )
    assert printed.error(2, "produce", servers, "--count=0").startswith("Invalid value for '--count': ")


def test_simulate(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("open sesame")
    journal = tmp_path / "journal"
    claimx_port = free_port()
    options = [f"--claimx-port={claimx_port}", f"--itel_journal={journal}", f"--claimx_token=file:{tmp_path}/token"]
    process = subprocess.Popen(
        [COMMAND, "simulate", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        claimx, itel = (process.stdout.readline().split()[-1] for _ in range(2))
        assert claimx == f"http://127.0.0.1:{claimx_port}"
        assert requests.get(f"{claimx}/customTasks/assignment/1", timeout=30).status_code == 401
        headers = {"Authorization": "Bearer open sesame"}
        assert requests.get(f"{claimx}/customTasks/assignment/1", headers=headers, timeout=30).status_code == 404
        body = EXAMPLE.read_bytes()
        reply = requests.post(f"{itel}/api/v1/tasks", data=body, headers={"Idempotency-Key": "e1"}, timeout=30)
        assert reply.status_code == 201, reply.text
        (written,) = journal.iterdir()
        assert json.loads(written.read_text()) == json.loads(body)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(30)


def test_simulate_refuses_in_one_line(claimx: ClaimXSimulator, printed: Printed, tmp_path: Path) -> None:
    assert printed.error(1, "simulate", f"--itel_port={claimx.port}") == (
        f"--itel_port: {claimx.port} cannot be used (Address already in use): give another one"
    )
    (tmp_path / "file").touch()
    assert printed.error(1, "simulate", f"--itel_journal={tmp_path}/file/journal") == (
        f"--itel_journal: {tmp_path}/file/journal cannot be written: Not a directory"
    )
    assert printed.error(1, "simulate", "--itel_token=env:NO_SUCH_TOKEN").startswith(
        "--itel_token: env:NO_SUCH_TOKEN is not set"
    )


def test_rules_and_dashboards_are_exported_as_they_are(printed: Printed, tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "monitoring"
    names = ["alerts.yml", *(f"dashboards/{one.name}" for one in sorted(source.glob("dashboards/*.json")))]
    for _ in range(2):
        told = printed.stdout("monitoring", "export", str(tmp_path / "new" / "folder"))
        assert told.splitlines() == [str(tmp_path / "new" / "folder" / name) for name in names]
    for name in names:
        assert (tmp_path / "new" / "folder" / name).read_bytes() == (source / name).read_bytes()
    (tmp_path / "file").write_text("")
    error = printed.error(1, "monitoring", "export", str(tmp_path / "file"))
    assert error.startswith(f"FOLDER: {tmp_path}/file")
