"""Tables that Spark or Databricks have turned something on in: written, or refused before anything else is done; and
checkpoints of every kind, whose fences are all found."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from pyarrow import parquet

from itel_cabinet.io.delta import (
    Append,
    FencedTable,
    TableError,
    TableSpec,
    carry_out,
    create_table,
    describe_table,
    fences_at,
    optimize,
    plan_fences,
    plan_restore,
    vacuum,
)
from itel_cabinet.pipeline.commands import main
from itel_cabinet.pipeline.queries import Session, find
from itel_cabinet.pipeline.tables import TRACKING
from tests.support import known_history
from tests.support.delta_rows import READINGS, form, forms, reading, stored
from tests.support.printed import Printed

READER_TOO = {"columnMapping", "deletionVectors", "timestampNtz", "typeWidening", "v2Checkpoint", "variantType"}
WRITABLE = [
    *("appendOnly", "changeDataFeed", "checkConstraints", "columnMapping", "deletionVectors", "generatedColumns"),
    *("invariants", "timestampNtz", "v2Checkpoint", "variantType"),
]
NOT_WRITABLE = [
    *("allowColumnDefaults", "checkpointProtection", "clustering", "domainMetadata", "icebergCompatV2"),
    *("identityColumns", "inCommitTimestamp", "rowTracking", "typeWidening", "of-a-later-year"),
]


@pytest.fixture
def spec(tmp_path: Path) -> TableSpec:
    return TableSpec(str(tmp_path / "readings"), READINGS, Append())


def add_commit(spec: TableSpec, *actions: dict[str, Any]) -> int:
    """What another writer commits."""
    version = DeltaTable(spec.uri).version() + 1
    lines = [*actions, {"commitInfo": {"timestamp": 1_770_000_000_000, "operation": "SET TBLPROPERTIES"}}]
    log = Path(spec.uri) / "_delta_log" / f"{version:020}.json"
    log.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return version


def turn_on(spec: TableSpec, *features: str) -> None:
    reader = sorted(READER_TOO & {*features})
    protocol: dict[str, Any] = {"minReaderVersion": 3 if reader else 1, "minWriterVersion": 7}
    protocol |= {"writerFeatures": sorted(features)} | ({"readerFeatures": reader} if reader else {})
    add_commit(spec, {"protocol": protocol})


@pytest.mark.parametrize("feature", WRITABLE)
def test_a_feature_that_can_be_written_is_no_obstacle(feature: str, spec: TableSpec) -> None:
    create_table(spec)
    turn_on(spec, feature)
    table = FencedTable(spec)
    table.write([reading(0), reading(1)])
    assert table.write([reading(0), reading(1)]).version is None
    table.write([reading(2)])
    optimize(spec)
    assert create_table(spec).created is False
    rows = pa.table(DeltaTable(spec.uri).scan()).to_pylist()
    assert len(rows) == 3


@pytest.mark.parametrize("feature", NOT_WRITABLE)
def test_one_that_cannot_is_refused_by_all_that_write(feature: str, spec: TableSpec) -> None:
    running = FencedTable(spec)
    running.write([reading(0)])
    turn_on(spec, feature)
    version = DeltaTable(spec.uri).version()
    writers: list[Callable[[], object]] = [
        lambda: create_table(spec),
        lambda: create_table(spec, dry_run=True),
        lambda: running.write([reading(1)]),
        lambda: FencedTable(spec).write([reading(1)]),
        lambda: optimize(spec),
        lambda: vacuum(spec, retention_hours=200),
        lambda: carry_out(spec, plan_fences(spec, lambda fences: dict.fromkeys(fences, 0)), watch_seconds=0),
    ]
    for write in writers:
        with pytest.raises(TableError) as refused:
            write()
        line = str(refused.value)
        assert f"delta-rs cannot write its feature {feature}: run " in line
        assert line.endswith(f"ALTER TABLE delta.`{spec.uri}` DROP FEATURE {feature}")
        assert "\n" not in line
    assert DeltaTable(spec.uri).version() == version


def test_several_features_are_dropped_in_an_order_that_works(spec: TableSpec) -> None:
    create_table(spec)
    turn_on(spec, "domainMetadata", "rowTracking", "clustering", "invariants")
    place = f"ALTER TABLE delta.`{spec.uri}`"
    with pytest.raises(TableError) as refused:
        create_table(spec)
    assert str(refused.value).partition(": run ")[2].split("; ") == [
        f"{place} CLUSTER BY NONE",
        f"{place} SET TBLPROPERTIES ('delta.enableRowTracking' = 'false')",
        f"{place} DROP FEATURE clustering",
        f"{place} DROP FEATURE rowTracking",
        f"{place} DROP FEATURE domainMetadata",
    ]


def test_mapped_columns_and_legacy_identity_columns_are_refused(spec: TableSpec) -> None:
    create_table(spec)
    add_commit(spec, {"protocol": {"minReaderVersion": 1, "minWriterVersion": 6}})
    with pytest.raises(TableError, match="cannot write its feature identityColumns"):
        create_table(spec)
    log = Path(spec.uri) / "_delta_log"
    (log / f"{1:020}.json").unlink()
    metadata = next(json.loads(line) for line in (log / f"{0:020}.json").read_text().splitlines() if "metaData" in line)
    metadata["metaData"]["configuration"]["delta.columnMapping.mode"] = "name"
    schema = json.loads(metadata["metaData"]["schemaString"])
    for number, field in enumerate(schema["fields"], start=1):
        mapping = {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": f"col-{number}"}
        field["metadata"] |= mapping
    metadata["metaData"]["schemaString"] = json.dumps(schema)
    add_commit(spec, {"protocol": {"minReaderVersion": 2, "minWriterVersion": 5}}, metadata)
    with pytest.raises(TableError, match="its columns are mapped to other names"):
        create_table(spec)


def test_the_command_says_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "create", f"--tables_root={tmp_path}"]) == 0
    capsys.readouterr()
    turn_on(TableSpec(str(tmp_path / TRACKING), READINGS, Append()), "rowTracking")
    assert main(["tables", "create", f"--tables_root={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert "delta-rs cannot write its feature rowTracking" in error
    assert error.count("\n") == 1


# -- checkpoints of every kind


def as_classic(log: Path, actions: pa.Table, version: int) -> None:
    parquet.write_table(actions, log / f"{version:020}.checkpoint.parquet")


def as_parts(log: Path, actions: pa.Table, version: int) -> None:
    half = actions.num_rows // 2
    for part, some in enumerate((actions.slice(0, half), actions.slice(half)), start=1):
        parquet.write_table(some, log / f"{version:020}.checkpoint.{part:010}.{2:010}.parquet")


def as_v2_parquet(log: Path, actions: pa.Table, version: int) -> None:
    parquet.write_table(actions, log / f"{version:020}.checkpoint.{uuid.uuid4()}.parquet")


def _plain(value: Any, kind: pa.DataType) -> Any:
    """A value with its maps as JSON has them."""
    if value is None:
        return None
    if pa.types.is_map(kind):
        return dict(value)
    if pa.types.is_struct(kind):
        return {field.name: _plain(value[field.name], field.type) for field in kind if value[field.name] is not None}
    return value


def as_v2_json(log: Path, actions: pa.Table, version: int) -> None:
    lines = [json.dumps({"checkpointMetadata": {"version": version}})]
    for row in actions.to_pylist():
        lines.append(json.dumps({k: _plain(v, actions.schema.field(k).type) for k, v in row.items() if v is not None}))
    (log / f"{version:020}.checkpoint.{uuid.uuid4()}.json").write_text("\n".join(lines), encoding="utf-8")


KINDS = [as_classic, as_parts, as_v2_parquet, as_v2_json]


def checkpoint(spec: TableSpec, write: Callable[[Path, pa.Table, int], None], *, clean: bool = True) -> Path:
    """Have the table's state in a checkpoint of this kind alone; the older log is gone, as a clean-up leaves it."""
    table = DeltaTable(spec.uri)
    table.create_checkpoint()
    version, log = table.version(), Path(spec.uri) / "_delta_log"
    classic = log / f"{version:020}.checkpoint.parquet"
    actions = parquet.read_table(classic)
    classic.unlink()
    (log / "_last_checkpoint").unlink()
    write(log, actions, version)
    for number in range(version if clean else 0):
        (log / f"{number:020}.json").unlink(missing_ok=True)
    return log


@pytest.mark.parametrize("kind", KINDS)
def test_all_fences_are_found_in_any_checkpoint(kind: Callable[[Path, pa.Table, int], None], spec: TableSpec) -> None:
    """Also with commits after it, and an older checkpoint of another kind beside it."""
    table = FencedTable(spec)
    for number in range(9):
        table.write([reading(0) | {"kafka_topic_id": f"topic-{number}"}])
    _, before = fences_at(spec)
    assert len(before) == 9
    if kind in (as_classic, as_parts):  # delta-rs itself reads the table
        checkpoint(spec, kind)
        assert fences_at(spec)[1] == before
        FencedTable(spec).write([reading(7) | {"kafka_topic_id": "topic-after"}])
        assert len(fences_at(spec)[1]) == 10
    else:
        turn_on(spec, "v2Checkpoint")
        checkpoint(spec, kind)
        assert fences_at(spec)[1] == before


def test_a_log_with_a_gap_is_refused_rather_than_read_in_part(spec: TableSpec) -> None:
    table = FencedTable(spec)
    for number in range(4):
        table.write([reading(number)])
    log = checkpoint(spec, as_parts)
    next(log.glob("*.checkpoint.0000000001.0000000002.parquet")).unlink()
    with pytest.raises((TableError, Exception), match=r"is not in its log|Unable|No|Invalid|not found|missing"):
        fences_at(spec)


# -- deletion vectors

_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def delete_rows(spec: TableSpec, *rows: int) -> None:
    """As Spark does with deletion vectors on: the file stays, and its entry says which rows are gone.

    The vector is written in line (Delta protocol, "Deletion Vectors"): a Roaring bitmap in Z85.
    """
    turn_on(spec, "deletionVectors")
    adds = [
        json.loads(line) for path in sorted((Path(spec.uri) / "_delta_log").glob("0*.json")) for line in path.open()
    ]
    add = next(action["add"] for action in adds if "add" in action)
    bitmap = struct.pack("<II", 12346, 1) + struct.pack("<HHI", 0, len(rows) - 1, 16)
    bitmap += b"".join(struct.pack("<H", row) for row in sorted(rows))
    data = struct.pack("<IQI", 1681511377, 1, 0) + bitmap
    padded = data + bytes(-len(data) % 4)
    text = ""
    for (word,) in struct.iter_unpack(">I", padded):
        digits = [word // 85**place % 85 for place in range(4, -1, -1)]
        text += "".join(_Z85[digit] for digit in digits)
    vector = {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(data), "cardinality": len(rows)}
    remove = {"path": add["path"], "deletionTimestamp": 1, "dataChange": True}
    add_commit(spec, {"remove": remove}, {"add": {**add, "deletionVector": vector}})


def test_queries_and_writers_respect_deletion_vectors(tmp_path: Path) -> None:
    known_history.write(str(tmp_path))
    specs = known_history.specs(str(tmp_path))
    with Session(specs) as session:
        before = [row[-1] for row in session.run(find("latest-events"), {"limit": 1_000}).rows]
    delete_rows(specs[TRACKING], 0)
    with pytest.raises(Exception, match="deletionVectors"):
        DeltaTable(specs[TRACKING].uri).to_pyarrow_dataset()
    for prepare in (lambda: None, lambda: optimize(specs[TRACKING])):
        prepare()
        with Session(specs) as session:
            after = [row[-1] for row in session.run(find("latest-events"), {"limit": 1_000}).rows]
        assert len(before) - 1 <= len(after) <= len(before)
        rows = pa.table(DeltaTable(specs[TRACKING].uri).scan())
        assert rows.num_rows == _rows_at(specs[TRACKING], 2) - 1
    assert describe_table(specs[TRACKING].uri).fences


def _rows_at(spec: TableSpec, version: int) -> int:
    return int(pa.table(DeltaTable(spec.uri, version=version).scan()).num_rows)


def test_a_restore_after_a_checkpoint_lowers_every_fence(spec: TableSpec) -> None:
    table = FencedTable(spec)
    for number in range(5):
        table.write([reading(number)])
    checkpoint(spec, as_classic, clean=False)
    change = plan_restore(spec, 2)
    assert [(move.before, move.after) for move in change.moves] == [(5, 2)]
    carry_out(spec, change, watch_seconds=0)
    again = FencedTable(spec).write([reading(number) for number in range(5)])
    assert len(again.written) == 3
    assert pa.table(DeltaTable(spec.uri).scan()).num_rows == 5


# Properties of a new table


def test_properties_of_new_tables(tmp_path: Path, printed: Printed) -> None:
    given = {"delta.enableChangeDataFeed": True, "delta.logRetentionDuration": "interval 30 days"}
    create = ["tables", "create", f"--tables_root={tmp_path}", f"--table_properties={json.dumps(given)}"]
    assert printed.stdout(*create).count("created") == 5
    there = describe_table(f"{tmp_path}/{TRACKING}").properties
    assert (there["delta.enableChangeDataFeed"], there["delta.logRetentionDuration"]) == ("true", "interval 30 days")
    other = [*create[:-1], '--table_properties={"delta.logRetentionDuration": "interval 3 days"}']
    said = printed.stdout(*other)
    assert said.count("it has delta.logRetentionDuration = interval 30 days, which is left as it is") == 5


@pytest.mark.parametrize(
    ("properties", "error"),
    [
        ({"delta.setTransactionRetentionDuration": "interval 3 days"}, "lets the fences of idle partitions expire"),
        ({"delta.appendOnly": True}, "no form could be replaced"),
        ({"delta.columnMapping.mode": "name"}, "delta-rs cannot write such a table"),
        ({"delta.dataSkippingNumIndexedCols": -1}, "texts of rows in the log"),
        ({"delta.enableRowTracking": True}, "delta.enableRowTracking cannot be set here: give some of"),
        ({"delta.logRetentionDuration": "30 days"}, "must be a duration such as interval 30 days, got '30 days'"),
        ({"delta.checkpointInterval": 0}, "must be a whole number, got '0'"),
    ],
)
def test_properties_that_a_table_must_not_have(
    tmp_path: Path, printed: Printed, properties: dict[str, Any], error: str
) -> None:
    command = ["tables", "create", f"--tables_root={tmp_path}", f"--table_properties={json.dumps(properties)}"]
    line = printed.error(2, *command)
    assert line.startswith("--table_properties: ")
    assert error in line
    assert list(tmp_path.iterdir()) == []


def test_the_sink_writes_tables_with_these_properties(tmp_path: Path) -> None:
    properties = {"delta.enableChangeDataFeed": "true", "delta.checkpointInterval": "1"}
    spec = forms(tmp_path, properties=properties)
    writer = FencedTable(spec)
    for turn in range(3):
        writer.write([form("a", turn, 2 * turn), form("b", 0, 2 * turn + 1)])
    assert stored(spec, "form", "answer") == [("a", "at 2"), ("b", "at 0")]
