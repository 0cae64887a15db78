"""``make bench``: histories beside a plain loop and beside one event at a time, completed forms beside a loop by hand,
commits to a table, starts, and jobs on a Flink cluster. Prints figures and ratios of runs in turn, asserts nothing;
docs/performance.md says what they mean. ``--only`` takes some of the parts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import cabinet, delta, flink, start
from itel_cabinet.local.samples import Generator, Shares
from itel_cabinet.local.services import Broker

TOPIC = "bench"
NAMES = {
    "beam": "this pipeline on DirectRunner",
    "loop": "a plain loop that promises nothing",
    "one": "one event at a time",
    "metered": "this pipeline, scraped each second",
    "unmetered": "this pipeline, all metrics taken out",
}


PARTS = ("history", "cabinet", "delta", "start", "flink")


@dataclass(frozen=True)
class Figure:
    """The median of some runs of one way."""

    events_per_second: float
    peak_mb: float
    rows: int

    @classmethod
    def of(cls, runs: list[dict[str, Any]]) -> Figure:
        return cls(
            events_per_second=statistics.median(run["events"] / run["seconds"] for run in runs),
            peak_mb=max(run["peak_mb"] for run in runs),
            rows=runs[0]["rows"],
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--events", type=int, default=90_000, help="events for the pipeline and the loop")
    parser.add_argument("--single-events", type=int, default=300, help="events for one at a time, which is slow")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each way, in turn; the median counts")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS, help="these parts alone")
    options = parser.parse_args()
    if "history" in options.only:
        _measure_history(options)
    for name, part in (("cabinet", cabinet), ("delta", delta), ("start", start), ("flink", flink)):
        if name in options.only:
            part.main([])


def _measure_history(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Broker.start(Path(folder) / "broker") as broker:
        broker.create_topic(TOPIC, 3)
        produced = _produce(broker, options.events)
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in NAMES}
        for number in track(range(options.rounds), "Measuring", console=Console(stderr=True)):
            for way in NAMES:
                count = options.single_events if way == "one" else produced
                runs[way].append(_run(way, broker, Path(folder) / f"{way}-{number}", count))
    figures = {way: Figure.of(of_way) for way, of_way in runs.items()}
    _print(figures, runs, produced)


def _produce(broker: Broker, count: int) -> int:
    """Fill the topic with valid events only, so that every way writes a row for each."""
    shares = Shares(**{name: 0.0 for name in Shares.__dataclass_fields__ if name != "assigned"} | {"assigned": 1.0})
    producer = broker.producer()
    for one in Generator(1, shares=shares).tracking_messages(count):
        producer.produce(TOPIC, one.value, one.key)
        producer.poll(0)
    if producer.flush(60):
        raise RuntimeError("the broker did not take all events within 60 s")
    # The broker makes its offsets topic at the first question; the first to ask would pay for it.
    broker.committed("warm-up", TOPIC)
    return sum(broker.end_offsets(TOPIC).values())


def _run(way: str, broker: Broker, folder: Path, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.ways", way, broker.bootstrap_servers, TOPIC, str(folder), str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _print(figures: dict[str, Figure], runs: dict[str, list[dict[str, Any]]], produced: int) -> None:
    table = Table(title=f"Kafka to Delta, {produced:,} events of 3 partitions, no enrichment cost, one process")
    for column in ("way", "events/s", "peak MB", "rows written"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, figure in figures.items():
        table.add_row(NAMES[way], f"{figure.events_per_second:,.0f}", f"{figure.peak_mb:,.0f}", f"{figure.rows:,}")
    console = Console()
    console.print(table)
    pairs = zip(runs["beam"], runs["loop"], strict=True)
    ratio = statistics.median(loop["seconds"] / ours["seconds"] for ours, loop in pairs)
    faster = figures["beam"].events_per_second / figures["one"].events_per_second
    console.print(f"throughput of the plain loop's:   {ratio:.2f} (wanted: 0.6)")
    console.print(f"throughput against one at a time: {faster:.0f}x (wanted: over 20x)")
    cost = 1 - figures["metered"].events_per_second / figures["unmetered"].events_per_second
    console.print(f"throughput that metrics cost:     {cost:.1%} (wanted: under 5%)")


if __name__ == "__main__":
    main()
