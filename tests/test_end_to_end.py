"""Each job from a real broker to its outputs, as a process of its own."""

from __future__ import annotations

from datetime import UTC, datetime

from jobs import Stack

from itel_cabinet.local.events import Generator, produce


def test_cabinet(stack: Stack) -> None:
    events = Generator(7, start=datetime.now(UTC)).tracking_messages(300)
    receipts = produce(stack.broker.bootstrap_servers, stack.topic("tracking"), events, stack.claimx)
    stack.run("cabinet")
    tracked = {(r.partition, r.offset) for r in receipts if r.produced.expect in ("tracked", "submitted")}
    assert sorted((row["kafka_partition"], row["kafka_offset"]) for row in stack.tracking()) == sorted(tracked)
