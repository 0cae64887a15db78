"""Look at a job from outside: its group in Kafka, its tables, its dead letters, and its processes at their metrics
addresses. What is seen is judged by :mod:`itel_cabinet.pipeline.operate.verdict`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Literal

from confluent_kafka import KafkaException
from pydantic import BaseModel, Field, ValidationError

from itel_cabinet.io.delta import TableSpec, glance_at_table
from itel_cabinet.io.http import CallError, Transport, TransportSettings
from itel_cabinet.io.kafka import LogReader, PartitionLag, UnknownTopicError
from itel_cabinet.io.worker import OutageError
from itel_cabinet.pipeline.operate.dead_letters import RecentLetters, recent_letters
from itel_cabinet.pipeline.operate.group_view import GroupView
from itel_cabinet.pipeline.operate.verdict import Observed, Offsets, Tables, TableSeen, Unseen, Worker, WorkerState
from itel_cabinet.pipeline.refusals import describe_kafka_error, describe_missing_topic, describe_table_error
from itel_cabinet.transforms.dead_letters import shorten

__all__ = ["NEWEST_LETTERS", "Observer", "Subject", "look_at_worker"]

NEWEST_LETTERS = 1_000
"""Dead letters are looked at up to so many messages from the end of each partition of an error topic."""

_LETTERS_SECONDS = 10.0
_CONNECT_SECONDS = 2.0
_ANSWER_SECONDS = 5.0
_LOOK_SECONDS = 0.5
# How many windows a job may stand still before it counts: on Flink, offsets move once a checkpoint.
_WINDOWS = 3
_HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Subject:
    """The job to look at; ``tables`` are its tables by name, None for a job without."""

    job: str
    group: str
    topic: str
    bootstrap_servers: str
    error_topics: tuple[str, ...]
    metrics_urls: tuple[str, ...] = ()
    tables: Mapping[str, TableSpec] | None = None


@dataclass(frozen=True, slots=True)
class _Sample:
    """What may move, at a moment in monotonic seconds."""

    at: float
    topic_id: str
    positions: list[PartitionLag] | Unseen
    fences: Mapping[int, int]

    @property
    def progress(self) -> object:
        """Differs from another sample's if anything has moved."""
        positions = self.positions if isinstance(self.positions, Unseen) else [one.committed for one in self.positions]
        return self.topic_id, positions, dict(self.fences)

    @property
    def unread(self) -> bool:
        return not isinstance(self.positions, Unseen) and any(one.lag for one in self.positions)


class Observer:
    """Watches one job. Not thread-safe; to be closed. A source that cannot be reached is an Unseen in what it returns.

    ``clock`` is monotonic, ``now`` tells epoch seconds.
    """

    def __init__(
        self,
        subject: Subject,
        client: Mapping[str, object],
        *,
        window_seconds: float,
        epoch: int = 0,
        timeout: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._subject = subject
        self._client = dict(client)
        self._window, self._epoch, self._timeout = window_seconds, epoch, timeout
        self._clock, self._now, self._sleep = clock, now, sleep
        self._view = GroupView(client, subject.group, subject.topic, epoch=epoch, timeout=timeout)
        self._samples: deque[_Sample] = deque()

    def close(self) -> None:
        self._view.close()

    def watch(self) -> Observed:
        """Look for one window, and on for up to two more while nothing moves though there is something to read and a
        worker answers: what is slow shall not be taken for stuck.
        """
        first = self._sample()
        self._samples = deque([first])
        workers: list[Worker] = []
        for _ in range(_WINDOWS):
            self._sleep(self._window)
            last = self._sample()
            workers = self._workers()
            moved = last.progress != first.progress
            if moved or not last.unread or {worker.state for worker in workers} != {WorkerState.OK}:
                break
        self._samples.append(last)
        return self._observed(last, workers)

    def again(self) -> Observed:
        """Look once more, and compare with what was seen up to three windows ago. Waits for nothing."""
        last = self._sample()
        self._samples.append(last)
        while len(self._samples) > 2 and self._samples[1].at <= last.at - _WINDOWS * self._window:
            self._samples.popleft()
        return self._observed(last, self._workers())

    def _sample(self) -> _Sample:
        positions: list[PartitionLag] | Unseen
        try:
            topic, positions = self._view.positions()
        except (KafkaException, UnknownTopicError) as error:
            return _Sample(self._clock(), "", _unseen(error, self._subject.bootstrap_servers), {})
        fences: Mapping[int, int] = {}
        if self._subject.tables is not None:
            # The tracking table, or of a job without it the one whose rows it writes first.
            spec = next(iter(self._subject.tables.values()))
            ids = {spec.fence_id(topic.topic_id, p): p for p in topic.partitions}
            try:
                glance = glance_at_table(spec.uri, spec.storage_options, fences=ids)
            except OutageError:  # reported with the tables
                glance = None
            fences = {ids[app]: at for app, at in glance.fences.items()} if glance else {}
        return _Sample(self._clock(), topic.topic_id, positions, fences)

    def _observed(self, last: _Sample, workers: list[Worker]) -> Observed:
        subject = self._subject
        # Nothing can be compared with a sample of another topic, or of none while the broker was away.
        first = next(sample for sample in self._samples if sample.topic_id == last.topic_id)
        return Observed(
            job=subject.job,
            group=subject.group,
            topic=subject.topic,
            offsets=self._offsets(first, last),
            workers=workers,
            tables=None if subject.tables is None else self._tables(subject.tables, first, last),
            letters=self._letters(),
            at=self._now(),
        )

    def _offsets(self, first: _Sample, last: _Sample) -> Offsets | Unseen:
        if isinstance(last.positions, Unseen):
            return last.positions
        before = last.positions if isinstance(first.positions, Unseen) else first.positions
        try:
            ages = self._view.ages(last.positions, self._now())
            open_transactions = self._view.open_transactions(last.positions, self._now())
        except (KafkaException, UnknownTopicError) as error:
            return _unseen(error, self._subject.bootstrap_servers)
        oldest = max(ages, key=lambda partition: ages[partition], default=None)
        return Offsets(
            topic_id=last.topic_id,
            before=before,
            now=last.positions,
            seconds=last.at - first.at,
            oldest_unread_seconds=None if oldest is None else ages[oldest],
            oldest_partition=oldest,
            starts=self._starts(last.positions),
            open_transactions=open_transactions,
        )

    def _starts(self, positions: Sequence[PartitionLag]) -> list[float]:
        marks = [one.mark for one in positions if one.mark and one.mark.job == self._subject.job]
        return max(([self._now() - at for at in sorted(mark.starts)] for mark in marks), key=len, default=[])

    def _tables(self, specs: Mapping[str, TableSpec], first: _Sample, last: _Sample) -> Tables | Unseen:
        try:
            seen = [_table(name, spec) for name, spec in specs.items()]
        except OutageError as error:
            return Unseen(describe_table_error(error))
        return Tables(seen, first.fences, last.fences)

    def _letters(self) -> RecentLetters | Unseen:
        until = self._clock() + _LETTERS_SECONDS
        try:
            with LogReader(self._client, epoch=self._epoch, timeout=self._timeout) as reader:
                return recent_letters(
                    reader,
                    self._subject.error_topics,
                    self._subject.group,
                    hour_ago_ms=self._now() * 1000 - _HOUR_MS,
                    newest=NEWEST_LETTERS,
                    go_on=lambda: self._clock() < until,
                )
        except (KafkaException, UnknownTopicError) as error:
            return _unseen(error, self._subject.bootstrap_servers)

    def _workers(self) -> list[Worker]:
        urls = self._subject.metrics_urls
        if not urls:
            return []
        with ThreadPoolExecutor(min(16, len(urls))) as pool:
            return list(pool.map(lambda url: look_at_worker(url, self._subject.job, self._subject.group), urls))


def _unseen(error: KafkaException | UnknownTopicError, bootstrap_servers: str) -> Unseen:
    if isinstance(error, KafkaException):
        return Unseen(describe_kafka_error(error, bootstrap_servers))
    return Unseen(describe_missing_topic(error))


def _table(name: str, spec: TableSpec) -> TableSeen:
    """Raises OutageError."""
    written = next(
        (c for c in ("processed_timestamp", "updated_at", "created_at") if c in spec.schema.names), "event_timestamp"
    )
    glance = glance_at_table(spec.uri, spec.storage_options, newest=("event_timestamp", written))
    if glance is None:
        return TableSeen(name, None)
    return TableSeen(
        name, glance.version, glance.committed_at, glance.newest["event_timestamp"], glance.newest[written]
    )


# ------------------------------------------------------------------------------------------------------------- workers


class _Answer(BaseModel):
    """What /healthz says; keys that are not known here are ignored."""

    status: Literal["ok", "failing", "waiting", "stuck"]
    job: str
    group: str
    version: str = ""
    seconds_since_heartbeat: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    stuck_after_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    waiting_for: list[str] = []
    failing: list[str] = []
    unknown_questions: list[str] = []
    skipped: dict[str, int] = {}


def look_at_worker(url: str, job: str, group: str) -> Worker:
    """Ask a worker process for its ``/healthz``, within 10 s. Raises nothing that the network or the server may do."""
    transport = Transport(
        TransportSettings(
            url, connect_timeout_seconds=_CONNECT_SECONDS, read_timeout_seconds=_ANSWER_SECONDS, concurrency=1
        )
    )
    try:
        reply = transport.send(
            "GET", "/healthz", headers={}, redact=lambda text: text, seconds=_CONNECT_SECONDS + _ANSWER_SECONDS
        )
    finally:
        transport.close()
    if isinstance(reply, CallError):
        # A frozen process, too, takes no more connections once some have queued up, as Prometheus's do.
        if reply.kind == "timeout":
            return Worker(url, WorkerState.SILENT, f"does not answer within {_ANSWER_SECONDS:.0f} s")
        state = WorkerState.ABSENT if reply.kind == "unreachable" else WorkerState.FOREIGN
        return Worker(url, state, shorten(str(reply), 200))
    if reply.status not in (200, 503):
        return Worker(url, WorkerState.FOREIGN, f"answers {reply.status} to /healthz")
    try:
        answer = _Answer.model_validate_json(reply.body)
    except ValidationError:
        return Worker(url, WorkerState.FOREIGN, f"answers {reply.status} to /healthz, but not as a job does")
    if (answer.job, answer.group) != (job, group):
        theirs = f"the job {shorten(answer.job, 50)!r} of the group {shorten(answer.group, 249)!r} answers there"
        return Worker(url, WorkerState.FOREIGN, theirs)
    return _worker(url, answer)


def _worker(url: str, answer: _Answer) -> Worker:
    waiting_for, failing, questions = (
        tuple(shorten(name, 100) for name in names[:10])
        for names in (answer.waiting_for, answer.failing, answer.unknown_questions)
    )
    beat = f"last heartbeat {answer.seconds_since_heartbeat:.1f} s ago"
    match answer.status:
        case "ok":
            detail = beat
        case "waiting":
            detail = f"waits for {', '.join(waiting_for) or 'an outage'}; {beat}"
        case "failing":
            detail = f"{'; '.join(failing) or 'most of its work fails'}; {beat}"
        case "stuck":
            detail = f"says that it is stuck: {beat}, {answer.stuck_after_seconds:.0f} s are allowed"
    if questions:
        detail += f"; questions that are not known: {', '.join(questions)}"
    if answer.skipped:
        skips = (f"{shorten(reason, 50)} {count}" for reason, count in [*answer.skipped.items()][:10])
        detail += f"; skipped: {', '.join(skips)}"
    return Worker(
        url=url,
        state=WorkerState(answer.status),
        detail=detail,
        seconds_since_heartbeat=answer.seconds_since_heartbeat,
        stuck_after_seconds=answer.stuck_after_seconds,
        waiting_for=waiting_for,
        failing=failing,
        unknown_questions=questions,
        version=shorten(answer.version, 50) or None,
    )
