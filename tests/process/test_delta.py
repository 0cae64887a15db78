"""The Delta sink: rows into tables, schemas, stores that fail, Beam. Fences and upserts have files of their own."""

from __future__ import annotations

import json
import os
import pickle
import re
import textwrap
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from deltalake import DeltaTable, Field
from deltalake.schema import PrimitiveType

from itel_cabinet.io.delta import (
    Append,
    FencedTable,
    RowError,
    TableError,
    TableSpec,
    Upsert,
    WriteToDelta,
    create_table,
    describe_table,
    get_table,
    glance_at_table,
    sink,
)
from itel_cabinet.io.worker import OutageError
from itel_cabinet.local.services import free_port
from tests.support.delta_rows import READINGS, SOURCE, just_before_commit, reading, readings, source, stored, version


def columns_of(spec: TableSpec) -> list[str]:
    return [f.name for f in DeltaTable(spec.uri).schema().fields]


# Rows


def test_rows_arrive_with_all_their_values(tmp_path: Path) -> None:
    spec = readings(tmp_path)
    result = FencedTable(spec).write([reading(0, value="a"), {"value": None, **source(1)}, source(2)])

    assert (result.table, result.version, result.replayed, result.conflicts) == ("readings", 1, [], 0)
    assert [row["kafka_offset"] for row in result.written] == [0, 1, 2]
    assert stored(spec, "kafka_offset", "value", "kafka_topic_id", "kafka_partition") == [
        (0, "a", "Zx3kQ", 0),
        (1, None, "Zx3kQ", 0),
        (2, None, "Zx3kQ", 0),
    ]


def test_no_rows_make_no_commit_and_no_table(tmp_path: Path) -> None:
    result = FencedTable(readings(tmp_path)).write([])
    assert (result.version, result.written, result.replayed) == (None, [], [])
    assert list(tmp_path.iterdir()) == []


def test_an_ordinary_commit_does_not_touch_the_schema(tmp_path: Path) -> None:
    """A commit with a metadata action would conflict with every other writer."""
    spec = readings(tmp_path)
    FencedTable(spec).write([reading(0)])
    log = Path(spec.uri, "_delta_log", f"{1:020}.json").read_text().splitlines()
    assert sorted(next(iter(json.loads(line))) for line in log) == ["add", "commitInfo", "txn"]


def test_rows_are_partitioned(tmp_path: Path) -> None:
    spec = readings(tmp_path, partition_by=("value",))
    FencedTable(spec).write([reading(0, value="a"), reading(1, value="b")])
    assert sorted(p.name for p in Path(spec.uri).iterdir() if p.name != "_delta_log") == ["value=a", "value=b"]
    assert stored(spec, "value") == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (reading(0, value=7), "column 'value' is string, which a value of type int does not fit"),
        (reading(0, kafka_offset="x"), "must be a text and two integers"),
        (reading(0, surname="x"), "a row has the column 'surname', which the schema lacks"),
        ({"value": "x"}, "a row lacks its source: kafka_topic_id, kafka_partition, kafka_offset"),
        (reading(0, partition=2**40), "column 'kafka_partition' is int32, which a value of type int does not fit"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_in_one_line_without_values(
    tmp_path: Path, row: dict[str, object], complaint: str
) -> None:
    spec = readings(tmp_path)
    with pytest.raises(RowError, match=re.escape(complaint)) as caught:
        FencedTable(spec).write([reading(0), row])
    assert "\n" not in str(caught.value)
    assert version(spec) == 0


def test_a_null_in_a_not_null_column_is_refused(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("value", pa.string(), nullable=False), *SOURCE])
    spec = readings(tmp_path, schema=schema)
    with pytest.raises(RowError, match="'value' is NOT NULL, and a row has no value for it"):
        FencedTable(spec).write([source(0)])


# Batches of columns


def batch_of(*rows: dict[str, object], columns: tuple[str, ...] = tuple(READINGS.names)) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=READINGS).select(columns)


def test_batches_are_written_as_rows_are_alone_and_mixed_with_them(tmp_path: Path) -> None:
    spec = readings(tmp_path)
    table = FencedTable(spec)
    without_value = batch_of(source(2), columns=("kafka_offset", "kafka_topic_id", "kafka_partition"))
    elements = [reading(0), *batch_of(reading(1)).to_batches(), without_value, batch_of(), reading(3)]
    result = table.write(elements)
    assert (result.version, len(result.written), len(result.replayed)) == (1, 4, 0)
    assert result.written == [reading(0), reading(1), {"value": None, **source(2)}, reading(3)]
    again = table.write(batch_of(*(reading(o) for o in range(5))))
    assert (again.written, [row["kafka_offset"] for row in again.replayed]) == ([reading(4)], [0, 1, 2, 3])
    assert table.write(batch_of(reading(9)).to_batches()[0]).written == [reading(9)]
    assert stored(spec, "kafka_offset", "value") == [(0, "v0"), (1, "v1"), (2, None), (3, "v3"), (4, "v4"), (9, "v9")]
    assert table.write(batch_of()).version is None


@pytest.mark.parametrize(
    ("batch", "complaint"),
    [
        (
            batch_of(reading(0)).set_column(0, "value", pa.array([7])),
            "column 'value' is string, and int64 in a batch",
        ),
        (
            batch_of(reading(0)).append_column("surname", pa.array(["x"])),
            "a batch has the column 'surname', which the schema lacks",
        ),
        (batch_of(reading(0), columns=("value", "kafka_offset")), "a row lacks its source: kafka_topic_id, kafka_part"),
        (batch_of({**reading(0), "kafka_offset": None}), "a row lacks its source: kafka_topic_id, kafka_partition"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, batch: pa.Table, complaint: str) -> None:
    spec = readings(tmp_path)
    with pytest.raises(RowError, match=re.escape(complaint)) as caught:
        FencedTable(spec).write([reading(1), batch])
    assert "\n" not in str(caught.value)
    assert version(spec) == 0


def test_a_batch_may_not_lack_a_not_null_column(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("value", pa.string(), nullable=False), *SOURCE])
    spec = readings(tmp_path, schema=schema)
    with pytest.raises(RowError, match="'value' is NOT NULL, and a row has no value for it"):
        FencedTable(spec).write(batch_of(source(0), columns=tuple(READINGS.names[1:])))


# Specifications


def test_a_specification_is_a_key_that_survives_pickling_and_hides_its_secrets(tmp_path: Path) -> None:
    spec = readings(tmp_path, storage_options={"account_key": "s3cret"}, properties={"delta.appendOnly": "true"})
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec
    assert get_table(again) is get_table(spec)
    assert "s3cret" not in repr(spec) + str(spec)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"partition_by": ("day",)}, "partition_by names the column 'day', which the schema lacks"),
        ({"source": ("t", "p", "o")}, "source names the column 't'"),
        ({"mode": Upsert(keys=(), order=("value",))}, "needs keys and an order"),
        ({"mode": Upsert(keys=("id",), order=("value",))}, "keys names the column 'id'"),
        ({"mode": Upsert(keys=("value",), order=("value",), members_of=("value",))}, "members_of"),
        ({"properties": {"delta.setTransactionRetentionDuration": "interval 1 days"}}, "let the fences expire"),
    ],
)
def test_a_specification_that_contradicts_itself_is_refused(
    tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        readings(tmp_path, **changes)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"conditional_put": "disabled"}, "conditional_put must be etag, or left out"),
        ({"AWS_CONDITIONAL_PUT": "dynamo:commits"}, "conditional_put must be etag, or left out"),
        ({"AWS_S3_LOCKING_PROVIDER": "dynamodb"}, "unset AWS_S3_LOCKING_PROVIDER"),
        ({"conditional_put": "etag", "AWS_S3_ALLOW_UNSAFE_RENAME": "true"}, "AWS_S3_ALLOW_UNSAFE_RENAME"),
    ],
)
def test_s3_without_atomic_commits_is_refused(options: dict[str, str], complaint: str) -> None:
    spec = TableSpec("s3://bucket/readings", READINGS, Append(), storage_options=options)
    with pytest.raises(TableError, match=complaint):
        create_table(spec, dry_run=True)
    with pytest.raises(TableError, match=complaint):
        FencedTable(spec).write([reading(0)])


# Creation and description


def test_create_makes_the_table_once_and_dry_run_never(tmp_path: Path) -> None:
    spec = readings(tmp_path, partition_by=("value",), properties={"delta.checkpointInterval": "10"})

    planned = create_table(spec, dry_run=True)
    assert (planned.version, planned.schema, planned.partition_by) == (None, READINGS, ("value",))
    assert list(tmp_path.iterdir()) == []

    made = create_table(spec)
    assert (made.created, made.version, made.files, made.fences) == (True, 0, 0, {})
    assert made.schema == READINGS
    assert made.properties == {"delta.checkpointInterval": "10", "delta.logRetentionDuration": "interval 7 days"}

    again = create_table(spec)
    assert (again.created, again.version) == (False, 0)
    assert create_table(spec, dry_run=True) == again


def test_describe_tells_all_fences_also_those_in_a_checkpoint(tmp_path: Path) -> None:
    spec = readings(tmp_path, properties={"delta.checkpointInterval": "4"})
    table = FencedTable(spec)
    for offset in range(4):
        table.write([reading(offset, partition=offset)])
    table.write([reading(9, topic_id="other")])

    state = describe_table(spec.uri)
    checkpoints = [path.name for path in Path(spec.uri, "_delta_log").glob("*.checkpoint.parquet")]
    assert checkpoints == [f"{3:020}.checkpoint.parquet"], "some fences are in it, some in the commits after it"
    assert (state.version, state.files, state.schema) == (5, 5, READINGS)
    assert state.fences == {
        "itel-cabinet/1/Zx3kQ/0": 1,
        "itel-cabinet/1/Zx3kQ/1": 2,
        "itel-cabinet/1/Zx3kQ/2": 3,
        "itel-cabinet/1/Zx3kQ/3": 4,
        "itel-cabinet/1/other/0": 10,
    }


def test_describing_a_table_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutageError, match="does not exist") as caught:
        describe_table(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)


def test_a_glance_reads_the_log_alone(tmp_path: Path) -> None:
    at = datetime(2026, 1, 10, 15, tzinfo=UTC)
    schema = READINGS.append(pa.field("at", pa.timestamp("us", tz="UTC")))
    spec = readings(tmp_path, schema=schema)
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    for offset, minutes in ((0, 7), (1, 3)):
        FencedTable(spec).write([{**reading(offset), "at": at + timedelta(minutes=minutes)}])
    files = [Path(spec.uri, path) for path in DeltaTable(spec.uri).get_add_actions()["path"].to_pylist()]
    assert len(files) == 2
    for file in files:
        file.unlink()

    known, unknown = spec.fence_id("Zx3kQ", 0), spec.fence_id("Zx3kQ", 1)
    glance = glance_at_table(spec.uri, newest=("at", "value", "none"), fences=(known, unknown))
    assert glance is not None
    assert (glance.version, dict(glance.fences)) == (2, {known: 2})
    assert glance.newest == {"at": at + timedelta(minutes=7), "value": None, "none": None}
    assert glance.committed_at is not None
    assert before <= glance.committed_at <= datetime.now(UTC)


def test_a_glance_at_no_table_and_at_no_store(tmp_path: Path) -> None:
    assert glance_at_table(str(tmp_path / "nothing")) is None
    store = {"endpoint": f"http://127.0.0.1:{free_port()}", "allow_http": "true", "region": "here"}
    keys = {"access_key_id": "nobody", "secret_access_key": "hunter2"}
    with pytest.raises(OutageError, match="Delta table s3://bucket/t: ") as refusal:
        glance_at_table("s3://bucket/t", {**store, **keys})
    assert "hunter2" not in str(refusal.value)


# Schemas


def test_missing_columns_are_added_and_unknown_ones_left_alone(tmp_path: Path) -> None:
    older = readings(tmp_path, schema=pa.schema([*READINGS, ("legacy", pa.string())]))
    FencedTable(older).write([reading(0, legacy="kept")])
    newer = readings(tmp_path, schema=pa.schema([*READINGS, pa.field("unit", pa.string(), nullable=False)]))
    FencedTable(newer).write([reading(1, unit="C")])

    assert columns_of(newer) == [*READINGS.names, "legacy", "unit"]
    assert stored(newer, "kafka_offset", "legacy", "unit") == [(0, "kept", None), (1, None, "C")]


def test_a_not_null_column_stays_so(tmp_path: Path) -> None:
    spec = readings(tmp_path)
    DeltaTable.create(spec.uri, pa.schema([pa.field("value", pa.string(), nullable=False), *SOURCE]))
    table = FencedTable(spec)
    table.write([reading(0)])
    with pytest.raises(RowError, match="'value' is NOT NULL"):
        table.write([source(1)])
    assert [f.nullable for f in DeltaTable(spec.uri).schema().fields][:1] == [False]
    assert stored(spec, "value") == ["v0"]


@pytest.mark.parametrize(
    ("there", "complaint"),
    [
        ([("value", pa.int64()), *SOURCE], "column 'value' is long in the table, and 'value' is string in the job"),
        ([("Value", pa.string()), *SOURCE], "column 'Value' is string in the table, and 'value' is string in the job"),
        (
            [("value", pa.list_(pa.string())), *SOURCE],
            'column \'value\' is {"type":"array"',
        ),
        (
            [*READINGS, pa.field("owner", pa.string(), nullable=False)],
            "column 'owner' (string) is NOT NULL in the table, and the job does not write it",
        ),
    ],
)
def test_an_incompatible_table_is_refused_before_anything_is_written(
    tmp_path: Path, there: list[object], complaint: str
) -> None:
    spec = readings(tmp_path)
    DeltaTable.create(spec.uri, pa.schema(there))
    attempts: list[Callable[[], object]] = [lambda: FencedTable(spec).write([reading(0)]), lambda: create_table(spec)]
    for attempt in attempts:
        with pytest.raises(TableError, match=re.escape(complaint)) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert version(spec) == 0
    assert DeltaTable(spec.uri).file_uris() == []


def test_other_partition_columns_are_refused(tmp_path: Path) -> None:
    FencedTable(readings(tmp_path, partition_by=("value",))).write([reading(0)])
    spec = readings(tmp_path)
    with pytest.raises(TableError, match=re.escape("is partitioned by (value), the job by ()")):
        FencedTable(spec).write([reading(1)])
    assert version(spec) == 1


def test_a_schema_that_becomes_incompatible_is_noticed(tmp_path: Path) -> None:
    spec = readings(tmp_path)
    wider = readings(tmp_path, schema=pa.schema([*READINGS, ("unit", pa.string())]))
    table = FencedTable(wider)
    FencedTable(spec).write([reading(0)])
    DeltaTable(spec.uri).alter.add_columns([Field("unit", PrimitiveType("long"))])
    with pytest.raises(TableError, match="'unit' is long in the table, and 'unit' is string in the job"):
        table.write([reading(1)])
    assert stored(spec, "value") == ["v0"]


def test_a_broken_check_constraint_is_refused_without_showing_the_row(tmp_path: Path) -> None:
    spec = readings(tmp_path)
    create_table(spec)
    DeltaTable(spec.uri).alter.add_constraint({"dull": "value < 'w'"})
    with pytest.raises(TableError, match="CHECK") as caught:
        FencedTable(spec).write([reading(0, value="www: a person's name")])
    assert "person" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert stored(spec, "value") == []


# The store


class Outage:
    """A clock that moves when slept on, and a folder that is a file for a while."""

    def __init__(self, spec: TableSpec) -> None:
        self.folder = Path(spec.uri)
        self.aside = self.folder.with_suffix(".aside")
        self.now = 0.0
        self.ends_at = float("inf")
        self.naps: list[float] = []

    def begin(self) -> None:
        self.folder.rename(self.aside)
        self.folder.write_text("no folder")

    def end(self) -> None:
        self.folder.unlink()
        self.aside.rename(self.folder)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds
        if self.now >= self.ends_at:
            self.ends_at = float("inf")
            self.end()


def test_an_outage_of_the_store_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = readings(tmp_path)
    outage = Outage(spec)
    table = FencedTable(spec, clock=outage.clock, sleep=outage.sleep, random=lambda: 1.0)
    table.write([reading(0)])
    outage.begin()
    outage.ends_at = 20.0
    with caplog.at_level("INFO", logger="itel_cabinet.io.worker.outages"):
        result = table.write([reading(0), reading(1)])

    assert [row["kafka_offset"] for row in result.written] == [1]
    assert stored(spec, "value") == ["v0", "v1"]
    assert outage.naps[:3] == [0.1, 0.2, 0.4]
    assert max(outage.naps) == 5.0
    assert [r.levelname for r in caplog.records] == ["WARNING", "WARNING", "INFO"]


def test_the_store_may_fail_between_decision_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = readings(tmp_path)
    outage = Outage(spec)
    table = FencedTable(spec, clock=outage.clock, sleep=outage.sleep, random=lambda: 1.0)
    table.write([reading(0)])
    outage.ends_at = 3.0
    just_before_commit(monkeypatch, outage.begin)
    assert table.write([reading(1)]).version == 2
    assert stored(spec, "value") == ["v0", "v1"]


def test_an_outage_longer_than_the_patience_is_one_line(tmp_path: Path) -> None:
    spec = readings(tmp_path, outage_seconds=30.0)
    outage = Outage(spec)
    table = FencedTable(spec, clock=outage.clock, sleep=outage.sleep, random=lambda: 1.0)
    table.write([reading(0)])
    outage.begin()
    with pytest.raises(OutageError, match="gave up after 30 s") as caught:
        table.write([reading(1)])
    assert str(caught.value).startswith(f"Delta table {spec.uri}: ")
    assert not re.search(r"[\n\x1b]", str(caught.value))

    outage.end()
    assert table.write([reading(1)]).version == 2, "the same table can be written once the store is back"


def test_a_table_that_vanishes_is_not_made_again(tmp_path: Path) -> None:
    spec = readings(tmp_path, outage_seconds=10.0)
    outage = Outage(spec)
    table = FencedTable(spec, clock=outage.clock, sleep=outage.sleep, random=lambda: 1.0)
    table.write([reading(0)])
    Path(spec.uri).rename(outage.aside)
    with pytest.raises(OutageError, match="gave up after 10 s"):
        table.write([reading(1)])
    assert not Path(spec.uri, "_delta_log").exists()


def test_errors_do_not_tell_storage_options(tmp_path: Path) -> None:
    (tmp_path / "hunter2").write_text("no folder")
    spec = TableSpec(str(tmp_path / "hunter2" / "t"), READINGS, Append(), storage_options={"secret": "hunter2"})
    with pytest.raises(OutageError) as caught:
        create_table(spec)
    assert "hunter2" not in str(caught.value).removeprefix(str(spec))
    assert "***" in str(caught.value)


# Beam


def test_the_example_in_the_docstring_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sink.__doc__ is not None
    (example,) = re.findall(r"::\n\n((?:    .*\n|\n)+)", sink.__doc__)
    exec(compile(textwrap.dedent(example), "example", "exec"), {})
    rows = DeltaTable("readings").to_pyarrow_table().sort_by("kafka_offset").to_pylist()
    assert [(row["sensor"], row["celsius"], row["kafka_offset"]) for row in rows] == [
        ("attic", 31.5, 0),
        ("cellar", 12.0, 1),
    ]


@pytest.mark.parametrize("runner", ["BundleBasedDirectRunner", "FnApiRunner"])
def test_a_pipeline_writes_rows_and_batches_and_tells_what_it_did(tmp_path: Path, runner: str) -> None:
    spec = readings(tmp_path)
    FencedTable(spec).write([reading(0)])
    elements = [reading(0), batch_of(reading(1), reading(2)), [], batch_of(), (reading(3),)]
    with TestPipeline(runner=runner) as pipeline:
        results = (
            pipeline
            | beam.Create([elements])
            | beam.FlatMap(lambda batch: batch)
            | beam.Map(lambda row: TimestampedValue(row, 5))
            | beam.WindowInto(FixedWindows(60))
            | WriteToDelta(spec)
        )
        told = results | beam.FlatMap(
            lambda r: [(row["kafka_offset"], kind) for kind in ("written", "replayed") for row in getattr(r, kind)]
        )
        assert_that(told, equal_to([(0, "replayed"), (1, "written"), (2, "written"), (3, "written")]))
    counters = {c.key.metric.name: c.committed for c in pipeline.result.metrics().query()["counters"]}
    assert {n: counters[n] for n in ("rows_written", "rows_replayed", "commits", "conflicts")} == {
        "rows_written": 3,
        "rows_replayed": 1,
        "commits": 1,
        "conflicts": 0,
    }
    assert stored(spec, "kafka_offset") == [0, 1, 2, 3]


def _wait_for_rows(batch: pa.Table, spec: TableSpec) -> list[str]:
    if 0 in batch["kafka_offset"].to_pylist():  # which of two steps gets an element first is the runner's choice
        return []
    end = time.monotonic() + 30
    while not stored(spec, "kafka_offset"):
        assert time.monotonic() < end
        time.sleep(0.01)
    return [str(batch.num_rows)]


def test_whole_batches_are_committed_while_their_bundle_goes_on(tmp_path: Path) -> None:
    spec = readings(tmp_path)
    create_table(spec)
    batches = [batch_of(reading(0), reading(1)), batch_of(reading(2)), batch_of(reading(3))]
    with TestPipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([batches]) | beam.FlatMap(lambda batch: batch).with_output_types(pa.Table)
        results = rows | WriteToDelta(spec, whole_batches=True)
        # In the same bundle, and before it ends: it would wait for ever for a commit that waits for it.
        rows | beam.Map(_wait_for_rows, spec)
        written = results | beam.Map(lambda r: (r.version, [row["kafka_offset"] for row in r.written]))
        assert_that(written, equal_to([(1, [0, 1]), (2, [2, 3])]))
    assert stored(spec, "kafka_offset") == [0, 1, 2, 3]


def test_a_commit_that_fails_beside_its_bundle_fails_it(tmp_path: Path) -> None:
    wrong = batch_of(reading(0)).set_column(0, "value", pa.array([1]))
    assert wrong.schema != readings(tmp_path).schema
    pipeline = TestPipeline(runner="FnApiRunner")
    rows = pipeline | beam.Create([[wrong]]) | beam.FlatMap(lambda batch: batch).with_output_types(pa.Table)
    rows | WriteToDelta(readings(tmp_path), whole_batches=True)
    with pytest.raises(Exception, match="column 'value' is string"):
        pipeline.run()


def test_two_sinks_in_one_pipeline_need_no_labels(tmp_path: Path) -> None:
    other = readings(tmp_path, uri=os.fspath(tmp_path / "other"))
    with TestPipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([reading(0)])
        rows | WriteToDelta(readings(tmp_path))
        rows | WriteToDelta(other)
    assert stored(other, "value") == ["v0"]
    assert stored(readings(tmp_path), "value") == ["v0"]
