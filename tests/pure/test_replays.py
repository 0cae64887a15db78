"""What a replayed record bears, and what the jobs make of it."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itel_cabinet.transforms.dead_letters import (
    ReplayNote,
    decode_dead_letter,
    decode_replay_note,
    encode_dead_letter,
    encode_replay_note,
)
from itel_cabinet.transforms.enrichment import CabinetTask
from itel_cabinet.transforms.records import Failure, Record
from itel_cabinet.transforms.replays import (
    count_replays,
    describe_edit,
    has_row,
    is_editor,
    is_for_other_group,
    make_edit,
    make_replay_headers,
    read_edit,
)
from itel_cabinet.transforms.rows import make_attachment_rows, make_form_rows, make_tracking_rows
from itel_cabinet.transforms.trace_context import read_trace
from tests.support.cabinet_samples import details, event, group, parse_form, question, record, tracking_message


def replayed(source: Record, *, count: int = 1, tracked: bool = False, group: str = "g", offset: int = 90) -> Record:
    """The record that a replay of ``source`` becomes."""
    headers = make_replay_headers(source, group=group, count=count, tracked=tracked)
    return record(source.value, headers=headers, offset=offset)


def test_a_replay_keeps_the_original_s_headers_and_adds_its_marks() -> None:
    source = record(b"x", headers=(("x-task-id", b"32513"), ("none", None), ("x-task-id", b"\x00")))
    made = read_trace(source).traceparent.encode()
    assert replayed(source, count=2, tracked=True).headers == (
        ("x-task-id", b"32513"),
        ("none", None),
        ("x-task-id", b"\x00"),
        ("traceparent", made),
        ("x-replay-for", b"g"),
        ("x-replay-of", b"AbCdEfGhIjKlMnOpQrStUv/2/41"),
        ("x-replay-count", b"2"),
        ("x-replay-tracked", b"yes"),
    )


def test_a_replay_of_a_replay_bears_only_its_own_marks() -> None:
    original = record(b"x", headers=(("a", b"b"),))
    first = replayed(original, tracked=True)
    second = replayed(first, count=2, offset=91)
    assert second.headers == (
        ("a", b"b"),
        ("traceparent", read_trace(original).traceparent.encode()),
        ("x-replay-for", b"g"),
        ("x-replay-of", b"AbCdEfGhIjKlMnOpQrStUv/2/90"),
        ("x-replay-count", b"2"),
    )
    assert (count_replays(first), count_replays(second)) == (1, 2)
    assert (has_row(first), has_row(second)) == (True, False)


@pytest.mark.parametrize("count", [None, b"", b"-1", b"many", b"9" * 5_000, b"\xff", "²".encode()])
def test_a_count_that_makes_no_sense_is_none(count: bytes | None) -> None:
    assert count_replays(record(b"x", headers=(("x-replay-count", count),))) == 0


def test_a_replay_is_for_its_group_alone() -> None:
    one = replayed(record(b"x"), group="itel_cabinet_group")
    assert not is_for_other_group(one, "itel_cabinet_group")
    assert is_for_other_group(one, "itel_cabinet_api_worker_group")
    assert not is_for_other_group(record(b"x"), "any")


def test_an_event_that_has_its_row_gets_no_second_one_but_its_form_is_kept() -> None:
    known = details(group("Photos", question("Upload Overview Photo(s)", [11])))
    source = record(tracking_message())
    records = [source, replayed(source), replayed(source, tracked=True, offset=91)]
    tasks = [CabinetTask(one, event(), known, parse_form(known)) for one in records]
    assert [row["kafka_offset"] for row in make_tracking_rows(tasks, clock=lambda: 0.0).to_pylist()] == [41, 90]
    assert [row["kafka_offset"] for row in make_form_rows(tasks, clock=lambda: 0.0)] == [41, 90, 91]
    assert [row["kafka_offset"] for row in make_attachment_rows(tasks, clock=lambda: 0.0).to_pylist()] == [41, 90, 91]


_HEADERS = st.lists(
    st.tuples(st.sampled_from(["x-replay-for", "x-replay-count", "x-replay-tracked", "x-replay-of", "x"]),
              st.none() | st.binary(max_size=9)), max_size=6).map(tuple)  # fmt: skip


@given(headers=_HEADERS, count=st.integers(1, 10**9 - 1), tracked=st.booleans())
def test_for_any_record_its_replay_says_what_was_meant(
    headers: tuple[tuple[str, bytes | None], ...], count: int, tracked: bool
) -> None:
    one = replayed(record(b"x", headers=headers), count=count, tracked=tracked)
    assert (count_replays(one), has_row(one), is_for_other_group(one, "g")) == (count, tracked, False)
    assert [header for header in one.headers if header[0] == "x"] == [h for h in headers if h[0] == "x"]


# ------------------------------------------------------------------------------------------ notes on the error topics


def test_a_note_of_a_replay() -> None:
    failure = Failure(record(b"{"), "parse", "not_json", "the value is not JSON", 0.0, 0.0)
    _, letter, _ = encode_dead_letter(failure, job="tracking", group="gruppe-ä")
    key, value, headers = encode_replay_note(
        decode_dead_letter(letter), datetime(2026, 1, 10, 15, tzinfo=UTC).timestamp()
    )
    assert (key, value) == (b"AbCdEfGhIjKlMnOpQrStUv/2/41", None)
    assert headers == (
        ("x-replayed-for", "gruppe-ä".encode()),
        ("x-replayed-at", b"2026-01-10T15:00:00.000+00:00"),
    )
    assert decode_replay_note(record(value, key=key, headers=headers)) == ReplayNote(
        "AbCdEfGhIjKlMnOpQrStUv/2/41", "gruppe-ä", "gruppe-ä"
    )


def test_a_note_of_a_replay_for_another_group_and_by_hand() -> None:
    source = record(b"{")
    failure = Failure(source, "parse", "not_json", "the value is not JSON", 0.0, 0.0)
    letter = decode_dead_letter(encode_dead_letter(failure, job="tracking", group="old")[1])
    edit = make_edit(source, b"{}", by="Pat", now=0.0)
    key, value, headers = encode_replay_note(letter, 0.0, to="new", edit=edit)
    assert decode_replay_note(record(value, key=key, headers=headers)) == ReplayNote(
        source.coordinates, "old", "new", edit
    )


# -------------------------------------------------------------------------------------------------------- edits by hand


def test_an_edited_record_says_who_changed_what() -> None:
    source = record(b"{", headers=(("x", b"y"), ("x-edited-by", b"an earlier one")))
    edit = make_edit(source, b"{}", by="Pat Roe", now=1_768_057_500.25)
    headers = make_replay_headers(source, group="g", count=1, tracked=False, edit=edit)
    found = dict(headers)
    assert (found["x"], found["x-edited-by"], found["x-edited-at"]) == (b"y", b"Pat Roe", b"2026-01-10T15:05:00+00:00")
    before, after = (hashlib.sha256(value).hexdigest() for value in (b"{", b"{}"))
    assert found["x-edit-of"] == f"AbCdEfGhIjKlMnOpQrStUv/2/41 {before} {after}".encode()
    assert [name for name, _ in headers].count("x-edited-by") == 1
    edited = record(b"{}", headers=headers, offset=90)
    assert read_edit(edited.headers) == edit
    # What fails again and is replayed as it is still bears the mark.
    assert read_edit(replayed(edited, count=2).headers) == edit


def test_the_history_says_that_a_record_was_edited() -> None:
    source = record(tracking_message())
    edit = make_edit(source, b"", by="Pat Roe", now=0.0)
    headers = make_replay_headers(source, group="g", count=1, tracked=False, edit=edit)
    known = details()
    tasks = [CabinetTask(one, event(), known, None) for one in (source, record(tracking_message(), headers=headers))]
    sources = make_tracking_rows(tasks, clock=lambda: 0.0)["source"].to_pylist()
    assert sources == ["claimx_itel_plugin", "edited by Pat Roe: AbCdEfGhIjKlMnOpQrStUv/2/41"]


@given(st.text(max_size=120), st.binary(max_size=20), st.binary(max_size=20), st.floats(0, 4e9))
def test_an_edit_s_mark_is_read_as_it_was_written(by: str, before: bytes, after: bytes, now: float) -> None:
    if is_editor(by):
        source = record(before)
        edit = make_edit(source, after, by=by, now=now)
        assert read_edit(edit.headers) == edit
        line = describe_edit(record(after, headers=edit.headers))
        assert line == f"edited by {by}: {source.coordinates}"
        assert len(line.splitlines()) == 1


_MARKS = st.lists(
    st.tuples(st.sampled_from(["x-edited-by", "x-edited-at", "x-edit-of"]), st.none() | st.binary(max_size=200)),
    max_size=4,
).map(tuple)


@given(_MARKS)
def test_a_forged_mark_of_an_edit_is_none_or_one_line(headers: tuple[tuple[str, bytes | None], ...]) -> None:
    line = describe_edit(record(b"x", headers=headers))
    assert line is None or len(line.splitlines()) == 1


@pytest.mark.parametrize("name", ["", " x", "a\nb", "x" * 101, "\x1b[31m", "\ud800"])
def test_not_every_text_is_a_name(name: str) -> None:
    assert not is_editor(name)


@pytest.mark.parametrize(
    "message",
    [
        record(None),
        record(None, key=None, headers=(("x-replayed-for", b"g"),)),
        record(None, headers=(("x-replayed-for", None),)),
        record(b"{}", headers=(("x-replayed-for", b"g"),)),
    ],
)
def test_other_than_a_note(message: Record) -> None:
    assert decode_replay_note(message) is None
