"""Ways of doing the same work: Kafka record -> event -> row -> Delta table. Each runs in its own process.

``python -m bench.ways WAY BOOTSTRAP TOPIC FOLDER COUNT`` (beam, loop, one, metered, unmetered) prints one JSON line:
events, seconds, peak memory in MB. The seconds run from just before the first record is read to the last commit;
imports and connecting are left out of all.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import requests
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from confluent_kafka import Consumer, TopicPartition
from deltalake import DeltaTable, write_deltalake
from prometheus_client import Counter, Gauge, Histogram
from pydantic import BaseModel

from itel_cabinet.io.batches import Batch
from itel_cabinet.io.delta import Append, TableSpec, WriteToDelta, create_table
from itel_cabinet.io.kafka import KafkaSource, ReadFromKafka, client_config
from itel_cabinet.io.worker import WorkerSettings, metrics, prepare, serve
from itel_cabinet.local.services import free_port
from itel_cabinet.pipeline.steps import Step, count_form, look_ahead, take_outcomes
from itel_cabinet.transforms.contracts import load_shipped
from itel_cabinet.transforms.enrichment import enrich
from itel_cabinet.transforms.events import parse_task_events
from itel_cabinet.transforms.forms import TaskDetails, parse_details
from itel_cabinet.transforms.rows import TRACKING_SCHEMA, make_tracking_rows

BATCH_RECORDS = 10_000
_SECONDS = time.time


class FreeLookup:
    """ClaimX at no cost: the same small answer for everyone, so that only the pipeline itself is measured."""

    def now(self) -> float:
        return time.monotonic()

    def calls_at_once(self) -> int:
        return 4  # the pool's threads

    def task(self, *_: object, **__: object) -> TaskDetails:
        return _details()


@cache
def _details() -> TaskDetails:
    return parse_details(b'{"assignmentId": 1, "taskId": 32513, "status": "ASSIGNED"}', 1)


@cache
def _pool() -> Executor:
    return ThreadPoolExecutor(4)


def _spec(folder: Path) -> TableSpec:
    return TableSpec(
        uri=str(folder / "table"),
        schema=TRACKING_SCHEMA,
        mode=Append(),
        partition_by=("year", "month", "day"),
    )


def _loop_spec(folder: Path) -> TableSpec:
    source = ("event_id", "kafka_partition", "kafka_offset")
    return replace(_spec(folder), schema=_LOOP_SCHEMA, source=source)


def beam_job(servers: str, topic: str, folder: Path, count: int) -> int:
    """The project's own source, steps and sink on DirectRunner."""
    source = KafkaSource(
        client=client_config(servers),
        topic=topic,
        group=f"bench-{folder.name}",
        max_batch_records=BATCH_RECORDS,
        max_batch_seconds=1.0,
        until_caught_up=True,
    )
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions(["--streaming"]))
    contract = load_shipped("cabinet_repair")
    parse = partial(parse_task_events, group=source.group, task_ids=contract.task_ids, clock=_SECONDS)
    look_up = partial(
        enrich,
        lookup=FreeLookup,
        pool=_pool,
        form_wait=pow,  # which nothing comes too early for
        read_form=contract.read_form,
        clock=_SECONDS,
        count=count_form,
    )
    batches = pipeline | ReadFromKafka(source, prepare, partial(look_ahead, parse=parse, look_up=look_up))
    events = batches | "Parse" >> Step("parse", list)
    (
        (events.results | "Look up" >> Step("enrich", take_outcomes)).results
        | beam.Map(partial(make_tracking_rows, clock=_SECONDS)).with_output_types(Batch)
        | WriteToDelta(_spec(folder))
    )
    pipeline.run()
    return count


def metered(servers: str, topic: str, folder: Path, count: int) -> int:
    """The same with --metrics_port, scraped each second: by a thread in here, so that its cost counts too."""
    port = serve(WorkerSettings("bench", folder.name, topic, "0", metrics_port=free_port()))
    done = threading.Event()

    def scrape() -> None:
        with requests.Session() as session:
            while not done.wait(1.0):
                session.get(f"http://127.0.0.1:{port}/metrics", timeout=10).raise_for_status()

    with ThreadPoolExecutor(1) as pool:
        scraping = pool.submit(scrape)
        try:
            return beam_job(servers, topic, folder, count)
        finally:
            done.set()
            scraping.result()


class _Uncounted:
    """In a metric's place: takes every call, and does nothing."""

    def labels(self, *_: object) -> _Uncounted:
        return self

    def follow(self, *_: object) -> None:
        pass

    def time(self) -> AbstractContextManager[None]:
        return nullcontext()

    inc = set = observe = set_to_current_time = follow


def unmetered(servers: str, topic: str, folder: Path, count: int) -> int:
    """The same without any of prometheus-client's work; Beam's own counters stay."""
    for name, value in [*vars(metrics).items()]:
        if isinstance(value, Counter | Gauge | Histogram | metrics.LiveGauge):
            setattr(metrics, name, _Uncounted())
    metrics.observe_freshness = lambda *_: None
    return beam_job(servers, topic, folder, count)


def plain_loop(servers: str, topic: str, folder: Path, count: int) -> int:
    """A hand-written loop with the same batches: consume, decode, rows, Arrow, append. It looks up nothing, commits no
    offsets, fences nothing, and ends at the first message that is not as it expects.
    """
    return _loop(servers, topic, folder, count, BATCH_RECORDS)


def one_at_a_time(servers: str, topic: str, folder: Path, count: int) -> int:
    """One record, one table version: the simplest worker."""
    return _loop(servers, topic, folder, count, 1)


class _Event(BaseModel):
    event_id: str
    event_type: str
    project_id: str
    task_id: int
    assignment_id: int
    task_name: str | None = None
    task_status: str
    timestamp: datetime
    task: dict[str, Any] | None = None
    project: dict[str, Any] | None = None


def _loop(servers: str, topic: str, folder: Path, count: int, batch_records: int) -> int:
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"bench-{folder.name}",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    partitions = sorted(consumer.list_topics(topic).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
    table = DeltaTable(str(folder / "table"))
    done = 0
    while done < count:
        messages: list[Any] = []
        full_at = time.monotonic() + 1.0
        while len(messages) < min(batch_records, count - done) and time.monotonic() < full_at:
            messages += consumer.consume(min(1_000, batch_records - len(messages), count - done - len(messages)), 0.1)
        if messages:
            write_deltalake(table, pa.Table.from_pylist([*map(_row, messages)], schema=_LOOP_SCHEMA), mode="append")
        done += len(messages)
    consumer.close()
    return done


_LOOP_COLUMNS = ("event_id", "event_type", "project_id", "task_id", "assignment_id", "task_name", "task_status")
_LOOP_COLUMNS += ("event_timestamp", "original_event", "project_data", "kafka_partition", "kafka_offset")
_LOOP_COLUMNS += ("year", "month", "day")
_LOOP_SCHEMA = pa.schema([TRACKING_SCHEMA.field(name).with_nullable(True) for name in _LOOP_COLUMNS])


def _row(message: Any) -> dict[str, Any]:
    event = _Event.model_validate_json(message.value())
    return {
        "event_id": event.event_id,
        "event_type": event.event_type,
        "project_id": event.project_id,
        "task_id": event.task_id,
        "assignment_id": event.assignment_id,
        "task_name": event.task_name,
        "task_status": event.task_status,
        "event_timestamp": event.timestamp,
        "original_event": json.dumps(event.task),
        "project_data": json.dumps(event.project),
        "kafka_partition": message.partition(),
        "kafka_offset": message.offset(),
        "year": event.timestamp.year,
        "month": event.timestamp.month,
        "day": event.timestamp.day,
    }


WAYS = {
    "beam": beam_job,
    "loop": plain_loop,
    "one": one_at_a_time,
    "metered": metered,
    "unmetered": unmetered,
}


def main() -> None:
    way, servers, topic, folder, count = sys.argv[1:]
    create_table(_loop_spec(Path(folder)) if way in ("loop", "one") else _spec(Path(folder)))
    started = time.perf_counter()
    events = WAYS[way](servers, topic, Path(folder), int(count))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows = DeltaTable(str(Path(folder) / "table")).to_pyarrow_dataset().count_rows()
    print(json.dumps({"events": events, "seconds": seconds, "peak_mb": peak, "rows": rows}))


if __name__ == "__main__":
    main()
