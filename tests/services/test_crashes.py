"""The job's process is killed with SIGKILL; another one goes on; nothing is lost and no row is there twice."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from datetime import UTC, datetime

import pytest

from itel_cabinet.local.samples import Generator, Produced, Receipt, Shares, produce
from itel_cabinet.local.simulators import ItelSimulator
from itel_cabinet.pipeline.tables import ATTACHMENTS, BODIES, FORMS, LEDGER, TRACKING
from tests.support.accounting import assert_everything_accounted_for, repeated_calls
from tests.support.jobs import Stack
from tests.support.kills import kill_at_random

TABLES = (TRACKING, FORMS, ATTACHMENTS)
POINTS = [
    *(f"before-commit:{table}" for table in TABLES),
    f"after-commit:{ATTACHMENTS}",
    "after-2xx",
    "after-flush",
    f"before-commit:{LEDGER}",
    f"before-commit:{BODIES}",
    "before-finalizer",
]
"""One for each state that a crash can leave, in no order: in a bundle, calls come first, then commits."""

# What is done after a table's commit is done as well before the next one's. With a number, in the midst of the stream:
# some bundles are done, one is under way, others wait.
AGAIN = [
    f"after-commit:{TRACKING}",
    f"after-commit:{FORMS}",
    f"before-commit:{TRACKING}:3",
    f"after-commit:{FORMS}:3",
    f"after-commit:{ATTACHMENTS}:3",
    f"after-commit:{LEDGER}:2",
    "after-2xx:70",
    "after-flush:5",
    "before-finalizer:3",
]
MANY_RESUBMISSIONS = Shares(assigned=0.2, resubmitted=0.2, late=0.1, repeated=0.1)
RECORDS_A_BATCH = 50


def produced(stack: Stack, records: Iterable[Produced]) -> list[Receipt]:
    return produce(stack.broker.bootstrap_servers, stack.topic("tracking"), records, stack.claimx)


@pytest.mark.parametrize("point", [*POINTS, *(pytest.param(point, marks=pytest.mark.slow) for point in AGAIN)])
def test_killed_at(stack: Stack, point: str) -> None:
    receipts = produced(stack, Generator(5, start=datetime.now(UTC), shares=MANY_RESUBMISSIONS).tracking_messages(300))
    stack.options = {"max_batch_records": str(RECORDS_A_BATCH)}
    with stack.running("cabinet", env={"ITEL_CABINET_CRASH_AT": point}, until_caught_up="true") as job:
        assert job.wait() == -signal.SIGKILL, job.errors
    assert stack.committed("cabinet") != stack.ends(), "killed too late to prove anything"

    stack.run("cabinet")
    assert_everything_accounted_for(stack, receipts)
    assert repeated_calls(stack, receipts) <= RECORDS_A_BATCH


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kills", "events"),
    [pytest.param(4, 4_000, id="short"), pytest.param(20, 20_000, id="long", marks=pytest.mark.chaos)],
)
def test_killed_at_random(stack: Stack, kills: int, events: int) -> None:
    """Kills come at seeded moments after the job has moved the group's offsets since its start."""
    shares = Shares(assigned=0.5, resubmitted=0.05, late=0.02, repeated=0.02, bad=0.01)
    # Checking each body costs the simulator more than the rest of its work, and other tests do it.
    with ItelSimulator(schema={}) as itel:
        stack.itel = itel
        written = kill_at_random(stack, seed=6, shares=shares, kills=kills, events=events, seconds=300)
        assert_everything_accounted_for(stack, written)
        assert itel.overlaps == 0
        assert repeated_calls(stack, written) <= kills * 100
