"""Look up in ClaimX what an event is about, and read the form out of the answer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from itel_cabinet.transforms.events import ClaimXEvent, IncompleteTaskError, TaskEvent, make_task_row
from itel_cabinet.transforms.forms import Form, TaskDetails
from itel_cabinet.transforms.ordering import map_in_key_order
from itel_cabinet.transforms.records import Failure, Record
from itel_cabinet.transforms.trace_context import trace_call

__all__ = [
    "COMPLETED",
    "CabinetTask",
    "KnownTask",
    "Photograph",
    "TaskLookup",
    "TaskLookupError",
    "Trace",
    "enrich",
    "look_up_missing_tasks",
    "make_task",
]

COMPLETED = "COMPLETED"
_COMPLETED_EVENT = "CUSTOM_TASK_COMPLETED"

Made = TypeVar("Made")


Trace = Callable[[str], Mapping[str, str]]
"""Gives the headers that put a call, of this name, into a record's trace."""


class TaskLookupError(Exception):
    """A lookup that will never succeed (unknown assignment, wrong shape): the record's failure, not an outage."""

    def __init__(self, error_class: str, error: str, attempts: int = 1) -> None:
        super().__init__(error)
        self.error_class = error_class
        self.attempts = attempts


class TaskLookup(Protocol):
    """ClaimX as the steps see it. Implementations are thread-safe and wait until an outage of ClaimX ends."""

    def now(self) -> float:
        """This moment, by the clock of this process that ``not_before`` is compared with: it is never set back."""

    def calls_at_once(self) -> int:
        """How many calls ClaimX bears side by side now."""

    def task(
        self, assignment_id: int, *, not_before: float, fresh: bool = False, trace: Trace | None = None
    ) -> TaskDetails:
        """The task of an assignment as fetched after ``not_before``, from a cache unless ``fresh``.

        ``trace`` is called only where ClaimX is.

        Raises:
            TaskLookupError: no later call will succeed either.
        """


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photo's file: the ``path`` where it is stored (``new``: only now), or a ``warning``, ``REASON: text``."""

    path: str | None
    warning: str | None
    new: bool = False

    @property
    def outcome(self) -> str:
        """``stored``, ``known`` or the reason why it is not there."""
        if self.warning is not None:
            return self.warning.partition(":")[0]
        return "stored" if self.new else "known"


@dataclass(frozen=True, slots=True)
class CabinetTask:
    """One event with what ClaimX knows of its task.

    ``form`` is there for a COMPLETED event whose answer holds one; ``photographs``, by media id, where photos are
    fetched; ``project``, ClaimX's answer about it, and ``links`` to photos, by media id, where the contract needs them
    and ClaimX has them.
    """

    record: Record
    event: TaskEvent
    details: TaskDetails
    form: Form | None
    photographs: Mapping[int, Photograph] = field(default_factory=dict)
    project: Mapping[str, Any] | None = None
    links: Mapping[int, str] = field(default_factory=dict)

    @property
    def completed(self) -> bool:
        return self.event.task_status == COMPLETED

    @property
    def is_ahead(self) -> bool:
        """Whether the event says COMPLETED, and ClaimX another status."""
        status = self.details.status
        return self.completed and status is not None and status.strip().upper() != COMPLETED


@dataclass(frozen=True, slots=True)
class KnownTask:
    """A ClaimX event with its task row (keys in snake_case)."""

    record: Record
    event: ClaimXEvent
    task: dict[str, Any]


def make_task(
    record: Record, event: TaskEvent, details: TaskDetails, *, read_form: Callable[[TaskDetails], Form]
) -> CabinetTask:
    """An event with what ClaimX answered; the form is read where the event is COMPLETED."""
    form = read_form(details) if event.task_status == COMPLETED and details.has_form else None
    return CabinetTask(record, event, details.without_groups(), form)


def enrich(
    events: Sequence[tuple[Record, TaskEvent]],
    *,
    lookup: Callable[[], TaskLookup],
    pool: Callable[[], Executor],
    form_wait: Callable[[float, float], None],
    read_form: Callable[[TaskDetails], Form],
    clock: Callable[[], float],
    count: Callable[[Form], None],
) -> list[CabinetTask | Failure]:
    """Look up the task of each event; calls for one assignment keep their order.

    An answer is never older than the arrival of the events here, which is later than what they report: a record's own
    times are those of other machines' clocks. A COMPLETED event whose answer has no form yet, or another status, is
    looked up once more, past the cache: ClaimX may announce a form a moment before it can be read.

    Args:
        lookup: gives the process-wide client; called on the worker.
        pool: gives the process-wide thread pool; called on the worker.
        form_wait: gets the Kafka time (epoch seconds) of the latest event that comes too early, and how many seconds
            ago the last of them was read, and waits until what it announced can be read.
        read_form: reads the form in an answer, as the contract has it.
        clock: epoch seconds, for failures.
        count: is called with each form that was read.

    Returns:
        In input order, each event with its task; a Failure where ClaimX has none.
    """
    claimx = lookup()
    arrived = claimx.now()

    def look_up(item: tuple[Record, TaskEvent], *, fresh: bool = False) -> CabinetTask | Failure:
        return _fetch(
            item, partial(make_task, *item, read_form=read_form), claimx, not_before=arrived, clock=clock, fresh=fresh
        )

    def is_too_early(task: CabinetTask | Failure) -> bool:
        return isinstance(task, CabinetTask) and task.completed and (task.form is None or task.is_ahead)

    tasks = _look_up_each(events, look_up, is_too_early, form_wait, claimx, arrived, pool())
    for task in tasks:
        if isinstance(task, CabinetTask) and task.form is not None:
            count(task.form)
    return tasks


def look_up_missing_tasks(
    events: Sequence[tuple[Record, ClaimXEvent]],
    *,
    lookup: Callable[[], TaskLookup],
    pool: Callable[[], Executor],
    form_wait: Callable[[float, float], None],
    clock: Callable[[], float],
) -> list[KnownTask | Failure]:
    """Each event with its task row, in input order: its own, or ClaimX's where it names only the assignment.

    The arguments are those of :func:`enrich`. An event of a completed task, of which ClaimX still says another status,
    is looked up once more, and then is a Failure ``not_completed_yet``: published with that status, nobody would look
    at the task again.
    """
    claimx = lookup()
    arrived = claimx.now()

    def find(item: tuple[Record, ClaimXEvent], *, fresh: bool = False) -> KnownTask | Failure:
        record, event = item
        if event.task is not None:
            return KnownTask(record, event, event.task)
        return _fetch(
            item,
            lambda details: KnownTask(record, event, make_task_row(details.raw)),
            claimx,
            not_before=arrived,
            clock=clock,
            fresh=fresh,
        )

    def is_too_early(task: KnownTask | Failure) -> bool:
        return (
            isinstance(task, KnownTask)
            and task.event.task is None
            and task.event.event_type.upper() == _COMPLETED_EVENT
            and task.task["status"] != COMPLETED
        )

    def give_up(task: KnownTask | Failure) -> KnownTask | Failure:
        if isinstance(task, Failure) or not is_too_early(task):
            return task
        event, now = task.event, clock()
        error = f"ClaimX still says {task.task['status']:.40}; replay the event once it says {COMPLETED}"
        return Failure(
            task.record, "enrich", "not_completed_yet", error, now, now, 2, event.event_id, event.assignment_id
        )

    return [give_up(task) for task in _look_up_each(events, find, is_too_early, form_wait, claimx, arrived, pool())]


def _look_up_each(
    events: Sequence[tuple[Record, TaskEvent]] | Sequence[tuple[Record, ClaimXEvent]],
    look_up: Callable[..., Made],
    is_too_early: Callable[[Made], bool],
    form_wait: Callable[[float, float], None],
    claimx: TaskLookup,
    arrived: float,
    pool: Executor,
) -> list[Made]:
    """What ``look_up`` makes of each event, in input order; once more, past the cache, of those that come too early."""
    made: list[Made] = map_in_key_order(list[Any](events), _assignment, look_up, pool, claimx.calls_at_once)
    early = [index for index, one in enumerate(made) if is_too_early(one)]
    if early:
        records = [events[index][0] for index in early]
        last = max(arrived if record.arrived is None else record.arrived for record in records)
        form_wait(max(record.timestamp_ms for record in records) / 1000, claimx.now() - last)
        past_cache = partial(look_up, fresh=True)
        again = map_in_key_order([events[i] for i in early], _assignment, past_cache, pool, claimx.calls_at_once)
        for index, one in zip(early, again, strict=True):
            made[index] = one
    return made


def _assignment(item: tuple[Record, TaskEvent | ClaimXEvent]) -> Hashable:
    return item[1].assignment_id


def _fetch(
    item: tuple[Record, TaskEvent | ClaimXEvent],
    make: Callable[[TaskDetails], Made],
    claimx: TaskLookup,
    *,
    not_before: float,
    clock: Callable[[], float],
    fresh: bool = False,
) -> Made | Failure:
    """What ``make`` makes of an answer that is newer than ``not_before``."""
    record, event = item
    first_at = clock()
    try:
        trace = partial(trace_call, record)
        return make(claimx.task(event.assignment_id, not_before=not_before, fresh=fresh, trace=trace))
    except TaskLookupError as error:
        error_class, text, attempts = error.error_class, str(error), error.attempts
    except IncompleteTaskError as error:
        error_class, text, attempts = "wrong_shape", f"ClaimX's answer: {error}", 1
    return Failure(
        record, "enrich", error_class, text, first_at, clock(), attempts, event.event_id, event.assignment_id
    )
