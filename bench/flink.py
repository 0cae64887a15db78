"""``python -m bench.flink`` (and ``make bench``): the jobs on a Flink cluster beside the same jobs on DirectRunner.

Three figures of each, taken from outside: how long it takes from submitting a job to its first commit, how many records
a second and shard go from a backlog in Kafka into a Delta table, and how long after its Kafka timestamp a record's row
can be read while records come in steadily. What is visible
is read from the tables' fences (docs/architecture.md), which are committed with the rows. Broker, simulators, cluster
and this process share the machine: the figures are for comparing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deltalake import DeltaTable
from rich.console import Console
from rich.table import Table

from itel_cabinet.io.kafka import Cluster
from itel_cabinet.local.samples import Generator, Shares, produce
from itel_cabinet.local.services import Broker, FlinkCluster
from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator
from itel_cabinet.pipeline.tables import TRACKING

PARTITIONS = 3
TASK_MANAGERS = 2
ASSIGNMENTS = 200
MAX_WAIT_SECONDS = 300.0
POLL_SECONDS = 0.02
RUNNERS = ("DirectRunner", "FlinkRunner")


@dataclass(frozen=True)
class Seen:
    """When (``time.time``), and the first offset by partition whose row was not visible then."""

    at: float
    fences: Mapping[int, int]

    @property
    def rows(self) -> int:
        return sum(self.fences.values())


@dataclass
class Watch:
    """Looks at a table's fences again and again, in a thread of its own; ``seen`` has each change."""

    table: Path
    topic_id: str
    seen: list[Seen] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watch]:
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        table: DeltaTable | None = None
        version = -1
        while not self._ended.wait(POLL_SECONDS):
            if table is None:
                if not DeltaTable.is_deltatable(str(self.table)):
                    continue
                table = DeltaTable(str(self.table))
            table.update_incremental()
            if table.version() != version:
                now, version = time.time(), table.version()
                fences = {
                    p: table.transaction_version(f"itel-cabinet/1/{self.topic_id}/{p}") for p in range(PARTITIONS)
                }
                self.seen.append(Seen(now, {p: fence or 0 for p, fence in fences.items()}))

    def wait_for(self, reached: Callable[[Seen], bool], what: str) -> None:
        deadline = time.monotonic() + MAX_WAIT_SECONDS
        while not (self.seen and reached(self.seen[-1])):
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {MAX_WAIT_SECONDS:.0f} s: {what}")
            time.sleep(POLL_SECONDS)

    def visible_at(self, partition: int, offset: int) -> float:
        """When a row was first seen; raises StopIteration if it never was."""
        return next(seen.at for seen in self.seen if seen.fences[partition] > offset)


@dataclass(frozen=True)
class Bench:
    """What the jobs run on."""

    folder: Path
    broker: Broker
    claimx: ClaimXSimulator
    itel: ItelSimulator
    cluster: FlinkCluster

    @contextlib.contextmanager
    def running(self, job: str, runner: str, topic: str) -> Iterator[Watch]:
        """A job with its default batches, and what becomes visible of its tracking table."""
        tables = self.folder / f"{topic}-tables"
        options = {
            "bootstrap_servers": self.broker.bootstrap_servers,
            "input_topic": topic,
            "consumer_group": topic,
            "dead_letter_topic": "errors",
            "claimx_url": self.claimx.url,
            "claimx_auth": "none",
            "tables_root": str(tables),
        }
        if job == "cabinet":
            options |= {
                "itel_url": self.itel.url,
                "itel_auth": "none",
                "itel_errors_topic": "errors",
                "itel_success_topic": "success",
            }
        topic_id = Cluster({"bootstrap.servers": self.broker.bootstrap_servers}).topic(topic).topic_id
        launched = self._on_flink if runner == "FlinkRunner" else self._here
        with Watch(tables / TRACKING, topic_id).watching() as watch, launched(job, options):
            yield watch

    @contextlib.contextmanager
    def _here(self, job: str, options: Mapping[str, str]) -> Iterator[None]:
        with self._launched(job, options) as process:
            yield
            process.terminate()
            if process.wait(MAX_WAIT_SECONDS) != 0:
                raise RuntimeError(f"the job ended with status {process.returncode}: see its lines above")

    @contextlib.contextmanager
    def _on_flink(self, job: str, options: Mapping[str, str]) -> Iterator[None]:
        there = {**options, **self.cluster.beam_options(), "shards": str(PARTITIONS), "template": f"{job}.flink"}
        with self._launched(job, there) as process:
            if process.wait(MAX_WAIT_SECONDS) != 0:
                raise RuntimeError(f"the launch ended with status {process.returncode}: see its lines above")
        submitted = self.cluster.jobs()[0]
        try:
            yield
        finally:
            self.cluster.cancel(submitted.id)

    @contextlib.contextmanager
    def _launched(self, job: str, options: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "itel_cabinet.pipeline.launch", job]
        command += [f"--{name}={value}" for name, value in options.items()]
        with (self.folder / f"{uuid.uuid4().hex}.log").open("w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                yield process
            except BaseException:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
                sys.stderr.write(log.read())
                raise
            finally:
                process.kill()
                process.wait()

    def start(self, runner: str, number: int) -> float:
        """Seconds from submitting a job to its first commit, while records wait for it."""
        topic = self._topic(f"start-{runner}-{number}")
        self._feed(topic, rate=1_000.0, count=20 * PARTITIONS)
        submitted = time.time()
        with self.running("tracking", runner, topic) as watch:
            watch.wait_for(lambda seen: seen.rows > 0, "the first rows are there")
            return next(seen.at for seen in watch.seen if seen.rows) - submitted

    def records_a_second(self, runner: str, count: int) -> float:
        """Of a backlog of ``count`` events of few assignments, so that most lookups are answered by the cache; start-up
        and the first commit are left out.
        """
        topic = self._topic(f"backlog-{runner}")
        only_assigned = dict.fromkeys(Shares.__dataclass_fields__, 0.0) | {"assigned": 1.0}
        past = datetime.now(UTC) - timedelta(hours=1)
        first = [*Generator(1, start=past, shares=Shares(**only_assigned)).tracking_messages(ASSIGNMENTS)]
        produce(self.broker.bootstrap_servers, topic, first, self.claimx)
        producer = self.broker.producer(max_in_flight_requests_per_connection=5)
        for number in range(count - ASSIGNMENTS):
            one = first[number % ASSIGNMENTS]
            event = json.loads(one.value or b"") | {"event_id": str(uuid.UUID(int=number))}
            producer.produce(topic, json.dumps(event).encode(), partition=number % PARTITIONS)
            producer.poll(0)
        if producer.flush(60):
            raise RuntimeError("the broker did not take all events within 60 s")
        ends = self.broker.end_offsets(topic)
        with self.running("tracking", runner, topic) as watch:
            watch.wait_for(lambda seen: seen.fences == ends, "the backlog is in the table")
        begun = [seen for seen in watch.seen if all(seen.fences.values())]
        rows, seconds = begun[-1].rows - begun[0].rows, begun[-1].at - begun[0].at
        if not rows:
            raise RuntimeError("too few events to measure: one commit took them all")
        return rows / seconds

    def freshness(self, job: str, runner: str, rate: float, seconds: float) -> list[float]:
        """Of each record with a row, the seconds from its Kafka timestamp to the row, at ``rate`` records a second."""
        topic = self._topic(f"{job}-{runner}")
        with self.running(job, runner, topic) as watch:
            # A few records first, which pay for the start.
            self._feed(topic, rate, count=20 * PARTITIONS)
            watch.wait_for(lambda seen: all(seen.fences.values()), "the first rows are there")
            records = self._feed(topic, rate, count=int(rate * seconds))
            wanted = {p: max((offset for q, offset in records if p == q), default=-1) for p in range(PARTITIONS)}
            watch.wait_for(lambda seen: all(seen.fences[p] > wanted[p] for p in wanted), "all rows are there")
        timestamps = {(m.partition, m.offset): m.timestamp / 1000 for m in self.broker.read(topic)}
        return [watch.visible_at(*at) - timestamps[at] for at in records]

    def _feed(self, topic: str, rate: float, count: int) -> list[tuple[int, int]]:
        """Produce records of now; partition and offset of those that are to have a row."""
        events = Generator(2, start=datetime.now(UTC), step=timedelta(seconds=1 / rate)).tracking_messages(count)
        receipts = produce(self.broker.bootstrap_servers, topic, events, self.claimx, rate=rate)
        return [(r.partition, r.offset) for r in receipts if r.produced.expect in ("tracked", "submitted")]

    def _topic(self, name: str) -> str:
        self.broker.create_topic(name, PARTITIONS)
        return name


@contextlib.contextmanager
def started() -> Iterator[Bench]:
    """All that the benchmarks run on; everything is gone afterwards."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-flink-")))
        broker = stack.enter_context(Broker.start(folder / "kafka"))
        for topic in ("errors", "success"):
            broker.create_topic(topic, 1)
        claimx = stack.enter_context(ClaimXSimulator())
        itel = stack.enter_context(ItelSimulator())
        cluster = stack.enter_context(FlinkCluster.start(folder / "flink", task_managers=TASK_MANAGERS))
        yield Bench(folder, broker, claimx, itel, cluster)


def compare(console: Console, *, starts: int, events: int, rate: float, seconds: float) -> None:
    """Measure all figures on both runners and print them side by side."""
    with started() as bench:
        begun = Table(title=f"From submitting to the first commit, the tracking job, medians of {starts}")
        for column in ("runner", "s"):
            begun.add_column(column, justify="right" if column == "s" else "left")
        waited: dict[str, list[float]] = {runner: [] for runner in RUNNERS}
        for number in range(starts):
            for runner in RUNNERS:
                waited[runner].append(bench.start(runner, number))
        for runner, values in waited.items():
            begun.add_row(runner, f"{statistics.median(values):.1f}")
        console.print(begun)
        throughput = Table(title=f"Kafka to Delta, the tracking job, a backlog of {events:,} events")
        for column in ("runner", "shards", "events/s", "events/s a shard"):
            throughput.add_column(column, justify="left" if column == "runner" else "right")
        for runner in RUNNERS:
            shards = PARTITIONS if runner == "FlinkRunner" else 1
            speed = bench.records_a_second(runner, events)
            throughput.add_row(runner, str(shards), f"{speed:,.0f}", f"{speed / shards:,.0f}")
        console.print(throughput)
        fresh = Table(title=f"From Kafka timestamp to a visible row at {rate:g} events/s for {seconds:g} s")
        for column in ("job", "runner", "rows", "p50 s", "p95 s", "max s"):
            fresh.add_column(column, justify="left" if column in ("job", "runner") else "right")
        for job in ("tracking", "cabinet"):
            for runner in RUNNERS:
                delays = bench.freshness(job, runner, rate, seconds)
                cuts = statistics.quantiles(delays, n=100)
                shown = (f"{value:.2f}" for value in (cuts[49], cuts[94], max(delays)))
                fresh.add_row(job, runner, str(len(delays)), *shown)
        console.print(fresh)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.flink", description=str(__doc__).split("\n")[0])
    parser.add_argument("--starts", type=int, default=5, help="starts of a job; the median counts")
    parser.add_argument("--events", type=int, default=200_000, help="events of the backlog")
    parser.add_argument("--rate", type=float, default=100.0, help="events a second, for the freshness")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long they come")
    options = parser.parse_args(arguments)
    compare(Console(), starts=options.starts, events=options.events, rate=options.rate, seconds=options.seconds)


if __name__ == "__main__":
    main()
