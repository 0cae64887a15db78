"""Tables under maintenance, beside the jobs that write them: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shlex
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from pyarrow.fs import FileSelector

from itel_cabinet.io.delta import (
    FencedTable,
    Move,
    TableError,
    TableSpec,
    carry_out,
    describe_table,
    fences_at,
    optimize,
    plan_fences,
    plan_restore,
    vacuum,
)
from itel_cabinet.io.delta.fences import Change
from itel_cabinet.io.delta.files import KeyedFiles
from itel_cabinet.io.delta.inspect import storage
from itel_cabinet.io.delta.maintenance import Vacuumed
from itel_cabinet.io.kafka import Cluster
from itel_cabinet.local.samples import Generator, Produced, Receipt, Shares, produce
from itel_cabinet.local.services import Broker
from itel_cabinet.pipeline.options import Settings
from itel_cabinet.pipeline.queries import Session, bind, catalogue
from itel_cabinet.pipeline.tables import ATTACHMENTS, BODIES, FORMS, LEDGER, TRACKING, table_specs
from itel_cabinet.transforms.rows import make_tracking_row
from tests.conftest import TopicFactory
from tests.support.accounting import assert_everything_accounted_for
from tests.support.cabinet_samples import event, record
from tests.support.delta_rows import album, albums, form, forms, just_before_commit, reading, readings, stored, version
from tests.support.jobs import Stack, wait_for
from tests.support.printed import Printed

NOW = datetime(2026, 1, 10, 16, tzinfo=UTC)
EMPTY = (FORMS, ATTACHMENTS, LEDGER, BODIES)
TOPIC = "Zx3kQ"
WEEKS_AGO = time.time() - 30 * 24 * 3600


@pytest.fixture(params=["folder", pytest.param("azure", marks=pytest.mark.services)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a test's tables are: a folder, and then an object store."""
    return str(tmp_path) if request.param == "folder" else str(request.getfixturevalue("azure"))


def written(table: FencedTable, rows: list[Any]) -> list[int]:
    return [row["kafka_offset"] for row in table.write(rows).written]


def fences(spec: TableSpec) -> dict[int, int]:
    return {partition: at for (_, partition), at in fences_at(spec)[1].items()}


def restored(spec: TableSpec, to: int) -> int:
    return carry_out(spec, plan_restore(spec, to), watch_seconds=0)


# --------------------------------------------------------------------------------------------------- restore and fences


def test_a_restore_lowers_the_fences_in_the_same_commit(root: str) -> None:
    spec = readings(root)
    running = FencedTable(spec)
    ten = [reading(o, partition=o % 2) for o in range(10)]
    for row in ten:
        running.write([row])
    change = plan_restore(spec, 4)
    assert change == Change(10, (Move(TOPIC, 0, 9, 3), Move(TOPIC, 1, 10, 4)), restore=4)
    assert version(spec) == 10, "a plan changes nothing"
    assert carry_out(spec, change, watch_seconds=0) == version(spec) == 11
    assert (fences(spec), stored(spec, "kafka_offset")) == ({0: 3, 1: 4}, [0, 1, 2, 3])
    # A handle that has read the higher fences goes by the lower ones too, and so does a new one.
    assert written(running, ten) == [4, 5, 6, 7, 8, 9]
    assert written(FencedTable(spec), ten) == []
    assert stored(spec, "kafka_offset") == list(range(10))


def test_a_topic_that_a_restored_version_does_not_know_is_read_whole(root: str) -> None:
    spec = readings(root)
    table = FencedTable(spec)
    table.write([reading(5)])
    made_anew = [reading(o, topic_id="new") for o in range(3)]
    table.write(made_anew)
    assert plan_restore(spec, 1).moves == (Move(TOPIC, 0, 6, 6), Move("new", 0, 3, 0))
    restored(spec, 1)
    assert written(table, made_anew) == [0, 1, 2]
    assert stored(spec, "kafka_topic_id", "kafka_offset") == [(TOPIC, 0, 5)[::2], ("new", 0), ("new", 1), ("new", 2)]


def test_a_restore_that_is_undone_raises_the_fences_again(tmp_path: Path) -> None:
    spec = readings(tmp_path)
    table = FencedTable(spec)
    for offset in range(4):
        table.write([reading(offset)])
    restored(spec, 2)
    table.write([reading(2, value="again")])
    assert plan_restore(spec, 4).moves == (Move(TOPIC, 0, 3, 4),)
    restored(spec, 4)
    assert written(table, [reading(o) for o in range(6)]) == [4, 5]
    assert stored(spec, "value") == ["v0", "v1", "v2", "v3", "v4", "v5"]


def test_an_upserted_table_is_restored_and_written_again(root: str) -> None:
    spec = albums(root)
    table = FencedTable(spec)
    bundles = [album(1, 1, 0, [10, 11]), album(2, 1, 1, [20]), album(1, 2, 2, [11, 12]), album(2, 2, 3, [])]
    for bundle in bundles:
        table.write(bundle)
    photos = stored(spec, "album", "photo", "is_active", "event", "kafka_offset")
    change = plan_restore(spec, 2)
    assert change.moves == (Move(TOPIC, 0, 4, 2),), "the transaction common to all upserts is no fence"
    restored(spec, 2)
    assert stored(spec, "album", "photo", "is_active") == [(1, 10, True), (1, 11, True), (2, 20, True)]
    assert written(table, [row for bundle in bundles for row in bundle]) == [2, 2, 3]
    assert stored(spec, "album", "photo", "is_active", "event", "kafka_offset") == photos


@pytest.mark.parametrize("make", [readings, forms])
def test_a_writer_that_a_restore_overtakes_decides_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], TableSpec]
) -> None:
    """Its partition's fence does not move, so nothing but the restore's own commit tells it of the change."""
    spec = make(tmp_path)
    row = reading if make is readings else lambda o, partition=0: form(f"f{o}", o, o, kafka_partition=partition)
    table = FencedTable(spec)
    table.write([row(0)])
    table.write([row(0, partition=1)])
    just_before_commit(monkeypatch, lambda: restored(spec, 1))
    result = table.write([row(1)])
    assert (result.conflicts, fences(spec)) == (1, {0: 2, 1: 0})
    assert stored(spec, "kafka_partition", "kafka_offset") == [(0, 0), (0, 1)]


def test_fences_are_set_and_looked_back_at(root: str) -> None:
    spec = readings(root)
    table = FencedTable(spec)
    table.write([reading(3), reading(7, partition=1)])
    DeltaTable(spec.uri).delete("kafka_partition = 1")
    before = fences(spec)
    change = plan_fences(spec, lambda now: {(TOPIC, 1): now[TOPIC, 1] - 3})
    assert change.moves == (Move(TOPIC, 1, 8, 5),)
    carry_out(spec, change, watch_seconds=0)
    assert (before, fences(spec)) == ({0: 4, 1: 8}, {0: 4, 1: 5})
    assert fences_at(spec, 1) == (1, {(TOPIC, 0): 4, (TOPIC, 1): 8})
    assert written(table, [reading(3), reading(5, partition=1)]) == [5]
    assert stored(spec, "kafka_partition", "kafka_offset") == [(0, 3), (1, 5)]


def test_the_latest_transaction_of_an_id_counts_even_if_it_is_the_lowest(root: str) -> None:
    """What lowered fences stand on in delta-rs: on a fresh handle, an older one brought up to date, and checkpoints."""
    spec = readings(root)
    FencedTable(spec).write([reading(9)])
    app, older = spec.fence_id(TOPIC, 0), DeltaTable(spec.uri)
    for at in (4, 0, 2):
        handle = DeltaTable(spec.uri)
        handle.create_write_transaction(
            [], "append", handle.schema(), commit_properties=CommitProperties(app_transactions=[Transaction(app, at)])
        )
        older.update_incremental()
        assert [one.transaction_version(app) for one in (older, DeltaTable(spec.uri))] == [at, at]
        DeltaTable(spec.uri).create_checkpoint()
        assert DeltaTable(spec.uri).transaction_version(app) == at
    assert [DeltaTable(spec.uri, version=v).transaction_version(app) for v in range(5)] == [None, 10, 4, 0, 2]


def test_neither_is_done_to_a_table_that_a_job_writes(root: str) -> None:
    spec = readings(root)
    table = FencedTable(spec)
    table.write([reading(0)])
    table.write([reading(1)])
    at = iter(range(2, 9))
    for change in (plan_restore(spec, 1), plan_fences(spec, lambda _: {(TOPIC, 0): 0})):
        with pytest.raises(TableError, match=r"went from version \d to \d within 4 s, so a job or command writes"):
            carry_out(spec, change, watch_seconds=4, sleep=lambda _: table.write([reading(next(at))]))
    with pytest.raises(TableError, match="went from version 2 to 4 within 0 s"):
        carry_out(spec, Change(2, (Move(TOPIC, 0, 2, 0),)), watch_seconds=0)
    assert (fences(spec), stored(spec, "kafka_offset")) == ({0: 4}, [0, 1, 2, 3])


@pytest.mark.parametrize("method", ["restore", "create_write_transaction"])
def test_a_commit_at_the_very_last_moment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    spec = readings(tmp_path)
    table = FencedTable(spec)
    table.write([reading(0)])
    table.write([reading(1)])
    change = plan_restore(spec, 1) if method == "restore" else plan_fences(spec, lambda _: {(TOPIC, 0): 0})
    act = getattr(DeltaTable, method)

    def late(*given: Any, **named: Any) -> Any:
        table.write([reading(2)])
        return act(*given, **named)

    monkeypatch.setattr(DeltaTable, method, late)
    with pytest.raises(TableError, match=r"was written to after version 2, .*: stop it first; nothing was changed"):
        carry_out(spec, change, watch_seconds=0)
    assert (fences(spec), stored(spec, "kafka_offset")) == ({0: 3}, [0, 1, 2])


def test_a_version_that_cannot_be_had_is_refused(tmp_path: Path) -> None:
    spec = readings(tmp_path, properties={"delta.logRetentionDuration": "interval 0 seconds"})
    table = FencedTable(spec)
    for offset in range(4):
        table.write([reading(offset)])
    with pytest.raises(TableError, match="is at version 4: give an older one than that, not 4"):
        plan_restore(spec, 4)
    with pytest.raises(TableError, match="has no version 9: its log goes from 0 to 4"):
        fences_at(spec, 9)
    DeltaTable(spec.uri).create_checkpoint()
    DeltaTable(spec.uri).cleanup_metadata()
    table.write([reading(4)])
    with pytest.raises(TableError, match="has no version 3: its log goes from 4 to 5"):
        plan_restore(spec, 3)
    DeltaTable(spec.uri).alter.set_table_properties({"delta.logRetentionDuration": "interval 1 day"})
    optimize(spec)
    vacuum(spec, retention_hours=0)
    with pytest.raises(TableError, match="5 files of version 5 are gone, deleted by a vacuum"):
        plan_restore(spec, 5)
    assert stored(spec, "kafka_offset") == [0, 1, 2, 3, 4]


# -------------------------------------------------------------------------------------------------- optimize and vacuum


def test_optimize_puts_small_files_together_and_leaves_fences_alone(root: str) -> None:
    spec = albums(root, partition_by=("question",))
    table = FencedTable(spec)
    for offset in range(6):
        table.write(album(offset, 1, offset, [1, 2]))
    before = stored(spec, "album", "photo", "kafka_offset")
    known = describe_table(spec.uri).fences
    planned = optimize(spec, dry_run=True)
    assert (planned.before[0], planned.after, planned.rewritten, version(spec)) == (6, None, 6, 6)
    done = optimize(spec)
    assert done.after is not None
    assert (done.before, done.after[0], done.rewritten, done.version) == (planned.before, 1, 6, 7)
    again = optimize(spec)
    assert (again.before, again.after, again.version) == (done.after, done.after, None)
    assert optimize(spec, dry_run=True).rewritten == 0
    assert describe_table(spec.uri).fences == known
    assert stored(spec, "album", "photo", "kafka_offset") == before
    assert table.write(album(5, 1, 5, [1, 2])).written == []


def test_z_order_sorts_the_rows(tmp_path: Path) -> None:
    spec = readings(tmp_path)
    table = FencedTable(spec)
    shuffled = random.Random(1).sample(range(300), 300)
    for first in range(0, 300, 100):
        table.write([reading(first + i, value=f"{n:03}") for i, n in enumerate(shuffled[first : first + 100])])
    done = optimize(spec, z_order=["value"])
    assert (done.rewritten, done.after and done.after[0]) == (3, 1)
    values = DeltaTable(spec.uri).to_pyarrow_table()["value"].to_pylist()
    assert values == sorted(values) == [f"{n:03}" for n in range(300)]
    assert fences(spec) == {0: 300}


def test_columns_that_rows_cannot_be_sorted_by_are_refused(tmp_path: Path) -> None:
    spec = albums(tmp_path, partition_by=("question",))
    FencedTable(spec).write(album(1, 1, 0, [1]))
    with pytest.raises(TableError, match="has no column 'nope'"):
        optimize(spec, z_order=["album", "nope"])
    with pytest.raises(TableError, match="is partitioned by 'question', so its files are sorted by it already"):
        optimize(spec, z_order=["question"])


def test_an_optimize_that_a_job_overtakes_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = forms(tmp_path)
    table = FencedTable(spec)
    for offset in range(4):
        table.write([form(f"f{offset}", offset, offset)])
    compact, overtaking, waits = KeyedFiles.compact, [form("f1", 9, 4), form("f2", 9, 5)], list[float]()

    def overtaken(*given: Any, **named: Any) -> Any:
        if overtaking:
            table.write([overtaking.pop(0)])
        return compact(*given, **named)

    monkeypatch.setattr(KeyedFiles, "compact", overtaken)
    done = optimize(spec, sleep=waits.append, random=lambda: 1.0)
    assert (done.conflicts, waits, len(DeltaTable(spec.uri).file_uris())) == (2, [0.2, 0.4], 1)
    assert stored(spec, "form", "answer") == [("f0", "at 0"), ("f1", "at 9"), ("f2", "at 9"), ("f3", "at 3")]


def test_an_optimize_that_always_loses_ends_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = forms(tmp_path)
    FencedTable(spec).write([form("a", 0, 0)])

    def lost(*_: Any, **__: Any) -> None:
        raise CommitFailedError("a concurrent transaction deleted data")

    monkeypatch.setattr(KeyedFiles, "compact", lost)
    with pytest.raises(TableError, match=r"other writers were faster 10 times \(a concurrent .*: try again"):
        optimize(spec, sleep=lambda _: None)


def stray(spec: TableSpec, name: str, age: float | None = None) -> Path:
    """A file as a writer leaves it that has not committed yet, or was killed before it did."""
    file = Path(spec.uri) / name
    shutil.copy(next(Path(spec.uri).glob("*.parquet")), file)
    if age is not None:
        os.utime(file, (age, age))
    return file


def test_a_short_retention_spares_what_no_version_mentions(tmp_path: Path) -> None:
    """It may be a running writer's, however old: a merge takes its time."""
    spec = readings(tmp_path)
    table = FencedTable(spec)
    for offset in range(3):
        table.write([reading(offset)])
    strays = [stray(spec, "part-new.parquet"), stray(spec, "part-old.parquet", WEEKS_AGO)]
    optimize(spec)
    planned = vacuum(spec, retention_hours=0, dry_run=True)
    assert (planned.files, planned.bytes > 1000) == (3, True)
    assert len(list(tmp_path.glob("readings/*.parquet"))) == 6
    assert vacuum(spec, retention_hours=0) == planned
    assert vacuum(spec, retention_hours=0) == Vacuumed(0, 0)
    assert all(file.exists() for file in strays)
    assert stored(spec, "kafka_offset") == [0, 1, 2]
    assert written(table, [reading(2), reading(3)]) == [3]


def test_a_week_s_retention_deletes_what_was_forgotten_or_never_committed(tmp_path: Path) -> None:
    """A checkpoint forgets removed files after a week, so that only by their age they are known to be of no use."""
    spec = readings(tmp_path)
    table = FencedTable(spec)
    for offset in range(3):
        table.write([reading(offset)])
    for file in tmp_path.glob("readings/*.parquet"):
        os.utime(file, (WEEKS_AGO, WEEKS_AGO))
    optimize(spec)
    new, old = stray(spec, "part-new.parquet"), stray(spec, "part-old.parquet", WEEKS_AGO)
    assert vacuum(spec, dry_run=True).files == 1, "files removed just now stay, whatever their age"
    (log,) = tmp_path.glob("readings/_delta_log/*4.json")
    log.write_text(re.sub(r'(?<="deletionTimestamp":)\d+', str(int(WEEKS_AGO * 1000)), log.read_text()))
    DeltaTable(spec.uri).create_checkpoint()
    assert DeltaTable(spec.uri).vacuum(168, dry_run=True) == [], (
        "delta-rs forgot them; should it not, so much the better"
    )
    assert vacuum(spec).files == 4
    assert (new.exists(), old.exists()) == (True, False)
    assert len(list(tmp_path.glob("readings/*.parquet"))) == 2
    assert stored(spec, "kafka_offset") == [0, 1, 2]
    with pytest.raises(TableError, match=r"remembers for 168 h .* 'interval 200 hours' first"):
        vacuum(spec, retention_hours=200)
    DeltaTable(spec.uri).alter.set_table_properties({"delta.deletedFileRetentionDuration": "interval 10 days"})
    assert vacuum(spec, retention_hours=200) == Vacuumed(0, 0)


def test_a_vacuum_that_a_job_overtakes_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """delta-rs writes down that it vacuums, and takes a merge in between for a conflict."""
    spec = forms(tmp_path)
    table = FencedTable(spec)
    for offset in range(4):
        table.write([form(f"f{offset}", offset, offset)])
    table.write([form("f0", 7, 4)])
    act, overtaking, waits = DeltaTable.vacuum, [form("f1", 8, 5), form("f2", 8, 6)], list[float]()

    def overtaken(*given: Any, dry_run: bool, **named: Any) -> Any:
        if overtaking and not dry_run:
            table.write([overtaking.pop(0)])
        return act(*given, dry_run=dry_run, **named)

    monkeypatch.setattr(DeltaTable, "vacuum", overtaken)
    done = vacuum(spec, retention_hours=0, sleep=waits.append, random=lambda: 1.0)
    assert (done.files, waits) == (3, [0.2, 0.4])
    assert len(list(tmp_path.glob("forms/*.parquet"))) == len(DeltaTable(spec.uri).file_uris())
    assert stored(spec, "form", "answer") == [("f0", "at 7"), ("f1", "at 8"), ("f2", "at 8"), ("f3", "at 3")]


def test_optimize_and_vacuum_on_an_object_store(azure: str) -> None:
    spec = readings(azure)
    table = FencedTable(spec)
    for offset in range(3):
        table.write([reading(offset)])
    optimize(spec)
    gone = vacuum(spec, retention_hours=0)
    assert (gone.files, gone.bytes > 1000) == (3, True)
    files = storage(spec).get_file_info(FileSelector("", recursive=True))
    assert len([f for f in files if f.extension == "parquet" and "_delta_log" not in f.path]) == 1
    assert written(table, [reading(2), reading(3)]) == [3]
    assert stored(spec, "kafka_offset") == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------------------------------- commands


def made(folder: Path, printed: Printed, *rows: int, topic_id: str = TOPIC) -> TableSpec:
    """The three tables, with tracking rows of these offsets of partition 2, one a version."""
    printed.stdout("tables", "create", f"--tables_root={folder}")
    settings = {"job": "tracking", "bootstrap_servers": "x", "claimx_url": "http://x", "tables_root": str(folder)}
    spec = table_specs(Settings.of(settings))[TRACKING]
    table = FencedTable(spec)
    for offset in rows:
        table.write([make_tracking_row(record({}, topic_id=topic_id, partition=2, offset=offset), event(), None, NOW)])
    return spec


def test_the_commands_say_what_they_would_do_and_what_they_did(tmp_path: Path, printed: Printed) -> None:
    spec = made(tmp_path, printed, 0, 1, 2)
    root, size = f"--tables_root={tmp_path}", r"\([\d.]+ \w+\)"
    assert re.fullmatch(
        rf"{TRACKING}: 3 files {size}, 3 of them would be rewritten\n"
        + "".join(rf"{name}: 0 files {size}, 0 of them would be rewritten\n" for name in EMPTY),
        printed.stdout("tables", "optimize", root, "--dry_run"),
    )
    assert version(spec) == 3
    assert re.fullmatch(
        rf"{TRACKING}: 3 files {size} before, 1 file {size} in version 4\n",
        printed.stdout(
            "tables", "optimize", root, f"--table={TRACKING}", "--z_order=task_id,assignment_id,task_status",
            "--target_size=64MB",
        ),
    )  # fmt: skip
    assert re.fullmatch(rf"{FORMS}: 0 files {size}, nothing to be done\n", printed.stdout(
        "tables", "optimize", root, f"--table={FORMS}"
    ))  # fmt: skip
    vacuumed = ["tables", "vacuum", root, f"--table={TRACKING}", "--retention_hours=0", "--allow_short_retention"]
    assert re.fullmatch(rf"{TRACKING}: 3 files {size} would be deleted\n", printed.stdout(*vacuumed, "--dry_run"))
    assert re.fullmatch(rf"{TRACKING}: 3 files {size} deleted\n", printed.stdout(*vacuumed))
    assert printed.stdout("tables", "vacuum", root) == "".join(
        f"{name}: 0 files (0 bytes) deleted\n" for name in (TRACKING, *EMPTY)
    )
    assert stored(spec, "kafka_offset") == [0, 1, 2]


def test_fences_by_command(tmp_path: Path, printed: Printed) -> None:
    spec = made(tmp_path, printed, 0, 1, 2)
    root, table, now = f"--tables_root={tmp_path}", f"--table={TRACKING}", "--watch_seconds=0"
    shown = {"table": TRACKING, "version": 3, "topic_id": TOPIC, "partition": 2, "fence": 3}
    assert json.loads(printed.stdout("tables", "fence", "show", root, "--json")) == [shown]
    assert printed.cells("tables", "fence", "show", root, table, "--version=1") == [[TRACKING, "1", TOPIC, "2", "1"]]

    lower = ["tables", "fence", "set", root, table, "--partition=2", "--offset=1", now]
    moved = [[TOPIC, "2", "3", "1", "[1, 3) is written when read again"]]
    assert printed.cells(*lower, "--dry_run") == moved
    assert fences(spec) == {2: 3}
    assert printed.cells(*lower) == moved
    assert fences(spec) == {2: 1}
    assert printed.cells("tables", "fence", "set", root, table, "--to_start", now) == [
        [TOPIC, "2", "1", "0", "[0, 1) is written when read again"]
    ]
    higher = ["tables", "fence", "set", root, table, "--partition=2", "--offset=9", now]
    assert printed.error(1, *higher) == (
        "--offset: the fence of partition 2 is at 0, and only a commit of rows raises it: to leave records out, set "
        "the group's offset beyond them"
    )
    assert fences(spec) == {2: 0}


def test_a_restore_that_the_topic_cannot_make_good_must_be_meant(
    broker: Broker, topic: TopicFactory, tmp_path: Path, printed: Printed
) -> None:
    name, client = topic(3), {"bootstrap.servers": broker.bootstrap_servers}
    producer = broker.producer()
    for n in range(10):
        producer.produce(name, b"{}", partition=1 + n % 2)
    assert producer.flush(30) == 0
    admin = AdminClient(client)
    for future in admin.delete_records([TopicPartition(name, p, 3) for p in (1, 2)]).values():
        future.result(30)
    this = Cluster(client).topic(name).topic_id
    spec = made(tmp_path, printed, 0, 1, 2, 3, 4, topic_id=this)
    for at in ({"topic_id": "old", "partition": 0, "offset": 8}, {"topic_id": this, "partition": 1, "offset": 3}):
        FencedTable(spec).write([make_tracking_row(record({}, **at), event(), None, NOW)])

    restore = ["tables", "restore", f"--tables_root={tmp_path}", f"--table={TRACKING}", f"--topic={name}", "--group=g"]
    servers = f"--bootstrap_servers={broker.bootstrap_servers}"
    restore += ["--watch_seconds=0", servers]
    rest = "rows that cannot be written again: 1"
    retained = f"--topic: retention has deleted [2, 3) of partition 2: {rest}"
    made_anew = f"--topic: [0, 9) of partition 0 is of old, and {name} is {this} now: {rest}"
    lost = [retained, made_anew] if this < "old" else [made_anew, retained]
    line = f"  itel-cabinet offsets reset --group=g --topic={name} --topic_id={this} --to_offset="
    told = printed.error(1, *restore, "--version=2")
    assert told == f"{'; '.join(lost)}: --accept_loss says to restore the table all the same"
    assert (version(spec), stored(spec, "kafka_offset")) == (7, [0, 1, 2, 3, 3, 4, 8])
    lines = printed.stdout(*restore, "--version=2", "--dry_run").splitlines()
    assert [one.removeprefix("lost: ") for one in lines if one.startswith("lost: ")] == lost
    lines = printed.stdout(*restore, "--version=2", "--accept_loss").splitlines()
    assert (lines[0], lines[-1]) == (
        f"{TRACKING}: restored to version 2, as version 8",
        f"{line}1=3,2=3 --only_back {servers}",
    )
    assert stored(spec, "kafka_offset") == [0, 1]
    # What the topic still has is no loss; nor is what the table never had, which is all below 3 of partition 1 above.
    FencedTable(spec).write([make_tracking_row(record({}, topic_id=this, partition=2, offset=4), event(), None, NOW)])
    lines = printed.stdout(*restore, "--version=5", "--accept_loss").splitlines()
    assert (lines[0], lines[-1]) == (f"{TRACKING}: restored to version 5, as version 10", "nothing is to be read again")
    assert printed.stdout(*restore, "--version=4").splitlines()[-1] == f"{line}2=4 --only_back {servers}"


def test_what_the_commands_refuse(tmp_path: Path, printed: Printed) -> None:
    root = f"--tables_root={tmp_path}"
    told = printed.error(1, "tables", "optimize", root)
    assert told.startswith(f"--tables_root: there is no table {tmp_path}/{TRACKING}: give the root that the jobs write")
    spec = made(tmp_path, printed, 0, 1)
    table = f"--table={TRACKING}"
    for status, line, command, *options in [
        (2, "--table: there is no table 'x': give one of ", "optimize", "--table=x"),
        (2, "--z_order: needs --table", "optimize", "--z_order=task_id"),
        (1, f"{spec} has no column 'x'", "optimize", table, "--z_order=x"),
        (2, "--target_size: must be a number of bytes or such as 64MB: got 'big'", "optimize", "--target_size=big"),
        (2, "--target_size: must be 1MB or more, got 5", "optimize", "--target_size=5"),
        (2, "--retention_hours: below 168 h, queries that still read ", "vacuum", "--retention_hours=167"),
        (1, f"{spec} is at version 2: give an older one", "restore", table, "--version=2"),
        (1, "--bootstrap_servers: is not given, so nobody knows", "restore", table, "--version=1"),
        (2, "give --partition and --offset, or --to_start", "fence set", table),
        (2, "give --partition and --offset, or --to_start", "fence set", table, "--offset=1"),
        (2, "give --partition and --offset, or --to_start", "fence set", table, "--offset=1", "--to_start"),
        (2, "--topic_id: say whose fence is meant: the table has no fence", "fence set", f"--table={FORMS}",
         "--to_start"),
        (1, f"--topic_id: {TRACKING} has no fence of the topic o", "fence set", table, "--to_start", "--topic_id=o"),
        (2, "--version: needs --table", "fence show", "--version=1"),
        (1, f"{spec} has no version 9: its log goes from 0 to 2", "fence show", table, "--version=9"),
    ]:  # fmt: skip
        told = printed.error(status, "tables", *command.split(), root, *options)
        assert told.startswith(line), told
    assert (version(spec), fences(spec)) == (2, {2: 2})
    FencedTable(spec).write([make_tracking_row(record({}, topic_id="new", partition=0, offset=7), event(), None, NOW)])
    assert printed.error(2, "tables", "fence", "set", root, table, "--to_start") == (
        f"--topic_id: say whose fence is meant: the table has those of {TOPIC}, new"
    )


def test_commands_on_an_object_store(azure: str, printed: Printed) -> None:
    printed.stdout("tables", "create", f"--tables_root={azure}")
    settings = {"job": "tracking", "bootstrap_servers": "x", "claimx_url": "http://x", "tables_root": azure}
    spec = table_specs(Settings.of(settings))[TRACKING]
    for offset in range(3):
        FencedTable(spec).write([make_tracking_row(record({}, topic_id=TOPIC, offset=offset), event(), None, NOW)])
    root, table = f"--tables_root={azure}", f"--table={TRACKING}"
    assert "1 file (" in printed.stdout("tables", "optimize", root, table)
    assert f"{TRACKING}: restored to version 1, as version 5\n" in printed.stdout(
        "tables", "restore", root, table, "--version=1", "--accept_loss", "--watch_seconds=0"
    )
    assert printed.cells("tables", "fence", "show", root, table)[0][3:] == ["2", "1"]
    printed.stdout("tables", "fence", "set", root, table, "--to_start", "--watch_seconds=0")
    assert fences(spec) == {2: 0}
    vacuumed = ["tables", "vacuum", root, table, "--retention_hours=0", "--allow_short_retention"]
    assert f"{TRACKING}: 3 files (" in printed.stdout(*vacuumed)
    assert stored(spec, "kafka_offset") == [0]


# ---------------------------------------------------------------------------------------------------- with jobs at work

_CLOCK = {"processed_timestamp", "ingested_at", "created_at", "updated_at"}
LOAD = Shares(assigned=0.5, resubmitted=0.03, late=0.02, repeated=0.02, bad=0.02)


def produced(stack: Stack, records: Iterable[Produced], rate: float | None = None) -> list[Receipt]:
    return produce(stack.broker.bootstrap_servers, stack.topic("tracking"), records, stack.claimx, rate=rate)


_OF_THE_LOG = ("history", "time-travel")  # what these tell is the maintenance itself


def answers(stack: Stack, now: datetime) -> dict[str, Any]:
    """What the queries say of the three tables; rows that a query leaves in no order are sorted here."""
    settings = {"job": "tracking", "bootstrap_servers": "x", "claimx_url": "http://x", "tables_root": stack.tables_uri}
    one = min(row["assignment_id"] for row in stack.tracking())
    of_all = {"limit": "100000", "month": f"{now:%Y-%m}", "assignment_id": str(one)}
    said = {}
    with Session(table_specs(Settings.of(settings))) as session:
        for query in catalogue():
            if query.name not in _OF_THE_LOG:
                given = {p.name: of_all[p.name] for p in query.parameters if p.name in of_all}
                said[query.name] = sorted(map(repr, session.run(query, bind(query, given, now=now)).rows))
    return said


@pytest.mark.timeout(600)
def test_tables_optimized_and_vacuumed_under_load(stack: Stack, printed: Printed) -> None:
    """Again and again, while a job writes; its files come and go under it."""
    stack.options = {"max_batch_records": "20", "http_concurrency": "8"}
    root = f"--tables_root={stack.tables_uri}"
    short = ["tables", "vacuum", root, "--retention_hours=0", "--allow_short_retention"]
    enough, optimized, deleted = threading.Event(), Counter[str](), 0
    endless = Generator(11, start=datetime.now(UTC), shares=LOAD).tracking_messages(20_000)

    def look_after() -> bool:
        nonlocal deleted
        for name in (TRACKING, FORMS, ATTACHMENTS):
            optimized[name] += " before, " in printed.stdout("tables", "optimize", root, f"--table={name}")
        deleted += sum(map(int, re.findall(r": (\d+) files? \(", printed.stdout(*short))))
        assert all(file.exists() for file in aged), "nobody knows that it is not the job's"
        return min(optimized.values()) > 1 and deleted > 20

    with stack.running("cabinet") as job, ThreadPoolExecutor(1) as producer:
        load = itertools.takewhile(lambda _: not enough.is_set(), endless)
        receipts = producer.submit(produced, stack, load, 50.0)
        try:
            wait_for(lambda: DeltaTable.is_deltatable(f"{stack.tables_uri}/{ATTACHMENTS}"), "tables", 120)
            aged = [stray_in(stack, name) for name in (TRACKING, FORMS)]
            wait_for(look_after, "each table optimized and vacuumed more than once", 240)
        finally:
            enough.set()
        told = receipts.result(120)
        assert re.findall(r": (\d+) file", printed.stdout("tables", "vacuum", root)) == ["1", "1", "0", "0", "0"]
        stack.settle("cabinet", 240)
        assert job.stop() == 0, job.errors
    assert not any(file.exists() for file in aged)
    assert_everything_accounted_for(stack, told)

    now = datetime.now(UTC)
    before = answers(stack, now)
    assert len(before) > 10
    assert all(before.values()), "each query has something to say"
    printed.stdout("tables", "optimize", root)
    columns = "task_id,assignment_id,task_status"
    printed.stdout("tables", "optimize", root, f"--table={TRACKING}", f"--z_order={columns}")
    printed.stdout(*short)
    assert answers(stack, now) == before
    assert_everything_accounted_for(stack, told)


def stray_in(stack: Stack, name: str) -> Path:
    """A file that a job, killed weeks ago, has left in a table."""
    file = stack.tables_root / name / "part-00000-left.parquet"
    file.write_bytes(b"never committed")
    os.utime(file, (WEEKS_AGO, WEEKS_AGO))
    return file


def content(stack: Stack, name: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """A table's rows by coordinates (and photo), without the clock's columns."""
    at = ("kafka_topic_id", "kafka_partition", "kafka_offset")
    key = (*at, "question_key", "claim_media_id") if name == ATTACHMENTS else at
    rows = stack.table(name).to_pylist()
    by_key = {tuple(row[c] for c in key): {c: v for c, v in row.items() if c not in _CLOCK} for row in rows}
    assert len(by_key) == len(rows), "no row twice"
    return by_key


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "names", [pytest.param((FORMS, ATTACHMENTS), marks=pytest.mark.slow), (TRACKING, FORMS, ATTACHMENTS)]
)
def test_restored_tables_equal_those_that_never_were(stack: Stack, printed: Printed, names: tuple[str, ...]) -> None:
    """The commands that `restore` prints are run as they stand."""
    stack.options = {"max_batch_records": "40"}
    records = [*Generator(12, start=datetime.now(UTC), shares=LOAD).tracking_messages(400)]
    receipts = produced(stack, records[:200])
    stack.run("cabinet")
    early = {name: version_in(stack, name) for name in names}
    receipts += produced(stack, records[200:])
    stack.run("cabinet")
    assert_everything_accounted_for(stack, receipts)
    never_restored = {name: content(stack, name) for name in (TRACKING, FORMS, ATTACHMENTS)}

    servers = f"--bootstrap_servers={stack.broker.bootstrap_servers}"
    group = f"{stack.prefix}.cabinet"
    next_steps = []
    for name in names:
        restore = [
            "tables", "restore", f"--tables_root={stack.tables_uri}", f"--table={name}", f"--version={early[name]}",
            f"--group={group}", f"--topic={stack.topic('tracking')}", servers, "--watch_seconds=0.2",
        ]  # fmt: skip
        told = printed.stdout(*restore, "--dry_run").splitlines()
        assert told[0] == f"{name}: version {version_in(stack, name)} would be restored to {early[name]}"
        assert content(stack, name) == never_restored[name]
        done = printed.stdout(*restore).splitlines()
        assert done[1:] == told[1:]
        next_steps.append(done[-1].strip())
        assert len(content(stack, name)) < len(never_restored[name])
    # Started as it is, the job would go on behind the gap; so the printed line comes first.
    for line in next_steps:
        program, *arguments = shlex.split(line)
        assert program == "itel-cabinet"
        printed.stdout(*arguments, "--watch_seconds=0.2")
    assert stack.committed("cabinet") != stack.ends()
    stack.run("cabinet")
    assert {name: content(stack, name) for name in (TRACKING, FORMS, ATTACHMENTS)} == never_restored
    assert_everything_accounted_for(stack, receipts)


def version_in(stack: Stack, name: str) -> int:
    return DeltaTable(f"{stack.tables_uri}/{name}").version()
