"""One event's way through the jobs is one trace: what reaches ClaimX, iTel and the topics, and what is logged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from itel_cabinet.io.kafka import Cluster
from itel_cabinet.local.services import Message
from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator, Request, Response
from itel_cabinet.pipeline.commands import main
from itel_cabinet.transforms.trace_context import make_trace, parse_traceparent
from tests.support.cabinet_samples import answer, group, question
from tests.support.jobs import Stack

TRACE, STATE = "4bf92f3577b34da6a3ce929d0e0e4736", "rojo=00f067aa0ba902b7"
FORM = (group("Linear Feet Capture", question("Countertops (linear feet)", 9.5)),)


class TracedClaimX(ClaimXSimulator):
    """ClaimX, which notes the headers of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Request] = []

    def answer(self, request: Request) -> Response:
        self.seen.append(request)
        return super().answer(request)


class TracedItel(ItelSimulator):
    """iTel, which notes the headers of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Request] = []

    def answer(self, request: Request) -> Response:
        self.seen.append(request)
        return super().answer(request)


@pytest.fixture
def claimx() -> Iterator[TracedClaimX]:
    with TracedClaimX() as simulator:
        yield simulator


@pytest.fixture
def itel() -> Iterator[TracedItel]:
    with TracedItel() as simulator:
        yield simulator


def trace_ids(messages: list[Any]) -> list[str]:
    """The trace id of each message or request, which must be valid."""
    found = [dict(one.headers.items() if hasattr(one.headers, "items") else one.headers) for one in messages]
    values = [headers.get("traceparent") for headers in found]
    contexts = [parse_traceparent(value.encode() if isinstance(value, str) else value) for value in values]
    assert all(contexts), values
    return [context.trace_id for context in contexts if context]


def by_assignment(messages: list[Message]) -> dict[int, str]:
    ids = [json.loads(message.value or b"")["assignment_id"] for message in messages]
    return dict(zip(ids, trace_ids(messages), strict=True))


def test_an_event_is_one_trace_from_claimx_s_topic_to_itel_and_through_a_replay(
    stack: Stack, claimx: TracedClaimX, itel: TracedItel, capsys: pytest.CaptureFixture[str]
) -> None:
    producer = stack.broker.producer()

    def write(assignment_id: int, *headers: tuple[str, bytes]) -> None:
        event = {
            "event_id": f"e{assignment_id}",
            "event_type": "CUSTOM_TASK_COMPLETED",
            "project_id": "5400001",
            "taskAssignmentId": assignment_id,
        }
        producer.produce(stack.topic("enriched"), json.dumps(event).encode(), partition=0, headers=list(headers))
        assert producer.flush(30) == 0

    write(1, ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-00".encode()), ("tracestate", STATE.encode()))
    write(2)
    write(3, ("traceparent", f"00-{TRACE.upper()}-00f067aa0ba902b7-00".encode()))
    topic_id = Cluster({"bootstrap.servers": stack.broker.bootstrap_servers}).topic(stack.topic("enriched")).topic_id
    traces = {1: TRACE, 2: make_trace(f"{topic_id}/0/1").trace_id, 3: make_trace(f"{topic_id}/0/2").trace_id}
    for assignment_id in (1, 3):
        claimx.put_task(answer(*FORM, assignmentId=assignment_id))
    claimx.put_task(answer(assignmentId=2, response=None))  # without a form
    stack.run("trigger")
    published = stack.broker.read(stack.topic("tracking"))
    assert by_assignment(published) == traces
    assert [dict(m.headers).get("tracestate") for m in published].count(STATE.encode()) == 1

    ended = stack.run("cabinet", claimx_cache_seconds=0)
    for assignment_id, trace in traces.items():
        calls = [one for one in claimx.seen if one.path.endswith(f"/{assignment_id}")]
        # One by `trigger`, one by `cabinet`, and a second look where the form is missing.
        assert trace_ids(calls) == [trace] * (3 if assignment_id == 2 else 2)
        assert len({one.headers["traceparent"] for one in calls}) == len(calls)
    submitted = {one.json()["assignmentId"]: one for one in itel.seen}
    assert {number: trace_ids([one])[0] for number, one in submitted.items()} == {1: traces[1], 3: traces[3]}
    assert (submitted[1].headers["tracestate"], submitted[3].headers["tracestate"]) == (STATE, None)
    results = stack.broker.read(stack.topic("success"))
    assert by_assignment(results) == {1: traces[1], 3: traces[3]}
    assert trace_ids(stack.broker.read(stack.topic("itel_errors"))) == [traces[2]]
    assert [line["trace_id"] for line in ended.lines if "error_class" in line] == [traces[2]]

    claimx.put_task(answer(*FORM, assignmentId=2))
    replay = ["dead-letters", "replay", f"--bootstrap_servers={stack.broker.bootstrap_servers}"]
    replay += [f"--dead_letter_topic={stack.topic('errors')}", f"--itel_errors_topic={stack.topic('itel_errors')}"]
    assert main(replay) == 0, capsys.readouterr().err
    stack.run("cabinet")
    assert trace_ids(itel.seen) == [traces[one.json()["assignmentId"]] for one in itel.seen]
    assert len(itel.seen) == 3
