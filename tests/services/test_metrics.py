"""The numbers that a running job tells, against what it has really done; and its log lines."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

import requests
from deltalake import DeltaTable
from prometheus_client.parser import text_string_to_metric_families

from itel_cabinet.local.samples import Generator, produce
from itel_cabinet.local.services import free_port
from itel_cabinet.pipeline.tables import ATTACHMENTS, BODIES, FORMS, LEDGER, TRACKING
from tests.support.jobs import Stack

Scraped = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(port: int) -> Scraped:
    """The samples at a job's port, by name and labels."""
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def by(scraped: Scraped, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """A metric's samples that are not 0, by the values of these labels."""
    found: Counter[tuple[str, ...]] = Counter()
    for (given, pairs), value in scraped.items():
        if given == f"itel_cabinet_{name}":
            assert ("pipeline", "cabinet") in pairs
            found[tuple(dict(pairs)[label] for label in labels)] += value  # type: ignore[assignment]
    return {key: value for key, value in found.items() if value}


def test_a_job_tells_what_it_has_done(stack: Stack) -> None:
    receipts = produce(
        stack.broker.bootstrap_servers,
        stack.topic("tracking"),
        Generator(11, start=datetime.now(UTC)).tracking_messages(200),
        stack.claimx,
    )
    port = free_port()
    with stack.running("cabinet", metrics_port=port) as job:
        stack.settle("cabinet", 120)
        told = scrape(port)
        health = requests.get(f"http://127.0.0.1:{port}/healthz", timeout=10).json()
        assert job.stop() == 0
    topic, partitions = stack.topic("tracking"), Counter(str(r.partition) for r in receipts)
    assert (health["status"], health["group"], health["topic"]) == ("ok", f"{stack.prefix}.cabinet", topic)

    assert by(told, "records_consumed_total", "topic", "partition") == {(topic, p): n for p, n in partitions.items()}
    assert by(told, "committed_offset", "topic", "partition") == {(topic, p): n for p, n in partitions.items()}
    lag = [value for (name, _), value in told.items() if name == "itel_cabinet_reader_lag_records"]
    assert lag == [0, 0, 0]
    expected = Counter(r.produced.expect for r in receipts)
    assert by(told, "records_skipped_total", "reason")["other_task",] == expected["skipped"]
    letters = [*stack.dead_letters("errors"), *stack.dead_letters("itel_errors")]
    assert letters
    assert by(told, "dead_letters_total", "stage", "error_class") == Counter((x.stage, x.error_class) for x in letters)

    tables = {TRACKING: stack.tracking(), FORMS: stack.forms()}
    assert by(told, "rows_written_total", "table")[TRACKING,] == len(tables[TRACKING])
    assert by(told, "rows_replayed_total", "table") == {}
    written = (TRACKING, FORMS, ATTACHMENTS, LEDGER, BODIES)
    versions = {(name,): DeltaTable(f"{stack.tables_uri}/{name}").version() for name in written}
    assert by(told, "commits_total", "table") == versions
    assert by(told, "commit_seconds_count", "table").keys() == versions.keys()
    sinks = {sink for (sink,) in by(told, "freshness_seconds_count", "sink")}
    assert sinks == {*written, "itel"}

    accepted = sum(submission.times for submission in stack.itel.submissions())
    assert sum(by(told, "submissions_total", "outcome").values()) == accepted
    success, errors = stack.topic("success"), stack.topic("errors")
    assert by(told, "messages_published_total", "topic") == {
        (success,): accepted,
        (errors,): len(stack.dead_letters("errors")),
        (stack.topic("itel_errors"),): len(stack.dead_letters("itel_errors")),
    }
    calls = Counter({api: by(told, "http_tries_total", "api")[api,] for api in ("claimx", "itel")})
    assert calls == Counter(claimx=_served(stack.claimx.calls), itel=_served(stack.itel.calls))
    assert by(told, "lookup_seconds_count")[()] == calls["claimx"] + by(told, "lookups_cached_total").get((), 0)
    assert by(told, "breaker_open", "api") == {}

    # Beam's counters, which the launcher logs at the end, mirror the registry's.
    mirrored = {f"skipped:{reason}": n for (reason,), n in by(told, "records_skipped_total", "reason").items()}
    for (stage, error_class), n in by(told, "dead_letters_total", "stage", "error_class").items():
        mirrored[f"failed:{stage}:{error_class}"] = n
    mirrored["Read: records_read"] = len(receipts)
    mirrored["Track: rows_written"] = len(tables[TRACKING])
    counters = job.counters
    assert {name: counters[name] for name in mirrored} == mirrored

    # The log tells of dead letters by coordinates and ids, without what is in them.
    lines = job.lines
    warnings = [x for x in lines if x["message"].startswith("dead letter: ")]
    assert warnings
    known = {(x.topic, x.topic_id, x.partition, x.offset, x.stage, x.error_class) for x in letters}
    keys = ("topic", "topic_id", "partition", "offset", "stage", "error_class")
    assert {tuple(x[key] for key in keys) for x in warnings} <= known
    assert {x["job"] for x in lines} == {"cabinet"}
    formless = [x for x in warnings if x["error_class"] == "no_form"]
    completed = {r.produced.value for r in receipts if r.produced.kind == "completed_without_form"}
    assert {(x["event_id"], x["assignment_id"]) for x in formless} <= {
        (event["event_id"], event["assignment_id"]) for event in map(json.loads, filter(None, completed))
    }


def _served(calls: Counter[str]) -> int:
    return sum(n for path, n in calls.items() if not path.startswith("/_"))


def test_log_lines_for_people(stack: Stack) -> None:
    job = stack.run("tracking", log_format="text", metrics_port=free_port())
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO ", job.errors, re.MULTILINE)


def test_a_port_that_is_taken_is_refused_at_once(stack: Stack) -> None:
    taken = int(stack.claimx.url.rpartition(":")[2])
    with stack.running("tracking", metrics_port=taken) as job:
        assert job.wait() == 1
    assert job.errors == (
        f"itel-cabinet: --metrics_port: {taken} cannot be used (Address already in use): give another one\n"
    )
