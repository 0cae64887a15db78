"""Upserts of the Delta sink: the newest row of each key, the newest set of each group."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Field
from deltalake.schema import PrimitiveType
from hypothesis import given, settings
from hypothesis import strategies as st

from itel_cabinet.io.delta import FencedTable, RowError, TableSpec, Upsert, WriteResult
from itel_cabinet.io.delta.decisions import Decision, decide
from tests.support.delta_rows import (
    EPOCH,
    FORMS,
    PHOTOS,
    album,
    albums,
    form,
    forms,
    just_before_commit,
    stored,
    version,
)

ANYWHERE = Path("nowhere")


def write(spec: TableSpec, rows: Sequence[Any]) -> WriteResult:
    """As a process that has just started would."""
    return FencedTable(spec).write(rows)


# Rows


def test_a_newer_row_replaces_and_an_older_one_changes_nothing(tmp_path: Path) -> None:
    spec = forms(tmp_path)
    write(spec, [form("a", 5, 0), form("b", 5, 1)])
    assert write(spec, [form("a", 6, 2)]).version == 2
    older = write(spec, [form("a", 4, 3), form("b", 3, 4)])
    assert (older.version, len(older.written), older.replayed) == (None, 2, [])
    assert version(spec) == 2, "what changes nothing makes no commit"
    assert stored(spec, "form", "answer", "kafka_offset") == [("a", "at 6", 2), ("b", "at 5", 1)]


def test_equally_old_rows_are_told_apart_by_the_rest_of_the_order(tmp_path: Path) -> None:
    spec = forms(tmp_path)
    write(spec, [form("a", 5, 3)])
    write(spec, [form("a", 5, 7, answer="later offset")])
    write(spec, [form("a", 5, 7, answer="same place", kafka_topic_id="other")])
    assert stored(spec, "answer") == ["later offset"]


def test_a_key_twice_in_a_bundle_makes_one_row(tmp_path: Path) -> None:
    spec = forms(tmp_path)
    write(spec, [form("a", 5, 0), form("a", 9, 1), form("a", 7, 2)])
    assert stored(spec, "form", "answer") == [("a", "at 9")]
    write(spec, [form("a", 10, 3), form("a", 12, 4), form("a", 11, 5)])
    assert stored(spec, "form", "answer") == [("a", "at 12")]
    lost = [form("a", 10, 3), form("a", 11, 5)]
    assert write(spec, lost).replayed == lost, "rows that lost in a bundle are not late"


def test_first_values_and_values_that_survive_a_null(tmp_path: Path) -> None:
    spec = forms(tmp_path)
    write(spec, [form("a", 1, 0, path="kept.jpg")])
    write(spec, [form("a", 2, 1, path=None)])
    assert stored(spec, "answer", "path", "created_at") == [("at 2", "kept.jpg", EPOCH + timedelta(seconds=1))]
    write(spec, [form("a", 3, 2, path="new.jpg")])
    assert stored(spec, "answer", "path", "created_at") == [("at 3", "new.jpg", EPOCH + timedelta(seconds=1))]


def test_values_that_would_break_a_hand_made_query(tmp_path: Path) -> None:
    spec = forms(tmp_path)
    keys = ["it's", 'quo"te', "back\\slash", "%_", "new\nline", "ünï", "", "'; --"]
    write(spec, [form(key, 1, i) for i, key in enumerate(keys)])
    write(spec, [form(key, 2, 100 + i) for i, key in enumerate(keys)])
    assert stored(spec, "form", "answer") == sorted(((key, "at 2") for key in keys), key=repr)


def test_more_keys_than_a_query_lists_one_by_one(tmp_path: Path) -> None:
    spec = forms(tmp_path)
    write(spec, [form(f"f{i:03}", 5, i) for i in range(0, 300, 2)])
    write(spec, [form(f"f{i:03}", 4 + i % 3, 300 + i) for i in range(300)])
    expected = [(f"f{i:03}", f"at {max(5, 4 + i % 3) if i % 2 == 0 else 4 + i % 3}") for i in range(300)]
    assert stored(spec, "form", "answer") == sorted(expected, key=repr)


def test_a_null_order_is_the_oldest(tmp_path: Path) -> None:
    spec = forms(tmp_path)
    write(spec, [form("a", 0, 9, at=None, answer="undated")])
    write(spec, [form("a", 1, 10)])
    assert stored(spec, "answer") == ["at 1"]
    assert write(spec, [form("a", 0, 11, at=None, answer="undated")]).version is None


def test_a_null_key_is_refused(tmp_path: Path) -> None:
    spec = forms(tmp_path)
    with pytest.raises(RowError, match="the key column 'form' is null in a row"):
        write(spec, [{**form("a", 1, 0), "form": None}])


MOODS = ("moods", pa.list_(pa.string()))


def test_a_row_s_new_column_is_merged_and_one_that_someone_else_added_left_alone(tmp_path: Path) -> None:
    spec = forms(tmp_path)
    write(spec, [form("a", 1, 0)])
    DeltaTable(spec.uri).alter.add_columns([Field("reviewed_by", PrimitiveType("string"))])
    DeltaTable(spec.uri).update({"reviewed_by": "'ann'"})
    newer = forms(tmp_path, schema=pa.schema([*FORMS, MOODS]))
    write(newer, [form("a", 2, 1, moods=["good"]), form("b", 2, 2, moods=["fair"])])
    assert stored(spec, "form", "answer", "reviewed_by", "moods") == [
        ("a", "at 2", "ann", ["good"]),
        ("b", "at 2", None, ["fair"]),
    ]


@pytest.mark.parametrize("made_by", ["older", "newer"])
def test_two_versions_side_by_side_mix_no_columns_of_two_events(tmp_path: Path, made_by: str) -> None:
    older, newer = forms(tmp_path), forms(tmp_path, schema=pa.schema([*FORMS, ("mood", pa.string()), MOODS]))
    write({"older": older, "newer": newer}[made_by], [form("a", 1, 0)])
    write(newer, [form("a", 2, 1, mood="good", moods=["good"]), form("b", 2, 2, mood="fair")])
    write(older, [form("a", 3, 3)])
    assert stored(older, "form", "answer", "mood", "moods") == [("a", "at 3", None, None), ("b", "at 2", "fair", None)]
    write(newer, [form("a", 4, 4, mood="new", moods=["new"])])
    assert stored(older, "form", "answer", "mood", "moods")[0] == ("a", "at 4", "new", ["new"])


def test_a_key_of_another_type_than_text_or_integer_is_refused() -> None:
    with pytest.raises(ValueError, match="key 'at' is timestamp"):
        forms(ANYWHERE, mode=Upsert(keys=("at",), order=("kafka_offset",)))


def test_a_decision_made_before_another_writer_s_upsert_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two partitions, so no fence is shared: the common transaction of all upserts makes them conflict."""
    spec = forms(tmp_path)
    ours, other = FencedTable(spec), FencedTable(spec)
    ours.write([form("x", 1, 0)])
    just_before_commit(monkeypatch, lambda: other.write([form("a", 9, 0, kafka_partition=1)]))
    result = ours.write([form("a", 5, 1)])
    assert (result.conflicts, result.version) == (1, None)
    assert stored(spec, "form", "answer") == [("a", "at 9"), ("x", "at 1")]


# Sets


def photos(spec: TableSpec) -> list[Any]:
    return stored(spec, "album", "photo", "is_active", "event")


def test_a_newer_set_replaces_the_older_one(tmp_path: Path) -> None:
    spec = albums(tmp_path)
    write(spec, album(1, 1, 0, [10, 11], path="p.jpg") + album(2, 1, 1, [10]))
    write(spec, album(1, 2, 2, [11, 12]))
    assert photos(spec) == [(1, 10, False, "e2"), (1, 11, True, "e2"), (1, 12, True, "e2"), (2, 10, True, "e1")]
    assert stored(spec, "album", "photo", "path", "at", "created_at", "kafka_offset")[0] == (
        1,
        10,
        "p.jpg",
        EPOCH + timedelta(seconds=2),
        EPOCH + timedelta(seconds=1),
        2,
    ), "a photo that left keeps its values and takes the order and the source of the set that dropped it"


def test_an_older_set_changes_nothing_not_even_by_a_photo_the_newer_one_lacks(tmp_path: Path) -> None:
    spec = albums(tmp_path)
    write(spec, album(1, 5, 0, [10]))
    assert write(spec, album(1, 4, 1, [10, 11])).version is None
    assert photos(spec) == [(1, 10, True, "e0")]


def test_a_photo_comes_back(tmp_path: Path) -> None:
    spec = albums(tmp_path)
    for second, members in enumerate([[10, 11], [11], [10]]):
        write(spec, album(1, second, second, members))
    assert photos(spec) == [(1, 10, True, "e2"), (1, 11, False, "e2")]


def test_an_empty_set_deactivates_all(tmp_path: Path) -> None:
    spec = albums(tmp_path)
    write(spec, album(1, 1, 0, [10, 11]))
    write(spec, album(1, 2, 1, []))
    assert photos(spec) == [(1, 10, False, "e1"), (1, 11, False, "e1")]
    assert write(spec, album(1, 1, 2, [12])).version is None, "older than the empty set"
    write(spec, album(1, 3, 3, [11]))
    assert photos(spec) == [(1, 10, False, "e3"), (1, 11, True, "e3")]


def test_an_empty_set_of_an_unknown_group_is_remembered(tmp_path: Path) -> None:
    spec = albums(tmp_path)
    write(spec, album(1, 5, 0, []))
    assert stored(spec, "album", "question", "photo", "is_active", "event") == [(1, "", 0, False, "e0")]
    assert write(spec, album(1, 4, 1, [10])).version is None, "the older set must not appear as active"
    write(spec, album(1, 6, 2, []))
    write(spec, album(1, 5, 3, [10]))
    write(spec, album(1, 7, 4, [10]))
    assert photos(spec) == [(1, 0, False, "e4"), (1, 10, True, "e4")]


def test_several_sets_of_a_group_in_a_bundle_reduce_to_the_newest(tmp_path: Path) -> None:
    spec = albums(tmp_path)
    write(spec, album(1, 5, 0, [10]) + album(1, 7, 1, [11]) + album(1, 6, 2, [12]))
    assert photos(spec) == [(1, 11, True, "e1")]
    write(spec, album(1, 8, 3, [12]) + album(1, 9, 4, []))
    assert photos(spec) == [(1, 11, False, "e4")]


def test_a_photo_twice_in_a_set_is_one_row(tmp_path: Path) -> None:
    spec = albums(tmp_path)
    write(spec, album(1, 5, 0, [10, 10]))
    assert photos(spec) == [(1, 10, True, "e0")]


def test_a_set_replayed_changes_nothing(tmp_path: Path) -> None:
    spec = albums(tmp_path)
    rows = album(1, 5, 0, [10, 11])
    write(spec, rows)
    assert write(spec, rows).replayed == rows
    moved = [{**row, "kafka_topic_id": "other"} for row in rows]
    assert write(spec, moved).version is None, "the same event by another way is not newer"
    assert version(spec) == 1


def test_sets_meet_another_writer_s_newer_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = albums(tmp_path)
    ours, other = FencedTable(spec), FencedTable(spec)
    ours.write(album(1, 1, 0, [10]))
    just_before_commit(
        monkeypatch, lambda: other.write([{**row, "kafka_partition": 1} for row in album(1, 9, 0, [12])])
    )
    result = ours.write(album(1, 5, 1, [10, 11]) + album(2, 5, 2, [20]))
    assert (result.conflicts, result.version) == (1, 3)
    assert photos(spec) == [(1, 10, False, "e0"), (1, 12, True, "e0"), (2, 20, True, "e2")]


def test_sets_conflict_even_where_their_rows_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither set meets a row of the other, nor a file: only the transaction common to all upserts tells of it."""
    spec = albums(tmp_path)
    ours, other = FencedTable(spec), FencedTable(spec)
    ours.write(album(9, 1, 0, [1]))
    theirs = [{**row, "kafka_partition": 1} for row in album(1, 4, 0, [99])]
    just_before_commit(monkeypatch, lambda: other.write(theirs))
    assert ours.write(album(1, 5, 1, [10])).conflicts == 1
    assert photos(spec) == [(1, 10, True, "e1"), (1, 99, False, "e1"), (9, 1, True, "e0")]


@pytest.mark.parametrize(
    ("row", "column"), [({"album": None}, "album"), ({"photo": None}, "photo"), ({"question": None}, "question")]
)
def test_half_a_marker_is_refused(tmp_path: Path, row: dict[str, None], column: str) -> None:
    spec = albums(tmp_path)
    with pytest.raises(RowError, match=f"the key column '{column}' is null in a row"):
        write(spec, [{**album(1, 1, 0, [10])[0], **row}])


# The decision as a pure function, against a model that takes one record after the other


def apply(spec: TableSpec, table: dict[Any, Any], decision: Decision) -> None:
    assert isinstance(spec.mode, Upsert)
    for row in (*decision.put, *decision.touch):
        key = tuple(row[k] for k in spec.mode.keys)
        table[key] = {**table.get(key, {}), **row}


def bundles_of(records: Sequence[Any]) -> st.SearchStrategy[list[list[Any]]]:
    cuts = st.lists(st.integers(0, len(records)), max_size=5).map(sorted)
    return cuts.map(lambda at: [list(records[a:b]) for a, b in zip([0, *at], [*at, len(records)], strict=True)])


@given(st.data())
@settings(max_examples=200)
def test_however_records_are_ordered_and_bundled_the_newest_of_each_key_stays(data: st.DataObject) -> None:
    spec = forms(ANYWHERE)
    records = data.draw(
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=12).map(
            lambda drawn: [form(key, second, offset) for offset, (key, second) in enumerate(drawn)]
        )
    )
    table: dict[Any, Any] = {}
    for bundle in data.draw(bundles_of(data.draw(st.permutations(records)))):
        apply(spec, table, decide(spec, bundle, list(table.values())))
    expected = {(row["form"],): row for row in sorted(records, key=lambda r: (r["at"], r["kafka_offset"]))}
    assert table == expected


@given(st.data())
@settings(max_examples=200)
def test_however_sets_are_ordered_and_bundled_the_newest_of_each_group_is_active(data: st.DataObject) -> None:
    spec = albums(ANYWHERE)
    drawn = data.draw(
        st.lists(st.tuples(st.integers(1, 2), st.integers(0, 5), st.sets(st.integers(10, 13))), max_size=10)
    )
    records = [album(group, second, offset, sorted(ids)) for offset, (group, second, ids) in enumerate(drawn)]
    table: dict[Any, Any] = {}
    for bundle in data.draw(bundles_of(data.draw(st.permutations(records)))):
        rows = [row for record in bundle for row in record]
        apply(spec, table, decide(spec, rows, list(table.values())))

    newest = {
        group: (offset, ids) for _, offset, group, ids in sorted((s, o, g, i) for o, (g, s, i) in enumerate(drawn))
    }
    active = {(row["album"], row["photo"]) for row in table.values() if row["is_active"]}
    assert active == {(group, photo) for group, (_, ids) in newest.items() for photo in ids}
    for row in table.values():
        assert row["kafka_offset"] == newest[row["album"]][0], "each row of a group bears the newest set's source"
        assert None not in (row["question"], row["photo"])


@given(st.data())
@settings(max_examples=50)
def test_deciding_again_on_what_is_there_changes_nothing(data: st.DataObject) -> None:
    spec = albums(ANYWHERE)
    rows = [
        row
        for offset, (group, ids) in enumerate(
            data.draw(st.lists(st.tuples(st.integers(1, 3), st.sets(st.integers(10, 12))), max_size=6))
        )
        for row in album(group, offset, offset, sorted(ids))
    ]
    table: dict[Any, Any] = {}
    apply(spec, table, decide(spec, rows, []))
    assert decide(spec, rows, list(table.values())) == Decision([], [])


def test_the_table_holds_what_the_decision_says(tmp_path: Path) -> None:
    """The merge carries out puts and touches alike, here on a partitioned table with all kinds at once."""
    spec = albums(tmp_path, partition_by=("question",))
    write(spec, album(1, 1, 0, [10, 11]) + album(2, 1, 1, [20]) + album(3, 1, 2, []))
    write(spec, album(1, 2, 3, [11, 12]) + album(2, 0, 4, [21]) + album(3, 2, 5, [30]) + album(4, 1, 6, []))
    assert photos(spec) == [
        (1, 10, False, "e3"),
        (1, 11, True, "e3"),
        (1, 12, True, "e3"),
        (2, 20, True, "e1"),
        (3, 0, False, "e5"),
        (3, 30, True, "e5"),
        (4, 0, False, "e6"),
    ]
    assert [f.name for f in DeltaTable(spec.uri).schema().fields] == PHOTOS.names, "no column of the merge stays"


def test_rows_that_are_all_new_are_appended_and_files_with_known_ones_rewritten(tmp_path: Path) -> None:
    """Most bundles meet nothing."""
    spec = forms(tmp_path)
    table = FencedTable(spec)
    table.write([form("a", 1, 0), form("b", 1, 1)])
    table.write([form("c", 1, 2)])
    table.write([form("d", 1, 3), form("b", 2, 4)])
    log = [json.loads(line) for line in Path(spec.uri, "_delta_log", f"{3:020}.json").read_text().splitlines()]
    kinds = [kind for action in log for kind in action]
    # Of the two files only the one with "b" was rewritten; "d" is in a file of its own.
    assert (kinds.count("remove"), kinds.count("add"), kinds.count("txn")) == (1, 2, 2)
    assert stored(spec, "form", "answer") == [("a", "at 1"), ("b", "at 2"), ("c", "at 1"), ("d", "at 1")]
