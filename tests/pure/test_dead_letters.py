"""Dead letters and results: nothing of a record is lost, nothing grows too large, all can be read back."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itel_cabinet.transforms.dead_letters import (
    DeadLetter,
    DeadLetterFormatError,
    decode_dead_letter,
    encode_dead_letter,
    shorten,
)
from itel_cabinet.transforms.records import Failure, Record
from itel_cabinet.transforms.results import (
    SubmissionResult,
    TrackingResult,
    encode_submission_result,
    encode_tracking_result,
)
from itel_cabinet.transforms.rows import make_tracking_row
from itel_cabinet.transforms.submissions import Submission, Submitted
from itel_cabinet.transforms.trace_context import trace_message
from tests.support.cabinet_samples import ASSIGNMENT_ID, details, event, record

MAX_BYTES = 900_000
FIRST, LAST = 1_768_057_500.25, 1_768_057_530.0


def failure(source: Record, error: str = "the value is not JSON", **changes: Any) -> Failure:
    return Failure(source, **{"stage": "parse", "error_class": "not_json", "error": error, "first_at": FIRST,
                              "last_at": LAST, "attempts": 3, **changes})  # fmt: skip


def encoded(source: Record, max_bytes: int = MAX_BYTES, **changes: Any) -> bytes:
    return encode_dead_letter(failure(source, **changes), job="tracking", group="g", max_bytes=max_bytes)[1]


def test_the_format() -> None:
    source = record(b"\xff{", headers=(("x-task-id", b"32513"), ("none", None), ("x-task-id", b"\x00")))
    key, value, headers = encode_dead_letter(failure(source), job="tracking", group="itel_cabinet_group")
    assert key == b"AbCdEfGhIjKlMnOpQrStUv/2/41"
    assert json.loads(value) == {
        "version": 1,
        "topic": "itel.cabinet.task.tracking",
        "topic_id": "AbCdEfGhIjKlMnOpQrStUv",
        "partition": 2,
        "offset": 41,
        "timestamp": "2026-01-10T15:04:09.120000Z",
        "key": base64.b64encode(b"5430007").decode(),
        "value": base64.b64encode(b"\xff{").decode(),
        "headers": [["x-task-id", "MzI1MTM="], ["none", None], ["x-task-id", "AA=="]],
        "key_omitted": False,
        "value_omitted": False,
        "headers_omitted": False,
        "value_size": 2,
        "value_sha256": hashlib.sha256(b"\xff{").hexdigest(),
        "stage": "parse",
        "error_class": "not_json",
        "error": "the value is not JSON",
        "attempts": 3,
        "first_at": "2026-01-10T15:05:00.250000Z",
        "last_at": "2026-01-10T15:05:30Z",
        "job": "tracking",
        "group": "itel_cabinet_group",
    }
    assert headers == (
        ("x-stage", b"parse"),
        ("x-error-class", b"not_json"),
        ("x-error", b"the value is not JSON"),
        ("x-topic", b"itel.cabinet.task.tracking"),
        ("x-topic-id", b"AbCdEfGhIjKlMnOpQrStUv"),
        ("x-partition", b"2"),
        ("x-offset", b"41"),
        ("x-attempts", b"3"),
        ("x-job", b"tracking"),
        ("x-group", b"itel_cabinet_group"),
        *trace_message(source, "dead letter"),
    )
    assert decode_dead_letter(value).coordinates == key.decode()
    assert decode_dead_letter(value).record() == source


def test_a_record_without_key_value_and_time() -> None:
    source = record(None, key=None, timestamp_ms=-1)
    letter = decode_dead_letter(encoded(source))
    assert (letter.key, letter.value, letter.timestamp, letter.value_omitted) == (None, None, None, False)
    assert (letter.value_size, letter.value_sha256) == (0, hashlib.sha256(b"").hexdigest())
    assert letter.record() == source


def test_an_impossible_time_is_none() -> None:
    assert decode_dead_letter(encoded(record(b"x", timestamp_ms=2**63 - 1))).timestamp is None


def test_a_large_value_is_left_out_but_can_be_found_and_checked() -> None:
    garbage = b"\x00" * 900_000
    value = encoded(record(garbage, headers=(("a", b"b"),)))
    letter = decode_dead_letter(value)
    assert len(value) < 2_000
    assert (letter.value, letter.value_omitted, letter.value_size) == (None, True, 900_000)
    assert letter.value_sha256 == hashlib.sha256(garbage).hexdigest()
    assert letter.record() == record(None, headers=(("a", b"b"),))
    assert not letter.key_omitted
    assert not letter.headers_omitted


def test_the_largest_value_that_fits_is_kept() -> None:
    source = record(b"x" * 3_000)
    size = len(encoded(source))
    assert decode_dead_letter(encoded(source, max_bytes=size)).record() == source
    assert decode_dead_letter(encoded(source, max_bytes=size - 1)).value_omitted


def test_large_headers_are_left_out_next() -> None:
    letter = decode_dead_letter(encoded(record(b"x", headers=(("a", b"b" * 900_000),))))
    assert (letter.headers, letter.headers_omitted, letter.key) == ([], True, "NTQzMDAwNw==")


def test_a_large_key_is_left_out_last() -> None:
    value = encoded(record(b"x", key=b"k" * 900_000))
    letter = decode_dead_letter(value)
    assert (letter.key, letter.key_omitted, letter.headers_omitted) == (None, True, False)
    assert len(value) < 2_000


def test_only_what_was_there_is_called_omitted() -> None:
    letter = decode_dead_letter(encoded(record(None, key=b"k" * 900_000)))
    assert (letter.value_omitted, letter.headers_omitted, letter.key_omitted) == (False, False, True)


def test_the_error_is_one_bounded_line() -> None:
    letter = decode_dead_letter(encoded(record(b"x"), error="a\r\nb\x00\x1b[31m\u2028" + "é" * 9_000_000))
    assert letter.error.startswith("a b [31m éé")
    assert (len(letter.error), letter.error[-3:]) == (500, "...")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        (" a\t b ", "a b"),
        ("\ud800x", "x"),
        ("12345678901", "1234567..."),
        ("1234567890", "1234567890"),
    ],
)
def test_one_line(text: str, line: str) -> None:
    assert shorten(text, 10) == line


_HEADERS = st.lists(st.tuples(st.text(max_size=9), st.none() | st.binary(max_size=30)), max_size=4).map(tuple)


@given(
    value=st.none() | st.binary(max_size=9_000),
    key=st.none() | st.binary(max_size=9_000),
    headers=_HEADERS,
    timestamp_ms=st.integers(-(2**63), 2**63 - 1),
    error=st.text(),
    max_bytes=st.integers(5_000, 20_000),
)
def test_a_dead_letter_is_bounded_and_comes_back(
    value: bytes | None, key: bytes | None, headers: Any, timestamp_ms: int, error: str, max_bytes: int
) -> None:
    source = record(value, key=key, headers=headers, timestamp_ms=timestamp_ms)
    sent = encoded(source, error=error, max_bytes=max_bytes)
    assert len(sent) <= max_bytes
    letter = decode_dead_letter(sent)
    back = letter.record()
    assert (back.topic, back.coordinates) == (source.topic, source.coordinates)
    assert back.value == (None if letter.value_omitted else value)
    assert back.key == (None if letter.key_omitted else key)
    assert back.headers == (() if letter.headers_omitted else headers)
    assert back.timestamp_ms == (timestamp_ms if letter.timestamp else -1)
    assert "\n" not in letter.error
    assert len(letter.error) <= 500


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (b"", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b'{"version": 2}', None),
        (b"\xff", "not a JSON object"),
    ],
)
def test_other_than_a_dead_letter(value: bytes, error: str | None) -> None:
    with pytest.raises(DeadLetterFormatError, match=r"^not a dead letter of version 1: ") as refusal:
        decode_dead_letter(value)
    if error:
        assert str(refusal.value).endswith(error)
    else:
        assert "version" in str(refusal.value)


@pytest.mark.parametrize("field", ["value", "key", "offset", "first_at"])
def test_a_spoiled_dead_letter_names_its_field(field: str) -> None:
    spoiled = {**json.loads(encoded(record(b"secret"))), field: "not base64, no number, no time: secret"}
    with pytest.raises(DeadLetterFormatError) as refusal:
        decode_dead_letter(json.dumps(spoiled).encode())
    assert str(refusal.value) == f"not a dead letter of version 1: missing or wrong: {field}"


def test_a_later_addition_is_ignored() -> None:
    value = json.dumps({**json.loads(encoded(record(b"x"))), "added": 1}).encode()
    assert isinstance(decode_dead_letter(value), DeadLetter)


# ----------------------------------------------------------------------------------------------------------- results


def test_a_success() -> None:
    submission = Submission(record(b""), "e-1", ASSIGNMENT_ID, b"{}", ())
    submitted = Submitted(submission, 201, 2, "ok \ud800" + "é" * 600, duplicate=False)
    key, value, headers = encode_submission_result(submitted, LAST)
    assert key == b"e-1"
    trace = trace_message(record(b""), "result")
    assert headers == (("x-assignment-id", b"5430007"), ("x-status", b"201"), *trace)
    assert json.loads(value) == {
        "version": 1,
        "event_id": "e-1",
        "assignment_id": ASSIGNMENT_ID,
        "status": 201,
        "response": "ok ?" + "é" * 496,
        "payload_sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "attempts": 2,
        "timestamp": "2026-01-10T15:05:30Z",
    }
    assert SubmissionResult.model_validate_json(value).timestamp == datetime(2026, 1, 10, 15, 5, 30, tzinfo=UTC)


def test_a_tracked_event() -> None:
    row = make_tracking_row(record(b"{}"), event(), details(), datetime(2026, 1, 10, tzinfo=UTC))
    key, value, headers = encode_tracking_result(row)
    assert key == b"9f2c" * 16
    assert headers == (("x-assignment-id", b"5430007"), ("x-status", b"COMPLETED"))
    assert json.loads(value) == {
        "version": 1,
        "event_id": "9f2c" * 16,
        "assignment_id": ASSIGNMENT_ID,
        "task_status": "COMPLETED",
        "event_timestamp": "2026-01-10T15:04:09.120000Z",
        "kafka_topic": "itel.cabinet.task.tracking",
        "kafka_topic_id": "AbCdEfGhIjKlMnOpQrStUv",
        "kafka_partition": 2,
        "kafka_offset": 41,
    }
    assert TrackingResult.model_validate_json(value).kafka_offset == 41
