"""Rows deleted for good beside the writers of their table: what is on the list does not come back."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyarrow import parquet

from itel_cabinet.io.delta import (
    FencedTable,
    SuppressionList,
    Suppressions,
    TableError,
    TableSpec,
    announce,
    delete_rows,
    optimize,
)
from itel_cabinet.io.worker import OutageError
from tests.support.delta_rows import album, albums, form, forms, just_before_commit, reading, readings, stored

NOW = datetime(2026, 1, 10, tzinfo=UTC)


def listed(spec: TableSpec, column: str, *, statistics: tuple[str, ...] = ()) -> TableSpec:
    place = SuppressionList(f"{Path(spec.uri).parent}/list", (("person", column),))
    return replace(spec, suppressed=place, statistics=statistics)


def erase(spec: TableSpec, person: str | int) -> None:
    """As another process does it."""
    assert spec.suppressed is not None
    ((_, column),) = spec.suppressed.ids
    people = Suppressions(spec.suppressed)
    people.add([("person", person)], NOW)
    announce(spec, people.version)
    delete_rows(spec, f"`{column}` = '{person}'" if isinstance(person, str) else f"`{column}` = {person}")


def test_what_was_decided_before_the_erasure_is_decided_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = listed(readings(tmp_path), "value")
    writer = FencedTable(spec)
    writer.write([reading(0, value="anna"), reading(1, value="ben")])
    just_before_commit(monkeypatch, lambda: erase(spec, "anna"))
    result = writer.write([reading(2, value="anna"), reading(3, value="ben")])
    assert (len(result.written), result.suppressed, result.conflicts) == (1, 1, 1)
    assert stored(spec, "value") == ["ben", "ben"]
    # What is read again, below the fence, does not come back either, in this process or in a new one.
    for again in (writer, FencedTable(spec)):
        result = again.write([reading(0, value="anna"), reading(1, value="ben"), reading(2, value="anna")])
        assert (len(result.written), len(result.replayed), result.suppressed) == (0, 1, 2)


@pytest.mark.parametrize(
    ("spec", "column", "mine", "others", "person"),
    [
        (forms, "form", [form("anna", 1, 0)], [form("ben", 1, 1)], "anna"),
        (albums, "album", album(1, 1, 0, [7, 8]), album(2, 1, 1, [9]), 1),
    ],
)
def test_a_merge_that_was_decided_before_the_erasure_is_decided_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: Any, column: str, mine: Any, others: Any, person: str | int
) -> None:
    spec = listed(spec(tmp_path), column)
    writer = FencedTable(spec)
    writer.write([*mine, *others])
    before = [row for row in DeltaTable(spec.uri).to_pyarrow_table().to_pylist() if row[column] != person]
    just_before_commit(monkeypatch, lambda: erase(spec, person))
    later = [row | {"at": NOW + timedelta(days=1), "kafka_offset": 9} for row in mine]
    result = writer.write(later)
    assert (len(result.written), result.suppressed) == (0, len(mine))
    assert DeltaTable(spec.uri).to_pyarrow_table().to_pylist() == before
    assert writer.revise(later, [], ["at"]) == 0
    assert DeltaTable(spec.uri).to_pyarrow_table().to_pylist() == before


def test_a_table_made_after_the_erasure_is_written_without_the_erased(tmp_path: Path) -> None:
    spec = listed(readings(tmp_path), "value")
    writer = FencedTable(spec)
    writer.write([reading(0)])  # by now its process knows the list, which is empty
    assert spec.suppressed is not None
    Suppressions(spec.suppressed).add([("person", "anna")], NOW)
    other = replace(spec, uri=f"{tmp_path}/others")
    assert FencedTable(other).write([reading(0, value="anna"), reading(1, value="ben")]).suppressed == 1
    assert stored(other, "value") == ["ben"]


def test_rows_are_compared_with_the_list(tmp_path: Path) -> None:
    spec = listed(readings(tmp_path), "value")
    assert spec.suppressed is not None
    people = Suppressions(spec.suppressed)
    assert people.add([("person", "anna"), ("person", "anna"), ("person", "carl")], NOW) == 2
    assert people.add([("person", "anna")], NOW) == 0
    names = ["ben", None, "anna", "carl", "ben"]
    kept = people.keep_others(pa.table({"value": names, "number": range(5)}))
    assert kept.to_pylist() == [{"value": n, "number": i} for i, n in enumerate(names) if n not in ("anna", "carl")]
    assert people.since("person", "anna") == NOW
    assert people.since("person", "ben") is None


def test_the_list_holds_no_id_and_another_list_other_hashes(tmp_path: Path) -> None:
    hashes = []
    for name in ("one", "two"):
        place = SuppressionList(f"{tmp_path}/{name}", (("person", "value"),))
        Suppressions(place).add([("person", "anna")], NOW)
        assert not any(b"anna" in file.read_bytes() for file in Path(place.uri).rglob("*.*"))
        hashes += DeltaTable(place.uri).to_pyarrow_table()["hash"].to_pylist()
    assert len({*hashes}) == 2


def test_without_its_list_a_table_is_not_written(tmp_path: Path) -> None:
    spec = listed(readings(tmp_path), "value")
    FencedTable(spec).write([reading(0)])
    erase(spec, "anna")
    assert spec.suppressed is not None
    shutil.rmtree(spec.suppressed.uri)
    moved = replace(spec, suppressed=replace(spec.suppressed, uri=f"{tmp_path}/./list"))  # as a new process sees it
    with pytest.raises(TableError, match=r"the list of what was erased, .*, is gone, and tables know it at version 1"):
        FencedTable(moved).write([reading(1)])
    assert stored(spec, "kafka_offset") == [0]


def test_another_table_in_the_place_of_the_list_is_refused(tmp_path: Path) -> None:
    spec = listed(readings(tmp_path), "value")
    assert spec.suppressed is not None
    write_deltalake(spec.suppressed.uri, pa.table({"kind": ["a"]}))
    with pytest.raises(TableError, match="is no list of what was erased"):
        FencedTable(spec).write([reading(0)])


def test_no_text_of_a_row_gets_into_the_log(tmp_path: Path) -> None:
    """Whatever writes: the sink's appends and merges, a compaction, a sort, a deletion, a checkpoint."""
    spec = listed(forms(tmp_path, properties={"delta.checkpointInterval": "3"}), "form", statistics=("kafka_offset",))
    writer = FencedTable(spec)
    for turn in range(3):
        writer.write([form("anna", turn, 2 * turn, answer="SECRET"), form("ben", turn, 2 * turn + 1, answer="SECRET")])
    optimize(spec)
    optimize(spec, z_order=["kafka_offset"])
    erase(spec, "ben")
    log = Path(spec.uri, "_delta_log")
    texts = [file.read_text() for file in log.glob("*.json")]
    texts += [str(parquet.read_table(file).to_pylist()) for file in log.glob("*.parquet")]
    assert len(texts) > 6
    assert not [text for text in texts if "SECRET" in text]
    assert [row["answer"] for row in DeltaTable(spec.uri).to_pyarrow_table().to_pylist()] == ["SECRET"]


def test_an_erasure_stops_an_older_table_from_writing_texts_into_its_log(tmp_path: Path) -> None:
    old = listed(readings(tmp_path), "value")
    FencedTable(old).write([reading(0, value="anna"), reading(1, value="ben")])
    spec = replace(old, statistics=("kafka_offset",))
    erase(spec, "anna")
    newest = max(Path(spec.uri, "_delta_log").glob("*.json"))
    assert "ben" not in newest.read_text()
    assert stored(spec, "value") == ["ben"]


def test_a_deletion_that_a_writer_overtakes_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = forms(tmp_path)
    writer = FencedTable(spec)
    writer.write([form("anna", 1, 0), form("ben", 1, 1)])
    delete = DeltaTable.delete
    waiting = [lambda: writer.write([form("anna", 2, 2), form("carl", 1, 3)])]

    def overtaken(self: DeltaTable, *args: Any, **options: Any) -> Any:
        if waiting:
            waiting.pop()()
        return delete(self, *args, **options)

    monkeypatch.setattr(DeltaTable, "delete", overtaken)
    done = delete_rows(spec, "`form` = 'anna'")
    assert (done.rows, done.conflicts) == (1, 1)
    assert stored(spec, "form") == ["ben", "carl"]


def test_a_deletion_names_the_partitions_that_it_meets(tmp_path: Path) -> None:
    spec = readings(tmp_path, partition_by=("value",))
    FencedTable(spec).write([reading(0, value="it's"), reading(1, value=None), reading(2, value="ben")])
    assert delete_rows(spec, "`kafka_offset` < 2", dry_run=True).rows == 2
    done = delete_rows(spec, "`kafka_offset` < 2")
    assert done.rows == 2
    assert stored(spec, "value") == ["ben"]
    assert delete_rows(spec, "`kafka_offset` < 2") == replace(done, rows=0, version=None)


def test_a_deletion_that_always_loses_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = forms(tmp_path, outage_seconds=0.0)
    writer = FencedTable(replace(spec, outage_seconds=60.0))
    writer.write([form("anna", 1, 0)])
    delete = DeltaTable.delete

    def overtaken(self: DeltaTable, *args: Any, **options: Any) -> Any:
        writer.write([form("anna", 2, 2)])
        return delete(self, *args, **options)

    monkeypatch.setattr(DeltaTable, "delete", overtaken)
    with pytest.raises(OutageError, match="lost against other writers for 0 s"):
        delete_rows(spec, "`form` = 'anna'", sleep=lambda _: None)
