"""JSON of other writers: encodings, charsets, halves of characters, numbers that are none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itel_cabinet.io.http import Reply
from itel_cabinet.transforms.events import TaskEvent, parse_event, parse_timestamp
from itel_cabinet.transforms.forms import parse_details
from itel_cabinet.transforms.json_text import read_charset, read_json
from itel_cabinet.transforms.records import Failure
from tests.support.cabinet_samples import (
    ASSIGNMENT_ID,
    TASK_IDS,
    answer,
    group,
    parse_form,
    question,
    record,
    tracking_message,
)

TEXT = "Küche, naß: 3\u2009ft \N{SMILING FACE WITH SMILING EYES}"
WRITERS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(-1e300, 1e300) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.sampled_from(WRITERS), st.booleans())
def test_any_content_in_any_encoding_of_unicode(content: Any, encoding: str, escaped: bool) -> None:
    raw = json.dumps({"a": content}, ensure_ascii=escaped).encode(encoding)
    assert read_json(raw) == ({"a": content}, ())


@pytest.mark.parametrize("charset", ["iso-8859-1", "ISO-8859-15", "windows-1252", "cp850", "shift_jis"])
def test_a_declared_charset_is_used_where_it_is_needed(charset: str) -> None:
    said = "ｶﾅ" if charset == "shift_jis" else "Küche, naß"
    raw = json.dumps({"a": said}, ensure_ascii=False).encode(charset)
    assert read_json(raw, charset) == ({"a": said}, ())
    # UTF-8 that is declared as something else, as many servers do.
    assert read_json(json.dumps({"a": TEXT}, ensure_ascii=False).encode(), charset) == ({"a": TEXT}, ())


@pytest.mark.parametrize("charset", [None, "utf-8", "no-such-charset", "hex", "rot13", "base64"])
def test_bytes_of_no_known_charset_are_refused(charset: str | None) -> None:
    with pytest.raises(ValueError, match="unicode"):
        read_json(b'{"a": "caf\xe9"}', charset)


HALF = "half a character (a lone surrogate) became U+FFFD"


@pytest.mark.parametrize(
    ("raw", "content", "repairs"),
    [
        (b'{"a": "leak \\ud83d"}', {"a": "leak \ufffd"}, (HALF,)),
        (b'{"a": "\\ude0a\\ud83d"}', {"a": "\ufffd\ufffd"}, (HALF,)),
        (b'{"\\ud83d": 1}', {"\ufffd": 1}, (HALF,)),
        (b'{"a": "leak \xed\xa0\xbd"}', {"a": "leak \ufffd"}, (HALF,)),
        (b'{"a": "\xed\xa0\xbd\xed\xb8\x8a"}', {"a": "\N{SMILING FACE WITH SMILING EYES}"}, ()),
        (b'{"a": "\\ud83d\\ude0a"}', {"a": "\N{SMILING FACE WITH SMILING EYES}"}, ()),
        (b'{"a": [NaN, 1, -Infinity]}', {"a": [None, 1, None]}, ("NaN or an infinity became null",)),
        (b'{"a": "two\nlines\t"}', {"a": "two\nlines\t"}, ()),
        (b'{"a": 1, "a": 2}', {"a": 2}, ()),
    ],
)
def test_one_bad_value_costs_that_value(raw: bytes, content: Any, repairs: tuple[str, ...]) -> None:
    assert read_json(raw) == (content, repairs)


@pytest.mark.parametrize(
    "raw", [b"", b" ", b"{", b"<html>", b"{'a': 1}", b'{"a": 1,}', b"[" * 202 + b"]" * 202, b"\xff\xfe{"]
)
def test_what_is_no_json_is_refused_without_its_text(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"^[^<']*$"):
        read_json(raw)


@given(st.binary(max_size=60), st.none() | st.sampled_from(["latin-1", "utf-16", "idna", "x"]))
def test_any_bytes_are_content_or_a_refusal(raw: bytes, charset: str | None) -> None:
    try:
        content, _ = read_json(raw, charset)
    except ValueError:
        return
    json.dumps(content, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("content_type", "charset"),
    [
        ("application/json", None),
        ("application/json; charset=iso-8859-1", "iso-8859-1"),
        ('application/json;CHARSET="UTF-8"; x=y', "UTF-8"),
        ("text/plain; charset = 'latin-1'", "latin-1"),
        ("", None),
        (None, None),
    ],
)
def test_the_charset_of_a_content_type(content_type: str | None, charset: str | None) -> None:
    assert read_charset(content_type) == charset


# -- in place


@pytest.mark.parametrize("encoding", [*WRITERS, "iso-8859-1"])
def test_an_event_and_an_answer_are_read_in_any_encoding(encoding: str) -> None:
    kind = f"application/json; charset={encoding}"
    message = json.dumps(tracking_message(task_name="Küche"), ensure_ascii=False).encode(encoding)
    event = parse_event(record(message, headers=(("Content-Type", kind.encode()),)), 0.0, task_ids=TASK_IDS)
    assert isinstance(event, TaskEvent), event
    assert event.task_name == "Küche"
    form = answer(group("Damage Description", question("Enter Damaged Description", "naß")))
    reply = Reply(200, {"Content-Type": kind}, json.dumps(form, ensure_ascii=False).encode(encoding))
    read = parse_form(parse_details(reply.text, ASSIGNMENT_ID))
    assert (read.answers["damage_description"], read.warnings) == ("naß", ())


def test_latin_1_that_nobody_declared_is_a_dead_letter() -> None:
    failed = parse_event(record('{"task_name": "Küche"}'.encode("latin-1")), 0.0, task_ids=TASK_IDS)
    assert isinstance(failed, Failure)
    assert failed.error_class == "not_json"


def test_half_a_character_costs_a_warning_and_not_the_form() -> None:
    asked = group("Damage Description", question("Enter Damaged Description", "leak \ud83d"))
    read = parse_form(parse_details(json.dumps(answer(asked)).encode(), ASSIGNMENT_ID))
    assert (read.answers["damage_description"], read.warnings) == ("leak \ufffd", (HALF,))


@pytest.mark.parametrize("value", [5430007, 5430007.0, "5430007"])
def test_an_id_may_be_a_double(value: Any) -> None:
    message = tracking_message(assignment_id=value, task_id=32513.0, project_id=5400001.0)
    event = parse_event(record(message), 0.0, task_ids=TASK_IDS)
    assert isinstance(event, TaskEvent), event
    assert (event.assignment_id, event.task_id, event.project_id) == (5430007, 32513, "5400001")
    details = parse_details(
        json.dumps(answer(assignmentId=value, taskId=32513.0, projectId=5400001.0)).encode(), 5430007
    )
    assert (details.assignment_id, details.task_id, details.project_id) == (5430007, 32513, "5400001")


@pytest.mark.parametrize(
    "value", [1768057449, 1768057449.0, 1768057449000, "2026-01-10T15:04:09Z", "2026-01-10T10:04:09-05:00"]
)
def test_a_time_may_be_a_number(value: Any) -> None:
    assert parse_timestamp(value).isoformat() == "2026-01-10T15:04:09+00:00"
