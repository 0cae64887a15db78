"""The verdict on a job, over all that may be seen of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from itel_cabinet.io.kafka import PartitionLag
from itel_cabinet.pipeline.operate import (
    Health,
    Limits,
    Observed,
    Offsets,
    RecentLetters,
    Tables,
    Unseen,
    WorkerState,
    judge,
)
from itel_cabinet.pipeline.operate.verdict import Worker

LIMITS = Limits(lag=100, age_seconds=60)
NO_BROKER = Unseen("--bootstrap_servers: no broker answers at kafka:9092")


def worker(state: WorkerState, number: int = 0, waiting_for: tuple[str, ...] = ()) -> Worker:
    return Worker(f"http://w{number}:9400", state, f"detail of {state}", waiting_for=waiting_for)


def group(before: Sequence[int | None], now: Sequence[int | None], end: int, age: float | None = None) -> Offsets:
    """A group's offsets in the partitions 0, 1 ... of logs from 10 to ``end``, seen twice within ten seconds."""

    def lags(offsets: Sequence[int | None]) -> list[PartitionLag]:
        return [PartitionLag(partition, offset, 10, end) for partition, offset in enumerate(offsets)]

    return Offsets("id", lags(before), lags(now), 10.0, age, None if age is None else 0)


def fences(before: int, now: int) -> Tables:
    return Tables([], {0: before}, {0: now})


OK, WAITING, STUCK = (worker(state) for state in (WorkerState.OK, WorkerState.WAITING, WorkerState.STUCK))
SILENT, ABSENT, FOREIGN = (worker(state) for state in (WorkerState.SILENT, WorkerState.ABSENT, WorkerState.FOREIGN))
IDLE = group([50, 50], [50, 50], 50)
MOVING = group([20, 20], [40, 30], 50, 5.0)
STANDING = group([20, 50], [20, 50], 50, 5.0)
FAR_BEHIND = group([20, 20], [40, 30], 500, 5.0)
OLD = group([20, 20], [40, 30], 50, 61.0)
JUST_ARRIVED = Offsets("id", [PartitionLag(0, 50, 10, 50)], [PartitionLag(0, 50, 10, 51)], 10.0, 0.2, 0)
FIRST_LOOK = Offsets("id", STANDING.now, STANDING.now, 0.0, 5.0, 0)
CUT = group([70], [70], 50)
NOTHING_COMMITTED = group([None], [None], 50, 5.0)

CASES: dict[str, tuple[Offsets | Unseen, list[Worker], Tables | Unseen | None, Health]] = {
    "idle, and its process answers": (IDLE, [OK], None, Health.HEALTHY),
    "moving, and its process answers": (MOVING, [OK], None, Health.HEALTHY),
    "a record has just arrived": (JUST_ARRIVED, [OK], None, Health.HEALTHY),
    "nothing to compare yet": (FIRST_LOOK, [OK], None, Health.HEALTHY),
    "moving, no process to ask": (MOVING, [], None, Health.HEALTHY),
    "moving, nobody at the address": (MOVING, [ABSENT], None, Health.HEALTHY),
    "idle, one of two processes answers": (IDLE, [ABSENT, OK], None, Health.HEALTHY),
    "moving, tables away": (MOVING, [OK], Unseen("--tables_root: away"), Health.HEALTHY),
    "rows but not yet offsets": (STANDING, [OK], fences(20, 30), Health.HEALTHY),
    "far behind": (FAR_BEHIND, [OK], None, Health.LAGGING),
    "far behind, no process to ask": (FAR_BEHIND, [], None, Health.LAGGING),
    "an old record unread": (OLD, [OK], None, Health.LAGGING),
    "rows but not offsets, far behind": (group([20], [20], 500, 5.0), [], fences(20, 30), Health.LAGGING),
    "standing still": (STANDING, [OK], None, Health.STUCK),
    "standing still, tables too": (STANDING, [OK], fences(20, 20), Health.STUCK),
    "standing still, far behind": (group([20], [20], 500, 900.0), [OK], None, Health.STUCK),
    "never moved": (NOTHING_COMMITTED, [OK], None, Health.STUCK),
    "says that it is stuck": (MOVING, [STUCK], None, Health.STUCK),
    "one of two says that it is stuck": (IDLE, [OK, STUCK], None, Health.STUCK),
    "frozen": (STANDING, [SILENT], None, Health.STUCK),
    "frozen, with nothing to read": (IDLE, [SILENT], None, Health.STUCK),
    "frozen, no broker": (NO_BROKER, [SILENT], None, Health.STUCK),
    "frozen beside one that waits": (STANDING, [WAITING, SILENT], None, Health.STUCK),
    "waiting": (STANDING, [WAITING], None, Health.WAITING),
    "waiting, far behind": (FAR_BEHIND, [WAITING], None, Health.WAITING),
    "waiting for the broker": (NO_BROKER, [WAITING], None, Health.WAITING),
    "one of two waits": (MOVING, [OK, WAITING], None, Health.WAITING),
    "gone, with something to read": (STANDING, [ABSENT], None, Health.DEAD),
    "gone, with nothing to read": (IDLE, [ABSENT], None, Health.DEAD),
    "all gone": (STANDING, [ABSENT, worker(WorkerState.ABSENT, 1)], None, Health.DEAD),
    "gone, log cut": (CUT, [ABSENT], None, Health.DEAD),
    "gone, nothing ever committed": (NOTHING_COMMITTED, [ABSENT], None, Health.DEAD),
    "standing still, no process to ask": (STANDING, [], None, Health.UNKNOWN),
    "idle, no process to ask": (IDLE, [], None, Health.UNKNOWN),
    "someone else answers": (STANDING, [FOREIGN], None, Health.UNKNOWN),
    "someone else answers, one gone": (IDLE, [FOREIGN, ABSENT], None, Health.UNKNOWN),
    "no broker": (NO_BROKER, [OK], None, Health.UNKNOWN),
    "no broker, no process": (NO_BROKER, [ABSENT], None, Health.UNKNOWN),
}


@pytest.mark.parametrize(("offsets", "workers", "tables", "expected"), CASES.values(), ids=CASES)
def test_verdict(
    offsets: Offsets | Unseen, workers: list[Worker], tables: Tables | Unseen | None, expected: Health
) -> None:
    found = judge(Observed("api", "g", "t", offsets, workers, tables), LIMITS)
    assert found.health is expected, found
    assert found.health.exit_status == (0 if expected is Health.HEALTHY else 1)
    assert "\n" not in found.reason + found.fix
    assert found.reason
    assert bool(found.fix) == (expected is not Health.HEALTHY)


def told(offsets: Offsets | Unseen, *workers: Worker) -> tuple[str, str]:
    found = judge(Observed("api", "g", "t", offsets, workers), LIMITS)
    return found.reason, found.fix


def test_reasons_and_mends() -> None:
    reason, mend = told(STANDING)
    assert reason == "in 10 s nothing moved, with 30 records to read"
    assert mend.startswith("give --metrics_url=http://HOST:PORT, ")
    reason, mend = told(IDLE, ABSENT)
    assert reason == "nothing answers at http://w0:9400, and in 10 s nothing moved, with nothing to read"
    assert mend.startswith("start it: `itel-cabinet run api ...`; it goes on from the group's offsets")
    assert "partition 0 ends below the group's offset: the log was cut" in told(CUT, ABSENT)[1]
    assert told(STANDING, SILENT)[0] == "http://w0:9400: detail of silent"
    reason, mend = told(STANDING, worker(WorkerState.WAITING, waiting_for=("ClaimX",)))
    assert reason == "alive, and waits for ClaimX"
    assert "see that ClaimX is up" in mend
    assert told(NO_BROKER)[0] == f"the group's offsets could not be read: {NO_BROKER.reason}"
    assert told(IDLE, ABSENT, OK)[0] == "nothing left to read; 1 of 2 --metrics_url did not answer: http://w0:9400"


def test_a_job_that_lags_is_told_when_it_will_have_caught_up() -> None:
    # 30 records in 10 s, and none arrive: 930 are left.
    reason, mend = told(FAR_BEHIND, OK)
    assert reason == "930 records behind, more than 100; it reads 3.0 records/s while 0.0/s arrive"
    assert mend == "nothing, if this can wait: at this pace it has caught up in 5 min"
    losing = Offsets("id", [PartitionLag(0, 20, 10, 300)], [PartitionLag(0, 30, 10, 500)], 10.0, 99.0, 0)
    reason, mend = told(losing, OK)
    assert reason == (
        "470 records behind, more than 100; the oldest unread record, in partition 0, waits for 99 s, more than 60 s; "
        "it reads 1.0 records/s while 20.0/s arrive"
    )
    assert mend.startswith("find what holds it up")


def test_limits_are_not_yet_too_far_behind() -> None:
    at_limits = group([20], [50], 150, 60.0)
    assert judge(Observed("api", "g", "t", at_limits, [OK]), LIMITS).health is Health.HEALTHY


def test_what_has_moved() -> None:
    first_commit = group([None, 20], [15, 25], 50)
    assert first_commit.moved == 10
    # Retention moves a log's start, not the group.
    retention = Offsets("id", [PartitionLag(0, None, 10, 50)], [PartitionLag(0, None, 30, 50)], 10.0)
    assert retention.moved == 0
    new_partition = Offsets("id", [PartitionLag(0, 20, 10, 50)], [*MOVING.now], 10.0)
    assert new_partition.arriving == 4.0
    assert (FIRST_LOOK.arriving, FIRST_LOOK.reading) == (0.0, 0.0)
    assert fences(20, 35).ahead_of(STANDING) == 15
    assert fences(20, 35).moved == 15


@pytest.mark.parametrize(
    ("starts", "health"),
    [
        ([], Health.HEALTHY),
        ([5.0], Health.HEALTHY),
        ([800.0, 700.0, 20.0], Health.HEALTHY),
        ([1000.0, 800.0, 700.0, 20.0], Health.HEALTHY),
        ([800.0, 700.0, 600.0, 310.0], Health.HEALTHY),
        ([800.0, 700.0, 600.0, 20.0], Health.FAILING),
        ([32.0, 24.0, 16.0, 8.0], Health.FAILING),
    ],
)
def test_a_job_that_starts_over_and_over_is_failing(starts: list[float], health: Health) -> None:
    seen = Observed("tracking", "a-group", "events", replace(MOVING, starts=starts), [OK])
    assert judge(seen, LIMITS).health is health
    # What its process says of itself, as that it waits, says more.
    assert judge(replace(seen, workers=[WAITING]), LIMITS).health is Health.WAITING


def test_the_verdict_names_how_often_it_was_started() -> None:
    seen = Observed("tracking", "a-group", "events", replace(MOVING, starts=[32.0, 24.0, 16.0, 8.0]), [])
    assert judge(seen, LIMITS).reason == "started 4 times within 32 s, the last time 8 s ago"


@pytest.mark.parametrize(
    ("number", "days", "line"),
    [
        (0, None, None),
        (3, 6.9, None),
        (1, 7.5, "1 dead letter is open, the oldest for 8 days"),
        (12, 29, "12 dead letters are open, the oldest for 29 days"),
    ],
)
def test_a_job_whose_letters_nobody_looks_at_is_failing(number: int, days: float | None, line: str | None) -> None:
    now = 1.8e9
    oldest = None if days is None else now - days * 86_400
    letters = RecentLetters({}, {}, number, oldest, 0, number, number, partial=False)
    seen = Observed("tracking", "a-group", "events", MOVING, [OK], letters=letters, at=now)
    found = judge(seen, LIMITS)
    assert (found.health, found.reason) == ((Health.FAILING, line) if line else (Health.HEALTHY, found.reason))
