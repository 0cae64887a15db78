"""Whether a job is well: what was seen of it from outside, and the verdict on that. Pure; what is seen is collected by
:mod:`itel_cabinet.pipeline.operate.observation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from itel_cabinet.io.kafka import PartitionLag
from itel_cabinet.pipeline.operate.dead_letters import RecentLetters
from itel_cabinet.transforms.open_letters import describe_old_letters

__all__ = [
    "Health",
    "Limits",
    "Observed",
    "Offsets",
    "TableSeen",
    "Tables",
    "Unseen",
    "Verdict",
    "Worker",
    "WorkerState",
    "judge",
]


class Health(StrEnum):
    """The one word. All but the first are failures to a script."""

    HEALTHY = "healthy"
    LAGGING = "lagging"
    """Alive and moving, but too far behind."""
    STUCK = "stuck"
    """There, but not getting on."""
    DEAD = "dead"
    """Not there."""
    FAILING = "failing"
    """Alive and moving, but most of what it handles fails."""
    WAITING = "waiting"
    """Alive, and waits for something else to come back."""
    UNKNOWN = "unknown"
    """What was seen does not tell."""

    @property
    def exit_status(self) -> int:
        return 0 if self is Health.HEALTHY else 1


class WorkerState(StrEnum):
    """What is met at a metrics address."""

    OK = "ok"
    FAILING = "failing"
    WAITING = "waiting"
    STUCK = "stuck"
    SILENT = "silent"
    """Does not answer in time: frozen, or overloaded, or its machine is gone."""
    ABSENT = "absent"
    """Nothing listens there."""
    FOREIGN = "foreign"
    """Answers, but not as a worker of this job does."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """A source that did not answer: why, in one line with what to do."""

    reason: str


@dataclass(frozen=True, slots=True)
class Offsets:
    """The group's positions at both ends of ``seconds`` of watching; both of one incarnation of the topic. With 0
    seconds there is nothing to compare (yet).

    ``oldest_unread_seconds``: how long the oldest record that the group has not passed lies on the topic, and
    ``oldest_partition``, where; None where all is read. ``open_transactions``: of partitions that end in a transaction
    which nobody has ended yet, how many seconds ago its first record was written. ``starts``: how many seconds ago the
    job's latest processes started that committed for one partition, oldest first.
    """

    topic_id: str
    before: Sequence[PartitionLag]
    now: Sequence[PartitionLag]
    seconds: float
    oldest_unread_seconds: float | None = None
    oldest_partition: int | None = None
    starts: Sequence[float] = ()
    open_transactions: Mapping[int, float] = field(default_factory=dict)

    @property
    def lag(self) -> int:
        return sum(one.lag for one in self.now)

    @property
    def moved(self) -> int:
        """Offsets that the group has passed meanwhile."""
        before = {one.partition: one.committed for one in self.before if one.committed is not None}
        passed = (one.committed - before.get(one.partition, one.start) for one in self.now if one.committed is not None)
        return sum(max(0, offsets) for offsets in passed)

    @property
    def unread_throughout(self) -> bool:
        """Whether there was something to read from the beginning, and there is something still."""
        return self.seconds > 0 and any(one.lag for one in self.before) and self.lag > 0

    @property
    def arriving(self) -> float:
        """Records a second that were written to the topic."""
        before = {one.partition: one.end for one in self.before}
        written = sum(max(0, one.end - before.get(one.partition, one.start)) for one in self.now)
        return written / self.seconds if self.seconds else 0.0

    @property
    def reading(self) -> float:
        """Records a second that the group has passed."""
        return self.moved / self.seconds if self.seconds else 0.0

    @property
    def beyond_the_end(self) -> list[int]:
        """Partitions whose log was cut below the group's offset."""
        return [one.partition for one in self.now if one.is_beyond_the_end]


@dataclass(frozen=True, slots=True)
class TableSeen:
    """A table's newest state. ``newest_event`` and ``newest_written`` are of its rows, None where their files do not
    tell; ``version`` is None for a table that is not there (yet).
    """

    name: str
    version: int | None
    committed_at: datetime | None = None
    newest_event: datetime | None = None
    newest_written: datetime | None = None


@dataclass(frozen=True, slots=True)
class Tables:
    """The job's tables, and how far each partition of the topic is in the tracking table, at both ends of the watch."""

    tables: Sequence[TableSeen]
    fences_before: Mapping[int, int] = field(default_factory=dict)
    fences_now: Mapping[int, int] = field(default_factory=dict)

    @property
    def moved(self) -> int:
        """Offsets that the tracking table's fences have passed meanwhile."""
        return sum(max(0, now - self.fences_before.get(p, now)) for p, now in self.fences_now.items())

    def ahead_of(self, offsets: Offsets) -> int:
        """Offsets below a fence that the group has not committed: their rows are durable, the bundle is not over."""
        return sum(max(0, self.fences_now.get(one.partition, 0) - one.position) for one in offsets.now)


@dataclass(frozen=True, slots=True)
class Worker:
    """One metrics address and what it said; ``detail`` is a line for people."""

    url: str
    state: WorkerState
    detail: str
    seconds_since_heartbeat: float | None = None
    stuck_after_seconds: float | None = None
    waiting_for: tuple[str, ...] = ()
    failing: tuple[str, ...] = ()
    unknown_questions: tuple[str, ...] = ()
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """All that was seen of a job at one time. ``tables`` is None for a job without."""

    job: str
    group: str
    topic: str
    offsets: Offsets | Unseen
    workers: Sequence[Worker] = ()
    tables: Tables | Unseen | None = None
    letters: RecentLetters | Unseen | None = None
    at: float = 0.0
    """When, in epoch seconds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is too far behind: more than ``lag`` records, or the oldest of them older than ``age_seconds``."""

    lag: int = 1000
    age_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The word, a line of reason, and a line that says what to do (empty for a healthy job)."""

    health: Health
    reason: str
    fix: str = ""


# Starts of the processes of one partition from which on a job is one that ends again and again.
_LOOP_STARTS = 4
_LOOP_SECONDS = 900
_LOOP_OVER_SECONDS = 300

_REPLAY = "see why with `itel-cabinet dead-letters list`; fix that, then `itel-cabinet dead-letters replay`"
_GOES_ON = "it goes on from the group's offsets, and no row is written twice"


def judge(seen: Observed, limits: Limits) -> Verdict:
    """Judge what was seen.

    What a worker says of itself goes first, since it knows more than its offsets show; then whether anything moves,
    group or tables; then how far behind it is. A job that starts over and over is failing, however well it looks in
    between; so is one whose dead letters nobody looks at. Workers that are not there are held against a job only where
    nothing shows that it runs elsewhere.
    """
    said = _by_their_word(seen)
    if said is not None:
        return said
    offsets = seen.offsets
    if isinstance(offsets, Unseen):
        ask = "" if seen.workers else "; give --metrics_url to see at least whether the process is alive"
        return Verdict(Health.UNKNOWN, f"the group's offsets could not be read: {offsets.reason}", f"fix that{ask}")
    failing = _by_its_starts(offsets) or _by_its_letters(seen) or _by_transactions(seen, offsets, limits)
    if failing is not None:
        return failing
    moved = offsets.moved > 0 or (isinstance(seen.tables, Tables) and seen.tables.moved > 0)
    if not moved and not _ok(seen):
        return _unmoved(seen, offsets)
    if not moved and offsets.unread_throughout:
        return Verdict(
            Health.STUCK,
            f"its process answers, but in {offsets.seconds:.0f} s nothing moved, with {_records(offsets.lag)} to read",
            "see its log for offset commits and calls that fail; a checkpoint or a bundle that takes longer than this "
            f"looks the same: watch longer with --window_seconds; if it stays so, restart it: {_GOES_ON}",
        )
    return _by_their_distance(seen, offsets, limits, moved=moved)


def _ok(seen: Observed) -> bool:
    return any(worker.state is WorkerState.OK for worker in seen.workers)


def _of(seen: Observed, *states: WorkerState) -> list[Worker]:
    return [worker for worker in seen.workers if worker.state in states]


def _by_their_word(seen: Observed) -> Verdict | None:
    for worker in _of(seen, WorkerState.STUCK, WorkerState.SILENT):
        fix = f"keep its log and a stack dump (`py-spy dump`), then kill and restart it: {_GOES_ON}"
        return Verdict(Health.STUCK, f"{worker.url}: {worker.detail}", fix)
    waiting = _of(seen, WorkerState.WAITING)
    if waiting:
        awaited = ", ".join(dict.fromkeys(name for worker in waiting for name in worker.waiting_for)) or "an outage"
        return Verdict(
            Health.WAITING,
            f"alive, and waits for {awaited}",
            f"see that {awaited} is up and takes the job's credentials; the job goes on by itself",
        )
    failing = _of(seen, WorkerState.FAILING)
    if failing:
        return Verdict(
            Health.FAILING,
            "; ".join(dict.fromkeys(line for worker in failing for line in worker.failing)) or "most of its work fails",
            _REPLAY,
        )
    return None


def _by_its_starts(offsets: Offsets) -> Verdict | None:
    """A job that starts again and again may look well at each moment."""
    lately = [seconds for seconds in offsets.starts if seconds < _LOOP_SECONDS]
    if len(lately) < _LOOP_STARTS or lately[-1] > _LOOP_OVER_SECONDS:
        return None
    return Verdict(
        Health.FAILING,
        f"started {len(lately)} times within {_duration(lately[0])}, the last time {lately[-1]:.0f} s ago",
        "the last lines of its log before each end say why it ended, or what killed it (memory?); if these were yours, "
        f"it counts as well again {_LOOP_OVER_SECONDS // 60} minutes after the last",
    )


def _by_its_letters(seen: Observed) -> Verdict | None:
    letters = seen.letters
    if not isinstance(letters, RecentLetters):
        return None
    old = describe_old_letters(letters.open, letters.oldest_open_at, seen.at)
    return None if old is None else Verdict(Health.FAILING, old, _REPLAY)


def _by_transactions(seen: Observed, offsets: Offsets, limits: Limits) -> Verdict | None:
    """What lies behind an open transaction is not delivered, and no lag shows it."""
    held = {p: seconds for p, seconds in offsets.open_transactions.items() if seconds > limits.age_seconds}
    if not held:
        return None
    partition = max(held, key=lambda p: held[p])
    waiting = next((one.held for one in offsets.now if one.partition == partition), 0)
    return Verdict(
        Health.STUCK,
        f"partition {partition}: {_records(waiting)} wait behind a transaction that has been open for "
        f"{_duration(held[partition])}",
        f"its producer has to end it; `kafka-transactions.sh find-hanging --topic {seen.topic}` names one that runs no "
        "more, and `abort` ends it: the job goes on by itself",
    )


def _unmoved(seen: Observed, offsets: Offsets) -> Verdict:
    """Nothing moves and no worker says that it is well."""
    unread = f"{_records(offsets.lag)} to read" if offsets.lag else "nothing to read"
    nothing_moved = f"in {offsets.seconds:.0f} s nothing moved, with {unread}"
    cut = offsets.beyond_the_end
    if cut:
        start = (
            f"partition {cut[0]} ends below the group's offset: the log was cut, and the job refuses to read on "
            "until the group's offsets are set back to before the cut: `itel-cabinet offsets reset`"
        )
    else:
        start = f"start it: `itel-cabinet run {seen.job} ...`; {_GOES_ON}; the last line of its log says why it ended"
    if not seen.workers:
        return Verdict(
            Health.UNKNOWN,
            nothing_moved,
            "give --metrics_url=http://HOST:PORT, as the job's --metrics_port has it, to see whether the process is "
            f"alive; if it is not, {start}",
        )
    absent = _of(seen, WorkerState.ABSENT)
    if len(absent) == len(seen.workers):
        return Verdict(Health.DEAD, f"nothing answers at {_urls(absent)}, and {nothing_moved}", start)
    foreign = _of(seen, WorkerState.FOREIGN)[0]
    return Verdict(
        Health.UNKNOWN,
        f"{nothing_moved}, and no worker of it answers: {foreign.url}: {foreign.detail}",
        "give the address and --metrics_port of this job's own process as --metrics_url",
    )


def _by_their_distance(seen: Observed, offsets: Offsets, limits: Limits, *, moved: bool) -> Verdict:
    missing = _of(seen, WorkerState.ABSENT, WorkerState.FOREIGN)
    notes = [f"{len(missing)} of {len(seen.workers)} --metrics_url did not answer: {_urls(missing)}"] if missing else []
    behind = []
    if offsets.lag > limits.lag:
        behind.append(f"{_records(offsets.lag)} behind, more than {limits.lag}")
    age = offsets.oldest_unread_seconds
    if age is not None and age > limits.age_seconds:
        behind.append(
            f"the oldest unread record, in partition {offsets.oldest_partition}, waits for {age:.0f} s, more than "
            f"{limits.age_seconds:.0f} s"
        )
    if behind:
        speed = f"it reads {offsets.reading:.1f} records/s while {offsets.arriving:.1f}/s arrive"
        gain = offsets.reading - offsets.arriving
        fix = (
            f"nothing, if this can wait: at this pace it has caught up in {_duration(offsets.lag / gain)}"
            if gain > 0
            else "find what holds it up (the latency of ClaimX, iTel and the table store); then give it more workers "
            "and --shards, or a higher --http_concurrency"
        )
        return Verdict(Health.LAGGING, "; ".join([*behind, speed, *notes]), fix)
    reason = (
        f"{_records(offsets.lag)} behind{', and moving' if moved else ''}" if offsets.lag else "nothing left to read"
    )
    return Verdict(Health.HEALTHY, "; ".join([reason, *notes]))


def _records(number: int) -> str:
    return f"{number} record" if number == 1 else f"{number} records"


def _urls(workers: Sequence[Worker]) -> str:
    return ", ".join(worker.url for worker in workers)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
