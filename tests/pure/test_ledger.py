"""Rows of the ledger, and what is left out because the ledger has settled it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from itel_cabinet.transforms.enrichment import CabinetTask
from itel_cabinet.transforms.events import Announced, TaskEvent
from itel_cabinet.transforms.ledger import (
    ContractName,
    Entry,
    Outcome,
    Resubmission,
    Sent,
    leave_settled_out,
    make_body_rows,
    make_ledger_rows,
    parse_assignments,
    refuse,
)
from itel_cabinet.transforms.records import Skip
from itel_cabinet.transforms.submissions import Submission
from itel_cabinet.transforms.trace_context import read_trace
from tests.support.cabinet_samples import ASSIGNMENT_ID, details, event, record

FIRST, SECOND = ContractName("first", "1", "aa"), ContractName("second", "2", "bb")


def test_a_row_says_what_was_sent_for_which_record_and_what_came_of_it() -> None:
    source, subject = record({}, offset=5), event()
    accepted = Entry(
        source, subject, Outcome.ACCEPTED, 100.0, 100.25, None, Sent(b'{"a":1}', "s", "c", "k"), 201, 2, "T-1"
    )
    shadow = Entry(source, subject, Outcome.SHADOW, 100.0, 100.0, None, Sent(b"{}", "t", "d"))
    ends = [Skip(source, "any", (accepted, shadow)), refuse(source, subject, "payload", "no_form", "none", 7.0, 8.0)]
    rows = make_ledger_rows(ends, contract=FIRST, shadow=SECOND, clock=lambda: 200.0).to_pylist()
    assert [(row["outcome"], row["settled"], row["reason"], row["contract_name"]) for row in rows] == [
        ("accepted", True, None, "first"),
        ("shadow", False, None, "second"),
        ("refused", False, "no_form", "first"),
    ]
    first = rows[0]
    assert {name: first[name] for name in ("status", "attempts", "created_id", "latency_ms", "idempotency_key")} == {
        "status": 201,
        "attempts": 2,
        "created_id": "T-1",
        "latency_ms": 250.0,
        "idempotency_key": "k",
    }
    assert first["event_timestamp"] == subject.timestamp
    assert (first["year"], first["month"], first["day"]) == (2026, 1, 10)
    assert first["answered_at"] == datetime.fromtimestamp(100.25, UTC)
    assert first["traceparent"] == read_trace(source).traceparent
    assert (rows[2]["first_at"].timestamp(), rows[2]["answered_at"].timestamp(), rows[2]["latency_ms"]) == (
        7.0,
        8.0,
        None,
    )
    bodies = make_body_rows(ends, contract=FIRST, shadow=SECOND).to_pylist()
    assert [(row["body"], row["body_sha256"], row["contract_name"]) for row in bodies] == [
        ('{"a":1}', "s", "first"),
        ("{}", "t", "second"),
    ]


def test_a_row_names_the_resubmission_that_asked_for_it() -> None:
    ends = [refuse(record({}), event(assignment_id=one), "payload", "no_form", "none", 1.0, 1.0) for one in (7, 8)]
    again = Resubmission("again", frozenset({7}))
    rows = make_ledger_rows(ends, contract=FIRST, resubmission=again, clock=lambda: 1.0)
    assert rows["resubmission"].to_pylist() == ["again", None]


class Knows:
    """A ledger with these events settled."""

    def __init__(self, *settled: str) -> None:
        self.settled = {*settled}
        self.asked: list[str] = []

    def find_settled(self, events: Sequence[TaskEvent], _: Resubmission | None = None) -> Collection[str]:
        self.asked += [one.event_id for one in events]
        return self.settled


def test_what_is_settled_is_left_out_and_other_statuses_are_not_looked_up() -> None:
    ledger = Knows("a", "c")
    subjects = [event(event_id=one) for one in "ab"] + [event(event_id="c", task_status="ASSIGNED")]
    tasks = [CabinetTask(record({}, offset=n), one, details(), None) for n, one in enumerate(subjects)]
    left = [*leave_settled_out(tasks, ledger=lambda: ledger, statuses=frozenset({"COMPLETED"}))]
    assert left == [Skip(tasks[0].record, "already_submitted"), *tasks[1:]]
    assert ledger.asked == ["a", "b"]
    events = [Announced(task.record, task.event) for task in tasks]
    left_of_events = [*leave_settled_out(events, ledger=lambda: ledger, statuses=frozenset({"COMPLETED"}))]
    assert left_of_events == [left[0], *events[1:]]


def test_the_content_is_the_payload_and_the_form_without_what_passes() -> None:
    def content(payload: bytes, *passing: str, key: str | None = None, response_id: str = "r") -> str:
        one = Submission(record({}), "e", ASSIGNMENT_ID, payload, (), passing=passing, key=key, response_id=response_id)
        return one.content_sha256

    link = "https://x/p.jpg?sig={}"
    first = content(b'{"key":"k1","url":"https://x/p.jpg?sig=1"}', "k1", link.format(1), key="k1")
    assert first == content(b'{"key":"k2","url":"https://x/p.jpg?sig=2"}', "k2", link.format(2), key="k2")
    assert first != content(b'{"key":"k2","url":"https://x/q.jpg?sig=2"}', "k2", "https://x/q.jpg?sig=2", key="k2")
    assert content(b"{}") != content(b"{}", response_id="another")
    assert replace(Submission(record({}), "e", 1, b"{}", ())).payload_sha256 == (
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [("7", {7}), ("7,8, 9", {7, 8, 9}), ("# all of January\n7 # the first\n8,9\n\n", {7, 8, 9})],
)
def test_assignments_are_read_from_a_text(text: str, found: set[int]) -> None:
    assert parse_assignments(text) == found


@pytest.mark.parametrize("text", ["", "# nothing", "7,x", "0", "-1", str(2**63), "7.5"])
def test_what_is_no_list_of_assignments_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="assignment"):
        parse_assignments(text)
