"""``python -m bench.start`` (and ``make bench``): how long a person waits for a command's first byte and for its end,
and an operator for a job's first commit on DirectRunner.

Each command is a process of its own, after one that is not counted, so that the files are in the system's cache.
``--beside FOLDER`` measures another version in turn with this one, which
``pip install --target=FOLDER --no-deps . ./local`` has put there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deltalake import DeltaTable
from rich.console import Console
from rich.progress import track
from rich.table import Table

from itel_cabinet.local.samples import Generator, produce
from itel_cabinet.local.services import Broker
from itel_cabinet.local.simulators import ClaimXSimulator
from itel_cabinet.pipeline.tables import TRACKING
from itel_cabinet.pipeline.topics import TASK_ERRORS, TASK_EVENTS

MAX_WAIT_SECONDS = 60.0
POLL_SECONDS = 0.01
PROGRAM = [sys.executable, "-c", "import sys; from itel_cabinet.pipeline.commands import main; sys.exit(main())"]
ANSWER = """{"taskId": 32513, "assignmentId": 1, "projectId": 2, "formId": "f", "status": "COMPLETED",
"dateAssigned": "2026-01-10T15:00:00Z", "dateCompleted": "2026-01-10T16:00:00Z",
"response": {"groups": [{"name": "Linear Feet Capture", "questionAndAnswers": []}]}}"""


@dataclass(frozen=True)
class Waited:
    """Seconds from a process's start to its first byte on stdout (a job: to its first commit), and to its end; and of
    processor time."""

    first: float
    whole: float
    processor: float


@dataclass(frozen=True)
class Version:
    """A version of the program; ``folder`` is None for the one that is installed here."""

    name: str
    folder: Path | None

    @property
    def environment(self) -> dict[str, str]:
        return dict(os.environ) if self.folder is None else {**os.environ, "PYTHONPATH": str(self.folder)}


@dataclass(frozen=True)
class Bench:
    """What the commands ask: a broker with the job's topics, and a ClaimX that knows the events' tasks."""

    folder: Path
    broker: Broker
    claimx: ClaimXSimulator

    def commands(self) -> list[str]:
        answer = self.folder / "answer.json"
        answer.write_text(ANSWER)
        servers = f"--bootstrap_servers={self.broker.bootstrap_servers}"
        tables = f"--tables_root={self.folder / 'tables'}"
        return [
            "--version",
            "--help",
            "lag --help",
            "run --help",
            f"preview {answer}",
            f"lag {servers}",
            f"topics describe {servers}",
            f"tables create {tables}",
            f"query latest_events {tables}",
        ]

    def command(self, version: Version, command: str) -> Waited:
        """Run a command to its end; its exit status is 1 where a job is behind."""
        started = time.perf_counter()
        process = subprocess.Popen(
            [*PROGRAM, *command.split()], stdout=subprocess.PIPE, env=version.environment, cwd=self.folder
        )
        assert process.stdout is not None
        with process.stdout as output:
            found = output.read(1)
            first = time.perf_counter() - started
            output.read()
        status, processor = _reap(process)
        whole = time.perf_counter() - started
        if not found or status not in (0, 1):
            raise RuntimeError(f"`{command}` ended with status {status}")
        return Waited(first, whole, processor)

    def job(self, version: Version) -> Waited:
        """Start a tracking job whose records wait for it, until their rows are there; then SIGTERM, until its end."""
        name = uuid.uuid4().hex
        tables = self.folder / name
        options = {
            "bootstrap_servers": self.broker.bootstrap_servers,
            "consumer_group": name,
            "claimx_url": self.claimx.url,
            "claimx_auth": "none",
            "tables_root": str(tables),
        }
        command = [*PROGRAM, "run", "tracking", *(f"--{option}={value}" for option, value in options.items())]
        with (self.folder / f"{name}.log").open("w+") as log:
            started = time.perf_counter()
            process = subprocess.Popen(command, stdout=log, stderr=log, env=version.environment, cwd=self.folder)
            try:
                _wait_for_rows(tables / TRACKING, process)
                first = time.perf_counter() - started
                process.send_signal(signal.SIGTERM)
                status, processor = _reap(process)
                whole = time.perf_counter() - started
            except BaseException:
                log.seek(0)
                sys.stderr.write(log.read()[-2000:])
                raise
            finally:
                process.kill()
                process.wait()
        if status != 0:
            raise RuntimeError(f"the job ended with status {status}")
        return Waited(first, whole, processor)


def _reap(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Wait for a process's end: its exit status, and the seconds of processor time that it took."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime


def _wait_for_rows(table: Path, process: subprocess.Popen[bytes]) -> None:
    """Return when the table has a commit with rows, which is one after those that a launch makes."""
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if [*table.rglob("*.parquet")] and DeltaTable(str(table)).file_uris():
            return
        time.sleep(POLL_SECONDS)
    raise RuntimeError(f"no rows within {MAX_WAIT_SECONDS:g} s")


@contextlib.contextmanager
def started() -> Iterator[Bench]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-start-")))
        broker = stack.enter_context(Broker.start(folder / "kafka"))
        claimx = stack.enter_context(ClaimXSimulator())
        broker.create_topic(TASK_EVENTS, 3)
        broker.create_topic(TASK_ERRORS, 1)
        events = Generator(1, start=datetime.now(UTC) - timedelta(hours=1)).tracking_messages(50)
        produce(broker.bootstrap_servers, TASK_EVENTS, events, claimx)
        # The broker makes its offsets topic at the first question; the first to ask would pay for it.
        broker.committed("warm-up", TASK_EVENTS)
        yield Bench(folder, broker, claimx)


def compare(console: Console, *, rounds: int, jobs: int, beside: Path | None) -> None:
    """Measure everything and print the medians."""
    versions = [Version("this", None)]
    if beside is not None:
        versions.insert(0, Version("beside", beside))
    with started() as bench:
        commands = bench.commands()
        found: dict[tuple[str, str], list[Waited]] = {}
        for number in track(range(rounds + 1), "commands", console=Console(stderr=True)):
            for command in commands:
                for version in versions:
                    waited = bench.command(version, command)
                    if number:
                        found.setdefault((command, version.name), []).append(waited)
        for _ in track(range(jobs), "jobs", console=Console(stderr=True)):
            for version in versions:
                found.setdefault(("run tracking, to its first rows", version.name), []).append(bench.job(version))
    table = Table(title=f"Start, medians of {rounds} (jobs: {jobs})")
    for column in ("command", "version", "first byte s", "end s", "processor s"):
        table.add_column(column, justify="right" if column.endswith(" s") else "left")
    for (command, name), runs in found.items():
        shown = " ".join(word.partition("=")[0] if "/" in word or "=" in word else word for word in command.split())
        waited = ([run.first for run in runs], [run.whole for run in runs], [run.processor for run in runs])
        table.add_row(shown.partition(" /")[0], name, *(f"{statistics.median(seconds):.2f}" for seconds in waited))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.start", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command; the median counts")
    parser.add_argument("--jobs", type=int, default=5, help="starts of a job; the median counts")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another version, installed there")
    options = parser.parse_args(arguments)
    compare(Console(), rounds=options.rounds, jobs=options.jobs, beside=options.beside)


if __name__ == "__main__":
    main()
