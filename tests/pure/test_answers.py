"""What an answer means: every status, with and without Retry-After, and every kind of body of iTel's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itel_cabinet.io.http import Meaning, Reply
from itel_cabinet.io.itel import read_answer

# RFC 9110, section 15, and the registry; what is not here means what the first of its class does.
LISTED = {
    Meaning.CREDENTIALS: {401, 403, 407, 511},
    Meaning.BACK_PRESSURE: {429},
    Meaning.AGAIN: {408, 421, 425},
    Meaning.REFUSED: {206, 207, 208, 226, 501, 505, 506, 510},
}
CLASSES = {2: Meaning.ACCEPTED, 3: Meaning.REDIRECTED, 4: Meaning.REFUSED}
WAITS = ["0", "1", "86400", " 7 ", "Fri, 27 Nov 2026 10:00:00 GMT", "Friday, 27-Nov-26 10:00:00 GMT"]
NO_WAITS = ["", "soon", "-1", "1.5", "Wed, 99 Foo 9 9:9:9 GMT", "9" * 5_000, "\u0661"]
STATUSES = range(200, 1_000)

NAMES = ("e-1", "e-1", "5430007-e-1")
SAID = b'{"integration_test_id": ["\'5430007-e-1\' already exists"]}'


def by_the_table(status: int, asks_to_wait: bool) -> Meaning:
    """The table of docs/connections.md, written down a second time."""
    if status == 503 and asks_to_wait:
        return Meaning.BACK_PRESSURE
    for meaning, statuses in LISTED.items():
        if status in statuses:
            return meaning
    if 400 <= status < 500 and asks_to_wait:
        return Meaning.AGAIN
    return CLASSES.get(status // 100, Meaning.AGAIN)


@pytest.mark.parametrize("value", [None, *WAITS, *NO_WAITS], ids=lambda value: repr(value)[:12])
def test_each_status_has_one_meaning(value: str | None) -> None:
    headers = {} if value is None else {"Retry-After": value}
    found = {status: Reply(status, headers, b"").meaning for status in STATUSES}
    assert found == {status: by_the_table(status, value in WAITS) for status in STATUSES}


def test_no_status_of_the_standard_is_left_to_its_class_by_mistake() -> None:
    """A status that a new Python knows and this table does not is looked at once."""
    known = {status.value for status in HTTPStatus if status >= 200}
    listed = set().union(*LISTED.values())
    assert sorted(known - listed) == [
        *(200, 201, 202, 203, 204, 205, 300, 301, 302, 303, 304, 305, 307, 308),
        *(400, 402, 404, 405, 406, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 422, 423, 424, 426, 428, 431, 451),
        *(500, 502, 503, 504, 507, 508),
    ]


def itel(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Meaning:
    return read_answer(Reply(status, headers or {}, body), NAMES)


FAILED: list[Any] = [
    {"success": False},
    {"success": False, "errors": ["assignment is closed"]},
    {"Success": "false"},
    {"ok": 0},
    {"status": "error", "message": "no"},
    {"status": "FAILED"},
    {"status": 422},
    {"statusCode": 400},
    {"result": "rejected"},
    {"errors": [{"field": "x"}]},
    {"errors": {"x": ["required"]}},
    {"error": "closed"},
    {"error": True},
    [{"success": True}, {"success": False}],
]
DONE: list[Any] = [
    {},
    [],
    None,
    7,
    "ok",
    {"itel_task_id": 7},
    {"success": True, "errors": []},
    {"success": True, "error": None},
    {"status": "created", "error": ""},
    {"status": 201},
    {"ok": 1, "errors": {}},
    {"status": "success", "error": False},
    [{"success": True}],
]
PAGES = [b"<!DOCTYPE html><title>Log in</title>", b"\xef\xbb\xbf\n <html>", b"<?xml version='1.0'?><fault/>"]


@pytest.mark.parametrize("status", [200, 201, 202, 203, 299])
def test_a_2xx_is_believed_unless_its_body_denies_it(status: int) -> None:
    for found in FAILED:
        assert itel(status, json.dumps(found).encode()) is Meaning.REFUSED, found
    for found in DONE:
        assert itel(status, json.dumps(found).encode()) is Meaning.ACCEPTED, found
    for body in PAGES:
        assert itel(status, body) is Meaning.AGAIN, body
    assert itel(status, b"please log in", {"Content-Type": "text/HTML; charset=utf-8"}) is Meaning.AGAIN
    for cut in (b"", b'{"success": fal', b"created", b"\xff\xfe"):
        assert itel(status, cut) is Meaning.ACCEPTED, cut


@pytest.mark.parametrize("status", STATUSES)
def test_a_duplicate_is_a_refusal_that_names_this_submission(status: int) -> None:
    is_duplicate = 400 <= status < 500 and by_the_table(status, False) is Meaning.REFUSED
    assert (itel(status, SAID) is Meaning.DUPLICATE) == is_duplicate


@pytest.mark.parametrize(
    ("body", "duplicate"),
    [
        (b"e-1 already exists", True),
        (b'{"detail": "Task 5430007-e-1 ALREADY EXISTS."}', True),
        (b"'e-10' already exists", False),
        (b"'the-1' already exists", False),
        (b"customer e-mail already exists for another project", False),
        (b"this already exists", False),
        (b"e-1 is not valid", False),
        (b"", False),
    ],
)
def test_what_names_this_submission(body: bytes, duplicate: bool) -> None:
    assert (itel(422, body) is Meaning.DUPLICATE) == duplicate


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), st.booleans())
def test_any_event_id_is_found_in_json(event_id: str, escaped: bool) -> None:
    body = json.dumps({"id": [f"'7-{event_id}' already exists"]}, ensure_ascii=escaped).encode()
    assert read_answer(Reply(400, {}, body), (f"7-{event_id}",)) is Meaning.DUPLICATE


@given(st.integers(200, 999), st.binary(max_size=40) | st.sampled_from([json.dumps(one).encode() for one in FAILED]))
def test_a_body_never_makes_more_of_a_status_than_it_says(status: int, body: bytes) -> None:
    if itel(status, body) is Meaning.ACCEPTED:
        assert by_the_table(status, False) is Meaning.ACCEPTED
