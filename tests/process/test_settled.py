"""The ledger as a job asks it: what is settled, what iTel has of an assignment, and how little is read for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from itel_cabinet.io.delta import Append, FencedTable, PartitionFollower, TableSpec
from itel_cabinet.io.settled import DAYS_BACK, SettledSubmissions
from itel_cabinet.io.worker import RefusedError
from itel_cabinet.transforms.events import TaskEvent
from itel_cabinet.transforms.ledger import (
    LEDGER_SCHEMA,
    ContractName,
    Entry,
    Outcome,
    Resubmission,
    Sent,
    make_ledger_rows,
)
from itel_cabinet.transforms.records import Skip
from tests.support.cabinet_samples import event, record, submission

NOON = datetime(2026, 1, 10, 12, tzinfo=UTC)
BY = ContractName("cabinet_repair", "1", "ab" * 32)
CONTENT = "cd" * 32


@pytest.fixture
def spec(tmp_path: Path) -> TableSpec:
    identity = ("event_id", "settled", "reason", "resubmission")
    made = TableSpec(str(tmp_path / "ledger"), LEDGER_SCHEMA, Append(identity), ("year", "month", "day"))
    FencedTable(made).add_columns()
    return made


def about(event_id: str, assignment_id: int = 7, day: float = 0) -> TaskEvent:
    when = (NOON + timedelta(days=day)).isoformat()
    return event(event_id=event_id, assignment_id=assignment_id, timestamp=when)


class Writer:
    """Writes outcomes into a ledger, each at an offset of its own."""

    def __init__(self, spec: TableSpec) -> None:
        self.table, self._offset = FencedTable(spec), 0

    def write(self, *outcomes: tuple[TaskEvent, Outcome], name: str | None = None, **changes: Any) -> None:
        ends = []
        for subject, outcome in outcomes:
            self._offset += 1
            given: dict[str, Any] = {"content": CONTENT, "key": "k", "status": 201, **changes}
            at = 1_768_000_000.0 + self._offset
            sent = Sent(b"{}", "ef" * 32, given["content"], given["key"])
            row = Entry(record({}, offset=self._offset), subject, outcome, at, at, None, sent, given["status"], 1)
            ends.append(Skip(row.record, "any", (row,)))
        again = Resubmission(name) if name else None
        self.table.write(make_ledger_rows(ends, contract=BY, resubmission=again, clock=lambda: 1.0))


@pytest.fixture
def writer(spec: TableSpec) -> Writer:
    return Writer(spec)


def settled(ledger: SettledSubmissions, *ids: str, day: float = 0, **how: Any) -> list[str]:
    return sorted(ledger.find_settled([about(one, day=day) for one in ids], **how))


def test_what_is_settled_is_found_and_nothing_else(spec: TableSpec, writer: Writer) -> None:
    ledger = SettledSubmissions(spec)
    assert settled(ledger, "a") == []
    assert settled(ledger, "a", day=1) == []
    everyone = [*Outcome]
    writer.write(*((about(one.value), one) for one in everyone))
    assert settled(ledger, "accepted", day=1) == ["accepted"]
    assert settled(ledger, "none", *(one.value for one in everyone)) == ["accepted", "duplicate", "unchanged"]
    # By a process that has not asked before, and on the day after: an event that was published twice.
    assert settled(SettledSubmissions(spec), "accepted", day=1) == ["accepted"]
    assert settled(SettledSubmissions(spec), "accepted", day=-1) == []


def test_what_is_committed_later_is_found_also_after_files_were_put_together_or_rows_deleted(
    spec: TableSpec, writer: Writer
) -> None:
    ledger = SettledSubmissions(spec)
    for name in "abc":
        writer.write((about(name), Outcome.ACCEPTED))
        assert settled(ledger, *"abcd") == [*"abc"[: "abc".index(name) + 1]]
    table = DeltaTable(spec.uri)
    table.optimize.compact()
    assert settled(ledger, *"abcd") == ["a", "b", "c"]
    table.delete("event_id = 'b'")
    assert settled(ledger, *"abcd") == ["a", "c"]
    writer.write((about("d"), Outcome.DUPLICATE))
    assert settled(ledger, *"abcd") == ["a", "c", "d"]


def test_a_follower_reads_each_file_once(spec: TableSpec, writer: Writer) -> None:
    follower = PartitionFollower(spec, ("event_id",))

    def read() -> tuple[list[str], bool] | None:
        follower.refresh()
        change = follower.read((2026, 1, 10))
        return None if change is None else (change[0]["event_id"].to_pylist(), change[1])

    assert read() == ([], True)
    writer.write((about("a"), Outcome.ACCEPTED), (about("other-day", day=1), Outcome.ACCEPTED))
    assert read() == (["a"], False)
    assert read() is None
    writer.write((about("b"), Outcome.ACCEPTED))
    assert read() == (["b"], False)
    assert sorted(follower.partitions()) == [(2026, 1, 10), (2026, 1, 11)]
    follower.forget((2026, 1, 10))
    change = read()
    assert change is not None
    assert (sorted(change[0]), change[1]) == (["a", "b"], True)


def test_what_a_compaction_puts_together_is_not_read_again(spec: TableSpec, writer: Writer) -> None:
    follower = PartitionFollower(spec, ("event_id",))

    def read() -> tuple[list[str], bool] | None:
        follower.refresh()
        change = follower.read((2026, 1, 10))
        return None if change is None else (sorted(change[0]["event_id"].to_pylist()), change[1])

    def write_and_compact(*names: str) -> DeltaTable:
        for name in names:
            writer.write((about(name), Outcome.ACCEPTED))
        table = DeltaTable(spec.uri)
        table.optimize.compact()
        return table

    write_and_compact("a", "b")
    assert read() == (["a", "b"], True)
    write_and_compact("c", "d")  # which were not read before they were put together
    assert read() == (["c", "d"], False)
    assert read() is None
    table = write_and_compact("e")
    table.vacuum(0, dry_run=False, enforce_retention_duration=False)
    assert read() == (["a", "b", "c", "d", "e"], True)
    writer.write((about("f"), Outcome.ACCEPTED))
    follower.refresh()
    table = write_and_compact("g")
    table.delete("event_id = 'f'")
    assert read() == (["a", "b", "c", "d", "e", "g"], True)


def test_a_follower_that_has_slept_through_a_clean_up_of_the_log_begins_again(spec: TableSpec, writer: Writer) -> None:
    now = [0.0]
    follower = PartitionFollower(spec, ("event_id",), clock=lambda: now[0])
    follower.refresh()
    for name in "abc":
        writer.write((about(name), Outcome.ACCEPTED))
    table = DeltaTable(spec.uri)
    table.create_checkpoint()
    for version in range(1, table.version()):
        (Path(spec.uri) / "_delta_log" / f"{version:020}.json").unlink()
    now[0] = 3_600.0
    follower.refresh()
    change = follower.read((2026, 1, 10))
    assert change is not None
    assert sorted(change[0]["event_id"].to_pylist()) == ["a", "b", "c"]


def test_a_resubmission_is_settled_by_its_own_rows(spec: TableSpec, writer: Writer) -> None:
    ledger, again, other = SettledSubmissions(spec), Resubmission("again", frozenset({7})), Resubmission("other")
    writer.write((about("a"), Outcome.ACCEPTED), (about("b"), Outcome.ACCEPTED))
    assert settled(ledger, "a", "b", resubmission=again) == []
    writer.write((about("a"), Outcome.DUPLICATE), name="again")
    assert settled(ledger, "a", "b", resubmission=again) == ["a"]
    assert settled(ledger, "a", "b", resubmission=other) == []
    assert settled(ledger, "a", "b") == ["a", "b"]
    assert settled(SettledSubmissions(spec), "a", "b", resubmission=again) == ["a"]
    assert ledger.find_settled([about("a", 8)], again) == {"a"}  # of an assignment that it does not cover


def holds(spec: TableSpec, *, day: float = 0, compare: bool = True) -> bool:
    """Whether the content of :func:`submission` is held to be what iTel has of assignment 7, by the event ``new``."""
    ledger = SettledSubmissions(spec, compare=compare)
    ledger.find_settled([about("new", day=day)])
    return ledger.newest.hold(submission(7, "new", b"{}"))


@pytest.mark.parametrize(
    ("calls", "held"),
    [
        ([{"outcome": Outcome.ACCEPTED}], True),
        ([{"outcome": Outcome.ACCEPTED}, {"outcome": Outcome.UNCHANGED, "key": None, "status": None}], True),
        ([{"outcome": Outcome.ACCEPTED}, {"outcome": Outcome.HELD, "key": None}], True),
        # What iTel has is not known, or is something else.
        ([{"outcome": Outcome.ACCEPTED, "status": 200}], False),
        ([{"outcome": Outcome.DUPLICATE}], False),
        ([{"outcome": Outcome.ACCEPTED, "key": f"batch-{'0' * 64}"}], False),
        ([{"outcome": Outcome.ACCEPTED}, {"outcome": Outcome.REFUSED, "status": None}], False),
        ([{"outcome": Outcome.ACCEPTED}, {"outcome": Outcome.ACCEPTED, "content": CONTENT}], False),
    ],
)
def test_a_content_is_unchanged_if_itel_surely_has_it(
    spec: TableSpec, writer: Writer, calls: Sequence[dict[str, Any]], held: bool
) -> None:
    same = submission(7, "new", b"{}").content_sha256
    for number, call in enumerate(calls):
        writer.write((about(f"e{number}"), call["outcome"]), **{"content": same, **call})
    assert holds(spec) is held
    assert holds(spec, day=DAYS_BACK) is held
    assert not holds(spec, day=DAYS_BACK + 1)
    assert not holds(spec, compare=False)


def test_days_that_were_not_asked_for_the_longest_make_room(spec: TableSpec, writer: Writer) -> None:
    ledger = SettledSubmissions(spec, most=3)
    for day in range(4):
        writer.write(*((about(f"{day}-{number}", day=day), Outcome.ACCEPTED) for number in range(2)))
    for day in (0, 1, 2, 3, 0, 3):
        assert settled(ledger, f"{day}-0", f"{day}-1", "new", day=day) == [f"{day}-0", f"{day}-1"]
        assert len(ledger._digests) <= 4


@pytest.mark.parametrize("day", [0, 1])
def test_what_found_no_room_is_read_again(spec: TableSpec, writer: Writer, day: int) -> None:
    ledger, events = SettledSubmissions(spec), [f"e{number}" for number in range(200)]
    assert settled(ledger, *events) == []
    writer.write(*((about(event), Outcome.ACCEPTED) for event in events))
    ledger._digests._database.execute("PRAGMA max_page_count = 2")
    for _ in range(2):
        with pytest.raises(RefusedError, match="disk is full"):
            settled(ledger, *events, day=day)
    ledger._digests._database.execute("PRAGMA max_page_count = 1000")
    assert settled(ledger, *events, day=day) == sorted(events)


def test_below_the_fence_each_row_of_a_record_is_written_once(spec: TableSpec) -> None:
    """As when a second endpoint is named later, or what was refused is accepted when it is read again."""
    table, subject = FencedTable(spec), about("a")

    def end(*outcomes: Outcome) -> Skip:
        entries = (
            Entry(record({}), subject, one, 1.0, 2.0, "timeout" if one is Outcome.REFUSED else None) for one in outcomes
        )
        return Skip(record({}), "any", tuple(entries))

    written = []
    for outcomes in ((Outcome.REFUSED,), (Outcome.REFUSED, Outcome.SHADOW), (Outcome.ACCEPTED, Outcome.SHADOW)):
        for _ in range(2):
            result = table.write(make_ledger_rows([end(*outcomes)], contract=BY, clock=lambda: 3.0))
            written.append([row["outcome"] for row in result.written])
    assert written == [["refused"], [], ["shadow"], [], ["accepted"], []]
