"""Jobs on the cluster that are stopped with a savepoint and go on from it, and topics that do not fit their shards."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import takewhile

import pytest

from itel_cabinet.local.samples import Generator, Shares, produce
from itel_cabinet.local.services import FlinkCluster
from tests.support.accounting import assert_everything_accounted_for, repeated_calls
from tests.support.jobs import Stack, wait_for

pytestmark = [pytest.mark.flink, pytest.mark.timeout(600)]

RECORDS_A_BATCH = 50


def submit(stack: Stack, cluster: FlinkCluster, **options: object) -> str:
    """Start the `cabinet` job on the cluster; its id, once it runs."""
    before = {job.id for job in cluster.jobs()}
    settings = cluster.beam_options() | {"checkpointing_interval": "2000"} | options
    with stack.running("cabinet", **settings) as launcher:
        assert launcher.wait(240) == 0, launcher.errors
    [started] = [job.id for job in cluster.jobs() if job.id not in before]
    return started


def read(stack: Stack) -> int:
    return sum(stack.committed("cabinet").values())


def test_stopped_with_a_savepoint_under_load(stack: Stack, cluster: FlinkCluster) -> None:
    """Twice, with another parallelism and, to no effect, another number of shards; then without one.

    The source grants no split but its own (test_kafka.py), so a savepoint taken here needs none from the runner.
    """
    stack.broker.add_partitions(stack.topic("tracking"), 4)
    stack.options = {"max_batch_records": RECORDS_A_BATCH, "http_concurrency": 8}
    generator = Generator(71, start=datetime.now(UTC), shares=Shares(assigned=0.4))
    topic, servers = stack.topic("tracking"), stack.broker.bootstrap_servers
    enough = threading.Event()
    records = takewhile(lambda _: not enough.is_set(), generator.tracking_messages(20_000))
    savepoint: dict[str, object] = {}
    with ThreadPoolExecutor(1) as producer:
        fed = producer.submit(produce, servers, topic, records, stack.claimx, rate=60)
        try:
            for parallelism, shards in ((2, 4), (1, 4), (2, 7)):
                before = read(stack)
                job = submit(stack, cluster, parallelism=parallelism, shards=shards, **savepoint)
                assert cluster.checkpoints(job).restored == len(savepoint)
                wait_for(lambda before=before: read(stack) > before + 200, "the job works", 120)
                savepoint = {"savepoint_path": cluster.stop_with_savepoint(job)}
                assert cluster.job(job).state == "FINISHED"
                assert not fed.done(), "no load any more when the job was stopped"
        finally:
            enough.set()
        receipts = fed.result(120)
    wanted = Counter(receipt.produced.event_id for receipt in receipts if receipt.produced.expect == "submitted")
    sent = {submission.idempotency_key: submission.times for submission in stack.itel.submissions()}
    assert {key: times for key, times in sent.items() if times > wanted[key]} == {}, "sent again, though covered"
    # Another number of shards takes effect where the job starts from the group's offsets.
    job = submit(stack, cluster, parallelism=2, shards=5)
    stack.settle("cabinet", 180)
    cluster.cancel(job)
    assert_everything_accounted_for(stack, receipts)


def test_an_old_savepoint_repeats_no_call(stack: Stack, cluster: FlinkCluster) -> None:
    """It was taken when iTel had a part, and is restored when iTel has all: what came between is read again."""
    stack.options = {"max_batch_records": str(RECORDS_A_BATCH)}
    generator = Generator(73, start=datetime.now(UTC), shares=Shares(assigned=0.2, resubmitted=0.1, repeated=0.1))
    topic, servers = stack.topic("tracking"), stack.broker.bootstrap_servers
    receipts = produce(servers, topic, generator.tracking_messages(100), stack.claimx)
    job = submit(stack, cluster)
    stack.settle("cabinet", 120)
    old, covered = cluster.savepoint(job), len(stack.itel.submissions())
    receipts += produce(servers, topic, generator.tracking_messages(150), stack.claimx)
    stack.settle("cabinet", 120)
    cluster.cancel(job)
    since = len(stack.itel.submissions()) - covered
    assert min(covered, since) > RECORDS_A_BATCH
    ledger = sorted(map(str, stack.ledger()))

    job = submit(stack, cluster, savepoint_path=old)
    assert cluster.checkpoints(job).restored == 1
    # Flink's names of counters have no colons.
    skipped = "itel_cabinet_skipped_already_submitted"
    wait_for(lambda: sum(cluster.counters(job, skipped).values()) >= since, "all since the savepoint is skipped", 60)
    assert sorted(map(str, stack.ledger())) == ledger
    receipts += produce(servers, topic, generator.tracking_messages(20), stack.claimx)
    stack.settle("cabinet", 60)
    cluster.cancel(job)
    assert repeated_calls(stack, receipts) == 0
    assert_everything_accounted_for(stack, receipts)


def test_more_shards_than_partitions_and_partitions_added_while_running(stack: Stack, cluster: FlinkCluster) -> None:
    topic, servers = stack.topic("tracking"), stack.broker.bootstrap_servers
    generator = Generator(72, start=datetime.now(UTC), shares=Shares(assigned=0.4))
    receipts = produce(servers, topic, generator.tracking_messages(150), stack.claimx)
    job = submit(stack, cluster, parallelism=2, shards=5)
    stack.settle("cabinet", 120)

    stack.broker.add_partitions(topic, 7)
    receipts += produce(servers, topic, generator.tracking_messages(300), stack.claimx)
    assert {receipt.partition for receipt in receipts} == set(range(7))
    stack.settle("cabinet", 120)
    cluster.cancel(job)
    assert_everything_accounted_for(stack, receipts)
