"""A step in a pipeline: whole batches in, results and failures out, everything counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from itel_cabinet.pipeline.steps import LookedUp, Step, look_ahead, take_outcomes
from itel_cabinet.transforms.ledger import Entry, Outcome
from itel_cabinet.transforms.records import Failure, Skip
from tests.support.cabinet_samples import event, record


def sort_out(numbers: list[int]) -> Iterator[Any]:
    """Odd numbers fail, those over 100 are skipped; the others are doubled."""
    for number in numbers:
        one = record(b"", offset=number)
        if number > 100:
            yield Skip(one, "too_large" if number < 1000 else "far_too_large")
        elif number % 2:
            yield failure(number)
        else:
            yield number * 2


def failure(number: int) -> Failure:
    return Failure(record(b"", offset=number), "parse", "odd", f"{number} is odd", 1.0, 2.0)


def run(*batches: list[int], results: list[list[int]], failures: list[list[Failure]]) -> dict[str, int]:
    """Run the batches through one step, compare what comes out, and return the counters."""
    pipeline = beam.Pipeline(runner=FnApiRunner())
    out = pipeline | beam.Create(list(batches), reshuffle=False) | "Sort out" >> Step("sort", sort_out)
    assert_that(out.results, equal_to(results), label="results")
    assert_that(out.failures, equal_to(failures), label="failures")
    done = pipeline.run()
    done.wait_until_finish()
    counters = done.metrics().query(beam.metrics.MetricsFilter().with_namespace("itel_cabinet"))["counters"]
    return {counter.key.metric.name: counter.committed for counter in counters}


def test_results_failures_and_skips_part_and_are_counted() -> None:
    counted = run(
        [2, 3, 4, 101, 5],
        [6, 2000, 102, 7],
        results=[[4, 8], [12]],
        failures=[[failure(3), failure(5)], [failure(7)]],
    )
    assert counted == {"failed:parse:odd": 3, "skipped:too_large": 2, "skipped:far_too_large": 1}


def test_nothing_empty_is_handed_on() -> None:
    counted = run([101], [], [3], [2], results=[[4]], failures=[[failure(3)]])
    assert counted == {"failed:parse:odd": 1, "skipped:too_large": 1}


def test_what_has_ended_is_carried_on_counted_once_and_worked_on_no_more() -> None:
    entry = Entry(record(b""), event(), Outcome.HELD, 1.0, 1.0, "held_by_gate")
    held, passed_over = Skip(record(b"", offset=1), "held_by_gate", (entry,)), Skip(record(b"", offset=2), "other")

    def hold(numbers: list[int]) -> Iterator[Any]:
        yield from ({1: held, 2: passed_over, 3: failure(3)}.get(number, number) for number in numbers)

    pipeline = beam.Pipeline(runner=FnApiRunner())
    first = pipeline | beam.Create([[1, 2, 3, 4]], reshuffle=False) | "Hold" >> Step("payload", hold, carries=True)
    second = first.results | "Go on" >> Step("submit", lambda numbers: [n * 2 for n in numbers], carries=True)
    assert_that(second.results, equal_to([[8, held, failure(3)]]))
    assert_that(first.failures, equal_to([]), label="none apart")
    done = pipeline.run()
    done.wait_until_finish()
    counters = done.metrics().query(beam.metrics.MetricsFilter().with_namespace("itel_cabinet"))["counters"]
    assert {counter.key.metric.name: counter.committed for counter in counters} == {
        "failed:parse:odd": 1,
        "skipped:held_by_gate": 1,
        "skipped:other": 1,
    }


def test_two_steps_done_ahead_are_sorted_as_in_turn() -> None:
    """The second fails for 8, which the first has made of 4; what the first left out never comes to it."""

    def look_up(numbers: list[int]) -> Iterator[Any]:
        for number in numbers:
            yield failure(number) if number == 8 else number + 1

    ahead = look_ahead([2, 3, 4, 101, 6], parse=sort_out, look_up=look_up)  # type: ignore[list-item]
    assert [type(one) for one in ahead] == [LookedUp, Failure, LookedUp, Skip, LookedUp]
    assert take_outcomes([one for one in ahead if isinstance(one, LookedUp)]) == [5, failure(8), 13]
    assert look_ahead([3, 101], parse=sort_out, look_up=list) == [failure(3), ahead[3]]  # type: ignore[list-item]
