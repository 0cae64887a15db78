"""Parts of a real Flink cluster are killed with SIGKILL, one after the other, while the `cabinet` job works.

Workers die at random moments and at chosen points (io/worker/crash_points.py), TaskManagers with their workers, and the
JobManager with the job, which is then submitted anew: from its last checkpoint, or from the group's offsets alone.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from itel_cabinet.local.samples import Generator, Shares, produce
from itel_cabinet.local.services import Checkpoints, FlinkCluster
from itel_cabinet.local.simulators import ItelSimulator
from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS, TRACKING
from tests.support.accounting import assert_everything_accounted_for, assert_published_once
from tests.support.feed import Feed
from tests.support.jobs import Stack, wait_for

pytestmark = pytest.mark.flink

PARTITIONS = 4
SHARES = Shares(assigned=0.5, resubmitted=0.05, late=0.02, repeated=0.02, bad=0.01)
POINTS = [f"before-commit:{TRACKING}", f"after-commit:{TRACKING}", f"before-commit:{FORMS}", "after-2xx", "after-flush"]
"""Where a worker is made to die: before its rows are committed, after that and before the checkpoint, and so on."""

FROM_CHECKPOINT, FROM_OFFSETS = "JobManager, restored", "JobManager, submitted anew"
STRIKES = [POINTS[0], POINTS[1], "TaskManager", FROM_CHECKPOINT, "worker", *POINTS[2:], "TaskManager", FROM_OFFSETS]

TRANSACTION_POINTS = ["before-transaction", "after-transaction", "after-flush"]
TRIGGER_STRIKES = [
    *("before-transaction", "TaskManager", "after-transaction", FROM_CHECKPOINT),
    *("worker", "after-flush", FROM_OFFSETS, "TaskManager"),
]


@dataclass
class Chaos:
    """A cluster on which copies of the job run, and the ways to hurt it."""

    stack: Stack
    cluster: FlinkCluster
    trap: Path
    copies: int
    moments: random.Random
    job: str = "cabinet"
    points: frozenset[str] = frozenset(POINTS)
    jobs: list[str] = field(default_factory=list)
    restored: int = 0
    kills: Counter[str] = field(default_factory=Counter)

    def submit(self, **options: object) -> None:
        """Submit the job once more, and wait until it runs."""
        settings = self.cluster.beam_options() | {
            "checkpointing_interval": "2000",
            "parallelism": 2 // self.copies,
            "shards": PARTITIONS,
        }
        with self.stack.running(self.job, **settings | options) as launcher:
            assert launcher.wait(240) == 0, launcher.errors
        self.jobs = [job.id for job in self.cluster.jobs() if job.active]

    def strike(self, what: str, feed: Feed) -> None:
        """Let the feed go on and kill in the midst of it; returns when a checkpoint is restored, or the job runs anew.

        A checkpoint is waited for first, so that there is one.
        """
        jobs = self.jobs
        wait_for(lambda: all(self._checkpoints(job).completed for job in jobs), "each job has a checkpoint", 120)
        before, position = self.restorations(), self._position()
        if what in self.points:
            self._arm(what)
        feed.next_life()
        if what not in self.points:
            wait_for(lambda: self._position() > position, f"progress before the kill of {what}", 120)
            threading.Event().wait(self.moments.uniform(0.0, 1.0))
        match what:
            case "worker":
                workers = [pid for index in self.cluster.task_managers for pid in self.cluster.python_workers(index)]
                os.kill(self.moments.choice(workers), signal.SIGKILL)
            case "TaskManager":
                self.cluster.kill_task_manager(self.moments.choice([*self.cluster.task_managers]))
                self.cluster.start_task_manager()
            case "JobManager, restored" | "JobManager, submitted anew":
                self._kill_job_manager(restore=what == FROM_CHECKPOINT)
                before = 0
            case _:
                wait_for(lambda: not self.trap.exists(), f"a worker reaches {what}", 120)
        if what != FROM_OFFSETS:
            wait_for(lambda: self.restorations() > before, f"a checkpoint is restored after {what}", 120)
            self.restored += 1
        self.kills[what] += 1

    def restorations(self) -> int:
        return sum(self._checkpoints(job).restored for job in self.jobs)

    def _arm(self, point: str) -> None:
        partial = self.trap.with_suffix(".partial")
        partial.write_text(point, encoding="utf-8")
        partial.rename(self.trap)

    def _kill_job_manager(self, *, restore: bool) -> None:
        """The jobs are lost with it; each is submitted anew, from its checkpoint or from the group's offsets."""
        jobs = self.jobs
        self.cluster.kill_job_manager()
        self.cluster.start_job_manager()
        self.cluster.wait_for_task_managers()
        for job in jobs:
            checkpoint = self.cluster.kept_checkpoint(job)
            assert checkpoint is not None
            self.submit(**{"savepoint_path": checkpoint} if restore else {})

    def _checkpoints(self, job: str) -> Checkpoints:
        return self.cluster.checkpoints(job)

    def _position(self) -> int:
        return sum(self.stack.committed(self.job).values())


@pytest.fixture
def chaos(stack: Stack, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Chaos]:
    stack.broker.add_partitions(stack.topic("tracking"), PARTITIONS)
    stack.options = {"max_batch_records": "200", "http_concurrency": "8"}
    trap = tmp_path / "crash-at"
    with (
        # Checking each body costs the simulator more than the rest of its work, and other tests do it.
        ItelSimulator(schema={}) as itel,
        FlinkCluster.start(tmp_path / "flink", environment={"ITEL_CABINET_CRASH_AT": f"@{trap}"}) as cluster,
    ):
        stack.itel = itel
        yield Chaos(stack, cluster, trap, request.param, random.Random(60))


@pytest.mark.parametrize(
    "chaos",
    [pytest.param(1, id="one copy"), pytest.param(2, id="two copies", marks=pytest.mark.chaos)],
    indirect=True,
)
@pytest.mark.parametrize(
    ("events", "rate", "kills"),
    [
        pytest.param(3_000, 200.0, 5, id="short", marks=pytest.mark.slow),
        pytest.param(60_000, 250.0, 18, id="long", marks=pytest.mark.chaos),
    ],
)
@pytest.mark.timeout(2400)
def test_exactly_once_under_fire(chaos: Chaos, events: int, rate: float, kills: int) -> None:
    stack = chaos.stack
    generator = Generator(61, start=datetime.now(UTC), step=timedelta(seconds=1 / rate), shares=SHARES)
    for _ in range(chaos.copies):
        chaos.submit()
    with (
        ThreadPoolExecutor(1) as producer,
        Feed(generator.tracking_messages(events), events // (kills + 1) + 1) as feed,
    ):
        topic = stack.topic("tracking")
        fed = producer.submit(produce, stack.broker.bootstrap_servers, topic, feed, stack.claimx, rate=rate)
        for what in islice(cycle(STRIKES), kills):
            chaos.strike(what, feed)
        feed.next_life()
        receipts = fed.result(1200)
    assert len(receipts) == events
    stack.settle("cabinet", 600)
    print(f"kills: {dict(chaos.kills)}; checkpoints restored: {chaos.restored}")
    assert chaos.restored == kills - chaos.kills[FROM_OFFSETS]
    for job in chaos.jobs:
        chaos.cluster.cancel(job)
    assert_everything_accounted_for(stack, receipts, at_once=True)

    # Every record once more, to another job: nothing is added, and iTel knows every key.
    tables = contents(stack)
    keys = {submission.idempotency_key for submission in stack.itel.submissions()}
    stack.rewind("cabinet")
    chaos.copies = 1
    chaos.submit(shards=PARTITIONS + 1)
    stack.settle("cabinet", 600)
    chaos.cluster.cancel(chaos.jobs[0])
    assert contents(stack) == tables
    assert {submission.idempotency_key for submission in stack.itel.submissions()} == keys


@pytest.mark.parametrize("chaos", [pytest.param(1, id="trigger")], indirect=True)
@pytest.mark.parametrize(
    ("events", "rate", "kills"),
    [
        pytest.param(2_000, 200.0, 4, id="short", marks=pytest.mark.slow),
        pytest.param(20_000, 250.0, 15, id="long", marks=pytest.mark.chaos),
    ],
)
@pytest.mark.timeout(2400)
def test_each_event_is_published_once_under_fire(chaos: Chaos, events: int, rate: float, kills: int) -> None:
    stack = chaos.stack
    stack.broker.add_partitions(stack.topic("enriched"), PARTITIONS)
    chaos.job, chaos.points = "trigger", frozenset(TRANSACTION_POINTS)
    generator = Generator(62, start=datetime.now(UTC), step=timedelta(seconds=1 / rate))
    chaos.submit()
    with (
        ThreadPoolExecutor(1) as producer,
        Feed(generator.claimx_events(events), events // (kills + 1) + 1) as feed,
    ):
        topic = stack.topic("enriched")
        fed = producer.submit(produce, stack.broker.bootstrap_servers, topic, feed, stack.claimx, rate=rate)
        for what in islice(cycle(TRIGGER_STRIKES), kills):
            chaos.strike(what, feed)
        feed.next_life()
        receipts = fed.result(1200)
    assert len(receipts) == events
    stack.settle("trigger", 600)
    print(f"kills: {dict(chaos.kills)}; checkpoints restored: {chaos.restored}")
    assert chaos.restored == kills - chaos.kills[FROM_OFFSETS]
    for job in chaos.jobs:
        chaos.cluster.cancel(job)
    assert_published_once(stack, receipts)


def contents(stack: Stack) -> dict[str, list[dict[str, Any]]]:
    """The rows of each table, in an order that files have no part in."""
    keys = {
        TRACKING: ("kafka_partition", "kafka_offset"),
        FORMS: ("assignment_id",),
        ATTACHMENTS: ("assignment_id", "question_key", "claim_media_id"),
    }
    return {
        name: sorted(stack.table(name).to_pylist(), key=lambda row, names=names: [str(row[key]) for key in names])
        for name, names in keys.items()
    }
