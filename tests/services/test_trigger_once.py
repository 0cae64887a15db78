"""The trigger job is killed, stopped in its tracks and run twice; for a reader of committed records each event is on
the tracking topic once, and each bad one on the error topic.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka import Consumer, TopicPartition

from itel_cabinet.io.kafka import FencedError, Mark, Message, client_config, group_lag
from itel_cabinet.io.kafka.partition_producer import PartitionProducer
from itel_cabinet.local.samples import Generator, Produced, Receipt, produce
from itel_cabinet.local.services import Broker
from tests.support.accounting import assert_published_once
from tests.support.feed import Feed
from tests.support.jobs import Stack, wait_for

EVENTS_A_SECOND = 250.0


def produced(stack: Stack, records: Iterable[Produced], rate: float | None = None) -> list[Receipt]:
    return produce(stack.broker.bootstrap_servers, stack.topic("enriched"), records, stack.claimx, rate=rate)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("after-flush", marks=pytest.mark.slow),
        "before-transaction",
        pytest.param(
            "before-transaction:8",
            id="before-transaction: some partitions are committed, one is not",
            marks=pytest.mark.slow,
        ),
        "after-transaction",
        pytest.param("after-transaction:3", marks=pytest.mark.slow),
    ],
)
def test_killed_amid_a_transaction(stack: Stack, point: str) -> None:
    receipts = produced(stack, Generator(91, start=datetime.now(UTC)).claimx_events(300))
    stack.options = {"max_batch_records": "50"}
    with stack.running("trigger", env={"ITEL_CABINET_CRASH_AT": point}, until_caught_up="true") as job:
        assert job.wait() == -signal.SIGKILL, job.errors
    assert stack.committed("trigger") != stack.ends("enriched"), "killed too late to prove anything"
    # Sharded otherwise, so that nothing hangs on the shards being the same.
    stack.run("trigger", shards=2)
    assert_published_once(stack, receipts)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("kills", "events"),
    [
        pytest.param(2, 1_200, id="short", marks=pytest.mark.slow),
        pytest.param(15, 20_000, id="long", marks=pytest.mark.chaos),
    ],
)
def test_killed_at_random_each_event_is_published_once(stack: Stack, kills: int, events: int) -> None:
    """Kills come at seeded moments after the job has moved the group's offsets since its start."""
    moments = random.Random(21)
    generator = Generator(92, start=datetime.now(UTC), step=timedelta(seconds=1 / EVENTS_A_SECOND))
    with (
        ThreadPoolExecutor(1) as producer,
        Feed(generator.claimx_events(events), events // (kills + 1) + 1) as feed,
    ):
        receipts = producer.submit(produced, stack, feed, EVENTS_A_SECOND)
        for number in range(kills):
            feed.next_life()
            before = sum(stack.committed("trigger").values())
            with stack.running("trigger", shards=1 + number % 3) as job:
                wait_for(lambda before=before: sum(stack.committed("trigger").values()) > before, "progress")
                threading.Event().wait(moments.uniform(0.0, 1.0))
                job.kill()
                assert job.process.returncode == -signal.SIGKILL, job.errors
        feed.next_life()
        written = receipts.result(300)
    assert len(written) == events
    stack.run("trigger", seconds=300)
    assert_published_once(stack, written)


@pytest.mark.parametrize("shards", [1, pytest.param(3, marks=pytest.mark.slow)], ids=["equal", "sharded otherwise"])
def test_a_zombie_is_fenced(stack: Stack, shards: int) -> None:
    """A process stands still in the midst of its work, as on a machine that is swapping; another takes its place."""
    generator = Generator(93, start=datetime.now(UTC), step=timedelta(seconds=1 / EVENTS_A_SECOND))
    stack.options = {"max_batch_records": "20"}
    with ThreadPoolExecutor(1) as producer, stack.running("trigger") as zombie:
        fed = producer.submit(produced, stack, generator.claimx_events(900), EVENTS_A_SECOND)
        wait_for(lambda: sum(stack.committed("trigger").values()) > 100, "the first copy works")
        zombie.process.send_signal(signal.SIGSTOP)
        before = sum(stack.committed("trigger").values())
        with stack.running("trigger", shards=shards) as successor:
            wait_for(lambda: sum(stack.committed("trigger").values()) > before, "the second copy works")
            zombie.process.send_signal(signal.SIGCONT)
            assert zombie.wait() == 1
            receipts = fed.result(60)
            stack.settle("trigger")
            assert successor.stop() == 0
    last = zombie.errors.splitlines()[-1]
    assert last.startswith(f"itel-cabinet: Kafka at {stack.broker.bootstrap_servers}, transaction itel-cabinet/"), last
    assert "fenced: another copy of the job has begun to read this partition" in last
    assert_published_once(stack, receipts)


@pytest.mark.slow
def test_offsets_set_back_are_read_again_while_running(stack: Stack) -> None:
    """What a person asks for is done, though it publishes events once more."""
    receipts = produced(stack, Generator(94, start=datetime.now(UTC)).claimx_events(120))
    with stack.running("trigger") as job:
        stack.settle("trigger")
        once = len(stack.broker.read(stack.topic("tracking")))
        stack.rewind("trigger")
        wait_for(lambda: len(stack.broker.read(stack.topic("tracking"))) >= 2 * once, "all is read again")
        stack.settle("trigger")
        assert job.stop() == 0
    assert len(stack.broker.read(stack.topic("tracking"))) == 2 * once
    assert len(receipts) == 120


def test_without_transactions_the_job_runs_too(stack: Stack) -> None:
    receipts = produced(stack, Generator(95, start=datetime.now(UTC)).claimx_events(120))
    stack.run("trigger", transactions="off")
    assert_published_once(stack, receipts)
    # No marker of a transaction is on the topic.
    assert sum(stack.ends().values()) == len(stack.broker.read(stack.topic("tracking")))


def open_producer(broker: Broker, name: str) -> PartitionProducer:
    producer = PartitionProducer(client_config(broker.bootstrap_servers), name, 30.0)
    producer.open()
    return producer


def test_what_the_broker_refuses_is_left_out_of_the_transaction(broker: Broker, topic: Callable[..., str]) -> None:
    read, written = topic(partitions=1), topic(partitions=1, config={"max.message.bytes": "20000"})
    seeded = random.Random(5)
    values = [seeded.randbytes(30_000 if n in (3, 17) else 5_000) for n in range(30)]
    producer = open_producer(broker, read)
    assert producer.write([Message(written, None, b"first")]) == []
    refused = producer.write([Message(written, None, value) for value in values])
    assert [one.message.value for one in refused] == [values[3], values[17]]
    assert all(one.too_large for one in refused)
    assert producer.write([Message(written, None, b"in its place")]) == []
    assert broker.read(written) == []

    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": read})
    producer.commit(TopicPartition(read, 0, 7, "of the topic"), consumer.consumer_group_metadata())
    consumer.close()
    good = [value for value in values if len(value) < 20_000]
    assert [message.value for message in broker.read(written)] == [b"first", *good, b"in its place"]
    [lag] = group_lag({"bootstrap.servers": broker.bootstrap_servers}, read, read)
    assert (lag.stale, lag.mark) == (7, Mark("of")), "the mark travels with the offset"


def test_a_fenced_producer_says_so_and_what_it_wrote_is_gone(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic(partitions=1)
    first = open_producer(broker, name)
    first.write([Message(name, None, b"of the first")])
    second = open_producer(broker, name)
    second.write([Message(name, None, b"of the second")])
    with pytest.raises(FencedError, match="fenced: another copy"):
        first.commit(None, None)
    second.commit(None, None)
    assert [message.value for message in broker.read(name)] == [b"of the second"]
