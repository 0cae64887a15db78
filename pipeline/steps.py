"""The one shape of every step: a list of items in; a list of results out, failures beside it, skips counted.

Steps take and give whole batches, since a DoFn call a record costs more than the work on it; and a step that calls out
can then work on a batch side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from itel_cabinet.io.batches import Batch, Passing
from itel_cabinet.io.worker import OUTCOMES, metrics
from itel_cabinet.transforms.forms import Form
from itel_cabinet.transforms.records import Failure, Record, Skip
from itel_cabinet.transforms.submissions import Submission

__all__ = [
    "FAILURES",
    "NAMESPACE",
    "RESULTS",
    "LookedUp",
    "Step",
    "and_pass",
    "count_form",
    "count_lookups",
    "count_photos",
    "count_submissions",
    "look_ahead",
    "passed",
    "take_outcomes",
]

RESULTS = "results"
FAILURES = "failures"
NAMESPACE = "itel_cabinet"
"""The namespace of the counters of skips and failures."""

_QUESTION_CHARACTERS = 80  # of a label

Work = Callable[[list[Any]], Iterable[Any]]


class _StepFn(beam.DoFn):  # type: ignore[misc]
    def __init__(self, stage: str, work: Work, carries: bool) -> None:
        self._stage = stage
        self._work = work
        self._carries = carries

    def process(self, items: list[Any]) -> Iterator[Any]:
        ended: list[Failure | Skip] = []
        if self._carries:
            ended = [one for one in items if isinstance(one, Failure | Skip)]
            items = [one for one in items if not isinstance(one, Failure | Skip)] if ended else items
        results: list[Any] = []
        failures: list[Failure] = []
        skips: Counter[str] = Counter()
        for outcome in self._work(items) if items else ():
            if isinstance(outcome, Failure):
                failures.append(outcome)
            elif isinstance(outcome, Skip):
                skips[outcome.reason] += 1
                if outcome.entries:
                    ended.append(outcome)
            else:
                results.append(outcome)
        OUTCOMES.add(self._stage, good=len(results) + skips.total(), failed=len(failures))
        OUTCOMES.add_skips(skips)
        for reason, count in skips.items():
            metrics.RECORDS_SKIPPED.labels(reason).inc(count)
            Metrics.counter(NAMESPACE, f"skipped:{reason}").inc(count)
        for (stage, error_class), count in Counter((one.stage, one.error_class) for one in failures).items():
            metrics.DEAD_LETTERS.labels(stage, error_class).inc(count)
            Metrics.counter(NAMESPACE, f"failed:{stage}:{error_class}").inc(count)
        if self._carries:
            results += [*ended, *failures]
            failures = []
        if results:
            yield results
        if failures:
            yield beam.pvalue.TaggedOutput(FAILURES, failures)


@dataclass
class Step(beam.PTransform):  # type: ignore[misc]
    """Lists of items -> ``.results``, lists of what ``work`` made of them, and ``.failures``, lists of Failure.

    ``work`` takes a list and gives an iterable of results, Failures and Skips; it must be picklable and thread-safe,
    and must not raise for what is wrong with one item. Skips and failures are counted by reason (Beam counters).
    ``stage`` is the name under which a step that mostly fails is reported. A step that ``carries`` leaves what has
    failed, and the skips that the ledger is to hold, among the results, and works on none that it is given.
    """

    stage: str
    work: Work
    carries: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, items: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        return items | "Each batch" >> beam.ParDo(_StepFn(self.stage, self.work, self.carries)).with_output_types(
            Batch
        ).with_outputs(FAILURES, main=RESULTS)


@dataclass(frozen=True, slots=True)
class LookedUp:
    """What was made of an event before its batch's turn: a result or a Failure."""

    outcome: Any


def look_ahead(records: list[Record], *, parse: Work, look_up: Work) -> list[LookedUp | Failure | Skip]:
    """Do the work of two steps, of which the second gets the first's results, and gives one outcome for each, in their
    order. Raises what they raise."""
    parsed = [*parse(records)]
    events = [one for one in parsed if not isinstance(one, Failure | Skip)]
    outcomes = iter(look_up(events) if events else ())
    return [one if isinstance(one, Failure | Skip) else LookedUp(next(outcomes)) for one in parsed]


def take_outcomes(events: list[LookedUp]) -> list[Any]:
    """What was looked up ahead."""
    return [event.outcome for event in events]


def and_pass(items: list[Any], make: Callable[[list[Any]], Any]) -> Iterator[Any]:
    """What ``make`` makes of a list, for a sink, and the list itself, for the steps behind the sink."""
    yield make(items)
    yield Passing(items)


def passed(element: Any) -> Iterator[Any]:
    """What has passed a sink; nothing for the sink's own results."""
    if isinstance(element, Passing):
        yield element.item


def count_photos(outcome: str, number: int) -> None:
    """Count what became of photos; to be called in a bundle's own thread."""
    metrics.PHOTOS.labels(outcome).inc(number)
    Metrics.counter(NAMESPACE, f"media:{outcome}").inc(number)


def count_form(form: Form) -> None:
    """Count a form that was read, and the questions in it that are not known."""
    metrics.FORMS.labels("warnings" if form.warnings else "clean").inc()
    for question in form.unknown_questions:
        metrics.UNKNOWN_QUESTIONS.labels(OUTCOMES.add_question(question[:_QUESTION_CHARACTERS])).inc()


def count_lookups(lookup: str, outcome: str, number: int) -> None:
    """Count what a body needs of ClaimX's exports. Thread-safe."""
    metrics.CONTRACT_LOOKUPS.labels(lookup, outcome).inc(number)


def count_submissions(outcome: str, submissions: Sequence[Submission]) -> None:
    """Count what became of submissions, and how old an accepted one's record is. Thread-safe."""
    metrics.SUBMISSIONS.labels(outcome).inc(len(submissions))
    if outcome in ("accepted", "duplicate"):
        for one in submissions:
            metrics.observe_freshness("itel", one.record.timestamp_ms / 1000)
