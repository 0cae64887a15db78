"""``python -m bench.http``: how many calls a second one connection makes to an API that takes 50 ms to answer.

The ideal is what the concurrency allows: each thread a call every 50 ms. The API is the simulator of ClaimX in a
process of its own, the calls are look-ups of one assignment. Beside it the same calls by bare ``requests``, a session a
thread: what Python can do here at all. Prints ratios, asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import requests
from rich.console import Console
from rich.table import Table

from itel_cabinet.io.http import Connection, ConnectionSettings

PATH = "/customTasks/assignment/1?full=true"
TARGET = 0.8


@contextmanager
def claimx(latency_seconds: float) -> Iterator[str]:
    """The URL of a simulator that knows assignment 1, and answers so slowly."""
    command = [sys.executable, "-m", "itel_cabinet.local.simulators", "claimx"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            task = {"assignmentId": 1, "projectId": 2, "taskId": 32513, "response": None, "padding": "x" * 20_000}
            requests.put(f"{url}/_sim/tasks", data=json.dumps([task]), timeout=10).raise_for_status()
            faults = {"latency_seconds": latency_seconds}
            requests.put(f"{url}/_sim/faults", data=json.dumps(faults), timeout=10).raise_for_status()
            yield url
        finally:
            process.terminate()


def by_connection(url: str, concurrency: int) -> Callable[[int], int]:
    """Calls through our connection."""
    link = Connection(ConnectionSettings("claimx", url, concurrency=concurrency))
    return lambda _: link.call("GET", PATH).status


def by_requests(url: str, concurrency: int) -> Callable[[int], int]:  # noqa: ARG001
    """Calls through a bare session a thread."""
    local = threading.local()

    def call(_: int) -> int:
        if not hasattr(local, "session"):
            local.session = requests.Session()
        return int(local.session.get(url + PATH, timeout=10).status_code)

    return call


WAYS = {"this connection": by_connection, "bare requests": by_requests}


def measure(call: Callable[[int], int], calls: int, concurrency: int) -> float:
    """Calls a second, once each thread has its connection."""
    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(call, range(concurrency * 2)))
        began = time.perf_counter()
        statuses = list(pool.map(call, range(calls)))
        took = time.perf_counter() - began
    if set(statuses) != {200}:
        raise RuntimeError(f"the simulator answers {sorted(set(statuses))}")
    return calls / took


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.http", description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency-seconds", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way, in turn; the median counts")
    options = parser.parse_args()
    ideal = options.concurrency / options.latency_seconds
    runs: dict[str, list[float]] = {way: [] for way in WAYS}
    with claimx(options.latency_seconds) as url:
        for _ in range(options.rounds):
            for way, make in WAYS.items():
                runs[way].append(measure(make(url, options.concurrency), options.calls, options.concurrency))
    table = Table(
        title=f"{options.calls:,} calls, {options.latency_seconds * 1000:g} ms each, {options.concurrency} at a time"
    )
    for column in ("way", "calls/s", "of the ideal"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, rates in runs.items():
        rate = statistics.median(rates)
        table.add_row(way, f"{rate:,.0f}", f"{rate / ideal:.0%}")
    console = Console()
    console.print(table)
    console.print(f"the ideal: {ideal:,.0f} calls/s (target: over {TARGET:.0%})")


if __name__ == "__main__":
    main()
