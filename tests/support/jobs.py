"""Jobs as their users run them: a process of its own, on a stack of its own topics, tables and simulators."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from confluent_kafka import Consumer, KafkaException, TopicPartition
from deltalake import DeltaTable

from itel_cabinet.local.services import Broker
from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator
from itel_cabinet.pipeline.tables import ATTACHMENTS, BODIES, FORMS, LEDGER, TRACKING
from itel_cabinet.transforms.dead_letters import DeadLetter, decode_dead_letter
from tests.support.cabinet_samples import answer
from tests.support.forks import ForkedProcess, Forks

TOPICS = {"enriched": 3, "tracking": 3, "errors": 1, "itel_errors": 1, "success": 1, "tracked": 1}
"""The topics of a stack by role, with their number of partitions."""


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60.0, *, pause: float = 0.05) -> None:
    """Return once ``condition()`` is true; fail, naming ``what``, after ``seconds``. ``pause`` is between tries."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        threading.Event().wait(pause)


@contextlib.contextmanager
def every(seconds: float, act: Callable[[], object]) -> Iterator[None]:
    """Call ``act`` again and again, so many seconds apart, in a thread; what it raises is raised at the end."""
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(seconds):
            act()

    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(run)
        try:
            yield
        finally:
            stopped.set()
        acting.result(60)


@cache
def _forks() -> Forks:
    """This process's own; it ends with this process."""
    return Forks()


@dataclass
class RunningJob:
    """A started ``itel_cabinet.pipeline.launch`` process; ``errors`` is what it has written to stderr so far."""

    process: subprocess.Popen[bytes] | ForkedProcess
    log: Path

    @property
    def errors(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What it has logged so far, each line a JSON object."""
        return [json.loads(line) for line in self.errors.splitlines()]

    @property
    def counters(self) -> dict[str, int]:
        """Beam's counters by name (``step: counter``), which a job logs when it ends."""
        counted = (re.fullmatch(r"(.+): (\d+)", line["message"]) for line in self.lines)
        return {name: int(count) for name, count in (found.groups() for found in counted if found)}

    def wait(self, seconds: float = 120.0) -> int:
        return self.process.wait(seconds)

    def stop(self, seconds: float = 60.0) -> int:
        """SIGTERM, as an operator stops it; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def kill(self) -> None:
        """SIGKILL, as a power cut stops it."""
        self.process.kill()
        self.process.wait(30)


@dataclass
class Stack:
    """What one test's job works with. Topics are the test's own; their names begin with ``prefix``.

    Tables and media are in ``folder``, or in ``store``, an object-store URI, if that is set.
    """

    broker: Broker
    claimx: ClaimXSimulator
    itel: ItelSimulator
    folder: Path
    prefix: str
    options: dict[str, str] = field(default_factory=dict)
    store: str | None = None

    @property
    def tables_root(self) -> Path:
        return self.folder / "tables"

    @property
    def tables_uri(self) -> str:
        return f"{self.store or self.folder}/tables"

    @property
    def media_uri(self) -> str:
        return f"{self.store or self.folder}/media"

    def topic(self, role: str) -> str:
        """The name of the topic with a role, a key of TOPICS."""
        return f"{self.prefix}.{role}"

    def command(self, job: str, **options: object) -> list[str]:
        """The command line that runs ``job`` on this stack; ``options`` override the stack's."""
        settings: dict[str, object] = {
            "bootstrap_servers": self.broker.bootstrap_servers,
            "consumer_group": f"{self.prefix}.{job}",
            "input_topic": self.topic("enriched" if job == "trigger" else "tracking"),
            "dead_letter_topic": self.topic("itel_errors" if job == "api" else "errors"),
            "claimx_url": self.claimx.url,
            "claimx_auth": "none",
            "form_wait_seconds": 0.1,
        }
        if job in ("api", "cabinet"):
            settings |= {
                "itel_url": self.itel.url,
                "itel_auth": "none",
                "itel_errors_topic": self.topic("itel_errors"),
                "itel_success_topic": self.topic("success"),
                # Most tests make many events of one form, and count what becomes of each.
                "itel_unchanged": "send",
            }
        if job in ("tracking", "cabinet"):
            settings |= {"tables_root": self.tables_uri}
        if job == "trigger":
            settings |= {"output_topic": self.topic("tracking")}
        settings |= self.options | options
        given = [f"--{name}={value}" for name, value in settings.items()]
        return [sys.executable, "-m", "itel_cabinet.pipeline.launch", job, *given]

    @contextlib.contextmanager
    def running(
        self, job: str, *, env: Mapping[str, str] | None = None, fresh: bool = False, **options: object
    ) -> Iterator[RunningJob]:
        """Start ``job``, in a ``fresh`` interpreter or in a copy of one that has imported what it needs
        (``forks.Forks``); whatever still runs of it at the end is killed.
        """
        log = self.folder / f"{job}-{time.monotonic_ns()}.log"
        command, environment = self.command(job, **options), {**os.environ, **(env or {})}
        process: subprocess.Popen[bytes] | ForkedProcess
        if fresh:
            with log.open("wb") as stderr:
                process = subprocess.Popen(command, stdout=stderr, stderr=stderr, env=environment)
        else:
            log.touch()
            process = _forks().start(command[2], command[3:], log, environment)
        running = RunningJob(process, log)
        try:
            yield running
        finally:
            running.kill()

    def run(self, job: str, *, seconds: float = 120.0, **options: object) -> RunningJob:
        """Run ``job`` until it has caught up; fails unless it exits with 0."""
        with self.running(job, until_caught_up="true", **options) as running:
            assert running.wait(seconds) == 0, running.errors
            return running

    def table(self, name: str) -> pa.Table:
        return DeltaTable(f"{self.tables_uri}/{name}").to_pyarrow_table()

    def tracking(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table(TRACKING).to_pylist()
        return rows

    def forms(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table(FORMS).to_pylist()
        return rows

    def attachments(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table(ATTACHMENTS).to_pylist()
        return rows

    def ledger(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table(LEDGER).to_pylist()
        return rows

    def bodies(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table(BODIES).to_pylist()
        return rows

    def dead_letters(self, role: str = "errors") -> list[DeadLetter]:
        """The dead letters on a topic, without the notes of those that were replayed."""
        messages = self.broker.read(self.topic(role))
        return [decode_dead_letter(m.value or b"") for m in messages if "x-replayed-for" not in dict(m.headers)]

    def committed(self, job: str) -> dict[int, int]:
        role = "enriched" if job == "trigger" else "tracking"
        return self.broker.committed(f"{self.prefix}.{job}", self.topic(role))

    def tell(
        self,
        message: Mapping[str, Any],
        *groups: Any,
        partition: int | None = None,
        topic: str | None = None,
        **details: Any,
    ) -> None:
        """Give ClaimX the answer that ``cabinet_samples.answer`` makes of ``groups`` and ``details``, then write the
        message to the tracking topic, or to ``topic``.
        """
        assignment_id = message["assignment_id"]
        self.claimx.put_task(answer(*groups, **{"assignmentId": assignment_id, **details}))
        producer = self.broker.producer()
        where = {} if partition is None else {"partition": partition}
        producer.produce(
            topic or self.topic("tracking"), json.dumps(message).encode(), str(assignment_id).encode(), **where
        )
        assert producer.flush(30) == 0

    def settle(self, job: str, seconds: float = 60.0) -> None:
        """Wait until the running ``job`` has committed all that was written to its topic."""
        role = "enriched" if job == "trigger" else "tracking"

        def settled() -> bool:
            # A broker that has just come back may not yet know the ends of its own partitions.
            with contextlib.suppress(KafkaException):
                return self.committed(job) == self.ends(role)
            return False

        wait_for(settled, f"{job} at the end of its topic", seconds, pause=0.1)

    def rewind(self, job: str) -> None:
        """Set the offsets of the group of ``job``, which must not be running, back to the topic's start."""
        topic = self.topic("enriched" if job == "trigger" else "tracking")
        consumer = Consumer({"bootstrap.servers": self.broker.bootstrap_servers, "group.id": f"{self.prefix}.{job}"})
        try:
            start = [TopicPartition(topic, partition, 0) for partition in self.broker.end_offsets(topic)]
            consumer.commit(offsets=start, asynchronous=False)
        finally:
            consumer.close()

    def tracked(self, event_id: str) -> bool:
        """Whether an event's row is in the tracking table; false while there is no table."""
        return DeltaTable.is_deltatable(f"{self.tables_uri}/{TRACKING}") and any(
            row["event_id"] == event_id for row in self.tracking()
        )

    def ends(self, role: str = "tracking") -> dict[int, int]:
        return self.broker.end_offsets(self.topic(role))
