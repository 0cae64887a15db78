"""Exactly once: what the fences of the Delta sink withstand."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError
from deltalake.fs import DeltaStorageHandler
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.fs import FileSelector, PyFileSystem

from itel_cabinet.io.delta import (
    Append,
    FencedTable,
    RowError,
    TableError,
    TableSpec,
    WriteResult,
    create_table,
    describe_table,
    files,
    get_table,
)
from itel_cabinet.io.delta.decisions import split_by_fence
from itel_cabinet.io.delta.files import KeyedFiles
from itel_cabinet.io.worker import OutageError, crash_points, prepare
from tests.support.delta_rows import (
    READINGS,
    album,
    albums,
    form,
    forms,
    just_before_commit,
    reading,
    readings,
    stored,
    version,
)

SPEC = readings("anywhere")
# A sink on another machine shares nothing with this one but the store.
SPAWN = multiprocessing.get_context("spawn")


def offsets(rows: list[Any]) -> list[int]:
    return [row["kafka_offset"] for row in rows]


# The pure function


def test_rows_below_the_fence_are_replays() -> None:
    rows = [reading(4), reading(5), reading(9), reading(1, partition=1), reading(0, topic_id="new")]
    fences = {("Zx3kQ", 0): 5}
    fresh, replayed, new = split_by_fence(SPEC, rows, lambda *at: fences.get(at))
    assert (fresh, replayed) == (rows[1:], rows[:1])
    assert new == {("Zx3kQ", 0): 10, ("Zx3kQ", 1): 2, ("new", 0): 1}


@pytest.mark.parametrize("broken", [{}, {**reading(0), "kafka_offset": None}, {**reading(0), "kafka_partition": []}])
def test_rows_without_a_source_are_refused(broken: dict[str, object]) -> None:
    with pytest.raises(RowError, match="kafka_topic_id, kafka_partition, kafka_offset must be a text and two integers"):
        split_by_fence(SPEC, [broken], lambda *_: None)


@st.composite
def deliveries(draw: st.DrawFn) -> list[list[tuple[int, int]]]:
    """Bundles of (partition, offset): each partition's offsets in order, with gaps, now and then rewound."""
    logs = draw(st.lists(st.lists(st.integers(0, 40), unique=True, max_size=12).map(sorted), min_size=1, max_size=3))
    at = [0] * len(logs)
    bundles: list[list[tuple[int, int]]] = []
    for _ in range(draw(st.integers(1, 12))):
        bundle = []
        for partition, log in enumerate(logs):
            start = draw(st.integers(0, at[partition]))
            end = draw(st.integers(start, len(log)))
            bundle += [(partition, offset) for offset in log[start:end]]
            at[partition] = max(at[partition], end)
        bundles.append(bundle)
    return bundles


@given(deliveries())
def test_whatever_is_replayed_each_offset_is_fresh_once_and_in_order(bundles: list[list[tuple[int, int]]]) -> None:
    fences: dict[tuple[str, int], int] = {}
    written: list[tuple[int, int]] = []
    for bundle in bundles:
        rows = [reading(offset, partition) for partition, offset in bundle]
        fresh, replayed, new = split_by_fence(SPEC, rows, lambda *at, known=fences: known.get(at))
        assert len(fresh) + len(replayed) == len(rows)
        assert all(offset > fences.get(at, 0) for at, offset in new.items())
        fences |= new
        written += [(row["kafka_partition"], row["kafka_offset"]) for row in fresh]
    delivered = {item for bundle in bundles for item in bundle}
    assert len(written) == len(set(written))
    assert set(written) == delivered
    for partition in {p for p, _ in written}:
        of_partition = [offset for p, offset in written if p == partition]
        assert of_partition == sorted(of_partition)


@pytest.fixture(
    params=["folder", pytest.param("azure", marks=pytest.mark.services), pytest.param("s3", marks=pytest.mark.services)]
)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a test's tables are: a folder, and then an object store."""
    return str(tmp_path) if request.param == "folder" else str(request.getfixturevalue(request.param))


# Replays


@pytest.fixture
def fresh_process(root: str) -> Callable[[], FencedTable]:
    """Makes the table object that a restarted process would have."""
    return lambda: FencedTable(readings(root))


def test_a_replay_adds_nothing(root: str, fresh_process: Callable[[], FencedTable]) -> None:
    rows = [reading(0), reading(1)]
    table = fresh_process()
    table.write(rows)
    for again in (table, fresh_process()):
        result = again.write(rows)
        assert (result.version, result.written, result.replayed) == (None, [], rows)
    assert version(readings(root)) == 1
    assert stored(readings(root), "kafka_offset") == [0, 1]


def test_a_partial_replay_adds_the_rest(root: str, fresh_process: Callable[[], FencedTable]) -> None:
    fresh_process().write([reading(0), reading(1)])
    result = fresh_process().write([reading(1), reading(2)])
    assert (offsets(result.written), offsets(result.replayed)) == ([2], [1])
    assert stored(readings(root), "kafka_offset") == [0, 1, 2]


def test_gaps_in_the_offsets_are_no_replay(root: str, fresh_process: Callable[[], FencedTable]) -> None:
    fresh_process().write([reading(0), reading(7)])
    assert offsets(fresh_process().write([reading(7), reading(8), reading(100)]).written) == [8, 100]
    assert stored(readings(root), "kafka_offset") == [0, 7, 8, 100]


def test_partitions_and_topics_have_fences_of_their_own(root: str, fresh_process: Callable[[], FencedTable]) -> None:
    fresh_process().write([reading(5), reading(9, partition=1)])
    result = fresh_process().write([reading(9), reading(9, partition=1), reading(0, topic_id="recreated")])
    assert (offsets(result.written), offsets(result.replayed), result.late) == ([9, 0], [9], 0)
    assert stored(readings(root), *SPEC.source) == [
        ("Zx3kQ", 0, 5),
        ("Zx3kQ", 0, 9),
        ("Zx3kQ", 1, 9),
        ("recreated", 0, 0),
    ]


def test_several_rows_of_one_record_stay_together(root: str, fresh_process: Callable[[], FencedTable]) -> None:
    rows = [reading(0, value="a"), reading(0, value="b")]
    fresh_process().write(rows)
    fresh_process().write(rows)
    assert stored(readings(root), "value") == ["a", "b"]


# Two writers


def test_a_decision_overtaken_before_its_commit_is_made_again(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The crux: B decides, A commits some of the same offsets, B's commit must not go through as decided."""
    spec = readings(root)
    ours, other = FencedTable(spec), FencedTable(spec)
    ours.write([reading(0)])
    just_before_commit(monkeypatch, lambda: other.write([reading(1), reading(2)]))
    result = ours.write([reading(1), reading(2), reading(3)])

    assert (offsets(result.written), offsets(result.replayed), result.conflicts) == ([3], [1, 2], 1)
    assert stored(spec, "kafka_offset") == [0, 1, 2, 3]


def test_writers_of_other_partitions_do_not_conflict(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = readings(root)
    ours, other = FencedTable(spec), FencedTable(spec)
    ours.write([reading(0), reading(0, partition=1)])
    just_before_commit(monkeypatch, lambda: other.write([reading(1, partition=1)]))
    assert ours.write([reading(1)]).conflicts == 0
    # Our commit was re-based over the other's, so its handle is past a fence that it has never read.
    assert offsets(ours.write([reading(1, partition=1), reading(2, partition=1)]).written) == [2]
    assert stored(spec, "kafka_partition", "kafka_offset") == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


def test_two_new_columns_at_the_same_moment_both_land(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = readings(root)
    create_table(spec)
    unit = FencedTable(readings(root, schema=pa.schema([*READINGS, ("unit", pa.string())])))
    room = FencedTable(readings(root, schema=pa.schema([*READINGS, ("room", pa.string())])))
    just_before_commit(monkeypatch, lambda: room.write([reading(0, partition=1, room="attic")]))
    assert unit.write([reading(0, unit="C")]).conflicts == 1
    assert stored(spec, "kafka_partition", "unit", "room") == [(0, "C", None), (1, None, "attic")]


def test_columns_added_behind_the_back_of_the_column_being_added(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find their column missing at one version; the later of the two alterations is decided again."""
    spec = readings(root)
    create_table(spec)
    unit = FencedTable(readings(root, schema=pa.schema([*READINGS, ("unit", pa.string())])))
    room = FencedTable(readings(root, schema=pa.schema([*READINGS, ("room", pa.string())])))
    update, waiting = DeltaTable.update_incremental, [True]

    def updated(table: DeltaTable) -> None:
        update(table)
        if waiting:
            waiting.pop()
            room.write([reading(0, partition=1, room="attic")])

    monkeypatch.setattr(DeltaTable, "update_incremental", updated)
    assert unit.write([reading(0, unit="C")]).conflicts == 1
    assert stored(spec, "kafka_partition", "unit", "room") == [(0, "C", None), (1, None, "attic")]


def test_a_merge_beside_an_optimize_lands(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = forms(root)
    table = FencedTable(spec)
    for offset in range(3):
        table.write([form(f"f{offset}", offset, offset)])
    just_before_commit(monkeypatch, DeltaTable(spec.uri).optimize.compact)
    assert table.write([form("f1", 9, 3)]).conflicts == 1
    assert stored(spec, "form", "answer") == [("f0", "at 0"), ("f1", "at 9"), ("f2", "at 2")]


def test_an_optimize_beside_the_sinks_own_compaction_loses_no_file(root: str) -> None:
    spec = forms(root, compact_every=3)
    table = FencedTable(spec)
    rows = [form(f"f{offset}", offset, offset) for offset in range(3)]
    table.write(rows[:1])
    table.write(rows[1:2])
    optimizer = DeltaTable(spec.uri)
    table.write(rows[2:])
    with pytest.raises(CommitFailedError, match="deleted data"):
        optimizer.optimize.compact()
    assert stored(spec, "form") == ["f0", "f1", "f2"]


def test_an_append_beside_an_optimize_lands(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = readings(root)
    table = FencedTable(spec)
    for offset in range(3):
        table.write([reading(offset)])
    just_before_commit(monkeypatch, DeltaTable(spec.uri).optimize.compact)
    table.write([reading(3)])
    assert stored(spec, "kafka_offset") == [0, 1, 2, 3]


def test_a_merge_beside_a_deletion_lands(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = forms(root)
    table = FencedTable(spec)
    table.write([form("a", 1, 0), form("b", 1, 1)])
    just_before_commit(monkeypatch, lambda: DeltaTable(spec.uri).delete("form = 'b'"))
    assert table.write([form("b", 2, 2)]).conflicts == 1
    assert stored(spec, "form", "answer") == [("a", "at 1"), ("b", "at 2")]


def test_endless_conflicts_end_as_an_error_of_the_world(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    spec = readings(root, outage_seconds=5.0)
    table = FencedTable(spec, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s), random=lambda: 1.0)
    table.write([reading(0)])

    def lose(point: str) -> None:
        raise CommitFailedError(f"lost at {point}")

    monkeypatch.setattr(crash_points, "maybe_crash", lose)
    with pytest.raises(OutageError, match=r"lost against other writers for 5 s \(lost at .*\); run fewer of them"):
        table.write([reading(1)])
    assert 5.0 <= now[0] < 7.0


# What is filled in later


def path_of(photo: int, path: str) -> dict[str, Any]:
    return {"album": 1, "question": "q", "photo": photo, "path": path}


def test_a_fill_keeps_the_order_and_the_fences(root: str) -> None:
    spec = albums(root)
    table = FencedTable(spec)
    table.write(album(1, 5, 0, [1, 2]))
    assert table.select(["photo"], "path IS NULL AND is_active") == [{"photo": 1}, {"photo": 2}]
    fences = describe_table(spec.uri).fences
    assert FencedTable(spec).fill([path_of(1, "p1"), path_of(3, "p3")], "path") == 1, "no row is made"
    assert FencedTable(spec).fill([path_of(1, "another")], "path") == 0, "what is there stays"
    assert {k: v for k, v in describe_table(spec.uri).fences.items() if "/upsert" not in k} == {
        k: v for k, v in fences.items() if "/upsert" not in k
    }
    assert FencedTable(spec).write(album(1, 4, 1, [2, 3])).version is None, "an older set is still older"
    assert stored(spec, "photo", "path", "kafka_offset", "event") == [(1, "p1", 0, "e0"), (2, None, 0, "e0")]
    table.write(album(1, 6, 2, [1, 3]))
    assert stored(spec, "photo", "path", "is_active") == [(1, "p1", True), (2, None, False), (3, None, True)]
    assert table.write(album(1, 6, 2, [1, 3])).written == [], "and a replay still a replay"


def test_an_upsert_overtaken_by_a_fill_keeps_what_it_filled_in(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = albums(root)
    table, other = FencedTable(spec), FencedTable(spec)
    table.write(album(1, 5, 0, [1, 2]))
    just_before_commit(monkeypatch, lambda: other.fill([path_of(1, "p1")], "path"))
    assert table.write(album(1, 6, 1, [1, 2])).conflicts == 1
    assert stored(spec, "photo", "path", "event") == [(1, "p1", "e1"), (2, None, "e1")]


def test_a_fill_overtaken_by_an_upsert_fills_the_newer_row(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = albums(root)
    table, other = FencedTable(spec), FencedTable(spec)
    table.write(album(1, 5, 0, [1, 2]))
    just_before_commit(monkeypatch, lambda: other.write(album(1, 6, 1, [1])))
    assert table.fill([path_of(1, "p1")], "path") == 1
    assert stored(spec, "photo", "path", "event", "is_active") == [(1, "p1", "e1", True), (2, None, "e1", False)]


def _live_copy(spec: TableSpec, sizes: list[int], partitions: int, barrier: Any, results: Any) -> None:
    """One copy of a job: writes offsets 0..99 of each partition in bundles of its own sizes."""
    table = FencedTable(spec)
    barrier.wait(60)
    written = conflicts = at = 0
    while at < 100:
        size = sizes[at % len(sizes)]
        rows = [reading(o, p, room=str(sizes)) for o in range(at, min(100, at + size)) for p in range(partitions)]
        result = table.write(rows)
        written += len(result.written)
        conflicts += result.conflicts
        at += size
    results.put((written, conflicts))


def _upserting_copy(spec: TableSpec, first: int, barrier: Any, results: Any) -> None:
    """One copy of a job that upserts 22 forms, on a partition of its own; the later event wins whoever brings it."""
    table = FencedTable(spec)
    barrier.wait(60)
    conflicts = 0
    for offset in range(20):
        rows = [form(f"f{(offset + i) % 60}", 2 * offset + first, offset, kafka_partition=first) for i in range(3)]
        conflicts += table.write(rows).conflicts
    results.put((0, conflicts))


# On a busy machine one process may be through before the other has begun.
_UNTIL_THEY_MEET = 10


def _together(targets: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> list[tuple[int, int]]:
    barrier, results = SPAWN.Barrier(len(targets)), SPAWN.Queue()
    copies = [SPAWN.Process(target=target, args=(*args, barrier, results), daemon=True) for target, args in targets]
    for copy in copies:
        copy.start()
    told = [results.get(timeout=120) for _ in copies]
    for copy in copies:
        copy.join(60)
    assert [copy.exitcode for copy in copies] == [0] * len(copies)
    return told


def test_two_live_copies_write_each_offset_once(root: str) -> None:
    """Both also find the table missing and create it at the same moment."""
    for attempt in range(_UNTIL_THEY_MEET):
        spec = readings(f"{root}/{attempt}", schema=pa.schema([*READINGS, ("room", pa.string())]))
        told = _together([(_live_copy, (spec, [7, 3, 11], 2)), (_live_copy, (spec, [5, 9], 2))])
        assert stored(spec, "kafka_partition", "kafka_offset") == sorted(
            ((p, o) for p in range(2) for o in range(100)), key=repr
        )
        assert sum(written for written, _ in told) == 200
        if sum(conflicts for _, conflicts in told):
            return
    pytest.fail("the copies never met, so the test proves nothing")


def test_two_live_copies_keep_the_newest_of_each_key(root: str) -> None:
    expected: dict[str, str] = {}
    for offset in range(20):
        for i in range(3):
            expected[f"f{(offset + i) % 60}"] = f"at {2 * offset + 1}"
    for attempt in range(_UNTIL_THEY_MEET):
        spec = forms(f"{root}/{attempt}", compact_every=7)
        told = _together([(_upserting_copy, (spec, 0)), (_upserting_copy, (spec, 1))])
        assert stored(spec, "form", "answer") == sorted(expected.items(), key=repr)
        if sum(conflicts for _, conflicts in told):
            return
    pytest.fail("the copies never met, so the test proves nothing")


def test_threads_of_one_process_write_each_offset_once(root: str) -> None:
    spec = readings(root)
    rows = [reading(o) for o in range(50)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: get_table(spec).write(rows), range(4)))
    assert sorted(len(r.written) for r in results) == [0, 0, 0, 50]
    assert [r.conflicts for r in results] == [0] * 4, "they share one lock"
    assert stored(spec, "kafka_offset") == list(range(50))


# Crashes


Point = tuple[str, list[Any]]


def on_each_store(*points: Point) -> Any:
    """Every point on a folder; of the object stores the first, and the others once more."""
    cases = [("folder", *point) for point in points]
    for store in ("azure", "s3"):
        cases += [
            pytest.param(store, *point, marks=[pytest.mark.services, *[pytest.mark.slow] * (number > 0)])
            for number, point in enumerate(points)
        ]
    return pytest.mark.parametrize(("root", "point", "survived"), cases, indirect=["root"])


def _write_one_by_one(spec: TableSpec) -> None:
    for offset in range(4):
        FencedTable(spec).write([reading(offset)])


def _write_until_killed(spec: TableSpec) -> None:
    prepare()
    _write_one_by_one(spec)


@on_each_store(
    ("after-commit:readings:3", [0, 1, 2]),
    ("before-commit:readings:3", [0, 1]),
    ("before-commit:readings", []),
    ("after-commit:readings", [0]),
)
def test_a_process_killed_around_a_commit_loses_and_repeats_nothing(
    root: str, monkeypatch: pytest.MonkeyPatch, point: str, survived: list[int]
) -> None:
    spec = readings(root)
    monkeypatch.setenv("ITEL_CABINET_CRASH_AT", point)
    process = SPAWN.Process(target=_write_until_killed, args=(spec,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert stored(spec, "kafka_offset") == survived

    _write_one_by_one(spec)
    assert stored(spec, "kafka_offset") == [0, 1, 2, 3]


def _upsert_one_by_one(spec: TableSpec) -> None:
    for rows in ([form("a", 1, 0), form("b", 1, 1)], [form("c", 1, 2)], [form("a", 2, 3), form("d", 1, 4)]):
        FencedTable(spec).write(rows)


def _upsert_until_killed(spec: TableSpec) -> None:
    prepare()
    _upsert_one_by_one(spec)


@on_each_store(
    ("after-files:forms", ["a1", "b1", "c1"]),
    ("before-commit:forms:3", ["a1", "b1", "c1"]),
    ("after-commit:forms:3", ["a2", "b1", "c1", "d1"]),
    ("before-compaction:forms", ["a1", "b1", "c1"]),
)
def test_a_process_killed_while_it_rewrites_files_loses_and_repeats_nothing(
    root: str, monkeypatch: pytest.MonkeyPatch, point: str, survived: list[str]
) -> None:
    spec = forms(root, compact_every=1 if "compaction" in point else 100)
    monkeypatch.setenv("ITEL_CABINET_CRASH_AT", point)
    process = SPAWN.Process(target=_upsert_until_killed, args=(spec,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert _versions_of_forms(spec) == survived

    _upsert_one_by_one(spec)
    assert _versions_of_forms(spec) == ["a2", "b1", "c1", "d1"]


def _versions_of_forms(spec: TableSpec) -> list[str]:
    return [f"{key}{answer.removeprefix('at ')}" for key, answer in stored(spec, "form", "answer")]


# What happens to a table


@pytest.fixture
def aged(root: str) -> FencedTable:
    """A table with ten commits by the handle that is returned, with readings 0..9 in two partitions."""
    table = FencedTable(readings(root, properties={"delta.logRetentionDuration": "interval 0 seconds"}))
    for row in TEN:
        table.write([row])
    return table


TEN = [reading(o, partition=o % 2) for o in range(10)]


def assert_fences_hold(table: FencedTable) -> None:
    for writer in (FencedTable(table.spec), table):
        result = writer.write(TEN)
        assert (result.version, result.written, result.replayed) == (None, [], TEN)
    assert table.write([*TEN, reading(10)]).written == [reading(10)]
    assert stored(table.spec, "kafka_offset") == list(range(11))


def test_fences_survive_a_checkpoint_and_the_clean_up_of_the_log(aged: FencedTable) -> None:
    table = DeltaTable(aged.spec.uri)
    table.create_checkpoint()
    table.cleanup_metadata()
    assert _log_entries(aged.spec) == [10], "the commits with the fences are gone"
    assert_fences_hold(aged)


def test_fences_survive_optimize_and_vacuum(aged: FencedTable) -> None:
    DeltaTable(aged.spec.uri).optimize.compact()
    gone = DeltaTable(aged.spec.uri).vacuum(0, dry_run=False, enforce_retention_duration=False)
    assert len(gone) == 10
    assert len(DeltaTable(aged.spec.uri).file_uris()) == 1
    assert_fences_hold(aged)


def test_rows_that_were_removed_come_back_once_when_they_are_read_again(aged: FencedTable) -> None:
    DeltaTable(aged.spec.uri).delete("kafka_offset >= 5")
    DeltaTable(aged.spec.uri).restore(3)
    result = aged.write(TEN)
    assert (result.written, result.replayed, result.late) == (TEN[3:], TEN[:3], 7)
    assert FencedTable(aged.spec).write(TEN).replayed == TEN
    assert stored(aged.spec, "kafka_offset") == list(range(10))


# Below the fence


def test_what_failed_at_first_is_written_when_it_is_read_again(root: str) -> None:
    table = FencedTable(readings(root))
    table.write([reading(0), reading(2), reading(5)])
    again = [reading(offset) for offset in range(7)]
    result = FencedTable(table.spec).write(again)
    assert (offsets(result.written), offsets(result.replayed), result.late) == ([1, 3, 4, 6], [0, 2, 5], 3)
    assert table.write(again).replayed == again
    assert stored(table.spec, "kafka_offset") == list(range(7))
    assert describe_table(table.spec.uri).fences == {"itel-cabinet/1/Zx3kQ/0": 7}


def test_other_records_at_old_offsets_are_written_too(root: str) -> None:
    """As after a broker was brought back from a backup: the log goes on at offsets that were read before."""
    spec = readings(root, mode=Append(identity=("value",)))
    FencedTable(spec).write([reading(offset) for offset in range(10)])
    new = [reading(7), reading(8, value="new"), reading(9, value="new")]
    result = FencedTable(spec).write(new)
    assert (result.written, result.replayed, result.late) == (new[1:], new[:1], 2)
    assert FencedTable(spec).write(new).replayed == new
    assert sorted(stored(spec, "kafka_offset", "value"))[-4:] == [(8, "new"), (8, "v8"), (9, "new"), (9, "v9")]
    assert describe_table(spec.uri).fences == {"itel-cabinet/1/Zx3kQ/0": 10}


def test_forms_that_failed_at_first_are_upserted_if_nothing_newer_is_there(root: str) -> None:
    table = FencedTable(forms(root))
    table.write([form("b", 5, 5), form("c", 9, 9)])
    again = [form("a", 1, 1), form("b", 2, 2), form("b", 5, 5), form("c", 7, 7)]
    result = FencedTable(table.spec).write(again)
    assert (result.written, result.replayed, result.late) == (again[:1], again[1:], 1)
    assert stored(table.spec, "form", "answer") == [("a", "at 1"), ("b", "at 5"), ("c", "at 9")]


def test_sets_that_failed_at_first_are_complete(root: str) -> None:
    table = FencedTable(albums(root))
    table.write(album(1, 5, 5, [7]))
    again = [*album(1, 3, 3, [8]), *album(2, 4, 4, [1, 2]), *album(1, 5, 5, [7])]
    result = FencedTable(table.spec).write(again)
    assert (result.written, result.late) == (again[1:3], 1)
    assert stored(table.spec, "album", "photo", "is_active") == [(1, 7, True), (2, 1, True), (2, 2, True)]


def test_a_late_record_that_another_copy_writes_first_is_written_once(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = FencedTable(readings(root)), FencedTable(readings(root))
    slow.write([reading(5)])
    just_before_commit(monkeypatch, lambda: quick.write([reading(3)]))
    result = slow.write([reading(3)])
    assert (result.written, result.replayed) == ([], [reading(3)])
    assert stored(slow.spec, "kafka_offset") == [3, 5]


# What else the fences survive


def test_fences_survive_the_sinks_own_compaction(root: str) -> None:
    spec = forms(root, compact_every=4)
    table = FencedTable(spec)
    rows = [form(f"f{o}", o, o) for o in range(8)]
    results: list[WriteResult] = [table.write([row]) for row in rows]
    assert [r.version for r in results] == [1, 2, 3, 4, 6, 7, 8, 9], "version 5 is a compaction, and so is 10"
    assert version(spec) == 10
    assert len(DeltaTable(spec.uri).file_uris()) == 1
    for writer in (table, FencedTable(spec)):
        assert writer.write(rows).replayed == rows


def test_an_append_table_is_compacted_too(root: str) -> None:
    """Each file would cost every later commit; a copy of the job beside it is not disturbed."""
    spec = readings(root, compact_every=5)
    table, other = FencedTable(spec), FencedTable(spec)
    assert other.write(TEN[:1]).written == TEN[:1]
    for row in TEN[1:6]:
        table.write([row])
    assert [commit["operation"] for commit in DeltaTable(spec.uri).history()].count("OPTIMIZE") == 1
    assert len(DeltaTable(spec.uri).file_uris()) == 1
    result = other.write(TEN)
    assert (result.replayed, result.written) == (TEN[:6], TEN[6:])
    assert stored(spec, "kafka_offset") == list(range(10))


@pytest.mark.parametrize("cleans", [True, False])
def test_the_log_of_before_its_retention_goes_with_the_small_files(root: str, cleans: bool) -> None:
    """Not at each commit, which would look through the whole log, and not where the table says never."""
    properties = {
        "delta.logRetentionDuration": "interval 0 seconds",
        "delta.checkpointInterval": "2",
        "delta.enableExpiredLogCleanup": str(cleans).lower(),
    }
    table = FencedTable(readings(root, compact_every=5, properties=properties))
    for row in TEN[:4]:
        table.write([row])
    assert _log_entries(table.spec) == [*range(5)]
    for row in TEN[4:]:
        table.write([row])
    assert (0 in _log_entries(table.spec)) is not cleans
    assert_fences_hold(table)


def _log_entries(spec: TableSpec) -> list[int]:
    log = PyFileSystem(DeltaStorageHandler(spec.uri)).get_file_info(FileSelector("_delta_log"))
    return sorted(int(info.base_name[:20]) for info in log if info.extension == "json")


def test_a_compaction_holds_few_rows_at_a_time(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that are much alike take fifty times the bytes in memory that their file has: its size says nothing."""
    spec = forms(root, compact_every=40)
    table = FencedTable(spec)
    monkeypatch.setattr(files, "_HELD_IN_MEMORY", 2 * 1024 * 1024)
    held: list[int] = []
    write_all = KeyedFiles._write_all

    def watched(self: KeyedFiles, rows: pa.Table, rows_a_file: int) -> Any:
        held.append(rows.nbytes)
        return write_all(self, rows, rows_a_file)

    monkeypatch.setattr(KeyedFiles, "_write_all", watched)
    texts = [f"{number} {'much alike ' * 10_000}" for number in range(80)]
    rows = [form(f"f{number * 37 % 80:02}", 1, number, answer=text) for number, text in enumerate(texts)]
    for start in range(0, 80, 2):
        table.write(rows[start : start + 2])
    assert len(held) > 2
    assert max(held) < 6 * 1024 * 1024 < sum(held), "two parts of a compaction are not held at once"
    assert len(DeltaTable(spec.uri).file_uris()) < 40
    assert stored(spec, "form", "answer") == sorted((row["form"], row["answer"]) for row in rows)


def test_a_failed_compaction_does_not_fail_the_bundle(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = forms(root, compact_every=2)
    table = FencedTable(spec)
    table.write([form("a", 1, 0)])

    def conflict(point: str) -> None:
        if point == "after-commit:forms":
            FencedTable(spec).write([form("a", 2, 5)])

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(crash_points, "maybe_crash", conflict)
        meanwhile.setattr("itel_cabinet.io.delta.files.KeyedFiles.compact", _raise_conflict)
        assert offsets(table.write([form("b", 1, 1)]).written) == [1]
    assert offsets(table.write([form("a", 2, 5), form("d", 1, 6)]).written) == [6]
    assert stored(spec, "form", "answer") == [("a", "at 2"), ("b", "at 1"), ("d", "at 1")]


def _raise_conflict(*_: object, **__: object) -> None:
    raise CommitFailedError("a concurrent transaction deleted data")


@pytest.mark.parametrize("make", [readings, albums])
def test_a_table_with_transaction_retention_is_refused(root: str, make: Callable[[str], TableSpec]) -> None:
    spec = make(root)
    properties = {"delta.setTransactionRetentionDuration": "interval 7 days"}
    DeltaTable.create(spec.uri, spec.schema, configuration=properties)
    attempts: list[Callable[[], object]] = [lambda: FencedTable(spec).write([reading(0)]), lambda: create_table(spec)]
    for attempt in attempts:
        with pytest.raises(TableError, match="UNSET TBLPROPERTIES") as caught:
            attempt()
        assert "delta.setTransactionRetentionDuration" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert version(spec) == 0


def test_transaction_retention_set_while_running_is_noticed_even_at_the_last_moment(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = readings(root)
    table = FencedTable(spec)
    table.write([reading(0)])
    retention = {"delta.setTransactionRetentionDuration": "interval 7 days"}
    just_before_commit(monkeypatch, lambda: DeltaTable(spec.uri).alter.set_table_properties(retention))
    with pytest.raises(TableError, match="UNSET TBLPROPERTIES"):
        table.write([reading(1)])
    assert stored(spec, "kafka_offset") == [0]


# What the sink stands on in delta-rs; should one of these fail after an upgrade, so does the sink


def test_delta_rs_refuses_a_transaction_that_was_overtaken_through_the_same_handle_only(root: str) -> None:
    def commit(table: DeltaTable, app: str) -> None:
        rows = pa.Table.from_pylist([reading(0)], schema=READINGS)
        write_deltalake(
            table, rows, mode="append", commit_properties=CommitProperties(app_transactions=[Transaction(app, 1)])
        )

    spec = readings(root)
    create_table(spec)
    decided, winner = DeltaTable(spec.uri), DeltaTable(spec.uri)
    commit(winner, "fence")
    with pytest.raises(CommitFailedError, match="Concurrent transaction"):
        commit(decided, "fence")
    commit(decided, "another")
    commit(DeltaTable(spec.uri), "fence")
    assert version(spec) == 3
