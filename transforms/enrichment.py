"""Look up in ClaimX what an event is about, and read the form out of the answer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from itel_cabinet.transforms.events import ClaimXEvent, IncompleteTaskError, TaskEvent, make_task_row
from itel_cabinet.transforms.forms import Form, TaskDetails, parse_form
from itel_cabinet.transforms.ordering import map_in_key_order
from itel_cabinet.transforms.records import Failure, Record

__all__ = [
    "COMPLETED",
    "CabinetTask",
    "KnownTask",
    "Photograph",
    "TaskLookup",
    "TaskLookupError",
    "enrich",
    "look_up_missing_tasks",
    "make_task",
]

# An answer is newer than an event only if it was fetched later by more than two clocks may differ.
_CLOCK_SKEW_SECONDS = 5.0
COMPLETED = "COMPLETED"

Made = TypeVar("Made")


class TaskLookupError(Exception):
    """A lookup that will never succeed (unknown assignment, wrong shape): the record's failure, not an outage."""

    def __init__(self, error_class: str, error: str, attempts: int = 1) -> None:
        super().__init__(error)
        self.error_class = error_class
        self.attempts = attempts


class TaskLookup(Protocol):
    """ClaimX as the steps see it. Implementations are thread-safe and wait until an outage of ClaimX ends."""

    def task(self, assignment_id: int, *, not_before: float, fresh: bool = False) -> TaskDetails:
        """The task of an assignment as fetched after ``not_before`` (epoch seconds), from a cache unless ``fresh``.

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
    fetched.
    """

    record: Record
    event: TaskEvent
    details: TaskDetails
    form: Form | None
    photographs: Mapping[int, Photograph] = field(default_factory=dict)

    @property
    def completed(self) -> bool:
        return self.event.task_status == COMPLETED


@dataclass(frozen=True, slots=True)
class KnownTask:
    """A ClaimX event with its task row (keys in snake_case)."""

    record: Record
    event: ClaimXEvent
    task: dict[str, Any]


def make_task(record: Record, event: TaskEvent, details: TaskDetails) -> CabinetTask:
    """An event with what ClaimX answered; the form is read where the event is COMPLETED."""
    form = parse_form(details) if event.task_status == COMPLETED and details.has_form else None
    return CabinetTask(record, event, details, form)


def enrich(
    events: Sequence[tuple[Record, TaskEvent]],
    *,
    lookup: Callable[[], TaskLookup],
    pool: Callable[[], Executor],
    form_wait: Callable[[float], None],
    clock: Callable[[], float],
) -> list[CabinetTask | Failure]:
    """Look up the task of each event; calls for one assignment keep their order.

    A COMPLETED event whose answer has no form yet is looked up once more, past the cache: ClaimX may announce a form a
    moment before it can be read.

    Args:
        lookup: gives the process-wide client; called on the worker.
        pool: gives the process-wide thread pool; called on the worker.
        form_wait: gets the Kafka time (epoch seconds) of the latest event without a form, and waits until a form
            announced then can be read.
        clock: epoch seconds, for failures.

    Returns:
        In input order, each event with its task; a Failure where ClaimX has none.
    """
    claimx = lookup()

    def look_up(item: tuple[Record, TaskEvent], *, fresh: bool = False) -> CabinetTask | Failure:
        record, event = item
        # Kafka's time too: a replayed event is old, and what it reports may be new.
        since = max(event.timestamp.timestamp(), record.timestamp_ms / 1000)
        return _fetch(item, partial(make_task, record, event), claimx, since=since, clock=clock, fresh=fresh)

    tasks = map_in_key_order(events, _assignment, look_up, pool())
    formless = [i for i, task in enumerate(tasks) if isinstance(task, CabinetTask) and task.completed and not task.form]
    if formless:
        form_wait(max(events[i][0].timestamp_ms for i in formless) / 1000)
        again = map_in_key_order([events[i] for i in formless], _assignment, partial(look_up, fresh=True), pool())
        for index, task in zip(formless, again, strict=True):
            tasks[index] = task
    return tasks


def look_up_missing_tasks(
    events: Sequence[tuple[Record, ClaimXEvent]],
    *,
    lookup: Callable[[], TaskLookup],
    pool: Callable[[], Executor],
    clock: Callable[[], float],
) -> list[KnownTask | Failure]:
    """Each event with its task row, in input order: its own, or ClaimX's where it names only the assignment.

    The arguments are those of :func:`enrich`.
    """
    claimx = lookup()

    def find(item: tuple[Record, ClaimXEvent]) -> KnownTask | Failure:
        record, event = item
        if event.task is not None:
            return KnownTask(record, event, event.task)
        # The event's own time is the receiver's, so Kafka's timestamp is as good and always there.
        return _fetch(
            item,
            lambda details: KnownTask(record, event, make_task_row(details.raw)),
            claimx,
            since=record.timestamp_ms / 1000,
            clock=clock,
        )

    return map_in_key_order(events, _assignment, find, pool())


def _assignment(item: tuple[Record, TaskEvent | ClaimXEvent]) -> Hashable:
    return item[1].assignment_id


def _fetch(
    item: tuple[Record, TaskEvent | ClaimXEvent],
    make: Callable[[TaskDetails], Made],
    claimx: TaskLookup,
    *,
    since: float,
    clock: Callable[[], float],
    fresh: bool = False,
) -> Made | Failure:
    """What ``make`` makes of an answer that is newer than ``since`` (epoch seconds)."""
    record, event = item
    first_at = clock()
    failure = partial(Failure, record, "enrich", event_id=event.event_id, assignment_id=event.assignment_id)
    try:
        return make(claimx.task(event.assignment_id, not_before=since + _CLOCK_SKEW_SECONDS, fresh=fresh))
    except TaskLookupError as error:
        return failure(error.error_class, str(error), first_at, clock(), error.attempts)
    except IncompleteTaskError as error:
        return failure("wrong_shape", f"ClaimX's answer: {error}", first_at, clock())
