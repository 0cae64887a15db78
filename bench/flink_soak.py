"""``python -m bench.flink_soak``: do a cluster's processes and checkpoints stay of a size while events flow?

A `cabinet` job with its default batches on a JobManager and two TaskManagers, beside a real broker and a fast stand-in
for both APIs, which share the machine. Every half minute: the memory of each process, the last checkpoint's size and
duration, and how far the job is behind. Reads /proc, so Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.soak import ERRORS, GROUP, INPUT, ITEL_ERRORS, SHARES, SUCCESS, WARM_UP_SECONDS, answers, make_options, slope
from itel_cabinet.local.samples import Generator, produce
from itel_cabinet.local.services import Broker, Checkpoints, FlinkCluster

PARTITIONS = 4
SAMPLE_SECONDS = 30.0


@dataclass(frozen=True)
class Sample:
    """``seconds`` since the load began; memory in MB, a TaskManager or its Python worker each; records behind."""

    seconds: float
    task_managers: list[int]
    workers: list[int]
    checkpoints: Checkpoints
    lag: int


def sample(cluster: FlinkCluster, broker: Broker, job_id: str, seconds: float) -> Sample:
    return Sample(
        seconds,
        [_resident_mb(pid) for pid in cluster.task_managers.values()],
        [_resident_mb(pid) for index in cluster.task_managers for pid in cluster.python_workers(index)],
        cluster.checkpoints(job_id),
        sum(broker.end_offsets(INPUT).values()) - sum(broker.committed(GROUP, INPUT).values()),
    )


def _resident_mb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS:"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.flink_soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=15.0, help="how long events flow (default: 15)")
    parser.add_argument("--rate", type=float, default=300.0, help="events a second (default: 300)")
    options = parser.parse_args(argv)
    console = Console()
    table = Table("s", "TaskManagers MB", "workers MB", "checkpoints", "failed", "KB", "ms", "behind")
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as name,
        Broker.start(Path(name) / "broker") as broker,
        answers(Path(name)) as url,
        FlinkCluster.start(Path(name) / "flink") as cluster,
    ):
        for topic, partitions in ((INPUT, PARTITIONS), (ERRORS, 1), (ITEL_ERRORS, 1), (SUCCESS, 1)):
            broker.create_topic(topic, partitions)
        given = make_options(broker, url, Path(name)) | cluster.beam_options()
        given |= {"shards": str(PARTITIONS), "checkpointing_interval": "2000"}
        command = [sys.executable, "-m", "itel_cabinet.pipeline.launch", "cabinet"]
        subprocess.run([*command, *(f"--{option}={value}" for option, value in given.items())], check=True)
        [job] = cluster.jobs()
        generator = Generator(3, start=datetime.now(UTC), step=timedelta(seconds=1 / options.rate), shares=SHARES)
        samples = []
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < options.minutes * 60:
            few = round(options.rate * min(SAMPLE_SECONDS, max(1.0, options.minutes * 60 - elapsed)))
            produce(broker.bootstrap_servers, INPUT, generator.tracking_messages(few), None, rate=options.rate)
            taken = sample(cluster, broker, job.id, time.monotonic() - began)
            samples.append(taken)
            console.print(taken, soft_wrap=True)
            last = taken.checkpoints
            table.add_row(
                f"{taken.seconds:.0f}",
                ", ".join(map(str, taken.task_managers)),
                ", ".join(map(str, taken.workers)),
                *map(str, (last.completed, last.failed, last.last_size // 1024, last.last_duration, taken.lag)),
            )
        cluster.cancel(job.id)
    console.print(table)
    warm = [one for one in samples if one.seconds >= min(WARM_UP_SECONDS, samples[-1].seconds / 2)]
    seconds = [one.seconds for one in warm]
    console.print(f"all Python workers: {slope(seconds, [float(sum(one.workers)) for one in warm])}")
    console.print(f"all TaskManagers: {slope(seconds, [float(sum(one.task_managers)) for one in warm])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
