"""Look up in ClaimX what an event is about, and read the form out of the answer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from itel_cabinet.transforms.events import TaskEvent
from itel_cabinet.transforms.forms import Form, TaskDetails, parse_form
from itel_cabinet.transforms.ordering import in_order_per_key
from itel_cabinet.transforms.records import Failure, Record

__all__ = ["CLOCK_SKEW_SECONDS", "CabinetTask", "LookupFailed", "Photograph", "TaskLookup", "enrich"]

# An answer tells of an event only if it was fetched later than the event by more than two clocks may differ.
CLOCK_SKEW_SECONDS = 5.0
COMPLETED = "COMPLETED"


class LookupFailed(Exception):
    """A lookup that will never succeed (unknown assignment, wrong shape): the record's failure, not the world's."""

    def __init__(self, error_class: str, error: str, attempts: int = 1) -> None:
        super().__init__(error)
        self.error_class = error_class
        self.attempts = attempts


class TaskLookup(Protocol):
    """ClaimX as the steps see it. Implementations are thread-safe and wait out ClaimX's outages of their own accord."""

    def task(self, assignment_id: int, *, not_before: float, fresh: bool = False) -> TaskDetails:
        """The task of an assignment as fetched after ``not_before`` (epoch seconds), from a cache unless ``fresh``.

        Raises LookupFailed where no answer will ever come.
        """


@dataclass(frozen=True, slots=True)
class Photograph:
    """What became of a photo's file: the ``path`` where it is stored, ``new`` or known from before; or a ``warning``,
    ``REASON: text``.
    """

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


def enrich(
    events: Sequence[tuple[Record, TaskEvent]],
    *,
    lookup: Callable[[], TaskLookup],
    pool: Callable[[], Executor],
    form_wait: Callable[[float], None],
    clock: Callable[[], float],
) -> list[CabinetTask | Failure]:
    """Each event with its task, in input order; what ClaimX refuses for good as a Failure.

    ``lookup`` and ``pool`` are asked on the worker for the process-wide client and thread pool; calls for one
    assignment keep their order.

    A COMPLETED event whose answer has no form yet is looked up once more, past the cache: ClaimX may announce a form a
    moment before it can be read. ``form_wait`` is told when the last of them was announced (Kafka's time, epoch
    seconds), and waits for that moment to pass; an event from a backlog has waited enough.
    """

    claimx = lookup()

    def look_up(item: tuple[Record, TaskEvent], *, fresh: bool = False) -> CabinetTask | Failure:
        record, event = item
        first_at = clock()
        failure = partial(Failure, record, "enrich", event_id=event.event_id, assignment_id=event.assignment_id)
        try:
            # Kafka's time too: a replayed event is old, and what it tells may be new.
            not_before = max(event.timestamp.timestamp(), record.timestamp_ms / 1000) + CLOCK_SKEW_SECONDS
            details = claimx.task(event.assignment_id, not_before=not_before, fresh=fresh)
        except LookupFailed as error:
            return failure(error.error_class, str(error), first_at, clock(), error.attempts)
        form = parse_form(details) if event.task_status == COMPLETED and details.has_form else None
        return CabinetTask(record, event, details, form)

    def by_assignment(item: tuple[Record, TaskEvent]) -> Hashable:
        return item[1].assignment_id

    tasks = in_order_per_key(events, by_assignment, look_up, pool())
    formless = [i for i, task in enumerate(tasks) if isinstance(task, CabinetTask) and task.completed and not task.form]
    if formless:
        form_wait(max(events[i][0].timestamp_ms for i in formless) / 1000)
        again = in_order_per_key(
            [events[i] for i in formless], by_assignment, lambda item: look_up(item, fresh=True), pool()
        )
        for index, task in zip(formless, again, strict=True):
            tasks[index] = task
    return tasks
