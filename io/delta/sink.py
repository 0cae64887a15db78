"""Exactly-once writes from Apache Beam into Delta tables. Knows nothing of what the rows are about.

:class:`WriteToDelta` takes rows that carry the coordinates of the record they come from (a topic's id, a partition, an
offset), and commits each bundle's rows as one version of a table. However often a bundle is repeated, by a retry, a
restart, an offset reset or a second live copy of the job, each record's rows are in the table once::

    import pyarrow as pa
    import apache_beam as beam
    from itel_cabinet.io.delta import Append, TableSpec, WriteToDelta

    readings = TableSpec(
        uri="readings",
        schema=pa.schema(
            [
                ("sensor", pa.string()),
                ("celsius", pa.float64()),
                ("kafka_topic_id", pa.string()),
                ("kafka_partition", pa.int32()),
                ("kafka_offset", pa.int64()),
            ]
        ),
        mode=Append(),
    )
    source = {"kafka_topic_id": "Zx3kQ", "kafka_partition": 0}
    rows = [
        {"sensor": "attic", "celsius": 31.5, "kafka_offset": 0, **source},
        {"sensor": "cellar", "celsius": 12.0, "kafka_offset": 1, **source},
    ]
    for run in range(2):  # the second run adds nothing: its rows are recognised as written
        with beam.Pipeline("BundleBasedDirectRunner") as pipeline:
            pipeline | beam.Create([rows]) | WriteToDelta(readings)

How it holds stands at :class:`~itel_cabinet.io.delta.table.FencedTable`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import registry
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from itel_cabinet.io.batches import Passing, UnweighedCoder
from itel_cabinet.io.delta.spec import Given, Row, TableSpec, WriteResult
from itel_cabinet.io.delta.table import get_table
from itel_cabinet.io.worker import beat, get_pool, give_back, metrics

__all__ = ["WriteToDelta"]

_COMMITS_AT_ONCE = 16  # a job's tables times the bundles that a worker has at once

for _batch in (WriteResult, pa.Table, pa.RecordBatch):
    registry.register_coder(_batch, UnweighedCoder)


@dataclass(eq=False)
class WriteToDelta(beam.PTransform):  # type: ignore[misc]
    """PCollection of rows, of sequences of rows, or best of Arrow tables and record batches, in any mixture ->
    PCollection of :class:`WriteResult`, one a commit. Passing goes through.

    All rows of a bundle are one commit. With ``whole_batches``, where no record's rows are in two elements, the commit
    of a bundle's first one begins at once, in a thread, beside what the bundle's other steps do with the same records;
    what follows in that bundle is a second one. Nothing is shuffled: where the source confirms its records
    when a bundle ends, they are durable by then. Exceptions of :meth:`FencedTable.write` fail the bundle. Results are
    in the global window and bear the bundle's latest timestamp. Counters, in the namespace ``delta``: ``rows_written``,
    ``rows_replayed``, ``rows_suppressed``, ``commits``, ``conflicts``.
    """

    spec: TableSpec
    whole_batches: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def default_label(self) -> str:
        return f"WriteToDelta({self.spec.name})"

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        if not isinstance(rows.windowing.windowfn, GlobalWindows):
            rows |= "One window" >> beam.WindowInto(GlobalWindows())
        return rows | "Commit" >> beam.ParDo(_CommitBundle(self.spec, self.whole_batches)).with_output_types(
            WriteResult
        )


class _CommitBundle(beam.DoFn):  # type: ignore[misc]
    """Gathers a bundle's rows and commits them, by the time it ends."""

    def __init__(self, spec: TableSpec, whole_batches: bool) -> None:
        self._spec = spec
        self._whole_batches = whole_batches
        names = ("rows_written", "rows_replayed", "rows_suppressed", "commits", "conflicts")
        self._counters = {name: Metrics.counter("delta", name) for name in names}

    def start_bundle(self) -> None:
        self._rows: list[Row | pa.Table | pa.RecordBatch] = []
        self._begun: Future[WriteResult] | None = None
        self._earliest, self._latest = MAX_TIMESTAMP, MIN_TIMESTAMP

    def process(
        self, element: Row | Given | Passing, timestamp: Timestamp = beam.DoFn.TimestampParam
    ) -> Sequence[Passing]:
        if isinstance(element, Passing):
            return [element]
        self._earliest, self._latest = min(self._earliest, timestamp), max(self._latest, timestamp)
        if isinstance(element, pa.Table | pa.RecordBatch):
            self._rows += [element] * bool(element.num_rows)
        elif isinstance(element, Mapping):
            self._rows.append(element)
        else:
            self._rows.extend(element)
        if self._whole_batches and self._rows and self._begun is None:
            rows, self._rows = self._rows, []
            self._begun = get_pool("delta", _COMMITS_AT_ONCE).submit(self._commit, rows)
        return ()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._begun is not None:
            yield self._report(self._begun.result())
        if self._rows:
            yield self._report(self._commit(self._rows))

    def _commit(self, rows: Given) -> WriteResult:
        with metrics.COMMIT_SECONDS.labels(self._spec.name).time():
            return get_table(self._spec).write(rows)

    def _report(self, result: WriteResult) -> WindowedValue:
        beat()
        give_back()
        self._measure(result)
        self._counters["rows_written"].inc(len(result.written))
        self._counters["rows_replayed"].inc(len(result.replayed))
        self._counters["rows_suppressed"].inc(result.suppressed)
        self._counters["commits"].inc(result.version is not None)
        self._counters["conflicts"].inc(result.conflicts)
        return WindowedValue(result, self._latest, (GlobalWindow(),))

    def _measure(self, result: WriteResult) -> None:
        table = self._spec.name
        metrics.ROWS_WRITTEN.labels(table).inc(len(result.written))
        metrics.ROWS_REPLAYED.labels(table).inc(len(result.replayed))
        metrics.RECORDS_LATE.labels(table).inc(result.late)
        metrics.ROWS_SUPPRESSED.labels(table).inc(result.suppressed)
        if result.version is not None:
            metrics.COMMITS.labels(table).inc()
        if result.written and self._earliest > MIN_TIMESTAMP:  # without timestamps nothing is known of age
            metrics.observe_freshness(table, self._earliest.micros / 1_000_000)
