"""What operators watch a job with - alerts and dashboards - on a real Prometheus that scrapes real jobs."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from itel_cabinet.io.worker.metrics import CATALOGUE, REGISTRY
from itel_cabinet.local.samples import Generator, Shares, produce
from itel_cabinet.local.services import Broker, FlinkCluster, Prometheus, free_port, promtool, with_durations
from itel_cabinet.pipeline.tables import FORMS, TRACKING
from itel_cabinet.transforms.contracts import shipped_text
from monitoring.dashboards import DASHBOARDS, FOLDER, render
from tests.support.asked import Asked
from tests.support.jobs import TOPICS, Stack, every, wait_for
from tests.support.printed import Printed

MONITORING = Path(__file__).parents[2] / "monitoring"
ALERTS = (MONITORING / "alerts.yml").read_text(encoding="utf-8")


@pytest.mark.services  # like Prometheus itself, promtool comes with make setup-tests
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "--lint-fatal", "alerts.yml"),
        ("check", "config", "--lint-fatal", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml", "alerts_over_days_test.yml"),
    ],
    ids=["rules", "config", "unit tests"],
)
def test_promtool_finds_no_fault(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MONITORING)
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout
    assert "SUCCESS" in done.stdout


def test_every_alert_says_what_is_wrong_why_and_what_to_do() -> None:
    rules = alert_rules()
    assert len(rules) == 23
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"].keys() == {"summary", "cause", "cure", "runbook_url"}
        assert all(text and "\n" not in text for text in rule["annotations"].values())
        assert "{{ $labels.pipeline }}" in rule["annotations"]["summary"]


def test_every_alert_links_to_its_row_in_the_docs(tmp_path: Path, printed: Printed) -> None:
    page = (MONITORING.parent / "docs" / "monitoring.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r'^\| `(\w+)` \| \w+ \| <a id="(\w+)"></a>', page, re.MULTILINE))
    links = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in alert_rules()}
    assert links == {alert: f"docs/monitoring.md#{anchor}" for alert, anchor in rows.items()}
    printed.stdout("monitoring", "export", str(tmp_path), "--docs_url=https://wiki.example/itel-cabinet/docs/")
    exported = yaml.safe_load((tmp_path / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    assert exported[0]["annotations"]["runbook_url"] == (
        "https://wiki.example/itel-cabinet/docs/monitoring.md#itelcabinetworkerstopped"
    )
    assert {rule["annotations"]["runbook_url"] for rule in exported} == {
        f"https://wiki.example/itel-cabinet/{link}" for link in links.values()
    }


def test_every_alert_has_a_unit_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in MONITORING.glob("alerts*_test.yml"))
    tested = set(re.findall(r'alertname="(\w+)"', tests))
    assert tested == {rule["alert"] for rule in alert_rules()}


def test_durations_are_changed_and_nothing_else() -> None:
    given = (
        "groups: [{name: g, rules: [{alert: A, for: 5m, labels: {severity: warning}, annotations: {cause: waits 5m},"
        " expr: 'sum(rate(x_5m[1h] offset 2d)) > 300 or avg_over_time(y{z=\"5m\"}[90s]) == 1'}]}]"
    )
    [rule] = yaml.safe_load(with_durations(given, lambda seconds: seconds / 60))["groups"][0]["rules"]
    assert rule["expr"] == ('sum(rate(x_5m[60000ms] offset 2880000ms)) > 300 or avg_over_time(y{z="5m"}[1500ms]) == 1')
    assert (rule["for"], rule["annotations"]) == ("5000ms", {"cause": "waits 5m"})


def test_the_dashboards_are_as_the_code_has_them() -> None:
    assert {file.stem for file in FOLDER.glob("*.json")} == DASHBOARDS.keys()
    for name, dashboard in DASHBOARDS.items():
        stale = f"{name}.json is stale: run python -m monitoring.dashboards"
        assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == render(dashboard), stale


def test_alerts_and_dashboards_know_only_metrics_that_exist() -> None:
    alerts = {name for rule in alert_rules() for name in re.findall(r"itel_cabinet_\w+", rule["expr"])}
    panels = {name for query in queries() for name in re.findall(r"itel_cabinet_\w+", query)}
    samples = {metric.name for metric in CATALOGUE if metric.kind != "histogram"} | {
        f"{metric.name}_{part}" for metric in CATALOGUE if metric.kind == "histogram" for part in ("bucket", "count")
    }
    assert alerts - samples == set()
    assert panels - samples == set()
    assert len(alerts) > 10
    # What is nowhere to be seen is not worth counting.
    seen = {re.sub(r"_(bucket|count)$", "", name) for name in alerts | panels}
    assert {metric.name for metric in CATALOGUE} - seen == set()


def test_every_metric_is_in_the_docs_and_no_other() -> None:
    page = (MONITORING.parent / "docs" / "monitoring.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(itel_cabinet_\w+)` \| (\w+) \| (.*?) \| (.+) \|$", page, re.MULTILINE)
    assert rows == [
        (metric.name, metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.meaning)
        for metric in CATALOGUE
    ]
    assert len(list(REGISTRY.collect())) == len(CATALOGUE)


def test_every_alert_is_in_the_docs_and_no_other() -> None:
    page = (MONITORING.parent / "docs" / "monitoring.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(ItelCabinet\w+)` \| (\w+) \|", page, re.MULTILINE)
    assert rows == [(rule["alert"], rule["labels"]["severity"]) for rule in alert_rules()]


def test_every_panel_is_told_of_and_has_a_unit() -> None:
    for name in DASHBOARDS:
        panels = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["panels"]
        charts = [panel for panel in panels if panel["type"] != "row"]
        assert len(charts) > 8
        for panel in charts:
            assert panel["title"]
            assert panel["description"].endswith(".")
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert all(target["legendFormat"] for target in panel["targets"])


def queries() -> list[str]:
    """What the panels ask, as it is written in them."""
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json"))]
    panels = [panel for document in documents for panel in document["panels"]]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def alert_rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS)["groups"] for rule in group["rules"]]


# ----------------------------------------------------------------------------------------------- on a real Prometheus


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Prometheus]:
    """One that scrapes each second, with the alerts' durations a thirtieth of what they are, or nearly so: a day is
    longer than the test, what counts up to a threshold long enough for it, and the rest no longer than it takes to see
    an alert clear.
    """
    special = {86_400: 600.0, 3_600: 40.0, 1_800: 30.0, 900: 20.0, 300: 20.0}
    rules = with_durations(ALERTS, lambda seconds: special.get(seconds, seconds / 30))
    with Prometheus.start(tmp_path / "prometheus", rules=rules) as running:
        yield running


def fires(prometheus: Prometheus, *names: str, seconds: float = 120.0) -> None:
    """Wait until all of these alerts have fired, be it one after the other; each must say what it means."""
    left = {f"ItelCabinet{name}" for name in names}

    def fired() -> bool:
        for alert in prometheus.alerts():
            if alert.state == "firing" and alert.name in left:
                left.discard(alert.name)
                assert "{{" not in str(alert.annotations)
                assert "<no value>" not in str(alert.annotations)
                assert "error expanding" not in str(alert.annotations)
        return not left

    try:
        wait_for(fired, "alerts fire", seconds)
    except AssertionError:
        raise AssertionError(f"not within {seconds:.0f} s: {sorted(left)}; now {prometheus.alerts()}") from None


# A night, and questions that the samples ask and no contract knows.
_NO_FAULTS = frozenset({"ItelCabinetNoEvents", "ItelCabinetFormDrift"})


def clear(prometheus: Prometheus, *names: str, seconds: float = 120.0) -> None:
    """Wait until none of these alerts fires any more: of any, if none is named, that tells of a fault."""
    wanted = {f"ItelCabinet{name}" for name in names}

    def cleared() -> bool:
        firing = prometheus.firing()
        return not (firing & wanted if wanted else firing - _NO_FAULTS)

    try:
        wait_for(cleared, "alerts clear", seconds)
    except AssertionError:
        raise AssertionError(f"still after {seconds:.0f} s: {prometheus.alerts()}") from None


@dataclass
class Feed:
    """Completed and other tasks for a topic of a stack, in lots."""

    stack: Stack
    generator: Generator

    def __call__(self, n: int = 20) -> None:
        stack = self.stack
        messages = self.generator.tracking_messages(n)
        produce(stack.broker.bootstrap_servers, stack.topic("tracking"), messages, stack.claimx)

    def flowing(self, n: int = 5, seconds: float = 0.3) -> AbstractContextManager[None]:
        """A lot every so many seconds, in a thread."""
        return every(seconds, lambda: self(n))


GOOD = Shares(other_task=0, bad=0, completed_without_form=0, repeated=0)


@pytest.fixture
def feed(stack: Stack) -> Feed:
    return Feed(stack, Generator(12, start=datetime.now(UTC), shares=GOOD))


def test_every_panel_shows_what_a_run_has_done(stack: Stack, prometheus: Prometheus, tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    contract = yaml.safe_load(shipped_text("cabinet_repair"))
    contract["lookups"] = {"project": {"fields": {"number": "data.project.projectNumber"}}}
    (tmp_path / "contract.yaml").write_text(yaml.safe_dump(contract), encoding="utf-8")
    of_the_contract = {"contract": tmp_path / "contract.yaml", "itel_shadow_url": stack.itel.url}
    prometheus.watch(ports)
    generator = Generator(13, start=datetime.now(UTC))
    servers, topic = stack.broker.bootstrap_servers, stack.topic("enriched")

    def feed() -> None:
        produce(servers, topic, generator.claimx_events(20), stack.claimx)
        produce(servers, stack.topic("tracking"), generator.tracking_messages(20), stack.claimx)

    empty = dict.fromkeys(queries())
    assert len(empty) > 40

    def all_have_data() -> bool:
        for query in [*empty]:
            asked = query.replace("$pipeline", ".*").replace("$__rate_interval", "30s")
            if any(not math.isnan(sample.value) for sample in prometheus.query(asked)):
                del empty[query]
        return not empty

    with (
        stack.running("trigger", metrics_port=ports[0]),
        stack.running("cabinet", metrics_port=ports[1], media_root=stack.media_uri, **of_the_contract),
        every(0.3, feed),
    ):
        try:
            wait_for(all_have_data, "every panel shows something", 120)
        except AssertionError:
            raise AssertionError(f"nothing to be seen: {[*empty]}") from None
        pipelines = {sample.labels["pipeline"] for sample in prometheus.query("itel_cabinet_records_consumed_total")}
        assert pipelines == {"trigger", "cabinet"}


@pytest.mark.timeout(900)
def test_alerts_fire_and_clear(stack: Stack, prometheus: Prometheus, feed: Feed) -> None:
    """All but seven, of which OffsetCommitFailures has a test below, with a broker of its own that it may kill.

    In place of a second worker on Flink, whose loss restarts the whole job, another copy of the job that reads another
    topic is lost: PartitionUnread looks at the label alone.
    """
    ports = [free_port() for _ in range(3)]
    prometheus.watch(ports)
    options: dict[str, object] = {
        "outage_patience_seconds": 600,
        "max_retries": 1,
        "claimx_deadline_seconds": 2,
        "breaker_window_seconds": 2,
        "breaker_open_seconds": 1,
        "max_batch_records": 50,
    }
    other = options | {"input_topic": stack.topic("tracked"), "consumer_group": f"{stack.prefix}.other"}
    with ExitStack() as jobs:
        cabinet = jobs.enter_context(stack.running("cabinet", metrics_port=ports[0], **options))
        copy = jobs.enter_context(stack.running("cabinet", metrics_port=ports[1], **other))
        feed(60)
        stack.settle("cabinet", 120)
        wait_for(lambda: len(prometheus.query("itel_cabinet_heartbeat_timestamp_seconds")) == 2, "both are scraped")
        # The sample forms hold a photo question that is not known.
        fires(prometheus, "FormDrift")
        assert prometheus.firing() == {"ItelCabinetFormDrift"}
        fires(prometheus, "NoEvents")
        feed()
        clear(prometheus, "NoEvents")

        _lose_records_and_publish_in_vain(stack, jobs, ports[2], prometheus)

        stack.claimx.faults.outage = True
        feed(1_300)
        fires(prometheus, "ClaimXErrors", "OutageWaited", "BreakerOpen", "NothingConsumed", "HighLag")
        stack.claimx.faults.outage = False
        stack.itel.faults.error_status = 400
        fires(prometheus, "ItelFailures", "MostlyRefused", "DeadLetters")
        stack.itel.faults.error_status = None
        clear(prometheus, "ClaimXErrors", "OutageWaited", "BreakerOpen", "NothingConsumed", "HighLag", seconds=180)

        forms = stack.tables_root / FORMS
        forms.rename(forms.with_suffix(".away"))
        forms.write_text("no folder")
        with feed.flowing():
            fires(prometheus, "DeltaWriteFailures")
            forms.unlink()
            forms.with_suffix(".away").rename(forms)
            with _writing(stack, TRACKING):
                fires(prometheus, "CommitConflicts")

            copy.kill()
            fires(prometheus, "PartitionUnread")
            jobs.enter_context(stack.running("cabinet", metrics_port=ports[1], **other))
            clear(
                prometheus, "DeltaWriteFailures", "CommitConflicts", "PartitionUnread", "ItelFailures", "MostlyRefused"
            )

        old = int((time.time() - 3_600) * 1_000)
        producer = stack.broker.producer()

        def an_hour_old() -> None:
            one = next(feed.generator.tracking_messages(1))
            stack.claimx.put_task(one.details)
            producer.produce(stack.topic("tracking"), one.value, one.key, timestamp=old)
            assert producer.flush(30) == 0

        with every(0.3, an_hour_old):
            fires(prometheus, "Stale")

        cabinet.kill()
        jobs.pop_all().close()
        fires(prometheus, "WorkerStopped")
    with stack.running("cabinet", metrics_port=ports[0], **options), stack.running("trigger", metrics_port=ports[2]):
        clear(
            prometheus,
            "WorkerStopped",
            "DeadLetters",
            "Stale",
            "RecordsLost",
            "PublishFailures",
            "FormDrift",
            seconds=180,
        )


def _lose_records_and_publish_in_vain(stack: Stack, jobs: ExitStack, port: int, prometheus: Prometheus) -> None:
    """A trigger job whose first records are gone when it starts, and whose topic takes no message of its size."""
    servers, topic, narrow = stack.broker.bootstrap_servers, stack.topic("enriched"), f"{stack.prefix}.narrow"
    stack.broker.create_topic(narrow, 1, {"max.message.bytes": "300"})
    events = list(Generator(14, start=datetime.now(UTC), shares=GOOD).claimx_events(60))
    produce(servers, topic, events[:20], stack.claimx)
    stack.rewind("trigger")
    admin = AdminClient({"bootstrap.servers": servers})
    gone = [TopicPartition(topic, partition, end) for partition, end in stack.ends("enriched").items()]
    for future in admin.delete_records(gone).values():
        future.result(30)
    jobs.enter_context(stack.running("trigger", metrics_port=port, output_topic=narrow))
    produce(servers, topic, events[20:], stack.claimx)
    fires(prometheus, "RecordsLost", "PublishFailures", "DeadLetters")


def _writing(stack: Stack, table: str) -> AbstractContextManager[None]:
    """Another writer that alters the table without end."""
    handle, numbers = DeltaTable(f"{stack.tables_uri}/{table}"), count(1)

    def write() -> None:
        with suppress(CommitFailedError):
            handle.update_incremental()
            handle.alter.set_table_properties({"delta.checkpointInterval": str(1_000 + next(numbers) % 2)})

    return every(0.0, write)


@pytest.mark.timeout(600)
def test_offsets_that_cannot_be_committed_raise_an_alert(stack: Stack, prometheus: Prometheus, tmp_path: Path) -> None:
    with Broker.start(tmp_path / "broker") as broker:
        stack = replace(stack, broker=broker)
        for role, partitions in TOPICS.items():
            broker.create_topic(stack.topic(role), partitions)
        feed = Feed(stack, Generator(15, start=datetime.now(UTC), shares=GOOD))
        port = free_port()
        prometheus.watch([port])
        with stack.running("tracking", metrics_port=port, claimx_cache_seconds=0):
            feed(20)
            stack.settle("tracking", 120)
            calls = stack.claimx.calls.total()
            stack.claimx.faults.latency_seconds = 3.0
            feed(20)
            wait_for(lambda: stack.claimx.calls.total() > calls, "lookups are under way")
            broker.kill()
            fires(prometheus, "OffsetCommitFailures", "OutageWaited")
            broker.start_again()
            stack.claimx.faults.latency_seconds = 0.0
            feed(20)
            stack.settle("tracking", 120)
            clear(prometheus)


@pytest.mark.timeout(900)
def test_both_workers_on_flink_are_scraped_under_the_same_names(
    stack: Stack, cluster: FlinkCluster, prometheus: Prometheus, feed: Feed, asked: Asked
) -> None:
    stack.broker.add_partitions(stack.topic("tracking"), 4)
    port = free_port()
    prometheus.watch([*range(port, port + 16), *cluster.reporter_ports.values()])
    options = cluster.beam_options() | {"checkpointing_interval": "2000", "shards": "4", "metrics_port": str(port)}
    with stack.running("cabinet", **options) as launcher:
        assert launcher.wait(300) == 0, launcher.errors
    [job] = [job for job in cluster.jobs() if job.active]
    try:
        feed(400)
        stack.settle("cabinet", 240)
        produced = sum(stack.ends().values())
        shows(prometheus, "sum(itel_cabinet_records_consumed_total)", [produced])
        assert len(stack.tracking()) == produced
        shows(prometheus, f'sum(itel_cabinet_rows_written_total{{table="{TRACKING}"}})', [produced])

        by_worker = prometheus.query("sum by (instance) (itel_cabinet_records_consumed_total)")
        assert len(by_worker) == 2
        assert all(worker.value > 0 for worker in by_worker)
        # The same names from both; what goes wrong by chance, such as an outage, may be known to one alone.
        names = (
            "count by (__name__) (count by (__name__, instance) ({__name__=~'itel_cabinet_.+_(total|count|offset)'}))"
        )
        told = {sample.labels["__name__"] for sample in prometheus.query(names)}
        assert {f"itel_cabinet_{name}" for name in ("rows_written_total", "commit_seconds_count")} <= told
        shows(prometheus, f"min({names})", [2])
        lag = "max by (topic, partition) (itel_cabinet_reader_lag_records)"
        shows(prometheus, lag, [0, 0, 0, 0])
        clear(prometheus)
        # Flink's own reporter, beside ours.
        shows(prometheus, "flink_jobmanager_numRegisteredTaskManagers", [2])
        shows(prometheus, "count(flink_taskmanager_Status_JVM_CPU_Load)", [2])

        # `status` asks each worker by itself.
        workers = [f"--metrics_url=http://{worker.labels['instance']}" for worker in by_worker]
        well = asked(*workers)
        assert (well["verdict"], well["reason"]) == ("healthy", "nothing left to read")
        assert [worker["state"] for worker in well["workers"]] == ["ok", "ok"]

        # A worker is lost, and another one reads on: whoever read a partition before tells of it no longer, or lower.
        [victim, _] = cluster.task_managers
        cluster.kill_task_manager(victim)
        cluster.start_task_manager()
        feed(400)
        stack.settle("cabinet", 300)
        shows(prometheus, lag, [0, 0, 0, 0], seconds=240)
        clear(prometheus, seconds=240)
    finally:
        cluster.cancel(job.id)
    wait_for(lambda: asked(*workers)["verdict"] == "dead", "no worker is left")


def shows(prometheus: Prometheus, expression: str, expected: list[float], seconds: float = 120.0) -> None:
    """Wait until the expression's series have these values."""

    def values() -> list[float]:
        return [sample.value for sample in prometheus.query(expression)]

    wait_for(lambda: values() == expected, f"{expression} is {expected}, not {values()}", seconds)
