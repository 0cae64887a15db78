"""A job that is killed again and again while its events come."""

from __future__ import annotations

import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from itel_cabinet.local.samples import Generator, Receipt, Shares, produce
from tests.support.feed import Feed
from tests.support.jobs import Stack, wait_for

EVENTS_A_SECOND = 250.0


def kill_at_random(
    stack: Stack, *, seed: int, shares: Shares, kills: int, events: int, seconds: float
) -> list[Receipt]:
    """Let `cabinet` work on generated events, and kill it at seeded moments after it has moved the group's offsets
    since its start; then let it catch up. Where the events were written."""
    moments = random.Random(20)
    generator = Generator(seed, start=datetime.now(UTC), step=timedelta(seconds=1 / EVENTS_A_SECOND), shares=shares)
    stack.options = {"max_batch_records": "100", "http_concurrency": "8"}
    with (
        ThreadPoolExecutor(1) as producer,
        Feed(generator.tracking_messages(events), events // (kills + 1) + 1) as feed,
    ):
        receipts = producer.submit(
            produce,
            stack.broker.bootstrap_servers,
            stack.topic("tracking"),
            feed,
            stack.claimx,
            rate=EVENTS_A_SECOND,
        )
        for _ in range(kills):
            feed.next_life()
            before = sum(stack.committed("cabinet").values())
            with stack.running("cabinet") as job:
                wait_for(lambda before=before: sum(stack.committed("cabinet").values()) > before, "progress")
                threading.Event().wait(moments.uniform(0.0, 2.0))
                job.kill()
                assert job.process.returncode == -signal.SIGKILL, job.errors
        feed.next_life()
        written = receipts.result(seconds)
    assert len(written) == events
    stack.run("cabinet", seconds=seconds)
    return written
