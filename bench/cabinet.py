"""``python -m bench.cabinet`` (and ``make bench``): what a completed form costs beside a loop by hand.

From Kafka through ClaimX and iTel into the tables. The loop promises nothing: no retries, no fences, no dead letters,
three appends a batch. ClaimX and iTel are a Go program, at 0 ms (what it costs) and at 50 ms (how much of the time is
waiting). One run of each way in turn, each in a process of its own; medians and ratios of the pairs. Seconds run from
the first lookup to the last commit, processor time from the start of the job: imports are left out of both. Asserts
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import requests
import urllib3
from confluent_kafka import Consumer, TopicPartition
from deltalake import DeltaTable, write_deltalake
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import stub
from itel_cabinet.io.worker import ALLOCATORS
from itel_cabinet.local.samples import Generator, Shares
from itel_cabinet.local.services import Broker
from itel_cabinet.pipeline.launch import main as run_pipeline
from itel_cabinet.pipeline.options import Settings
from itel_cabinet.pipeline.topics import ITEL_ERRORS, ITEL_SUCCESSES, TASK_ERRORS

TOPIC = "completed"
THREADS = 32
BATCH_RECORDS = 500
WAYS = {
    "job": "this pipeline, job cabinet",
    "bodiless": "the same, --submission_bodies=off",
    "unfiled": "the same without a ledger",
    "urllib3": "a loop by hand, urllib3",
    "requests": "a loop by hand, requests",
}
JOBS = ("job", "bodiless", "unfiled")


def produce(broker: Broker, events: int, form: Path) -> None:
    """Fill the topic with completed events, and write ClaimX's answer to the first one for the stub."""
    nothing_else = dict.fromkeys(Shares.__dataclass_fields__, 0.0)
    producer = broker.producer()
    for one in Generator(1, shares=Shares(**nothing_else)).tracking_messages(events):
        if not form.exists() and one.details_json is not None:
            stub.write_form(one.details_json, form)
        producer.produce(TOPIC, one.value, one.key)
        producer.poll(0)
    if producer.flush(60):
        raise RuntimeError("the broker did not take all events within 60 s")


def run_job(servers: str, folder: Path, url: str, way: str = "job") -> None:
    """The job, as `itel-cabinet run cabinet` runs it. One without a ledger is not to be had otherwise."""
    if way == "unfiled":
        Settings.keeps_ledger = property(lambda _: False)  # type: ignore[assignment,method-assign]
    arguments = {
        "runner": "DirectRunner",
        "bootstrap_servers": servers,
        "input_topic": TOPIC,
        "consumer_group": f"bench-{folder.name}",
        "claimx_url": url,
        "claimx_auth": "none",
        "itel_url": url,
        "itel_auth": "none",
        "tables_root": str(folder),
        "submission_bodies": "on" if way == "job" else "off",
    }
    status = run_pipeline(["cabinet", *(f"--{name}={value}" for name, value in arguments.items()), "--until_caught_up"])
    if status:
        raise RuntimeError(f"the job ends with {status}")


def run_loop(servers: str, folder: Path, url: str, library: str) -> None:
    """The loop by hand."""
    get, post = _calls(url, library)
    consumer = Consumer({"bootstrap.servers": servers, "group.id": f"bench-{folder.name}", "enable.auto.commit": False})
    partitions = consumer.list_topics(TOPIC, 10).topics[TOPIC].partitions
    ends = {p: consumer.get_watermark_offsets(TopicPartition(TOPIC, p), 10)[1] for p in partitions}
    consumer.assign([TopicPartition(TOPIC, p, 0) for p in partitions])
    read = dict.fromkeys(partitions, 0)

    def work(message: Any) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
        event = json.loads(message.value())
        raw = get(f"/customTasks/assignment/{event['assignment_id']}?full=true")
        moment = datetime.fromisoformat(event["timestamp"])
        answers: dict[str, Any] = {}
        media: list[dict[str, Any]] = []
        key = {"assignment_id": event["assignment_id"], "event_id": event["event_id"]}
        for group in json.loads(raw)["response"]["groups"]:
            for question in group["questionAndAnswers"]:
                text, answer = question["questionText"].strip(), question["responseAnswerExport"]
                if answer["type"] == "image":
                    media += [{**key, "question": text, "media_id": one} for one in answer["claimMediaIds"]]
                else:
                    option, number = answer.get("optionAnswer") or {}, answer.get("numberAnswer") or {}
                    value = answer.get("text") or option.get("name") or number.get("value")
                    answers[f"{group['name'].strip()}/{text}"] = value
        body = json.dumps({"assignmentId": event["assignment_id"], "answers": answers, "media": media}).encode()
        if post("/api/v1/tasks", body, event["event_id"]) != 201:
            raise RuntimeError("the stub refuses a submission")
        row = {
            **key,
            "status": event["task_status"],
            "event_timestamp": moment,
            "claimx": raw.decode(),
            "original": message.value().decode(),
            "kafka_partition": message.partition(),
            "kafka_offset": message.offset(),
        }
        return row, {**key, "event_timestamp": moment, "answers": json.dumps(answers)}, media

    tables: dict[str, DeltaTable] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        while any(read[p] < ends[p] for p in partitions):
            messages: list[Any] = []
            began = time.monotonic()
            while len(messages) < BATCH_RECORDS and time.monotonic() - began < 0.2:
                messages += consumer.consume(BATCH_RECORDS - len(messages), 0.05)
            done = [*pool.map(work, messages)]
            for message in messages:
                read[message.partition()] = message.offset() + 1
            named = {
                "rows": [row for row, _, _ in done],
                "forms": [form for _, form, _ in done],
                "photos": [photo for _, _, photos in done for photo in photos],
            }
            for name, rows in named.items():
                if rows:
                    uri = str(folder / name)
                    write_deltalake(tables.get(name) or uri, pa.Table.from_pylist(rows), mode="append")
                    tables.setdefault(name, DeltaTable(uri))
    consumer.close()


def _calls(url: str, library: str) -> tuple[Any, Any]:
    headers = {"Authorization": "Bearer x", "Content-Type": "application/json"}
    if library == "requests":
        session = requests.Session()
        session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=THREADS))
        return (
            lambda path: session.get(url + path, headers=headers, timeout=10).content,
            lambda path, body, key: (
                session.post(url + path, data=body, headers={**headers, "Idempotency-Key": key}, timeout=10).status_code
            ),
        )
    pool = urllib3.PoolManager(maxsize=THREADS, headers=headers)
    return (
        lambda path: pool.request("GET", url + path).data,
        lambda path, body, key: (
            pool.request("POST", url + path, body=body, headers={**headers, "Idempotency-Key": key}).status
        ),
    )


def _run_here(way: str, servers: str, folder: Path, url: str) -> dict[str, Any]:
    began = time.process_time()
    if way in JOBS:
        run_job(servers, folder, url, way)
    else:
        run_loop(servers, folder, url, way)
    ended, cpu = time.time(), time.process_time() - began
    calls = requests.get(f"{url}/count", timeout=10).json()
    return {
        "events": calls["submissions"],
        "seconds": ended - calls["first"],
        "cpu_seconds": cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure(rounds: int, events: int) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """The runs of each way, by latency in milliseconds and way."""
    # What the ledger and the bodies cost shows at 0 ms.
    turns = [(ms, way) for ms in (0, 50) for way in WAYS if ms == 0 or way not in JOBS[1:]]
    runs: dict[tuple[int, str], list[dict[str, Any]]] = {turn: [] for turn in turns}
    with tempfile.TemporaryDirectory(prefix="bench-") as name, Broker.start(Path(name) / "broker") as broker:
        folder, form = Path(name), Path(name) / "form.json"
        program = stub.build(folder)
        for topic, partitions in ((TOPIC, 3), (TASK_ERRORS, 1), (ITEL_ERRORS, 1), (ITEL_SUCCESSES, 1)):
            broker.create_topic(topic, partitions)
        produce(broker, events, form)
        broker.committed("warm-up", TOPIC)
        in_turn = [(number, *turn) for number in range(rounds) for turn in turns]
        for number, ms, way in track(in_turn, "Completed forms", console=Console(stderr=True)):
            with stub.running(program, form, ms) as url:
                out = folder / f"{way}-{ms}-{number}"
                command = [sys.executable, "-m", "bench.cabinet", "--way", way, broker.bootstrap_servers, str(out), url]
                # As the job's own start has it, which comes too late in a program that has imported pyarrow.
                set_by_job = ALLOCATORS if way in JOBS else {}
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, env={**set_by_job, **os.environ}
                )
                if done.returncode:
                    raise RuntimeError(f"{way}: {done.stderr[-2_000:]}")
                run = json.loads(done.stdout.splitlines()[-1])
                if run["events"] != events:
                    raise RuntimeError(f"{way}: {run['events']} submissions in place of {events}")
                runs[ms, way].append(run)
    return runs


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cabinet", description=__doc__)
    parser.add_argument("--events", type=int, default=6_000)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each way, in turn")
    parser.add_argument("--way", nargs=4, metavar=("WAY", "SERVERS", "FOLDER", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.way:
        way, servers, folder, url = options.way
        print(json.dumps(_run_here(way, servers, Path(folder), url)))
        return
    runs = measure(options.rounds, options.events)
    table = Table(title=f"Completed forms, {options.events:,} in one process, {THREADS} calls at a time")
    for column in ("way", "ms a call", "forms/s", "CPU ms a form", "peak MB", "of the urllib3 loop"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for (ms, way), found in runs.items():
        pairs = zip(found, runs[ms, "urllib3"], strict=True)
        table.add_row(
            WAYS[way],
            str(ms),
            f"{statistics.median(run['events'] / run['seconds'] for run in found):,.0f}",
            f"{statistics.median(1000 * run['cpu_seconds'] / run['events'] for run in found):.2f}",
            f"{max(run['peak_mb'] for run in found):,.0f}",
            f"{statistics.median(loop['seconds'] / run['seconds'] for run, loop in pairs):.2f}",
        )
    console = Console()
    console.print(table)
    ideal = THREADS / 0.050 / 2  # two calls a form
    share = statistics.median(run["events"] / run["seconds"] for run in runs[50, "job"]) / ideal
    for way in ("bodiless", "job"):
        pairs = [*zip(runs[0, way], runs[0, "unfiled"], strict=True)]
        cpu = statistics.median(one["cpu_seconds"] / without["cpu_seconds"] for one, without in pairs)
        clock = statistics.median(one["seconds"] / without["seconds"] for one, without in pairs)
        console.print(
            f"{WAYS[way]}, to one without a ledger: {cpu:.3f} of its processor time, {clock:.3f} by the clock"
        )
    console.print(f"at 50 ms, of the {ideal:,.0f} forms/s that {THREADS} calls at a time allow: {share:.0%}")


if __name__ == "__main__":
    main()
