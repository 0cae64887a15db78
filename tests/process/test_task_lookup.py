"""ClaimX as the steps see it: what is waited for, what is diverted, and what is the record's own failure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest

from itel_cabinet.io.claimx import ClaimX, ClaimXSettings, WaitingLookup, get_task_lookup
from itel_cabinet.io.http import Connection, ConnectionSettings
from itel_cabinet.io.worker import OutageError
from itel_cabinet.transforms.enrichment import TaskLookupError
from itel_cabinet.transforms.forms import TaskDetails, parse_details
from tests.support.cabinet_samples import ASSIGNMENT_ID, answer, group, question
from tests.support.faulty_server import Act, FaultyServer, reset
from tests.support.faulty_server import answer as reply

TASK = json.dumps(answer(group("g", question("q", "Yes")))).encode()


class Patience:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.naps: list[float] = []

    def clock(self) -> float:
        return sum(self.naps)

    def sleep(self, seconds: float) -> None:
        self.naps.append(max(seconds, 0.001))


@pytest.fixture
def lookup() -> Iterator[Callable[..., tuple[WaitingLookup, FaultyServer, Patience]]]:
    """Makes a lookup on a server with the given script. A call is two tries; no pause takes real time."""
    servers: list[FaultyServer] = []

    def make(
        *script: Act, on_outage: Literal["wait", "divert"] = "wait", outage_seconds: float = 3600.0
    ) -> tuple[WaitingLookup, FaultyServer, Patience]:
        servers.append(FaultyServer(*script).__enter__())
        link = ConnectionSettings("claimx", servers[-1].url, max_retries=1)
        connection = Connection(link, clock=lambda: 0.0, sleep=lambda _: None, random=lambda: 0.0)
        client: ClaimX[TaskDetails] = ClaimX(ClaimXSettings(link), connection, parse_details, lambda: 1_000.0)
        patience = Patience()
        patient = WaitingLookup(client, on_outage, outage_seconds, patience.clock, patience.sleep)
        return patient, servers[-1], patience

    yield make
    for server in servers:
        server.__exit__(None, None, None)


def test_the_task_is_found(lookup: Any) -> None:
    patient, server, patience = lookup(reply(200, TASK))
    found = patient.task(ASSIGNMENT_ID, not_before=0.0)
    assert found == parse_details(TASK, ASSIGNMENT_ID)
    assert found.has_form
    assert server.requests[0].path == f"/customTasks/assignment/{ASSIGNMENT_ID}?full=true"
    assert patience.naps == []


def test_the_caches_rule_is_the_callers(lookup: Any) -> None:
    patient, server, _ = lookup(reply(200, TASK))
    patient.task(ASSIGNMENT_ID, not_before=0.0)
    patient.task(ASSIGNMENT_ID, not_before=patient.now() - 0.1)
    assert len(server.requests) == 1
    patient.task(ASSIGNMENT_ID, not_before=patient.now())  # fetched no later than this
    assert len(server.requests) == 2
    patient.task(ASSIGNMENT_ID, not_before=0.0, fresh=True)
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", [reply(503), reply(401), reply(403), reset])
def test_an_outage_is_waited_out(fault: Act, lookup: Any) -> None:
    patient, server, patience = lookup(*[fault] * 6, reply(200, TASK))
    assert patient.task(ASSIGNMENT_ID, not_before=0.0) == parse_details(TASK, ASSIGNMENT_ID)
    assert len(server.requests) == 7
    assert 3 <= len(patience.naps) <= 6  # a call is two tries, or one where another is no use


def test_an_outage_longer_than_the_patience_is_the_worlds(lookup: Any) -> None:
    patient, server, patience = lookup(reply(503), outage_seconds=60.0)
    with pytest.raises(OutageError) as caught:
        patient.task(ASSIGNMENT_ID, not_before=0.0)
    message = f"ClaimX: {server.url}: status 503 (2 tries in 0.0 s); gave up after 60 s"
    assert str(caught.value) == message
    assert patience.clock() == pytest.approx(60.0)
    assert len(server.requests) == 2 * (len(patience.naps) + 1)


def test_without_patience_an_outage_is_the_worlds_at_once(lookup: Any) -> None:
    patient, server, patience = lookup(reply(401), outage_seconds=0.0)
    with pytest.raises(OutageError, match=r"^ClaimX: .*: status 401: check the credentials$"):
        patient.task(ASSIGNMENT_ID, not_before=0.0)
    assert (len(server.requests), patience.naps) == (1, [])


@pytest.mark.parametrize(("fault", "attempts"), [(reply(503), 2), (reset, 2), (reply(401), 1)])
def test_a_diverted_outage_is_the_records_at_once(fault: Act, attempts: int, lookup: Any) -> None:
    patient, server, patience = lookup(fault, on_outage="divert")
    with pytest.raises(TaskLookupError, match=server.url) as caught:
        patient.task(ASSIGNMENT_ID, not_before=0.0)
    assert (caught.value.error_class, caught.value.attempts) == ("outage", attempts)
    assert (len(server.requests), patience.naps) == (attempts, [])


@pytest.mark.parametrize("on_outage", ["wait", "divert"])
@pytest.mark.parametrize(
    ("act", "error_class", "error", "attempts"),
    [
        (reply(404), "unknown_assignment", "ClaimX knows no such assignment (status 404)", 1),
        (reply(400), "lookup_refused", "ClaimX refuses the lookup (status 400)", 1),
        (reply(200, b"[]"), "wrong_shape", "ClaimX's answer: the answer is not an object", 1),
        (
            reply(200, json.dumps(answer(assignmentId=1)).encode()),
            "wrong_shape",
            "ClaimX's answer: assignmentId is not the one that was asked for",
            1,
        ),
    ],
    ids=["404", "400", "list", "another"],
)
def test_a_refusal_is_the_records(
    act: Act, error_class: str, error: str, attempts: int, on_outage: str, lookup: Any
) -> None:
    patient, server, patience = lookup(act, on_outage=on_outage)
    with pytest.raises(TaskLookupError) as caught:
        patient.task(ASSIGNMENT_ID, not_before=0.0)
    assert (caught.value.error_class, str(caught.value), caught.value.attempts) == (error_class, error, attempts)
    assert (len(server.requests), patience.naps) == (attempts, [])


def test_what_stays_no_json_is_the_records_after_the_tries(lookup: Any) -> None:
    patient, server, _ = lookup(reply(200, b"{half"))
    with pytest.raises(TaskLookupError, match="not JSON") as caught:
        patient.task(ASSIGNMENT_ID, not_before=0.0)
    assert (caught.value.error_class, caught.value.attempts, len(server.requests)) == ("wrong_shape", 2, 2)


def test_lookups_of_a_process_share_one_client() -> None:
    settings = ClaimXSettings(ConnectionSettings("claimx", "https://claimx.example"))
    one = get_task_lookup(settings, on_outage="wait", outage_seconds=5.0)
    other = get_task_lookup(settings, on_outage="divert", outage_seconds=0.0)
    assert one.client is other.client
    assert (one.on_outage, one.outage_seconds) == ("wait", 5.0)
    assert (other.on_outage, other.outage_seconds) == ("divert", 0.0)
