"""``python -m bench.delta``: what a commit to a table costs: as the table grows, and as more writers share it.

Upserts meet 100 rows all over tables of several sizes, once by files and once by delta-rs's merge, each in a process of
its own. Writers are processes that commit to one table at the same time, in a folder and in an object store behind a
proxy that delays each answer; beyond what this machine can run, they are simulated. Prints figures, asserts nothing.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.transaction import AddAction, RemoveAction
from rich.console import Console
from rich.progress import track
from rich.table import Table

from itel_cabinet.io.delta import Append, FencedTable, TableSpec, Upsert, create_table
from itel_cabinet.io.worker import prepare
from itel_cabinet.local.services import HOST, S3, Toxiproxy
from itel_cabinet.pipeline.contracts import load_contract
from itel_cabinet.transforms.rows import make_forms_schema

SIZES = (10_000, 100_000, 1_000_000)
FILES = (1_000, 4_000, 16_000)
REMEMBERED = (100, 2_000, 8_000, 32_000)
WRITERS = (1, 2, 4, 8, 16)
SIMULATED = (1, 16, 64)
BUNDLE_ROWS = 500
UPSERTED_ROWS = 100
STORE_MS = 50
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def forms(uri: str, **changes: Any) -> TableSpec:
    """The job's own forms table."""
    contract = load_contract("cabinet_repair", complete=False)
    mode = Upsert(
        keys=("assignment_id",),
        order=("event_timestamp", "kafka_partition", "kafka_offset"),
        insert_only=("created_at",),
    )
    return TableSpec(**{
        "uri": uri, "schema": make_forms_schema(contract.questions, contract.file.form.raw_data_after), "mode": mode,
        "statistics": ("assignment_id", "event_timestamp", "kafka_partition", "kafka_offset"),
        **changes,
    })  # fmt: skip


def make_rows(schema: pa.Schema, ids: Sequence[int], offset: int, partition: int = 0) -> pa.Table:
    """Rows as large as real ones (2.4 KB in memory), whose texts differ; ``offset`` is the first one's."""
    chosen = random.Random(offset)
    letters = "".join(chosen.choices('abcdefghij {}":,0123456789', k=40_000))
    size = len(ids)

    def texts(length: int) -> list[str]:
        return [letters[at : at + length] for at in chosen.choices(range(30_000), k=size)]

    columns = []
    for field in schema:
        if field.name == "assignment_id":
            values: list[Any] = list(ids)
        elif field.name == "kafka_offset":
            values = list(range(offset, offset + size))
        elif field.name == "kafka_partition":
            values = [partition] * size
        elif field.name == "kafka_topic_id":
            values = ["bench"] * size
        elif pa.types.is_timestamp(field.type):
            values = [EPOCH + timedelta(milliseconds=offset + at) for at in range(size)]
        elif pa.types.is_string(field.type):
            values = texts(1_700 if field.name == "raw_data" else 12)
        elif pa.types.is_boolean(field.type):
            values = chosen.choices((True, False), k=size)
        else:
            values = chosen.choices(range(100), k=size)
        columns.append(pa.array(values, type=field.type))
    return pa.Table.from_arrays(columns, schema=schema)


# Upserts


def fill(uri: str, size: int) -> None:
    """A table of ``size`` forms, written as a job writes it."""
    writer = FencedTable(forms(uri))
    for first in range(0, size, 10_000):
        ids = range(first, min(size, first + 10_000))
        writer.write(make_rows(writer.spec.schema, ids, first))


def upsert(uri: str, size: int, way: str) -> dict[str, Any]:
    """Five commits of rows all over the table; medians of seconds and CPU seconds, and the process's peak in MB."""
    prepare()
    if way == "merge":  # a table with a constraint is merged into
        DeltaTable(uri).alter.add_constraint({"any": "kafka_offset >= 0"})
    writer, seconds, cpu = FencedTable(forms(uri, compact_every=0)), [], []
    for turn in range(1, 7):
        first = size * 2 + int(time.time() * 1000)
        rows = make_rows(writer.spec.schema, random.Random(turn).sample(range(size), UPSERTED_ROWS), first)
        started, used = time.perf_counter(), time.process_time()
        writer.write(rows)
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    return {
        "seconds": statistics.median(seconds[1:]),
        "cpu": statistics.median(cpu[1:]),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "files": len(DeltaTable(uri).file_uris()),
    }


def measure_upserts(sizes: Sequence[int], console: Console) -> None:
    shown = Table(title=f"Upserts of {UPSERTED_ROWS} rows all over a table of forms")
    for column in ("rows", "files", "by files: s", "CPU s", "peak MB", "by merge: s", "CPU s", "peak MB"):
        shown.add_column(column, justify="right")
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            _child("fill", f"{folder}/forms", size)
            shutil.copytree(f"{folder}/forms", f"{folder}/copy")
            files = _child("upsert", f"{folder}/forms", size, "files")
            merge = _child("upsert", f"{folder}/copy", size, "merge")
        shown.add_row(
            f"{size:,}", f"{files['files']:,}",
            *(f"{one[key]:.{digits}f}" for one in (files, merge)
              for key, digits in (("seconds", 2), ("cpu", 2), ("peak_mb", 0))),
        )  # fmt: skip
    console.print(shown)


# The log


def measure_log(counts: Sequence[int], console: Console) -> None:
    """What a table's files cost by their number alone: none of them is there, only their entries in the log."""
    shown = Table(title="The log of a table, by its number of files; statistics of four columns")
    for column in ("files", "opened: CPU ms", "refreshed, one file committed: CPU ms", "checkpoint KB", "commit KB"):
        shown.add_column(column, justify="right")
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            spec = forms(f"{folder}/forms")
            create_table(spec)
            one = DeltaTable(spec.uri)
            one.create_write_transaction([_entry(at) for at in range(count)], "append", one.schema())
            DeltaTable(spec.uri).create_checkpoint()
            opened, used = [], []
            for at in range(7):
                began = time.process_time()
                one = DeltaTable(spec.uri)
                opened.append(time.process_time() - began)
                began = time.process_time()
                one.create_write_transaction([_entry(count + at)], "append", one.schema())
                one.update_incremental()
                used.append(time.process_time() - began)
            log = Path(spec.uri, "_delta_log")
            checkpoint = sum(file.stat().st_size for file in log.glob("*.checkpoint.parquet"))
            commit = (log / f"{one.version():020}.json").stat().st_size
        shown.add_row(
            f"{count:,}", f"{statistics.median(opened) * 1000:.0f}", f"{statistics.median(used) * 1000:.0f}",
            f"{checkpoint / 1024:,.0f}", f"{commit / 1024:.1f}",
        )  # fmt: skip
    console.print(shown)


def measure_remembered(counts: Sequence[int], console: Console) -> None:
    """What a commit of one row costs by what the log remembers: its own entries, and files that were removed."""
    shown = Table(title="A commit, by what its table's log remembers; CPU ms")
    for column in ("number", "entries of the log", "removed files"):
        shown.add_column(column, justify="right")
    for count in counts:
        shown.add_row(f"{count:,}", *(f"{_commit_with(count, what):.0f}" for what in ("entries", "removed")))
    console.print(shown)


def _commit_with(count: int, what: str) -> float:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        spec = forms(f"{folder}/forms", mode=Append())
        create_table(spec)
        one, now = DeltaTable(spec.uri), int(time.time() * 1000)
        if what == "entries":
            for version in range(1, count + 1):
                Path(spec.uri, "_delta_log", f"{version:020}.json").write_text(
                    f'{{"commitInfo":{{"timestamp":{now}}}}}'
                )
        else:
            one.create_write_transaction([_entry(at) for at in range(count)], "append", one.schema())
            gone = [RemoveAction(_entry(at).path, True, now, 260_000, {}) for at in range(count)]
            one.create_write_transaction(gone, "append", one.schema())
        DeltaTable(spec.uri).create_checkpoint()
        table, used = FencedTable(spec), []
        for at in range(7):
            began = time.process_time()
            table.write(make_rows(spec.schema, [at], at))
            used.append(time.process_time() - began)
        return statistics.median(used[1:]) * 1000


def _entry(at: int) -> AddAction:
    bounds = {"assignment_id": at, "event_timestamp": "2026-01-01T00:00:00.000000Z", "kafka_offset": at}
    nulls = dict.fromkeys(bounds, 0)
    statistics_of_file = {"numRecords": 700, "minValues": bounds, "maxValues": bounds, "nullCount": nulls}
    return AddAction(f"part-{at:036}.parquet", 260_000, {}, 0, True, json.dumps(statistics_of_file))


# Writers


def write_for_a_while(uri: str, mode: str, writer: int, seconds: float) -> dict[str, Any]:
    """Commit bundles of a partition of its own, one after the other; each commit's seconds, and conflicts."""
    prepare()
    spec = _of_mode(uri, mode)
    one, took, conflicts, offset = FencedTable(spec), list[float](), 0, 0
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        ids = range(writer * 10**9 + offset, writer * 10**9 + offset + BUNDLE_ROWS)
        rows = make_rows(spec.schema, ids, offset, writer)
        started = time.perf_counter()
        conflicts += one.write(rows).conflicts
        took.append(time.perf_counter() - started)
        offset += BUNDLE_ROWS
    return {"took": took, "conflicts": conflicts, "seconds": time.monotonic() - began}


def _of_mode(uri: str, mode: str) -> TableSpec:
    return forms(uri, **({"mode": Append()} if mode == "append" else {}))


def measure_writers(counts: Sequence[int], seconds: float, console: Console) -> None:
    for place in ("a folder", f"an object store, {STORE_MS} ms an answer"):
        shown = Table(title=f"Writers of one table in {place}, {BUNDLE_ROWS} rows a commit")
        for column in ("writers", "mode", "commits/s", "rows/s", "commit p50 s", "p95 s", "decided again, a commit"):
            shown.add_column(column, justify="right")
        with _root(place) as (root, environment):
            for mode in ("append", "upsert"):
                for count in track(counts, f"{mode}, {place}", console=Console(stderr=True)):
                    uri = f"{root}/{mode}-{count}"
                    with _variables(environment):
                        create_table(_of_mode(uri, mode))
                    done = _run_writers(uri, mode, count, seconds, environment)
                    took = sorted(second for one in done for second in one["took"])
                    rate = len(took) / max(one["seconds"] for one in done)  # the last commits end later
                    shown.add_row(
                        str(count), mode, f"{rate:.1f}", f"{rate * BUNDLE_ROWS:,.0f}",
                        f"{took[len(took) // 2]:.2f}", f"{took[int(len(took) * 0.95)]:.2f}",
                        f"{sum(one['conflicts'] for one in done) / len(took):.2f}",
                    )  # fmt: skip
        console.print(shown)


def _run_writers(
    uri: str, mode: str, count: int, seconds: float, environment: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What each writer measured; they begin together, once all are ready."""
    running = [
        subprocess.Popen(
            _command("write", uri, mode, writer, seconds),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            text=True,
        )
        for writer in range(count)
    ]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]


@contextmanager
def _root(place: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if place == "a folder":
            yield folder, {}
            return
        with S3.start(Path(folder)) as store, Toxiproxy.start(Path(folder)) as proxies:
            store.create_bucket("bench")
            port = proxies.open("s3", f"{HOST}:{store.port}")
            proxies.poison("s3", "latency", latency=STORE_MS)
            yield "s3://bench", {**store.environment, "AWS_ENDPOINT_URL": f"http://{HOST}:{port}"}


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def simulate(writers: int, *, answer: float, files: float, every: float, seconds: float = 600.0) -> tuple[float, float]:
    """Commits a second, and the median seconds of one, of writers that each have a bundle every ``every`` seconds.

    A commit writes its files (``files`` seconds), looks for the newest version (an answer of the store) and puts the
    next one (another answer). One that finds its version taken looks again; of a version's puts the first counts.
    """
    chance = random.Random(1)
    version, took = 0, list[float]()
    # Each entry: when it is due, the writer, what it does then, the version that it knows, when its bundle ended.
    due = [(chance.uniform(0, every), writer, "files", 0, 0.0) for writer in range(writers)]
    due = [(at, writer, step, known, at) for at, writer, step, known, _ in due]
    heapq.heapify(due)
    while due and due[0][0] < seconds:
        at, writer, step, known, began = heapq.heappop(due)
        jittered = answer * chance.uniform(0.8, 1.2)
        if step == "files":
            heapq.heappush(due, (at + files * chance.uniform(0.8, 1.2), writer, "look", known, began))
        elif step == "look":
            heapq.heappush(due, (at + jittered, writer, "put", version, began))
        elif step == "put":
            heapq.heappush(due, (at + jittered, writer, "done", known, began))
        elif known == version:
            version += 1
            took.append(at - began)
            heapq.heappush(due, (max(at, began + every), writer, "files", version, max(at, began + every)))
        else:
            heapq.heappush(due, (at, writer, "look", known, began))
    return len(took) / seconds, statistics.median(took)


def show_simulated(counts: Sequence[int], console: Console) -> None:
    shown = Table(title=f"Simulated writers of one table at a store that answers in {STORE_MS} ms")
    for column in ("writers", "a bundle every", "commits/s", "wanted/s", "commit p50 s"):
        shown.add_column(column, justify="right")
    for every in (1.0, 5.0, 30.0):
        for count in counts:
            rate, median = simulate(count, answer=STORE_MS / 1000, files=2 * STORE_MS / 1000, every=every)
            shown.add_row(str(count), f"{every:g} s", f"{rate:.1f}", f"{count / every:.1f}", f"{median:.2f}")
    console.print(shown)


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "bench.delta", "child", *map(str, arguments)]


def _child(*arguments: object) -> dict[str, Any]:
    done = subprocess.run(_command(*arguments), stdout=subprocess.PIPE, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _run_child(what: str, *arguments: str) -> object:
    if what == "fill":
        return fill(arguments[0], int(arguments[1])) or {}
    if what == "upsert":
        return upsert(arguments[0], int(arguments[1]), arguments[2])
    uri, mode, writer, seconds = arguments
    return write_for_a_while(uri, mode, int(writer), float(seconds))


def main(given: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if given is None else given
    if given[:1] == ["child"]:
        print(json.dumps(_run_child(*given[1:])))
        return
    parser = argparse.ArgumentParser(prog="python -m bench.delta", description=__doc__)
    parser.add_argument("parts", nargs="*", help="upserts, log, writers, simulated; all of them by default")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="rows of the tables that are upserted into")
    parser.add_argument("--writers", type=int, nargs="*", default=WRITERS)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long writers write")
    options = parser.parse_args(given)
    console, parts = Console(width=120), options.parts or ["upserts", "log", "writers", "simulated"]
    if "upserts" in parts:
        measure_upserts(options.sizes, console)
    if "log" in parts:
        measure_log(FILES, console)
        measure_remembered(REMEMBERED, console)
    if "writers" in parts:
        measure_writers(options.writers, options.seconds, console)
    if "simulated" in parts:
        show_simulated(SIMULATED, console)


if __name__ == "__main__":
    main()
