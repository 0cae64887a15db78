"""``python -m bench.soak``: does a `cabinet` job idle cheaply, and stay within its memory, for as long as it runs?

A real broker and a fast stand-in for both APIs; the job is a process of its own. First the job idles and its use of the
processor is measured, then events flow at a steady rate, two of five of them completions, and its resident memory is
sampled. Reads /proc, so Linux only.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import stub
from itel_cabinet.local.samples import Generator, Shares, produce
from itel_cabinet.local.services import Broker

INPUT, ERRORS, ITEL_ERRORS, SUCCESS = "soak", "soak.errors", "soak.itel.errors", "soak.itel.success"
GROUP = "soak"
SAMPLE_SECONDS = 10.0
MAX_WAIT_SECONDS = 120.0
# What the job is given to reach its full size: caches, pools, the allocator's arenas.
WARM_UP_SECONDS = 180.0
MOST_MB = 400.0
MOST_GROWTH = 0.05
MOST_IDLE = 0.15
# The stand-in answers with one form, no matter what an event says of it.
SHARES = Shares(assigned=0.45, in_progress=0.05, completed_without_form=0, resubmitted=0, late=0, cancelled=0)
REPORT_AT_MINUTES = (1, 3, 5, 10, 20, 30)


@dataclass(frozen=True)
class Sample:
    """``seconds`` since the load began; resident and highest resident memory in MB; records not yet committed."""

    seconds: float
    rss_mb: float
    peak_mb: float
    lag: int


@dataclass(frozen=True)
class Job:
    """The process under test, and the broker on which it leaves its offsets."""

    process: subprocess.Popen[bytes]
    broker: Broker

    def processor_seconds(self) -> float:
        """User and system time since its start."""
        after_name = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")

    def sample(self, seconds: float) -> Sample:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        status = {name: value for name, _, value in (line.partition(":") for line in lines)}
        rss, peak = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
        return Sample(seconds, rss, peak, self.lag())

    def lag(self) -> int:
        return sum(self.broker.end_offsets(INPUT).values()) - sum(self.broker.committed(GROUP, INPUT).values())

    def settle(self) -> None:
        """Wait until all that was produced is committed. Raises RuntimeError when that takes too long."""
        deadline = time.monotonic() + MAX_WAIT_SECONDS
        while self.lag():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"the job does not keep up: {self.lag()} behind, status {self.process.poll()}")
            time.sleep(0.2)

    def idle_share(self, seconds: float) -> float:
        """The share of a core that it uses while there is nothing to do."""
        before, began = self.processor_seconds(), time.monotonic()
        time.sleep(seconds)
        return (self.processor_seconds() - before) / (time.monotonic() - began)


def make_options(broker: Broker, url: str, folder: Path) -> dict[str, str]:
    """The options of the `cabinet` job."""
    return {
        "bootstrap_servers": broker.bootstrap_servers,
        "input_topic": INPUT,
        "consumer_group": GROUP,
        "dead_letter_topic": ERRORS,
        "itel_errors_topic": ITEL_ERRORS,
        "itel_success_topic": SUCCESS,
        "claimx_url": url,
        "claimx_auth": "none",
        "itel_url": url,
        "itel_auth": "none",
        "tables_root": str(folder / "tables"),
    }


@contextmanager
def answers(folder: Path) -> Iterator[str]:
    """The URL of a stand-in for both APIs."""
    messages = Generator(0, shares=SHARES).tracking_messages(100)
    stub.write_form(next(one.details_json for one in messages if one.details_json), folder / "form.json")
    with stub.running(stub.build(folder), folder / "form.json") as url:
        yield url


@contextmanager
def running(broker: Broker, url: str, folder: Path) -> Iterator[Job]:
    """A `cabinet` job with its default batches."""
    options = make_options(broker, url, folder)
    command = [sys.executable, "-m", "itel_cabinet.pipeline.launch", "cabinet"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with (folder / "job.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield Job(process, broker)
        process.send_signal(signal.SIGTERM)
        if process.wait(MAX_WAIT_SECONDS) != 0:
            raise RuntimeError(f"the job ended with status {process.returncode}")
    except RuntimeError:
        sys.stderr.write((folder / "job.log").read_text(errors="replace")[-2000:])
        raise
    finally:
        process.kill()
        process.wait()


def load(job: Job, generator: Generator, rate: float, minutes: float) -> Iterator[Sample]:
    """Produce at ``rate`` for ``minutes``; a sample every ten seconds."""
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < minutes * 60:
        # Receipts are dropped at once: only the job's memory is to grow, if any.
        produce(
            job.broker.bootstrap_servers,
            INPUT,
            generator.tracking_messages(round(rate * min(SAMPLE_SECONDS, max(1.0, minutes * 60 - elapsed)))),
            None,
            rate=rate,
        )
        yield job.sample(time.monotonic() - began)


def slope(seconds: Sequence[float], megabytes: Sequence[float]) -> str:
    """How fast memory grows, in MB an hour, and what it is known to: the fit's standard error."""
    fit = statistics.linear_regression(seconds, megabytes)
    rest = sum((y - fit.intercept - fit.slope * x) ** 2 for x, y in zip(seconds, megabytes, strict=True))
    spread = sum((x - statistics.fmean(seconds)) ** 2 for x in seconds)
    error = (rest / max(1, len(seconds) - 2) / spread) ** 0.5
    return f"{fit.slope * 3600:+.1f} MB an hour, give or take {error * 3600:.1f}"


def judge(idle: Sequence[float], samples: Sequence[Sample]) -> tuple[bool, str]:
    """Whether all limits held, and one line that says so with its figures."""
    # With a short run, its second half.
    warm_up = min(WARM_UP_SECONDS, samples[-1].seconds / 2)
    after = [sample for sample in samples if sample.seconds >= warm_up]
    warm = [sample.rss_mb for sample in after]
    grows = slope([sample.seconds for sample in after], warm)
    few = max(1, len(warm) // 5)
    first, last = sum(warm[:few]) / few, sum(warm[-few:]) / few
    growth, peak = last / first - 1, max(sample.peak_mb for sample in samples)
    good = growth <= MOST_GROWTH and peak < MOST_MB and max(idle) < MOST_IDLE
    shares = ", ".join(f"{share:.1%}" for share in idle)
    return good, (
        f"{'good' if good else 'NOT GOOD'}: idle at {shares} of a core (limit {MOST_IDLE:.0%}), "
        f"peak {peak:.0f} MB (limit {MOST_MB:.0f}), {growth:+.1%} from minute {warm_up / 60:.0f} on "
        f"(limit {MOST_GROWTH:.0%}): {grows}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long events flow (default: 10)")
    parser.add_argument("--rate", type=float, default=200.0, help="events a second (default: 200)")
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="how long idling is measured (default: 60)")
    options = parser.parse_args(argv)
    console = Console()
    step = timedelta(seconds=1 / options.rate)
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as name,
        Broker.start(Path(name) / "broker") as broker,
        answers(Path(name)) as url,
    ):
        for topic, partitions in ((INPUT, 3), (ERRORS, 1), (ITEL_ERRORS, 1), (SUCCESS, 1)):
            broker.create_topic(topic, partitions)
        with running(broker, url, Path(name)) as job:
            # Something first: a job that never worked idles at less than its real size.
            first = Generator(1, start=datetime.now(UTC), step=step, shares=SHARES).tracking_messages(100)
            produce(broker.bootstrap_servers, INPUT, first, None)
            job.settle()
            idle = [job.idle_share(options.idle_seconds)]
            console.print(f"idle before the load: {idle[0]:.1%} of a core over {options.idle_seconds:.0f} s")
            before = job.processor_seconds()
            samples = []
            generator = Generator(2, start=datetime.now(UTC), step=step, shares=SHARES)
            for sample in load(job, generator, options.rate, options.minutes):
                samples.append(sample)
                console.print(f"{sample.seconds:6.0f} s  {sample.rss_mb:6.1f} MB  {sample.lag:6d} behind")
            busy = (job.processor_seconds() - before) / samples[-1].seconds
            job.settle()
            idle.append(job.idle_share(options.idle_seconds))
            console.print(f"idle after the load: {idle[1]:.1%} of a core; under load: {busy:.0%}")

    table = Table("minute", "resident MB", "records behind")
    for minute in REPORT_AT_MINUTES:
        nearest = min(samples, key=lambda sample: abs(sample.seconds - minute * 60))
        if abs(nearest.seconds - minute * 60) <= SAMPLE_SECONDS:
            table.add_row(str(minute), f"{nearest.rss_mb:.1f}", str(nearest.lag))
    console.print(table)
    good, line = judge(idle, samples)
    console.print(line, soft_wrap=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
