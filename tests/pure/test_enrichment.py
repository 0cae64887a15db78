"""Looking up what events are about: order, failures as values, the cache's rule, and the second look."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from itel_cabinet.transforms.enrichment import CabinetTask, TaskLookupError, enrich
from itel_cabinet.transforms.events import TaskEvent
from itel_cabinet.transforms.forms import TaskDetails
from itel_cabinet.transforms.records import Failure, Record
from tests.support.cabinet_samples import details, event, group, parse_form, question, record

Item = tuple[Record, TaskEvent]
ARRIVED = 77.5
"""By the clock that a lookup's age is measured with."""

WITH_FORM = details(group("Linear Feet Capture", question("Countertops (linear feet)", 9.5)))
WITHOUT_FORM = details(response=None)


@dataclass
class Lookup:
    """ClaimX by a script: for each assignment the answers in turn, the last one for ever."""

    answers: dict[int, list[TaskDetails | TaskLookupError]]
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    overlapped: bool = False
    _running: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> float:
        return ARRIVED + len(self.calls)  # each call takes a second

    def calls_at_once(self) -> int:
        return 8

    def task(self, assignment_id: int, *, not_before: float, fresh: bool = False, **_: object) -> TaskDetails:
        with self._lock:
            self.overlapped |= assignment_id in self._running
            self._running.add(assignment_id)
            self.calls.append((assignment_id, not_before, fresh))
            left = self.answers[assignment_id]
            answer = left.pop(0) if len(left) > 1 else left[0]
        threading.Event().wait(0.001)  # lets the others in
        with self._lock:
            self._running.discard(assignment_id)
        if isinstance(answer, TaskLookupError):
            raise answer
        return answer


@pytest.fixture
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def unused(_: float = 0.0) -> None:
    raise AssertionError("no waiting here")


def look_up(
    items: list[Item], lookup: Lookup, pool: Executor, form_wait: Callable[[float, float], None] = unused
) -> list[CabinetTask | Failure]:
    clock = itertools.count(500.0).__next__
    return enrich(
        items,
        lookup=lambda: lookup,
        pool=lambda: pool,
        form_wait=form_wait,
        read_form=parse_form,
        clock=clock,
        count=lambda _: None,
    )


def item(offset: int, assignment_id: int, **changes: object) -> Item:
    return record(b"", offset=offset), event(assignment_id=assignment_id, **changes)


def test_a_completed_event_gets_its_task_and_form(pool: Executor) -> None:
    one = item(1, 7)
    (task,) = look_up([one], Lookup({7: [WITH_FORM]}), pool)
    assert task == CabinetTask(*one, WITH_FORM.without_groups(), parse_form(WITH_FORM))
    assert task.completed
    assert task.form is not None
    assert task.form.answers["countertops_lf"] == 9.5


@pytest.mark.parametrize("status", ["ASSIGNED", "IN_PROGRESS", "CANCELLED"])
def test_the_form_of_an_event_that_is_not_completed_is_not_read(status: str, pool: Executor) -> None:
    one = item(1, 7, task_status=status)
    (task,) = look_up([one], Lookup({7: [WITH_FORM]}), pool)
    assert task == CabinetTask(*one, WITH_FORM.without_groups(), None)
    assert not task.completed


def test_results_are_in_input_order_and_an_assignments_calls_in_theirs(pool: Executor) -> None:
    items = [item(n, 1 + n % 5, task_status="ASSIGNED", timestamp=f"2026-01-10T00:00:{n:02}Z") for n in range(40)]
    lookup = Lookup({n: [WITHOUT_FORM] for n in range(1, 6)})
    tasks = look_up(items, lookup, pool)
    assert tasks == [CabinetTask(*one, WITHOUT_FORM, None) for one in items]
    assert not lookup.overlapped
    assert len(lookup.calls) == 40


@pytest.mark.parametrize("timestamp_ms", [-1, 0, 1_768_057_449_120, 1_768_057_389_120, 4_000_000_000_000])
@pytest.mark.parametrize("said", ["1970-01-01T00:00:00Z", "2026-01-10T15:04:09Z", "2999-01-01T00:00:00+14:00"])
def test_an_answer_must_be_younger_than_the_arrival_whatever_other_clocks_say(
    timestamp_ms: int, said: str, pool: Executor
) -> None:
    """No time, no sense, a minute slow, ahead: of the broker and of the producer."""
    lookup = Lookup({1: [WITHOUT_FORM]})
    items = [
        (record(b"", timestamp_ms=timestamp_ms), event(assignment_id=1, task_status=status, timestamp=said))
        for status in ("ASSIGNED", "IN_PROGRESS")
    ]
    look_up(items, lookup, pool)
    assert lookup.calls == [(1, ARRIVED, False)] * 2


@pytest.mark.parametrize("status", ["IN_PROGRESS", "ASSIGNED", " in_progress "])
def test_a_completed_event_whose_task_is_not_yet_completed_is_looked_up_again(status: str, pool: Executor) -> None:
    early = WITH_FORM.model_copy(update={"status": status})
    one, other = item(1, 7), item(2, 8)
    waits: list[float] = []
    lookup = Lookup({7: [early, WITH_FORM], 8: [early]})
    late, ahead = look_up([one, other], lookup, pool, form_wait=lambda at, _: waits.append(at))
    assert len(waits) == 1
    assert sorted(lookup.calls) == [(n, ARRIVED, fresh) for n in (7, 8) for fresh in (False, True)]
    assert late == CabinetTask(*one, WITH_FORM.without_groups(), parse_form(WITH_FORM))
    assert isinstance(ahead, CabinetTask)
    assert (late.is_ahead, ahead.is_ahead) == (False, True)


def test_what_claimx_refuses_is_a_value_and_its_neighbours_go_on(pool: Executor) -> None:
    items = [item(1, 1), item(2, 2), item(3, 3)]
    refusal = TaskLookupError("unknown_assignment", "ClaimX knows no such assignment (status 404)", attempts=3)
    first, failed, last = look_up(items, Lookup({1: [WITH_FORM], 2: [refusal], 3: [WITH_FORM]}), pool)
    assert [first, last] == [
        CabinetTask(*one, WITH_FORM.without_groups(), parse_form(WITH_FORM)) for one in (items[0], items[2])
    ]
    assert isinstance(failed, Failure)
    assert (failed.record, failed.stage, failed.error_class) == (items[1][0], "enrich", "unknown_assignment")
    assert (failed.error, failed.attempts) == ("ClaimX knows no such assignment (status 404)", 3)
    assert 500 <= failed.first_at < failed.last_at


def test_other_errors_are_outages_and_raised(pool: Executor) -> None:
    class Broken:
        def now(self) -> float:
            return ARRIVED

        def calls_at_once(self) -> int:
            return 1

        def task(self, assignment_id: int, *, not_before: float, fresh: bool = False, **_: object) -> TaskDetails:
            raise OSError(f"{assignment_id} {not_before > 0} {fresh}")

    with pytest.raises(OSError, match="7 True False"):
        enrich(
            [item(1, 7)],
            lookup=Broken,
            pool=lambda: pool,
            form_wait=unused,
            read_form=parse_form,
            clock=lambda: 0.0,
            count=unused,
        )


def test_only_completed_events_without_a_form_are_looked_up_again_past_the_cache(pool: Executor) -> None:
    waits: list[tuple[int, float]] = []
    items = [
        item(1, 1),  # has its form
        item(2, 2),  # gets it at the second look
        item(3, 3),  # never gets one
        item(4, 4, task_status="ASSIGNED"),  # needs none
        item(5, 5),  # unknown
        item(6, 2),  # the second look again, for its neighbour
    ]
    unknown = TaskLookupError("unknown_assignment", "unknown")
    lookup = Lookup(
        {
            1: [WITH_FORM],
            2: [WITHOUT_FORM, WITHOUT_FORM, WITH_FORM],
            3: [WITHOUT_FORM],
            4: [WITHOUT_FORM],
            5: [unknown],
        }
    )
    tasks = look_up(items, lookup, pool, form_wait=lambda at, here: waits.append((len(lookup.calls), at, here)))
    # Once a batch, when all had been asked, and for the latest of those without a form.
    assert waits == [(6, max(one.timestamp_ms for one, _ in (items[1], items[2], items[5])) / 1000, 6.0)]
    assert sorted(call for call in lookup.calls if call[2]) == [
        (2, ARRIVED, True),
        (2, ARRIVED, True),
        (3, ARRIVED, True),
    ]
    form = parse_form(WITH_FORM)
    assert isinstance(tasks[4], Failure)
    assert [task for task in tasks if isinstance(task, CabinetTask)] == [
        CabinetTask(*items[0], WITH_FORM.without_groups(), form),
        CabinetTask(*items[1], WITH_FORM.without_groups(), form),
        CabinetTask(*items[2], WITHOUT_FORM, None),
        CabinetTask(*items[3], WITHOUT_FORM, None),
        CabinetTask(*items[5], WITH_FORM.without_groups(), form),
    ]


def test_a_form_is_waited_for_since_the_last_of_those_without_one_was_read(pool: Executor) -> None:
    """A batch is gathered for a while: what came at its beginning has been waited for in part."""
    waits: list[float] = []
    read = [
        (replace(record, arrived=ARRIVED - ago), event)
        for ago, (record, event) in zip((9.0, 5.0, 3.0, 1.0), [item(n, n) for n in range(1, 5)], strict=True)
    ]
    lookup = Lookup({1: [WITHOUT_FORM], 2: [WITHOUT_FORM], 3: [WITHOUT_FORM], 4: [WITH_FORM]})
    look_up(read, lookup, pool, form_wait=lambda _, here: waits.append(here))
    assert waits == [4 + 3.0], "four calls took a second each"


def test_the_second_looks_keep_their_order_too(pool: Executor) -> None:
    items = [item(n, 1 + n % 3) for n in range(15)]
    lookup = Lookup({n: [WITHOUT_FORM] for n in (1, 2, 3)})
    tasks = look_up(items, lookup, pool, form_wait=lambda *_: None)
    assert tasks == [CabinetTask(*one, WITHOUT_FORM, None) for one in items]
    assert not lookup.overlapped
    looks: dict[bool, int] = defaultdict(int)
    for _, _, fresh in lookup.calls:
        looks[fresh] += 1
    assert looks == {False: 15, True: 15}


def test_a_second_look_that_is_refused_is_a_failure(pool: Executor) -> None:
    one = item(1, 7)
    gone = TaskLookupError("unknown_assignment", "gone")
    (failed,) = look_up([one], Lookup({7: [WITHOUT_FORM, gone]}), pool, form_wait=lambda *_: None)
    assert isinstance(failed, Failure)
    assert (failed.record, failed.error_class, failed.error) == (one[0], "unknown_assignment", "gone")


def test_nothing_to_look_up(pool: Executor) -> None:
    assert look_up([], Lookup({}), pool) == []
