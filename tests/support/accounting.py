"""Where each record of a `cabinet` job must have ended, whatever happened to the job on the way.

The checks hold after any number of crashes, restarts and replays, so they count what must be there once (rows), at
least once (submissions, results, dead letters), and never (anything else). Expectations come from the pure transforms,
applied to the records as they were produced and to ClaimX's newest answers.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from itel_cabinet.io.kafka import Cluster
from itel_cabinet.local.samples import Receipt
from itel_cabinet.transforms.events import TaskEvent, parse_event
from itel_cabinet.transforms.forms import parse_details
from itel_cabinet.transforms.records import Record
from itel_cabinet.transforms.rows import make_form_row, make_photo_rows
from tests.support.cabinet_samples import TASK_IDS, build_payload, parse_form
from tests.support.jobs import Stack

__all__ = [
    "assert_everything_accounted_for",
    "assert_ledger",
    "assert_published_once",
    "assert_tracked_once",
    "repeated_calls",
    "topic_id",
]

Row = dict[str, Any]
Coordinates = tuple[str, int, int]

_ROWED = ("tracked", "submitted")
_CLOCK = {"ingested_at", "created_at", "updated_at"}


def assert_everything_accounted_for(
    stack: Stack, receipts: Sequence[Receipt], *, may_be_unchanged: bool = False, at_once: bool = False
) -> None:
    """Every record of the tracking topic is where the delivery contract wants it, and nothing else is anywhere.

    To be called when the job has caught up and ended. ``receipts`` are all the records that the topic ever got. With
    ``may_be_unchanged`` iTel need not have an event whose form it has by another one of the assignment; ``at_once``
    says that several copies of the job were running.
    """
    assert_tracked_once(stack, receipts)
    _assert_newest_forms(stack, receipts)
    _assert_submitted(stack, receipts, may_be_unchanged=may_be_unchanged)
    assert_ledger(stack, receipts, at_once=at_once)
    _assert_dead_letters(stack, receipts)
    committed, ends = stack.committed("cabinet"), stack.ends()
    assert {partition: committed.get(partition, 0) for partition in ends} == ends


def topic_id(stack: Stack, role: str = "tracking") -> str:
    return Cluster({"bootstrap.servers": stack.broker.bootstrap_servers}).topic(stack.topic(role)).topic_id


def assert_tracked_once(stack: Stack, receipts: Iterable[Receipt]) -> None:
    """The tracking table has one row for each record that must have one, by coordinates, and none beside."""
    topic = topic_id(stack)
    expected = {(topic, r.partition, r.offset): r.produced.event_id for r in receipts if r.produced.expect in _ROWED}
    rows = stack.tracking()
    found = Counter(map(_coordinates, rows))
    assert {at: times for at, times in found.items() if times > 1} == {}, "rows more than once"
    assert sorted(expected.keys() - found.keys()) == [], "rows missing"
    assert sorted(found.keys() - expected.keys()) == [], "rows that should not be"
    assert {_coordinates(row): row["event_id"] for row in rows} == expected


def assert_published_once(stack: Stack, receipts: Iterable[Receipt]) -> None:
    """Each ClaimX event that is to be published is on the tracking topic once for a reader of committed records, each
    bad one on the error topic, nothing else is on either, and the group of ``trigger`` stands at the end.

    To be called when the job has caught up. ``receipts`` are all the records that its topic ever got.
    """
    enriched, receipts = topic_id(stack, "enriched"), list(receipts)
    expected = {
        f"{enriched}/{r.partition}/{r.offset}": r.produced.event_id
        for r in receipts
        if r.produced.expect == "published"
    }
    messages = stack.broker.read(stack.topic("tracking"))
    found = Counter(dict(message.headers)["x-source"].decode() for message in messages)
    assert {source: times for source, times in found.items() if times > 1} == {}, "published more than once"
    assert sorted(expected.keys() - found.keys()) == [], "not published"
    assert sorted(found.keys() - expected.keys()) == [], "published, and should not be"
    letters = Counter((letter.partition, letter.offset) for letter in stack.dead_letters("errors"))
    assert letters == Counter((r.partition, r.offset) for r in receipts if r.produced.expect == "dead_letter")
    committed, ends = stack.committed("trigger"), stack.ends("enriched")
    assert {partition: committed.get(partition, 0) for partition in ends} == ends


def repeated_calls(stack: Stack, receipts: Iterable[Receipt]) -> int:
    """How many calls iTel got beyond the one for each event."""
    wanted = len({r.produced.event_id for r in receipts if r.produced.expect == "submitted"})
    return sum(submission.times for submission in stack.itel.submissions()) - wanted


def assert_ledger(stack: Stack, receipts: Iterable[Receipt], *, at_once: bool = False) -> None:
    """Each completed event is settled in one row, or refused in one for each record of it; each body that was sent is
    there once. Jobs that work ``at_once`` may settle an event that was written twice at two places."""
    receipts = [*receipts]
    rows, bodies = stack.ledger(), stack.bodies()
    places = Counter((_coordinates(row), row["settled"], row["reason"], row["resubmission"]) for row in rows)
    assert {place: times for place, times in places.items() if times > 1} == {}, "an outcome more than once"
    settled = Counter(row["event_id"] for row in rows if row["settled"])
    assert settled.keys() == {r.produced.event_id for r in receipts if r.produced.expect == "submitted"}
    if not at_once:
        assert {event: times for event, times in settled.items() if times > 1} == {}, "an event settled twice"
    topic = topic_id(stack)
    formless = {(topic, r.partition, r.offset) for r in receipts if r.produced.kind == "completed_without_form"}
    assert {_coordinates(row) for row in rows if not row["settled"]} == formless
    sent = {(_coordinates(row), row["body_sha256"]) for row in rows if row["outcome"] in ("accepted", "duplicate")}
    kept = Counter((_coordinates(body), body["body_sha256"]) for body in bodies)
    if at_once:
        # Each copy keeps what it has sent. ClaimX's answer may have changed between the two, and what one has sent the
        # other may have left out as unchanged; the outcome is that of the one which was the first to say so.
        left_out = {_coordinates(row) for row in rows if row["outcome"] == "unchanged"}
        assert {*kept.values()} == {1}
        assert sent <= kept.keys()
        assert {place for place, _ in kept} - left_out == {place for place, _ in sent}
    else:
        assert kept == Counter(sent)
    assert {body["body_sha256"] for body in bodies} == {sha256(body["body"].encode()).hexdigest() for body in bodies}


def _assert_newest_forms(stack: Stack, receipts: Iterable[Receipt]) -> None:
    """One row for each assignment with a completed form, as ClaimX tells it now; its photos are the active ones."""
    forms: dict[int, Row] = {}
    photos: dict[int, set[tuple[Any, ...]]] = defaultdict(set)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for record, event in _newest_completions(stack, receipts):
        answer = stack.claimx.task(event.assignment_id)
        details = parse_details(json.dumps(answer).encode(), event.assignment_id)
        if not details.has_form:
            continue
        form = parse_form(details)
        forms[event.assignment_id] = _timeless(make_form_row(record, event, details, form, epoch))
        photos[event.assignment_id] |= {
            _photo(row) for row in make_photo_rows(record, event, form, epoch) if row["is_active"]
        }
    rows = stack.forms()
    assert len({row["assignment_id"] for row in rows}) == len(rows), "one row an assignment"
    found = {row["assignment_id"]: _timeless(row) for row in rows}
    assert found.keys() == forms.keys()
    assert {at: (found[at], forms[at]) for at in forms if found[at] != forms[at]} == {}

    attachments = stack.attachments()
    keys = Counter((row["assignment_id"], row["question_key"], row["claim_media_id"]) for row in attachments)
    assert {key: times for key, times in keys.items() if times > 1} == {}, "one row a photo"
    active: dict[int, set[tuple[Any, ...]]] = defaultdict(set)
    for row in attachments:
        if row["is_active"]:
            active[row["assignment_id"]].add(_photo(row))
    assert active == {at: some for at, some in photos.items() if some}


def _newest_completions(stack: Stack, receipts: Iterable[Receipt]) -> list[tuple[Record, TaskEvent]]:
    """The last completion of each assignment, in the order of the upserts."""
    topic, incarnation = stack.topic("tracking"), topic_id(stack)
    newest: dict[int, tuple[tuple[datetime, int, int], Record, TaskEvent]] = {}
    for receipt in receipts:
        if receipt.produced.expect not in _ROWED:
            continue
        record = Record(
            topic, incarnation, receipt.partition, receipt.offset, 0, receipt.produced.key, receipt.produced.value
        )
        event = parse_event(record, 0.0, task_ids=TASK_IDS)
        assert isinstance(event, TaskEvent), event
        order = (event.timestamp, receipt.partition, receipt.offset)
        if event.task_status == "COMPLETED" and (
            event.assignment_id not in newest or newest[event.assignment_id][0] < order
        ):
            newest[event.assignment_id] = (order, record, event)
    return [(record, event) for _, record, event in newest.values()]


def _assert_submitted(stack: Stack, receipts: Iterable[Receipt], *, may_be_unchanged: bool) -> None:
    """iTel has each expected key and no other, and so has the success topic."""
    produced = [r.produced for r in receipts if r.produced.expect == "submitted"]
    submissions = stack.itel.submissions()
    calls = {submission.idempotency_key: submission.times for submission in submissions}
    known = {submission.assignment_id for submission in submissions}
    left_out = {p.event_id for p in produced if p.event_id not in calls and p.assignment_id in known}
    unchanged = left_out if may_be_unchanged else set()
    expected = {p.event_id for p in produced if p.event_id not in unchanged}
    assert calls.keys() == expected
    assert {p.assignment_id for p in produced} == known
    _assert_newest_forms_submitted(stack, receipts)
    results = Counter(
        json.loads(message.value or b"")["event_id"] for message in stack.broker.read(stack.topic("success"))
    )
    unreported = {p.event_id: p.assignment_id for p in produced if p.event_id in expected and p.event_id not in results}
    if may_be_unchanged:
        # Submitted by a copy that died before it said so; the one that read it again had the form by another event.
        reported = {p.assignment_id for p in produced if p.event_id in results}
        unreported = {event_id: at for event_id, at in unreported.items() if at not in reported}
    assert unreported == {}
    assert results.keys() <= expected


def _assert_newest_forms_submitted(stack: Stack, receipts: Iterable[Receipt]) -> None:
    """Of each assignment iTel has the form as ClaimX tells it now, by one event or another."""
    submitted: dict[int, list[Any]] = defaultdict(list)
    for submission in stack.itel.submissions():
        submitted[submission.assignment_id].append(submission.body)
    for _, event in _newest_completions(stack, receipts):
        details = parse_details(json.dumps(stack.claimx.task(event.assignment_id)).encode(), event.assignment_id)
        if details.has_form:
            payload = json.loads(build_payload(details, parse_form(details), event))
            assert payload in submitted[event.assignment_id], event.assignment_id


def _assert_dead_letters(stack: Stack, receipts: Sequence[Receipt]) -> None:
    """Each bad record has its dead letter, with its coordinates and bytes; each completion without a form too."""
    bad = {(r.partition, r.offset): r.produced for r in receipts if r.produced.expect == "dead_letter"}
    formless = {(r.partition, r.offset): r.produced for r in receipts if r.produced.kind == "completed_without_form"}
    for role, expected in (("errors", bad), ("itel_errors", formless)):
        letters = stack.dead_letters(role)
        assert {(letter.partition, letter.offset) for letter in letters} == expected.keys()
        assert {letter.topic_id for letter in letters} <= {topic_id(stack)}
        for letter in letters:
            produced = expected[letter.partition, letter.offset]
            assert letter.record().value == (None if letter.value_omitted else produced.value)
            assert letter.record().key == produced.key
            assert letter.value_omitted == (produced.kind == "huge_garbage")


def _coordinates(row: Row) -> Coordinates:
    return row["kafka_topic_id"], row["kafka_partition"], row["kafka_offset"]


def _photo(row: Row) -> tuple[Any, ...]:
    return row["question_key"], row["claim_media_id"], row["display_order"], row["topic_category"], row["control_id"]


def _timeless(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in _CLOCK}
