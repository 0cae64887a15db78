"""DirectRunner, as the launcher makes it, for jobs without an end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.core import RestrictionProvider

from itel_cabinet.io.worker import OutageError
from itel_cabinet.pipeline.launch.direct_runner import get_direct_runner
from itel_cabinet.pipeline.launch.job import find_refusal

BUNDLES = 1500
"""More than Python's stack is deep, which is how Beam alone would fail."""


class _Steps(RestrictionProvider):  # type: ignore[misc]
    def initial_restriction(self, element: int) -> OffsetRange:
        return OffsetRange(0, element)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: int, restriction: OffsetRange) -> int:  # noqa: ARG002
        return 1


class _OneABundle(beam.DoFn):  # type: ignore[misc]
    @beam.DoFn.unbounded_per_element()  # type: ignore[untyped-decorator]
    def process(
        self,
        element: int,  # noqa: ARG002
        tracker: Any = beam.DoFn.RestrictionParam(_Steps()),  # noqa: B008
    ) -> Iterator[int]:
        position = tracker.current_restriction().start
        if tracker.try_claim(position):
            Metrics.counter("test", "bundles").inc()
            yield position
            tracker.defer_remainder()


def test_the_metrics_of_many_bundles_are_summed_up() -> None:
    options = PipelineOptions(["--streaming"])
    pipeline = beam.Pipeline(runner=get_direct_runner(), options=options)
    pipeline | beam.Create([BUNDLES]) | beam.ParDo(_OneABundle())
    result = pipeline.run()
    [counter] = result.metrics().query()["counters"]
    assert counter.committed == BUNDLES


def _fail(_: int) -> None:
    try:
        raise OSError("no route")
    except OSError as error:
        raise OutageError("broker at a:1: no route; gave up after 3 s") from error


def _break(_: int) -> None:
    raise KeyError("column kafka_offset")


class _FailAtTheEnd(beam.DoFn):  # type: ignore[misc]
    def process(self, element: int) -> Iterator[int]:
        yield element

    def finish_bundle(self) -> None:
        _fail(0)


@pytest.mark.parametrize(
    ("step", "refusal"),
    [
        (beam.Map(_fail), "broker at a:1: no route; gave up after 3 s"),
        (beam.ParDo(_FailAtTheEnd()), "broker at a:1: no route; gave up after 3 s"),
        (beam.Map(_break), None),
    ],
    ids=["an outage", "an outage as the bundle ends", "an error of the program"],
)
def test_a_bundles_error_is_found_as_it_was_raised(step: beam.PTransform, refusal: str | None) -> None:
    pipeline = beam.Pipeline(runner=get_direct_runner(), options=PipelineOptions(["--streaming"]))
    pipeline | beam.Create([1]) | beam.Reshuffle() | step
    with pytest.raises(Exception, match=r"column|gave up") as caught:
        pipeline.run()
    found = find_refusal(caught.value)
    assert (str(found) if found else None) == refusal
