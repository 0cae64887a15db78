"""SIGTERM and SIGINT end a job in order, whatever it is at; and a job with nothing to do costs next to nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from itel_cabinet.local.samples import Generator, Receipt, produce
from itel_cabinet.local.services import Broker
from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator
from tests.support.accounting import assert_everything_accounted_for, assert_tracked_once
from tests.support.jobs import TOPICS, Stack, wait_for


def produced(stack: Stack, n: int, seed: int = 41) -> list[Receipt]:
    events = Generator(seed, start=datetime.now(UTC)).tracking_messages(n)
    return produce(stack.broker.bootstrap_servers, stack.topic("tracking"), events, stack.claimx)


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
    ids=lambda number: number.name,
)
def test_stopped_during_load(stack: Stack, number: signal.Signals) -> None:
    receipts = produced(stack, 1500)
    with stack.running("cabinet", fresh=True, max_batch_records=50) as job:
        wait_for(lambda: sum(stack.committed("cabinet").values()), "progress")
        job.process.send_signal(number)
        assert job.wait() == 0, job.errors
    committed = stack.committed("cabinet")
    assert sum(committed.values()) < len(receipts), "stopped too late to prove anything"
    assert_tracked_once(stack, [r for r in receipts if r.offset < committed.get(r.partition, 0)])

    stack.run("cabinet")
    assert_everything_accounted_for(stack, receipts)
    # Nothing had to be done twice; an event that is written twice is sent once.
    submitted = {r.produced.event_id for r in receipts if r.produced.expect == "submitted"}
    assert {one.idempotency_key: one.times for one in stack.itel.submissions()} == dict.fromkeys(submitted, 1)


def test_stopped_when_idle(stack: Stack) -> None:
    receipts = produced(stack, 20)
    with stack.running("cabinet", fresh=True) as job:
        stack.settle("cabinet")
        assert job.stop(seconds=10) == 0, job.errors
    assert_everything_accounted_for(stack, receipts)


@pytest.mark.parametrize("fault", ["outage", "hang"])
def test_stopped_while_itel_is_away(stack: Stack, fault: str) -> None:
    """The bundle under way is finished: its submissions get their tries and end in the error topic."""
    receipts = produced(stack, 30)
    setattr(stack.itel.faults, fault, True)
    with stack.running("cabinet", itel_deadline_seconds=1) as job:
        wait_for(lambda: stack.itel.calls.total(), "a call to iTel")
        assert job.stop() == 0, job.errors
    assert stack.committed("cabinet") == stack.ends()
    failed = [letter for letter in stack.dead_letters("itel_errors") if letter.stage == "submit"]
    submitted = {(r.partition, r.offset) for r in receipts if r.produced.expect == "submitted"}
    assert {(letter.partition, letter.offset) for letter in failed} == submitted
    assert len(failed) == len(submitted)
    assert stack.itel.submissions() == []
    assert_tracked_once(stack, receipts)


def test_stopped_while_claimx_is_away(stack: Stack) -> None:
    """It is not waited for as long as else; nothing is committed, and a restart does it all."""
    receipts = produced(stack, 60)
    stack.claimx.faults.outage = True
    with stack.running("cabinet", fresh=True, claimx_deadline_seconds=1, outage_patience_seconds=3600) as job:
        wait_for(lambda: "ClaimX: " in job.errors, "the outage")
        assert job.stop() == 1, job.errors
        assert job.errors.splitlines()[-1].startswith("itel-cabinet: ClaimX: ")
    assert sum(stack.committed("cabinet").values()) == 0
    assert stack.tracking() == []
    assert [stack.dead_letters(role) for role in ("errors", "itel_errors")] == [[], []]

    stack.claimx.faults.outage = False
    stack.run("cabinet")
    assert_everything_accounted_for(stack, receipts)


def test_stopped_while_itel_is_waited_for(stack: Stack) -> None:
    """Asked to end, a job waits no longer; a restart does it all."""
    receipts = produced(stack, 60)
    stack.itel.faults.outage = True
    with stack.running("cabinet", itel_on_outage="wait", itel_deadline_seconds=1, itel_batch_size=3) as job:
        wait_for(lambda: "iTel: " in job.errors, "the outage")
        assert job.stop() == 1, job.errors
        last = job.errors.splitlines()[-1]
        assert last.startswith("itel-cabinet: iTel: ")
        assert "503" in last
    assert sum(stack.committed("cabinet").values()) == 0
    # Rows are committed while iTel is called; a restart finds them.
    written = [(row["kafka_partition"], row["kafka_offset"]) for row in stack.tracking()]
    assert len(written) == len({*written} & {(r.partition, r.offset) for r in receipts})
    assert stack.ledger() == []
    assert [stack.dead_letters(role) for role in ("errors", "itel_errors")] == [[], []]

    stack.itel.faults.outage = False
    stack.run("cabinet")
    assert_everything_accounted_for(stack, receipts)


@pytest.fixture
def stack_of_its_own(
    claimx: ClaimXSimulator, itel: ItelSimulator, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A stack on a broker that may be stopped."""
    with Broker.start(tmp_path_factory.mktemp("own-broker")) as broker:
        stack = Stack(broker, claimx, itel, tmp_path, "own")
        for role, partitions in TOPICS.items():
            broker.create_topic(stack.topic(role), partitions)
        yield stack


@pytest.mark.services
@pytest.mark.parametrize("at", ["the source", pytest.param("the sinks", marks=pytest.mark.slow)])
def test_stopped_while_the_broker_is_away(stack_of_its_own: Stack, at: str) -> None:
    stack = stack_of_its_own
    receipts = produced(stack, 60)
    with stack.running("cabinet", outage_patience_seconds=3600) as job:
        if at == "the source":
            stack.settle("cabinet")
            stack.broker.kill()
            wait_for(lambda: "trying again" in job.errors, "the outage")
        else:
            stack.itel.faults.latency_seconds = 2.0
            wait_for(lambda: stack.itel.calls.total(), "a call to iTel")
            stack.broker.kill()
        assert job.stop() == 1, job.errors
        assert job.errors.splitlines()[-1].startswith("itel-cabinet: Kafka at ")
    stack.itel.faults.latency_seconds = 0.0
    stack.broker.start_again()
    stack.run("cabinet")
    assert_everything_accounted_for(stack, receipts)


def test_idle_job_leaves_the_processor_alone(stack: Stack) -> None:
    produced(stack, 20)
    with stack.running("cabinet", fresh=True) as job:
        stack.settle("cabinet")
        before = processor_seconds(job.process.pid)
        assert job.process.poll() is None
        with pytest.raises(AssertionError, match="not within"):
            wait_for(job.process.poll, "nothing: the job idles", seconds=10)
        used = processor_seconds(job.process.pid) - before
    assert used < 10 * 0.15, f"{used / 10:.1%} of a core"


def processor_seconds(pid: int) -> float:
    """What a process has used of the processor since its start, in user and system mode."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
