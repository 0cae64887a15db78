"""`itel-cabinet status` and what it looks at, on a real broker, real tables and real sockets."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from deltalake import DeltaTable

from itel_cabinet.io.kafka import LogReader
from itel_cabinet.io.worker import OUTCOMES, metrics
from itel_cabinet.local.samples import Generator, Receipt, produce
from itel_cabinet.local.services import HOST, Broker, free_port
from itel_cabinet.local.simulators import Faults
from itel_cabinet.pipeline.commands import main
from itel_cabinet.pipeline.letter_watch import LetterWatch
from itel_cabinet.pipeline.operate import GroupView, RecentLetters, WorkerState, recent_letters
from itel_cabinet.pipeline.operate.observation import look_at_worker
from itel_cabinet.pipeline.tables import ATTACHMENTS, BODIES, FORMS, LEDGER, TRACKING
from itel_cabinet.transforms.dead_letters import decode_dead_letter, encode_dead_letter, encode_replay_note
from itel_cabinet.transforms.records import Failure
from tests.conftest import TopicFactory
from tests.services.test_offsets import commit
from tests.support.asked import Asked
from tests.support.cabinet_samples import record
from tests.support.faulty_server import (
    Act,
    FaultyServer,
    answer,
    drip_body,
    drip_headers,
    endless_body,
    garbage,
    hang,
    reset,
)
from tests.support.jobs import Stack, wait_for

# ------------------------------------------------------------------------------------------------------------- workers

WELL: dict[str, Any] = {
    "status": "ok",
    "job": "api",
    "group": "g",
    "topic": "t",
    "version": "0.1.0",
    "seconds_since_heartbeat": 0.31,
    "stuck_after_seconds": 180.0,
    "waiting_for": [],
}


def says(code: int = 200, /, **changes: Any) -> Act:
    return answer(code, json.dumps({**WELL, **changes}).encode())


ANSWERS: dict[str, tuple[Act, WorkerState, str]] = {
    "ok": (says(), WorkerState.OK, "last heartbeat 0.3 s ago"),
    "ok, and more than is known here": (says(more=1), WorkerState.OK, "last heartbeat 0.3 s ago"),
    "waiting": (
        says(status="waiting", waiting_for=["ClaimX", "Kafka"]),
        WorkerState.WAITING,
        "waits for ClaimX, Kafka; last heartbeat 0.3 s ago",
    ),
    "stuck": (
        says(503, status="stuck", seconds_since_heartbeat=200.0),
        WorkerState.STUCK,
        "says that it is stuck: last heartbeat 200.0 s ago, 180 s are allowed",
    ),
    "another job": (
        says(job="tracking", group="evil\x1b[2J\n"),
        WorkerState.FOREIGN,
        "the job 'tracking' of the group 'evil [2J' answers there",
    ),
    "another page": (answer(404), WorkerState.FOREIGN, "answers 404 to /healthz"),
    "a redirect": (answer(302, Location="http://127.0.0.1:1/"), WorkerState.FOREIGN, "answers 302 to /healthz"),
    "no JSON": (answer(200, b"<html>"), WorkerState.FOREIGN, "answers 200 to /healthz, but not as a job does"),
    "a field missing": (
        answer(200, b'{"status": "ok"}'),
        WorkerState.FOREIGN,
        "answers 200 to /healthz, but not as a job does",
    ),
    "a heartbeat that is none": (
        says(seconds_since_heartbeat=-1),
        WorkerState.FOREIGN,
        "answers 200 to /healthz, but not as a job does",
    ),
    "no HTTP": (garbage, WorkerState.FOREIGN, "the connection broke: "),
    "a reset": (reset, WorkerState.FOREIGN, "the connection broke: "),
    "without end": (endless_body(200), WorkerState.FOREIGN, "the answer is larger than "),
    "nothing": (hang, WorkerState.SILENT, "does not answer within 1 s"),
    "a body that drips": (drip_body, WorkerState.SILENT, "does not answer within 1 s"),
    "headers that drip": (drip_headers, WorkerState.SILENT, "does not answer within 1 s"),
}


@pytest.mark.parametrize(("act", "state", "detail"), ANSWERS.values(), ids=ANSWERS)
def test_what_a_worker_answers(act: Act, state: WorkerState, detail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itel_cabinet.pipeline.operate.observation._ANSWER_SECONDS", 1.0)
    with FaultyServer(act) as server:
        worker = look_at_worker(server.url, "api", "g")
    assert (worker.url, worker.state) == (server.url, state)
    assert worker.detail.startswith(detail)
    assert [seen.path for seen in server.requests] == ["/healthz"]


def test_where_nobody_listens() -> None:
    worker = look_at_worker(f"http://{HOST}:{free_port()}", "api", "g")
    assert (worker.state, worker.detail) == (WorkerState.ABSENT, "no connection: Connection refused")
    assert look_at_worker("http://no.such.host.invalid:9400", "api", "g").state is WorkerState.ABSENT


# -------------------------------------------------------------------------------------------------------- dead letters


def dead_letter(group: str, stage: str, error_class: str, offset: int) -> dict[str, Any]:
    failure = Failure(record(b"x", offset=offset), stage, error_class, "why", 1, 0.0, 0.0)
    key, value, headers = encode_dead_letter(failure, job="api", group=group)
    return {"key": key, "value": value, "headers": list(headers)}


def test_recent_dead_letters(broker: Broker, topic: TopicFactory) -> None:
    errors, more_errors = topic(1), topic(2)
    now = datetime.now(UTC)
    producer = broker.producer()

    def write(name: str, message: Mapping[str, Any], minutes_ago: float, partition: int = 0) -> None:
        at = round((now - timedelta(minutes=minutes_ago)).timestamp() * 1000)
        producer.produce(name, partition=partition, timestamp=at, **message)

    for minutes, offset in ((300, 1), (90, 2), (50, 3), (10, 4)):
        write(errors, dead_letter("g", "enrich", "not_found", offset), minutes)
    write(errors, dead_letter("others", "enrich", "not_found", 5), 1)
    write(errors, {"value": b"a stranger"}, 1)
    write(more_errors, dead_letter("g", "submit", "refused", 6), 5, partition=1)
    letter_key, _, note_headers = encode_replay_note(_letter("g"), now.timestamp())
    write(errors, {"key": letter_key, "value": None, "headers": list(note_headers)}, 1)
    assert producer.flush(30) == 0

    def recent(newest: int, **changes: Any) -> RecentLetters:
        hour_ago = (now - timedelta(hours=1)).timestamp() * 1000
        with LogReader({"bootstrap.servers": broker.bootstrap_servers}) as reader:
            options = {"hour_ago_ms": hour_ago, "newest": newest, "go_on": lambda: True, **changes}
            return recent_letters(reader, (errors, more_errors, errors), "g", **options)

    reasons = ("enrich", "not_found"), ("submit", "refused")
    assert recent(100) == RecentLetters(
        counts={reasons[0]: 4, reasons[1]: 1},
        last_hour={reasons[0]: 2, reasons[1]: 1},
        open=4,
        oldest_open_at=pytest.approx((now - timedelta(minutes=90)).timestamp(), abs=0.001),
        replayed=1,
        read=8,
        held=8,
        partial=False,
    )
    # The newest six reach back beyond the hour, the newest five do not.
    assert recent(6).counts == {reasons[0]: 3, reasons[1]: 1}
    assert not recent(6).partial
    assert recent(4).last_hour == {reasons[0]: 1, reasons[1]: 1}
    assert recent(4).partial
    assert recent(4).read == 5
    assert recent(100, go_on=lambda: False).partial


def test_the_watch_on_open_letters(broker: Broker, topic: TopicFactory) -> None:
    errors, now = topic(2), datetime.now(UTC)
    producer, watch = broker.producer(), LetterWatch((errors,), "g", clock=now.timestamp)
    client = {"bootstrap.servers": broker.bootstrap_servers}

    def write(message: Mapping[str, Any], days_ago: float, partition: int = 0) -> None:
        at = round((now - timedelta(days=days_ago)).timestamp() * 1000)
        producer.produce(errors, partition=partition, timestamp=at, **message)

    def look() -> tuple[float, float, float, list[str]]:
        assert producer.flush(30) == 0
        with LogReader(client) as reader:
            watch.look(reader)
        numbers = (sample(metrics.OPEN_LETTERS), sample(metrics.OLDEST_OPEN_LETTER), sample(metrics.LETTERS_LOST))
        return *numbers, [line for line in OUTCOMES.failing() if "dead letter" in line]

    for partition in (0, 1):
        write({"value": b"a stranger"}, 0, partition)
    assert look() == (0, 0, 0, [])
    write(dead_letter("g", "enrich", "not_found", 1), 6)
    write(dead_letter("g", "enrich", "not_found", 2), 5)
    write(dead_letter("others", "enrich", "not_found", 3), 9)
    write(dead_letter("g", "enrich", "not_found", 4), 4, partition=1)
    assert look() == (3, pytest.approx(now.timestamp() - 6 * 86_400, abs=0.001), 0, [])
    key, _, headers = encode_replay_note(_letter("g"), now.timestamp())
    write({"key": key, "value": None, "headers": list(headers)}, 0)
    write(dead_letter("g", "submit", "refused", 5), 8)
    old = ["3 dead letters are open, the oldest for 8 days"]
    assert look() == (3, pytest.approx(now.timestamp() - 8 * 86_400, abs=0.001), 0, old)
    assert look()[3] == old, "the same once more"
    admin = AdminClient(client)
    gone = admin.delete_records([TopicPartition(errors, 0, 6)])
    for future in gone.values():
        future.result(30)
    assert look() == (1, pytest.approx(now.timestamp() - 4 * 86_400, abs=0.001), 2, [])


def sample(metric: prometheus_client.Gauge | prometheus_client.Counter) -> float:
    return metric.collect()[0].samples[0].value


def _letter(group: str) -> Any:
    return decode_dead_letter(dead_letter(group, "enrich", "not_found", 1)["value"])


def test_age_of_the_oldest_unread_record(broker: Broker, topic: TopicFactory) -> None:
    name = topic(3)
    producer = broker.producer()
    now = time.time()
    for seconds_ago in (500, 20):
        producer.produce(name, b"x", partition=0, timestamp=round((now - seconds_ago) * 1000))
    producer.produce(name, b"x", partition=1, timestamp=round((now + 3600) * 1000))
    assert producer.flush(30) == 0
    view = GroupView({"bootstrap.servers": broker.bootstrap_servers}, f"{name}.group", name)
    try:
        _, positions = view.positions()
        assert [one.lag for one in positions] == [2, 1, 0]
        ages = view.ages(positions, now)
    finally:
        view.close()
    assert ages.keys() == {0, 1}
    assert ages[0] == pytest.approx(500, abs=0.01)
    assert ages[1] == 0.0


# ------------------------------------------------------------------------------------------------------------- the job


def feed(stack: Stack, number: int, seed: int) -> list[Receipt]:
    events = Generator(seed, start=datetime.now(UTC)).tracking_messages(number)
    return produce(stack.broker.bootstrap_servers, stack.topic("tracking"), events, stack.claimx)


def test_status_tells_healthy_lagging_waiting_stuck_and_dead_apart(stack: Stack, asked: Asked) -> None:
    port = free_port()
    metrics = f"--metrics_url=http://{HOST}:{port}"
    options = {
        "max_batch_records": 5,
        "http_concurrency": 2,
        "claimx_deadline_seconds": 2,
        "outage_patience_seconds": 3600,
    }
    with stack.running("cabinet", metrics_port=port, **options) as job:
        feed(stack, 60, seed=1)
        stack.settle("cabinet")

        idle = asked(metrics)
        assert (idle["verdict"], idle["reason"], idle["fix"]) == ("healthy", "nothing left to read", "")
        assert (idle["offsets"]["lag"], idle["offsets"]["oldest_unread_seconds"]) == (0, None)
        assert [worker["state"] for worker in idle["workers"]] == ["ok"]

        stack.claimx.faults.latency_seconds = 0.2
        feed(stack, 150, seed=2)
        lagging = asked(metrics, "--threshold=20", "--window_seconds=3")
        assert lagging["verdict"] == "lagging", lagging
        assert lagging["offsets"]["lag"] > 20
        assert lagging["offsets"]["moved"] > 0 or lagging["tables"]["moved"] > 0
        assert lagging["offsets"]["oldest_unread_seconds"] > 1
        assert "records behind, more than 20" in lagging["reason"]

        stack.claimx.faults = Faults(outage=True)
        wait_for(lambda: asked(metrics)["verdict"] == "waiting", "the job waits for ClaimX")
        waiting = asked(metrics)
        assert "ClaimX" in waiting["reason"]
        assert any("ClaimX" in name for name in waiting["workers"][0]["waiting_for"])
        stack.claimx.faults = Faults()
        stack.settle("cabinet", 120)
        assert asked(metrics)["verdict"] == "healthy"

        job.process.send_signal(signal.SIGSTOP)
        feed(stack, 3, seed=3)
        stuck = asked(metrics)
        assert (stuck["verdict"], stuck["workers"][0]["state"]) == ("stuck", "silent")
        assert stuck["reason"] == f"http://{HOST}:{port}: does not answer within 5 s"
        assert stuck["offsets"]["lag"] == 3
        job.process.send_signal(signal.SIGCONT)
        stack.settle("cabinet")
        wait_for(lambda: asked(metrics)["verdict"] == "healthy", "the job goes on")

        job.kill()
        for unread in (0, 2):
            feed(stack, unread, seed=4)
            dead = asked(metrics)
            assert (dead["verdict"], dead["workers"][0]["state"]) == ("dead", "absent")
            assert dead["offsets"]["lag"] == unread
        assert asked()["verdict"] == "unknown"


def test_what_status_shows_of_tables_and_dead_letters(stack: Stack, asked: Asked) -> None:
    before = datetime.now(UTC)
    feed(stack, 200, seed=7)
    stack.run("cabinet")
    report = asked()

    tables = {table["name"]: table for table in report["tables"]["tables"]}
    assert {name: table["version"] for name, table in tables.items()} == {
        name: DeltaTable(f"{stack.tables_uri}/{name}").version()
        for name in (TRACKING, FORMS, ATTACHMENTS, LEDGER, BODIES)
    }
    newest = max(row["event_timestamp"] for row in stack.tracking())
    shown = datetime.fromisoformat(tables[TRACKING]["newest_event"])
    assert timedelta(0) <= newest - shown < timedelta(milliseconds=1)
    for table in tables.values():
        assert datetime.fromisoformat(table["committed_at"]) > before
    assert datetime.fromisoformat(tables[TRACKING]["newest_written"]) > before
    assert report["tables"]["rows_ahead_of_offsets"] == 0

    letters = [*stack.dead_letters("errors"), *stack.dead_letters("itel_errors")]
    assert letters
    expected = Counter((letter.stage, letter.error_class) for letter in letters)
    counted = {(one["stage"], one["error_class"]): one["counted"] for one in report["dead_letters"]["reasons"]}
    assert counted == expected
    assert report["dead_letters"]["last_hour"] == report["dead_letters"]["counted"] == len(letters)

    # Rows whose offsets have not moved, as a crash before the finalizer leaves them.
    stack.rewind("cabinet")
    fences = {row["kafka_partition"]: row["kafka_offset"] + 1 for row in sorted(stack.tracking(), key=_offset)}
    assert asked()["tables"]["rows_ahead_of_offsets"] == sum(fences.values())


def _offset(row: Mapping[str, Any]) -> int:
    return int(row["kafka_offset"])


def test_a_process_that_answers_while_nothing_moves_is_stuck(stack: Stack, asked: Asked) -> None:
    feed(stack, 5, seed=8)
    with FaultyServer(says(job="cabinet", group=f"{stack.prefix}.cabinet")) as server:
        report = asked(f"--metrics_url={server.url}/healthz", "--window_seconds=0.2")
        assert report["verdict"] == "stuck"
        told = r"its process answers, but in \d+ s nothing moved, with 5 records to read"
        assert re.fullmatch(told, report["reason"])
        assert {part["note"] for part in report["offsets"]["partitions"]} == {
            "no offset: it starts as --start_offset says"
        }
        assert len(server.requests) == 3, "looked at three times before it was said"
        assert [table["version"] for table in report["tables"]["tables"]] == [None] * 5


def test_sources_that_are_away_are_told_each_by_itself(
    stack: Stack, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("itel_cabinet.pipeline.commands.shared.BROKER_SECONDS", 1.0)
    nowhere = f"{HOST}:{free_port()}"
    with FaultyServer(says(job="cabinet", group=f"{stack.prefix}.cabinet")) as server:
        metrics = f"--metrics_url={server.url}"
        report = asked(metrics, f"--bootstrap_servers={nowhere}", "--window_seconds=0.1")
        no_broker = f"--bootstrap_servers: no broker answers at {nowhere} ("
        assert report["verdict"] == "unknown"
        assert report["offsets"]["error"].startswith(no_broker)
        assert report["dead_letters"]["error"].startswith(no_broker)
        assert [worker["state"] for worker in report["workers"]] == ["ok"]
        assert [table["version"] for table in report["tables"]["tables"]] == [None] * 5

        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
        store = json.dumps({"endpoint": f"http://{nowhere}", "allow_http": "true", "region": "here"})
        tables = ("--tables_root=s3://bucket/tables", f"--storage_options={store}")
        report = asked(metrics, *tables, "--dead_letter_topic=no.such.topic")
        assert report["verdict"] == "healthy"
        assert report["tables"]["error"].startswith("--tables_root: Delta table s3://bucket/tables/")
        assert "hunter2" not in json.dumps(report)
        mend = "topic 'no.such.topic' does not exist: create it with `itel-cabinet topics create`"
        assert report["dead_letters"] == {"error": mend}

        report = asked(metrics, "--input_topic=no.such.topic", "--window_seconds=0.1")
        assert (report["verdict"], report["offsets"]) == ("unknown", {"error": mend})


def test_the_screen(
    stack: Stack, asked: Asked, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    feed(stack, 30, seed=9)
    stack.run("cabinet")
    with FaultyServer(says(job="cabinet", group=f"{stack.prefix}.cabinet")) as server:
        assert main(asked.arguments(f"--metrics_url={server.url}", "--window_seconds=0.1")) == 0
    screen = capsys.readouterr().out
    assert screen.startswith("cabinet: healthy: nothing left to read\n")
    assert f"{stack.prefix}.cabinet in {stack.topic('tracking')}, " in screen
    assert f"{server.url}   ok      last heartbeat 0.3 s ago" in screen
    assert "offsets: 0 behind; 0.0/s arrive, 0.0/s are read (watched for " in screen
    assert "tables: 0 records are in them whose offsets are not committed yet" in screen
    assert TRACKING in screen
    number = len(stack.dead_letters("errors")) + len(stack.dead_letters("itel_errors"))
    assert (
        f"dead letters of this group: {number} in the last hour, {number} in all; 0 replays; {number} open, " in screen
    )


@pytest.mark.parametrize("form", ["json", "screen"])
def test_watching_ends_on_ctrl_c_with_the_last_verdict(stack: Stack, asked: Asked, form: str) -> None:
    feed(stack, 3, seed=10)
    more = ["--watch", "--every=0.2", "--window_seconds=0.2", *(["--json"] if form == "json" else [])]
    command = [sys.executable, "-m", "itel_cabinet.pipeline.commands", *asked.arguments(*more)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        try:
            assert watching.stdout is not None
            if form == "json":
                verdicts = [json.loads(watching.stdout.readline())["verdict"] for _ in range(3)]
                assert verdicts == ["unknown"] * 3
            else:
                first = watching.stdout.readline()
                assert re.fullmatch(r"cabinet: unknown: in \d+ s nothing moved, with 3 records to read\n", first)
            watching.send_signal(signal.SIGINT)
            _, errors = watching.communicate(timeout=60)
        finally:
            watching.kill()
    assert (watching.returncode, errors) == (1, "")


@pytest.mark.services
@pytest.mark.parametrize("command", [pytest.param("lag", marks=pytest.mark.slow), "status"])
def test_watching_goes_on_when_the_broker_is_back(command: str, tmp_path: Path) -> None:
    def seen(report: Any) -> int | None:
        """The lag in a line of JSON, None for a broker that is away."""
        offsets = report[0] if isinstance(report, list) else report.get("offsets", report)
        return offsets.get("lag")

    with Broker.start(tmp_path / "broker") as broker:
        for name in ("itel.cabinet.task.tracking", "itel.cabinet.api.errors"):
            broker.create_topic(name, 1)
        more = ["--window_seconds=0.2"] if command == "status" else []
        arguments = [command, "api", f"--bootstrap_servers={broker.bootstrap_servers}", *more]
        full = [
            sys.executable,
            "-m",
            "itel_cabinet.pipeline.commands",
            *arguments,
            "--watch",
            "--every=0.1",
            "--json",
        ]
        with subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
            try:
                assert watching.stdout is not None
                lines = (seen(json.loads(line)) for line in watching.stdout)
                assert next(lines) == 0
                broker.kill()
                assert next(lag for lag in lines if lag != 0) is None
                broker.start_again()
                assert next(lag for lag in lines if lag is not None) == 0
                watching.send_signal(signal.SIGINT)
                _, errors = watching.communicate(timeout=60)
            finally:
                watching.kill()
    assert (watching.returncode, errors) == (0 if command == "lag" else 1, "")


def test_a_transaction_that_nobody_ends_is_reported(
    broker: Broker, topic: TopicFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    name = topic(1)
    group = f"{name}.group"
    plain, producer = broker.producer(), broker.producer(**{"transactional.id": name})
    plain.produce(name, b"read")
    assert plain.flush(30) == 0
    commit(broker, group, name, {0: 1})
    producer.init_transactions(30)
    producer.begin_transaction()
    minute_ago = round(time.time() * 1000) - 60_000
    producer.produce(name, b"not ended", timestamp=minute_ago)
    producer.flush(30)
    plain.produce(name, b"behind")
    assert plain.flush(30) == 0
    letters = topic(1)
    asked = (
        "status", "tracking", f"--consumer_group={group}", f"--input_topic={name}", f"--dead_letter_topic={letters}",
        f"--bootstrap_servers={broker.bootstrap_servers}", "--window_seconds=0.1", "--json",
    )  # fmt: skip

    def status(max_age_seconds: int) -> dict[str, Any]:
        assert main((*asked, f"--max_age_seconds={max_age_seconds}")) == 1
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    report = status(30)
    assert report["verdict"] == "stuck"
    assert re.fullmatch(
        r"partition 0: 2 records wait behind a transaction that has been open for \d+ s", report["reason"]
    )
    assert f"kafka-transactions.sh find-hanging --topic {name}" in report["fix"]
    assert report["offsets"]["partitions"][0]["note"] == "2 more, from a transaction on that is still open"
    young = status(300)
    assert young["verdict"] == "unknown", "a transaction may take its time"
    # A group that somebody set to the very end of the log stands beyond what is delivered, and no log was cut.
    commit(broker, group, name, {0: 3})
    assert status(300)["reason"].endswith("with nothing to read")
    producer.abort_transaction(30)
    commit(broker, group, name, {0: 4})
    assert status(30)["verdict"] == "unknown"
