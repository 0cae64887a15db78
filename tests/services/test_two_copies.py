"""The same records read more than once - by a second copy, after a reset, under a new topic - make no row twice."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest

from itel_cabinet.local.samples import Generator, Receipt, Shares, produce
from tests.support.accounting import assert_everything_accounted_for, assert_tracked_once, topic_id
from tests.support.jobs import Stack, wait_for

MANY_RESUBMISSIONS = Shares(assigned=0.2, resubmitted=0.2, late=0.1, repeated=0.1)


def produced(stack: Stack, generator: Generator, n: int, rate: float | None = None) -> list[Receipt]:
    servers, topic = stack.broker.bootstrap_servers, stack.topic("tracking")
    return produce(servers, topic, generator.tracking_messages(n), stack.claimx, rate=rate)


def generator(seed: int) -> Generator:
    return Generator(seed, start=datetime.now(UTC), shares=MANY_RESUBMISSIONS)


@pytest.mark.parametrize(
    "shards",
    [pytest.param((1, 1), id="equal", marks=pytest.mark.slow), pytest.param((1, 3), id="sharded otherwise")],
)
def test_two_live_copies_of_the_job(stack: Stack, shards: tuple[int, int]) -> None:
    with ExitStack() as running:
        jobs = [
            running.enter_context(
                stack.running("cabinet", shards=count, max_batch_records=40, itel_success_topic=stack.topic("success"))
            )
            for count in shards
        ]
        wait_for(lambda: all(" starts: reads " in job.errors for job in jobs), "both copies have started", 120)
        receipts = produced(stack, generator(31), 400, rate=80)
        stack.settle("cabinet")
        # The slower copy may still be on its way, and may have set the offsets back for a moment.
        assert [job.stop() for job in jobs] == [0, 0]
    read = [job.counters["Read: records_read"] for job in jobs]
    assert min(read) > len(receipts) / 2, "one copy did next to nothing: nothing was proved"
    stack.run("cabinet")
    assert_everything_accounted_for(stack, receipts, at_once=True)


def test_offsets_set_back_add_no_row(stack: Stack) -> None:
    receipts = produced(stack, generator(32), 200)
    stack.run("cabinet")
    tables = [stack.tracking(), stack.forms(), stack.attachments()]
    stack.rewind("cabinet")
    stack.run("cabinet", max_batch_records=17, shards=2)
    assert [stack.tracking(), stack.forms(), stack.attachments()] == tables
    assert_everything_accounted_for(stack, receipts)


@pytest.mark.parametrize("alive", [False, True], ids=["between runs", "while running"])
def test_a_topic_made_anew_loses_no_row(stack: Stack, alive: bool) -> None:
    """Its offsets begin at 0 again, below the fences and the group's offsets of its former life."""
    source = generator(33)
    with ExitStack() as running:
        first = produced(stack, source, 200)
        former = topic_id(stack)
        if alive:
            job = running.enter_context(stack.running("cabinet"))
            stack.settle("cabinet")
        else:
            stack.run("cabinet")
        assert_tracked_once(stack, first)

        stack.broker.delete_topic(stack.topic("tracking"))
        stack.broker.create_topic(stack.topic("tracking"), 3)
        assert topic_id(stack) != former
        second = produced(stack, source, 150)
        if alive:
            stack.settle("cabinet")
            assert job.stop() == 0
        else:
            stack.run("cabinet")

    expected = {
        (incarnation, r.partition, r.offset): r.produced.event_id
        for incarnation, receipts in ((former, first), (topic_id(stack), second))
        for r in receipts
        if r.produced.expect in ("tracked", "submitted")
    }
    rows = [
        ((row["kafka_topic_id"], row["kafka_partition"], row["kafka_offset"]), row["event_id"])
        for row in stack.tracking()
    ]
    assert Counter(rows) == Counter(expected.items())
    submitted = [r.produced for r in (*first, *second) if r.produced.expect == "submitted"]
    assert {row["assignment_id"] for row in stack.forms()} == {one.assignment_id for one in submitted}
    assert {one.idempotency_key for one in stack.itel.submissions()} == {one.event_id for one in submitted}
