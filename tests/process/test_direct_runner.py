"""DirectRunner, as the launcher makes it, for jobs without an end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.core import RestrictionProvider

from itel_cabinet.pipeline.launch.direct_runner import get_direct_runner

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
