"""Where the demo's jobs run: as processes that end by themselves, or on a Flink cluster until they have caught up."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from itel_cabinet.local.services import Broker, FlinkCluster, Guarded, Job
from itel_cabinet.pipeline.jobs import JOB_DEFAULTS
from itel_cabinet.pipeline.jobs import Job as JobName

__all__ = ["Clock", "DemoFailedError", "Jobs", "OnDirectRunner", "OnFlink"]

_JOB_SECONDS = 300.0
_POLL_SECONDS = 0.1
_COUNTED_SKIP = re.compile(r" INFO skipped:(\S+): (\d+)$", re.MULTILINE)
_SKIPPED = "skipped:"


class DemoFailedError(RuntimeError):
    """The demo cannot go on; the message says what happened and where to look."""


class Jobs(Protocol):
    """What can run a job until it has read all that is on its topic."""

    def run(self, job: str, *given: str, first: Callable[[], bool]) -> dict[str, int]:
        """Run ``job`` with the options ``given``; returns how many records it skipped, by reason.

        ``first`` tells whether a first result of the job is durable. Raises DemoFailedError.
        """
        ...


@dataclass(frozen=True)
class _Launcher:
    """Starts launches, each with its log in ``folder/logs``; ``say`` is given the command line."""

    folder: Path
    environment: Mapping[str, str]
    say: Callable[[str], None]

    def launch(self, job: str, *given: str) -> str:
        """Launch a job and wait until the launcher ends; what it printed. Raises DemoFailedError."""
        self.say(shlex.join(["itel-cabinet", "run", job, *given]))
        command = [sys.executable, "-m", "itel_cabinet.pipeline.launch", job, *given, "--log_format=text"]
        log = self.log(job)
        # Under a guard, since a stop may reach this process at any moment, also while it is starting the launch.
        launch = Guarded(command, log=log, cwd=Path.cwd(), environment=self.environment)
        try:
            status = launch.wait(_JOB_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoFailedError(f"the launch of {job} did not end within {_JOB_SECONDS:.0f} s: see {log}") from None
        finally:
            launch.stop()
        text = log.read_text(encoding="utf-8", errors="replace")
        if status != 0:
            last = "\n".join(text.splitlines()[-5:])
            raise DemoFailedError(f"the launch of {job} ended with status {status}: see {log}, which ends with\n{last}")
        return text

    def log(self, job: str) -> Path:
        return self.folder / "logs" / f"{job}.log"


class OnDirectRunner(_Launcher):
    """Each job is a process of its own that ends when it has caught up."""

    def run(self, job: str, *given: str, first: Callable[[], bool]) -> dict[str, int]:  # noqa: ARG002
        """See :meth:`Jobs.run`."""
        text = self.launch(job, "--until_caught_up", *given)
        return {reason: int(count) for reason, count in _COUNTED_SKIP.findall(text)}


@dataclass
class Clock:
    """Takes down how long each part took; ``parts`` are names and seconds, in the order in which they ended."""

    parts: list[tuple[str, float]] = field(default_factory=list)

    def took(self, part: str, since: float) -> None:
        """Take down that ``part``, which began at ``since`` (``time.monotonic``), has just ended."""
        self.parts.append((part, time.monotonic() - since))


@dataclass(frozen=True)
class OnFlink(_Launcher):
    """Each job is submitted from its template and cancelled when its group stands at the end of its topic."""

    cluster: FlinkCluster
    broker: Broker
    clock: Clock

    def run(self, job: str, *given: str, first: Callable[[], bool]) -> dict[str, int]:
        """See :meth:`Jobs.run`."""
        # What differs here from the template. People wait for checkpoints: only what one covers is committed.
        here = {**self.cluster.beam_options(), "checkpointing_interval": "2000"}
        began = time.monotonic()
        self.launch(job, f"--template={job}.flink", *given, *(f"--{name}={value}" for name, value in here.items()))
        self.clock.took(f"{job}: submit to running", began)
        submitted = self.cluster.jobs()[0]
        self._wait(job, submitted, "has a first commit", lambda: first() or self._behind(job) == 0)
        self.clock.took(f"{job}: submit to first commit", began)
        self._wait(job, submitted, "has caught up", lambda: self._behind(job) == 0)
        self.clock.took(f"{job}: submit to all through", began)
        # A transaction's offsets are there before its bundle has ended, and what was skipped is known. No bundle lasts
        # over a checkpoint, and the first one to end may have begun before.
        covered = self.cluster.checkpoints(submitted.id).completed + 2
        self._wait(job, submitted, "has counted", lambda: self.cluster.checkpoints(submitted.id).completed >= covered)
        began = time.monotonic()
        self.cluster.cancel(submitted.id)
        self.clock.took(f"{job}: cancelled", began)
        skipped: Counter[str] = Counter()
        for name, count in self.cluster.totals(submitted.id).items():
            if name.startswith(_SKIPPED):
                skipped[name.removeprefix(_SKIPPED)] += count
        return dict(skipped)

    def _behind(self, job: str) -> int:
        """How many records of the job's topic its group has not committed."""
        defaults = JOB_DEFAULTS[JobName(job)]
        committed = self.broker.committed(defaults["consumer_group"], defaults["input_topic"])
        ends = self.broker.end_offsets(defaults["input_topic"])
        return sum(end - committed.get(partition, 0) for partition, end in ends.items())

    def _wait(self, job: str, submitted: Job, what: str, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _JOB_SECONDS
        logs = self.cluster.folder / "taskmanager-*"
        while not reached():
            if not self.cluster.job(submitted.id).active:
                raise DemoFailedError(f"the {job} job ended before it {what}: see the logs in {logs}")
            if time.monotonic() > deadline:
                raise DemoFailedError(f"not within {_JOB_SECONDS:.0f} s: the {job} job {what}: see the logs in {logs}")
            time.sleep(_POLL_SECONDS)
