"""Trace contexts: which headers are taken as valid, what is made where there is none, and what travels on."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itel_cabinet.transforms.records import Record
from itel_cabinet.transforms.replays import make_replay_headers
from itel_cabinet.transforms.trace_context import (
    TraceContext,
    make_trace,
    parse_traceparent,
    parse_tracestate,
    read_own_trace,
    read_trace,
    trace_call,
    trace_message,
)
from tests.support.cabinet_samples import record

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01".encode()
SHAPE = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[0-3]")


def digits(count: int) -> st.SearchStrategy[str]:
    return st.text("0123456789abcdef", min_size=count, max_size=count)


def ids(count: int) -> st.SearchStrategy[str]:
    return digits(count).filter(lambda text: text.strip("0") != "")


HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["traceparent", "Traceparent", "tracestate", "TRACESTATE", "x-other", "x-replay-for"]),
        st.none()
        | st.binary(max_size=80)
        | st.just(VALID)
        | st.builds(lambda a, b, c, d: f"{a}-{b}-{c}-{d}".encode(), digits(2), digits(32), digits(16), digits(2))
        | st.sampled_from([b"a=1", b"a=1,b=2", b"a=1,a=2", b"=", b"\xff=1", b"A=1"]),
    ),
    max_size=6,
).map(tuple)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (VALID, TraceContext(TRACE, SPAN, 1)),
        (f"00-{TRACE}-{SPAN}-00".encode(), TraceContext(TRACE, SPAN, 0)),
        (f"00-{TRACE}-{SPAN}-ff".encode(), TraceContext(TRACE, SPAN, 3)),
        (f"01-{TRACE}-{SPAN}-ff".encode(), TraceContext(TRACE, SPAN, 1)),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future".encode(), TraceContext(TRACE, SPAN, 1)),
        (f"cc-{TRACE}-{SPAN}-01-".encode(), TraceContext(TRACE, SPAN, 1)),
        (f"cc-{TRACE}-{SPAN}-01.what".encode(), None),
        (f"ff-{TRACE}-{SPAN}-01".encode(), None),
        (f"00-{TRACE}-{SPAN}-01-more".encode(), None),
        (f"00-{TRACE}-{SPAN}-01-".encode(), None),
        (VALID + b"\n", None),
        (VALID[:-1], None),
        (b" " + VALID, None),
        (VALID.upper(), None),
        (f"00-{'0' * 32}-{SPAN}-01".encode(), None),
        (f"00-{TRACE}-{'0' * 16}-01".encode(), None),
        (f"00-{TRACE}-{SPAN}-0x".encode(), None),
        (f"0-{TRACE}-{SPAN}-01".encode(), None),
        (b"\xff" * 55, None),
        (b"", None),
        (None, None),
    ],
)
def test_a_traceparent_is_taken_by_the_rules_of_w3c(value: bytes | None, found: TraceContext | None) -> None:
    assert parse_traceparent(value) == found


@given(ids(32), ids(16), st.integers(0, 3))
def test_what_is_sent_is_read_again(trace_id: str, parent_id: str, flags: int) -> None:
    context = TraceContext(trace_id, parent_id, flags)
    assert parse_traceparent(context.traceparent.encode()) == context


@given(st.binary(max_size=70))
def test_any_bytes_are_either_a_context_that_can_be_sent_or_none(value: bytes) -> None:
    found = parse_traceparent(value)
    assert found is None or SHAPE.fullmatch(found.traceparent)


@given(HEADERS, st.integers(0, 2**40))
def test_every_record_has_a_context_that_can_be_sent_and_always_the_same(
    headers: tuple[tuple[str, bytes | None], ...], offset: int
) -> None:
    one, again = record(b"x", headers=headers, offset=offset), record(b"y", headers=headers, offset=offset)
    context = read_trace(one)
    assert SHAPE.fullmatch(context.traceparent)
    assert read_trace(again) == context
    call = trace_call(one, "itel")
    assert call["traceparent"][3:35] == context.trace_id
    assert call["traceparent"][36:52] not in (context.parent_id, trace_call(one, "claimx")["traceparent"][36:52])
    assert SHAPE.fullmatch(call["traceparent"])
    # No byte of a record gets into a header that could end it or begin another.
    assert re.fullmatch(r"[\x20-\x7e]{0,512}", call.get("tracestate", ""))
    assert dict(trace_message(one, "itel")) == {name: value.encode() for name, value in call.items()}


@given(HEADERS, st.integers(0, 2**40))
def test_a_replay_stays_in_its_trace_however_often(headers: tuple[tuple[str, bytes | None], ...], offset: int) -> None:
    one = record(b"x", headers=headers, offset=offset)
    for count in (1, 2):
        replay = record(
            b"x", headers=make_replay_headers(one, group="g", count=count, tracked=False), offset=offset + count
        )
        assert read_own_trace(replay) == read_trace(one)
        one = replay


def test_other_coordinates_have_another_trace() -> None:
    made = {make_trace(f"topic/{partition}/{offset}").trace_id for partition in range(10) for offset in range(1_000)}
    assert len(made) == 10_000


def test_two_records_of_one_trace_make_different_spans() -> None:
    headers = (("traceparent", VALID),)
    spans = {trace_call(record(b"", headers=headers, offset=offset), "itel")["traceparent"] for offset in range(100)}
    assert len(spans) == 100
    assert {span[3:35] for span in spans} == {TRACE}


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ([b"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"], "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        ([b"a=1", b" b=2 ,, \tc=3"], "a=1,b=2,c=3"),
        ([b"tenant@system=x y", b"0a=1"], "tenant@system=x y,0a=1"),
        ([b"a=1,a=2"], ""),
        ([b"a=1", b"a=2"], ""),
        ([b"A=1"], ""),
        ([b"a"], ""),
        ([b"a=1,b"], ""),
        ([b"a=1\r\nX-Other: 2"], ""),
        ([b"a=\xe9"], ""),
        ([b""], ""),
        ([",".join(f"a{n}=1" for n in range(32)).encode()], ",".join(f"a{n}=1" for n in range(32))),
        ([",".join(f"a{n}=1" for n in range(33)).encode()], ""),
        ([b"a=" + b"x" * 200 + b",b=" + b"x" * 200 + b",c=" + b"x" * 200], f"a={'x' * 200},b={'x' * 200}"),
        ([b"x" * 1_000_000], ""),
    ],
)
def test_a_tracestate_is_passed_on_whole_or_not_at_all(values: list[bytes], state: str) -> None:
    assert parse_tracestate(values) == state


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ((("traceparent", VALID),), TraceContext(TRACE, SPAN, 1)),
        ((("TraceParent", VALID), ("tracestate", b"a=1")), TraceContext(TRACE, SPAN, 1, "a=1")),
        ((("traceparent", VALID), ("traceparent", VALID)), None),
        ((("traceparent", None),), None),
        ((("tracestate", b"a=1"),), None),
        ((("traceparent", VALID.upper()), ("tracestate", b"a=1")), None),
        ((), None),
    ],
)
def test_the_headers_of_a_record(headers: tuple[tuple[str, bytes | None], ...], own: TraceContext | None) -> None:
    one: Record = record(b"", headers=headers)
    assert read_own_trace(one) == own
    assert read_trace(one) == (own or make_trace(one.coordinates))
