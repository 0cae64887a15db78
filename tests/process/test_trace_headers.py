"""Trace contexts on real sockets: which calls carry whose, and how often one is made."""

from __future__ import annotations

from functools import partial

from itel_cabinet.io.claimx import ClaimX, ClaimXSettings
from itel_cabinet.io.http import Connection, ConnectionSettings
from itel_cabinet.io.itel import HttpItel, ItelSettings
from itel_cabinet.transforms.records import Record
from itel_cabinet.transforms.submissions import Submission
from itel_cabinet.transforms.trace_context import read_trace, trace_call
from tests.support.cabinet_samples import record
from tests.support.faulty_server import FaultyServer, answer

STATE = (("tracestate", b"rojo=1"),)


def traced(number: int, state: tuple[tuple[str, bytes], ...] = ()) -> Record:
    """A record of the trace ``number``."""
    return record(b"", headers=(("traceparent", f"00-{number:032x}-{7:016x}-01".encode()), *state), offset=number)


def handed_in(one: Record) -> Submission:
    return Submission(one, f"e{one.offset}", one.offset, b"{}", ())


def test_every_try_of_a_call_is_the_same_span() -> None:
    with FaultyServer(answer(503), answer(201), answer(201)) as server:
        link = ConnectionSettings("itel", server.url)
        itel = HttpItel(ItelSettings(link), Connection(link, sleep=lambda _: None, random=lambda: 0.0))
        for number in (1, 2):
            itel.submit(handed_in(traced(number, STATE)))
    tries = [(seen.headers["traceparent"], seen.headers["tracestate"]) for seen in server.requests]
    assert tries[0] == tries[1] == (read_span(traced(1)), "rojo=1")
    assert tries[2] == (read_span(traced(2)), "rojo=1")
    assert tries[0][0][36:52] != f"{7:016x}", "a child's span"


def read_span(one: Record) -> str:
    return trace_call(one, "itel")["traceparent"]


def test_a_batch_is_in_the_trace_of_its_first() -> None:
    with FaultyServer(answer(201)) as server:
        link = ConnectionSettings("itel", server.url)
        HttpItel(ItelSettings(link, batch_size=3), Connection(link)).submit_batch(
            [handed_in(traced(number)) for number in (3, 1, 2)]
        )
    (seen,) = server.requests
    assert seen.headers["traceparent"] == read_span(traced(3))


def test_a_header_that_a_contract_names_is_sent_once() -> None:
    """`run` refuses such a contract; a caller's settings cannot double it either."""
    with FaultyServer(answer(201)) as server:
        link = ConnectionSettings("itel", server.url)
        settings = ItelSettings(link, headers=(("traceparent", "00-1"),))
        HttpItel(settings, Connection(link)).submit(handed_in(traced(1)))
    (seen,) = server.requests
    assert seen.headers["traceparent"] == read_span(traced(1))


def test_an_answer_from_the_cache_asks_for_no_context() -> None:
    asked: list[str] = []

    def trace(one: Record, name: str) -> dict[str, str]:
        asked.append(name)
        return trace_call(one, name)

    def parse(body: bytes, _: object) -> bytes:
        return body

    with FaultyServer(answer(200), answer(200)) as server:
        link = ConnectionSettings("claimx", server.url)
        claimx = ClaimX(ClaimXSettings(link), Connection(link), parse)
        for number, fresh in ((1, False), (2, False), (3, False), (4, True)):
            claimx.task_details(7, not_before=-1.0, fresh=fresh, trace=partial(trace, traced(number)))
    found = [seen.headers["traceparent"][3:35] for seen in server.requests]
    assert found == [read_trace(traced(number)).trace_id for number in (1, 4)]
    assert len(asked) == 2
