"""Every number that a process of a job counts, once: the catalogue behind ``/metrics`` and docs/monitoring.md.

The process-wide registry is the truth. Beam's counters repeat the counts that a runner can add up, but a runner shows
them only at the end of a job (DirectRunner) or some ten seconds late (Flink). Everything here is thread-safe. A process
counts what it has done: records that are read again after a crash are counted again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

__all__ = [
    "CATALOGUE",
    "REGISTRY",
    "ExpectedLabels",
    "LiveGauge",
    "MetricInfo",
    "observe_freshness",
    "start_at_zero",
]

REGISTRY = CollectorRegistry()
"""All metrics of this process, and nothing else."""

_CALL_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_FRESHNESS_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """A metric as docs/monitoring.md has it; ``name`` is the one that Prometheus knows."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str


CATALOGUE: list[MetricInfo] = []
"""All metrics. Each has the label ``pipeline`` besides, when it is scraped."""


class LiveGauge(Collector):
    """A gauge whose values are computed at each scrape; a value that is None is left out. Thread-safe."""

    def __init__(self, name: str, meaning: str, labels: tuple[str, ...]) -> None:
        self._family = (name, meaning, labels)
        self._values: dict[tuple[str, ...], Callable[[], float | None]] = {}
        REGISTRY.register(self)

    def follow(self, value: Callable[[], float | None], *labels: object) -> None:
        """Call ``value`` at each scrape, from any thread, for these labels; it replaces the one before."""
        self._values[tuple(map(str, labels))] = value

    def collect(self) -> Iterator[GaugeMetricFamily]:
        name, meaning, labels = self._family
        family = GaugeMetricFamily(name, meaning, labels=labels)
        for values, ask in self._values.copy().items():
            value = ask()
            if value is not None:
                family.add_metric(values, value)
        yield family


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(_register(f"{name}_total", "counter", meaning, labels), meaning, labels, registry=REGISTRY)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    return Gauge(_register(name, "gauge", meaning, labels), meaning, labels, registry=REGISTRY)


def _live_gauge(name: str, meaning: str, *labels: str) -> LiveGauge:
    return LiveGauge(_register(name, "gauge", meaning, labels), meaning, labels)


def _histogram(name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    full = _register(name, "histogram", meaning, labels)
    return Histogram(full, meaning, labels, buckets=buckets, registry=REGISTRY)


def _register(name: str, kind: Literal["counter", "gauge", "histogram"], meaning: str, labels: tuple[str, ...]) -> str:
    """The name in full; it is in the catalogue now."""
    full = f"itel_cabinet_{name}"
    CATALOGUE.append(MetricInfo(full, kind, labels, meaning))
    return full


# Of the source

RECORDS_CONSUMED = _counter("records_consumed", "Records read from the input topic.", "topic", "partition")
RECORDS_LOST = _counter("records_lost", "Records that retention deleted before they were read.", "topic", "partition")
HEADERS_UNREADABLE = _counter(
    "headers_unreadable", "Records that were read without their headers, as a header's name is not UTF-8.", "topic"
)
READER_LAG = _live_gauge(
    "reader_lag_records", "Records between the reader and the partition's end.", "topic", "partition"
)
COMMITTED_OFFSET = _gauge("committed_offset", "The group's offset as last committed.", "topic", "partition")
OFFSET_COMMIT_FAILURES = _counter("offset_commit_failures", "Offset commits that were given up.", "topic")
OFFSETS_MOVED = _counter(
    "offsets_moved", "Partitions whose offset was set from outside while the job ran: back or ahead.", "topic", "way"
)

# Of the steps

RECORDS_SKIPPED = _counter("records_skipped", "Valid records that the job has nothing to do with.", "reason")
DEAD_LETTERS = _counter("dead_letters", "Records that could not go on.", "stage", "error_class")
OPEN_LETTERS = _gauge("open_letters", "Dead letters of the group that are neither replayed nor deleted yet.")
OLDEST_OPEN_LETTER = _gauge(
    "oldest_open_letter_timestamp_seconds", "When the oldest of them was written (Unix time); 0 for none."
)
LETTERS_LOST = _counter("letters_lost", "Dead letters that retention deleted before they were replayed.")
UNRECONCILED_FORMS = _gauge(
    "unreconciled_forms",
    "Completed forms of the last 7 days that iTel lacks by the ledger, by what became of the last try.",
    "outcome",
)
OLDEST_UNRECONCILED = _gauge(
    "oldest_unreconciled_form_timestamp_seconds", "The oldest one's event (Unix time); 0 for none.", "outcome"
)
UNKNOWN_QUESTIONS = _counter(
    "unknown_questions", "Answers to questions that the form's table does not know, by question.", "question"
)
FORMS = _counter("forms", "Forms read, by whether something in them was odd: clean or warnings.", "state")
PHOTOS = _counter("photos", "What became of photos: stored, known, or the reason why not.", "outcome")
SHADOW_SUBMISSIONS = _counter(
    "shadow_submissions",
    "Submissions sent to a second endpoint too, by what became of them at the first, and what the second says.",
    "itel",
    "shadow",
)
CONTRACT_INFO = _gauge(
    "contract_info", "Always 1; the labels say which contract the process runs by.", "contract", "version", "sha256"
)
CONTRACT_LOOKUPS = _counter(
    "contract_lookups",
    "What a body needs of ClaimX: found, missing, or a link that is not_resolved.",
    "lookup",
    "outcome",
)

# Of what is called

LOOKUP_SECONDS = _histogram("lookup_seconds", "A task's lookup, waiting for outages included.", _CALL_SECONDS)
LOOKUPS_CACHED = _counter("lookups_cached", "Lookups that the cache answered.")
HTTP_TRIES = _counter("http_tries", "Single requests, by status class (2xx ...) or how they failed.", "api", "outcome")
HTTP_RETRIES = _counter("http_retries", "Requests made again after a failed one.", "api")
HTTP_LIMITED = _counter("http_limited", "Requests that the API put off by a limit on its calls (429, 503).", "api")
HTTP_CALLS_FAILED = _counter("http_calls_failed", "Calls without a good answer (2xx) after all tries.", "api")
HTTP_CALL_SECONDS = _histogram("http_call_seconds", "Calls, all tries and pauses included.", _CALL_SECONDS, "api")
BREAKER_OPEN = _gauge("breaker_open", "1 while the API is not called because most tries failed.", "api")
HTTP_CONCURRENCY = _gauge("http_concurrency", "Calls that may be under way at once: as many as the API bears.", "api")
SUBMISSIONS = _counter(
    "submissions", "Submissions to iTel: accepted, duplicate, unchanged, or the error's class.", "outcome"
)

# Of the tables

ROWS_WRITTEN = _counter("rows_written", "Rows committed.", "table")
ROWS_REPLAYED = _counter("rows_replayed", "Rows that the fence knew as committed.", "table")
ROWS_SUPPRESSED = _counter("rows_suppressed", "Rows left out at the commit, as they are of what was erased.", "table")
RECORDS_LATE = _counter("records_late", "Records below the fence that the table did not have, and has now.", "table")
COMMITS = _counter("commits", "Versions of the table made.", "table")
COMMIT_CONFLICTS = _counter("commit_conflicts", "Commits decided again, since another writer came first.", "table")
COMMIT_FAILURES = _counter("commit_failures", "Tries at a commit that failed for another reason.", "table")
COMMIT_SECONDS = _histogram(
    "commit_seconds", "A bundle's commit, conflicts and outages included.", _CALL_SECONDS, "table"
)

# Of the Kafka outputs

MESSAGES_PUBLISHED = _counter("messages_published", "Messages that the broker has confirmed.", "topic")
PUBLISH_FAILURES = _counter("publish_failures", "Messages that the broker refused or did not confirm.", "topic")

# Of the whole

FRESHNESS_SECONDS = _histogram(
    "freshness_seconds",
    "Age, by Kafka's time, of a bundle's oldest record when what came of it was durable in a table or topic.",
    _FRESHNESS_SECONDS,
    "sink",
)
STARTED = _gauge("started_timestamp_seconds", "When the process started (Unix time).")
HEARTBEAT = _gauge("heartbeat_timestamp_seconds", "When the process last did something (Unix time).")
WAITING = _gauge("waiting", "1 while an outage is being waited out.", "what")


@dataclass(frozen=True)
class ExpectedLabels:
    """The labels that a job's metrics can have: its topics, APIs, outcomes of submissions, tables."""

    consumed: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    apis: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


def start_at_zero(expected: ExpectedLabels) -> None:
    """Show these metrics from the first scrape on, at 0. Idempotent.

    A counter that first appears with its first count has not risen, as far as Prometheus can see.
    """
    for labels, metrics in (
        (expected.consumed, (OFFSET_COMMIT_FAILURES, HEADERS_UNREADABLE)),
        (expected.published, (MESSAGES_PUBLISHED, PUBLISH_FAILURES)),
        (expected.apis, (HTTP_RETRIES, HTTP_LIMITED, HTTP_CALLS_FAILED, BREAKER_OPEN)),
        (expected.outcomes, (SUBMISSIONS,)),
        (
            expected.tables,
            (ROWS_WRITTEN, ROWS_REPLAYED, ROWS_SUPPRESSED, RECORDS_LATE, COMMITS, COMMIT_CONFLICTS, COMMIT_FAILURES),
        ),
    ):
        for label in labels:
            for metric in metrics:
                metric.labels(label)
    for topic in expected.consumed:
        for way in ("back", "ahead"):
            OFFSETS_MOVED.labels(topic, way)


def observe_freshness(sink: str, since: float) -> None:
    """Record that what began at ``since`` (epoch seconds) is durable now; a time in the future counts as now.

    A record without a time (Kafka's -1, or 0) has no age.
    """
    if since > 0:
        FRESHNESS_SECONDS.labels(sink).observe(max(0.0, time.time() - since))
