"""What is wrong with one record touches that record alone: it ends as one dead letter, and the ones beside it go on."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from itel_cabinet.local.samples import BAD_KINDS, ENRICHED_BAD_KINDS, Generator, Shares, produce
from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator, Request, Response
from itel_cabinet.transforms.dead_letters import DeadLetter
from tests.support.cabinet_samples import answer, group, question, tracking_message
from tests.support.jobs import RunningJob, Stack

STAGES = {
    "not_json": {("parse", "not_json")},
    "not_an_object": {("parse", "not_an_object")},
    "wrong_type": {("parse", "wrong_type")},
    "missing_key": {("parse", "missing_field")},
    "missing_assignment": {("parse", "missing_field")},
    "empty_value": {("parse", "empty")},
    "null_value": {("parse", "empty")},
    "huge_garbage": {("parse", "not_json")},
    "unknown_assignment": {("enrich", "unknown_assignment")},
}
"""Where each bad kind of the generator ends, and under which name."""

FORM = (group("Photos", question("Upload Overview Photo(s)", [11, 12])),)


class OddClaimX(ClaimXSimulator):
    """ClaimX, but for the assignments that ``odd`` names."""

    def __init__(self) -> None:
        super().__init__()
        self.odd: dict[int, Response] = {}

    def answer(self, request: Request) -> Response:
        assignment_id = request.path.rpartition("/")[2]
        return self.odd.get(int(assignment_id) if assignment_id.isdigit() else 0) or super().answer(request)


class RepeatingItel(ItelSimulator):
    """iTel, but for the assignments in ``refused``: a 400 that repeats what was sent, in each of the ways APIs do."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: dict[int, str] = {}

    def answer(self, request: Request) -> Response:
        body = json.loads(request.body)
        match self.refused.get(body["assignmentId"]):
            case None:
                return super().answer(request)
            case "as sent":
                return Response(400, b'{"error": "not valid", "input": ' + request.body + b"}")
            case "escaped":
                return Response.of(400, {"error": "not valid", "input": body})
            case "cut off":
                # The e-mail address begins before and ends behind the 500th character.
                return Response(400, b"x" * 490 + body["customer"]["email"].encode())
            case other:
                return Response(400, other.encode())


@pytest.fixture
def claimx() -> Iterator[OddClaimX]:
    with OddClaimX() as simulator:
        yield simulator


@pytest.fixture
def itel() -> Iterator[RepeatingItel]:
    with RepeatingItel() as simulator:
        yield simulator


def check_integrity(letter: DeadLetter, key: bytes | None, value: bytes | None) -> None:
    """The letter holds the original, or tells its size and hash."""
    record = letter.record()
    assert letter.value_size == len(value or b"")
    assert letter.value_sha256 == hashlib.sha256(value or b"").hexdigest()
    assert record.value == (None if letter.value_omitted else value)
    assert record.key == (None if letter.key_omitted else key)


@pytest.mark.parametrize("job", ["cabinet", "api", "trigger"])
def test_every_bad_kind_yields_one_dead_letter(stack: Stack, job: str) -> None:
    generator = Generator(5, start=datetime.now(UTC), shares=Shares(bad=0.3))
    role, events, errors = {
        "trigger": ("enriched", generator.claimx_events(200), "errors"),
        "cabinet": ("tracking", generator.tracking_messages(200), "errors"),
        "api": ("tracking", generator.tracking_messages(200), "itel_errors"),
    }[job]
    began = datetime.now(UTC)
    receipts = produce(stack.broker.bootstrap_servers, stack.topic(role), events, stack.claimx)
    bad = {(r.partition, r.offset): r.produced for r in receipts if r.produced.expect == "dead_letter"}
    assert {one.kind for one in bad.values()} == set(ENRICHED_BAD_KINDS if job == "trigger" else BAD_KINDS)
    stack.run(job)

    letters = [letter for letter in stack.dead_letters(errors) if letter.error_class != "no_form"]
    assert Counter((letter.partition, letter.offset) for letter in letters) == Counter(bad.keys())
    for letter in letters:
        produced = bad[letter.partition, letter.offset]
        assert (letter.stage, letter.error_class) in STAGES[produced.kind], produced.kind
        check_integrity(letter, produced.key, produced.value)
        assert letter.value_omitted == (produced.kind == "huge_garbage")
        assert (letter.topic, letter.job, letter.group) == (stack.topic(role), job, f"{stack.prefix}.{job}")
        assert letter.timestamp is not None
        assert began.replace(microsecond=0) <= letter.timestamp <= letter.first_at <= letter.last_at
        assert letter.attempts == 1
        assert re.fullmatch(r"[^\n]{5,500}", letter.error)
    for message in stack.broker.read(stack.topic(errors)):
        headers = {name: (value or b"").decode() for name, value in message.headers}
        told = json.loads(message.value or b"")
        coordinates = f"{headers['x-topic-id']}/{headers['x-partition']}/{headers['x-offset']}"
        assert (message.key or b"").decode() == coordinates
        assert (headers["x-stage"], headers["x-error-class"], headers["x-error"]) == (
            told["stage"],
            told["error_class"],
            told["error"],
        )
    assert stack.committed(job) == stack.ends(role)
    good = Counter(r.produced.event_id for r in receipts if r.produced.expect in ("tracked", "submitted"))
    if job == "cabinet":
        assert Counter(row["event_id"] for row in stack.tracking()) == good
    elif job == "trigger":
        published = [
            json.loads(message.value or b"")["event_id"] for message in stack.broker.read(stack.topic("tracking"))
        ]
        assert sorted(published) == sorted(
            r.produced.event_id or "" for r in receipts if r.produced.expect == "published"
        )
    if job != "trigger":
        submitted = {r.produced.event_id for r in receipts if r.produced.expect == "submitted"}
        assert {s.idempotency_key for s in stack.itel.submissions()} == submitted


@dataclass(frozen=True)
class Hostile:
    """A record and its end: None for a row, else the error class of its dead letter."""

    name: str
    ends_as: str | None
    value: bytes
    key: bytes | None = b"5430007"
    headers: list[tuple[str, bytes | None]] = field(default_factory=list)
    timestamp_ms: int | None = None


TIMES = {
    "bad, without a timestamp": None,
    "bad, far ahead": datetime(3000, 1, 1, tzinfo=UTC),
    "bad, at the end of time": None,
}
"""What their dead letters tell of Kafka's timestamp, by the record's name."""


def told(**changes: Any) -> bytes:
    return json.dumps(tracking_message(**changes)).encode()


def nested(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(levels):
        inner = {"in": inner}
    return inner


def hostile() -> list[Hostile]:
    year_3000, end_of_time = 32_503_680_000_000, 2**63 - 1
    return [
        Hostile("lone surrogate", "wrong_type", told(event_id="ID").replace(b"ID", rb"\ud800")),
        Hostile("raw surrogate", "wrong_type", told(event_id="ID").replace(b"ID", b"\xed\xa0\x80")),
        Hostile("UTF-16", None, told().decode().encode("utf-16")),
        Hostile("byte order mark", None, b"\xef\xbb\xbf" + told()),
        Hostile("very deep", "not_json", told()[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        Hostile("deep", None, told(event_id="deep", project=nested(150))),
        Hostile("NUL in an id", "wrong_type", told(event_id="a\0b")),
        Hostile("NUL in a text", None, told(event_id="nul", task_name="a\0b", project={"\0": "\0"})),
        Hostile("a number of 401 digits", None, told(event_id="long-number", project={"n": 10**400})),
        Hostile("an id of 401 digits", "wrong_type", told(assignment_id=10**400)),
        Hostile("NaN", None, told(project={"n": float("nan")})),
        Hostile("same key twice", None, told(event_id="first")[:-1] + b', "event_id": "twice"}'),
        Hostile("newline in an id", "wrong_type", told(event_id="a\r\nX-Injected: b")),
        Hostile("id not ASCII", "wrong_type", told(event_id="ä")),
        Hostile("long id", "wrong_type", told(event_id="a" * 256)),
        Hostile("assignment beyond 64 bits", "wrong_type", told(assignment_id=2**63)),
        Hostile("assignment as long digits", "wrong_type", told(assignment_id="9" * 19)),
        Hostile("negative assignment", "wrong_type", told(assignment_id=-5430007)),
        Hostile("fractional assignment", "wrong_type", told(assignment_id=5430007.5)),
        Hostile("assignment as a path", "wrong_type", told(assignment_id="../5430007")),
        Hostile("true as an assignment", "wrong_type", told(assignment_id=True)),
        Hostile("year 1", "wrong_type", told(timestamp="0001-01-01T00:00:00Z")),
        Hostile("year 9999", None, told(event_id="9999", timestamp="9999-12-31T23:59:59.999999Z")),
        Hostile("beyond year 9999", "wrong_type", told(timestamp="9999-12-31T23:59:59-12:00")),
        Hostile("odd zone", None, told(event_id="odd-zone", timestamp="2026-01-10T15:04:09.123456+05:45")),
        Hostile("timestamp as a number", None, told(timestamp=1_768_057_449)),
        Hostile("no Kafka timestamp", None, told(event_id="timeless"), timestamp_ms=-1),
        Hostile("bad, without a timestamp", "not_json", b"{", timestamp_ms=-1),
        Hostile("Kafka timestamp far ahead", None, told(event_id="ahead"), timestamp_ms=year_3000),
        Hostile("bad, far ahead", "not_json", b"[", timestamp_ms=year_3000),
        Hostile("at the end of time", None, told(event_id="at-the-end"), timestamp_ms=end_of_time),
        Hostile("bad, at the end of time", "not_json", b"(", timestamp_ms=end_of_time),
        Hostile("huge header", None, told(event_id="huge-header"), headers=[("x", b"h" * 300_000)]),
        Hostile("bad, with a huge header", "not_json", b"]", headers=[("x", b"h" * 900_000)]),
        Hostile("200 headers", "not_json", b"}", headers=[(f"x-{i % 50}", b"\xff" * i) for i in range(200)]),
        Hostile("odd headers", "not_json", b":", headers=[("", b""), ("null", None), ("ä\n", b"\0")]),
        Hostile("huge key", None, told(event_id="huge-key"), key=b"k" * 300_000),
        Hostile("bad, with a huge key", "not_json", b",", key=b"k" * 900_000),
        Hostile("empty key", None, told(event_id="empty-key"), key=b""),
        Hostile("bad, with an empty key", "not_json", b"'", key=b""),
        Hostile("no key", None, told(event_id="no-key"), key=None),
        Hostile("large event", None, told(event_id="large", project={"text": "ä" * 100_000})),
        Hostile("another answer's text", None, told(event_id="quotes", task_name="'); DROP TABLE x; --")),
    ]


def test_hostile_records(stack: Stack) -> None:
    """All in one partition, each between two good ones; the topic takes any timestamp."""
    topic, records = stack.topic("tracking"), hostile()
    stack.broker.delete_topic(topic)
    stack.broker.create_topic(topic, 1, {"message.timestamp.after.max.ms": "9223372036854775807"})
    stack.claimx.put_task(answer(*FORM))
    producer = stack.broker.producer(message_max_bytes=2_000_000)
    for index, one in enumerate(records):
        time = {} if one.timestamp_ms is None else {"timestamp": one.timestamp_ms}
        producer.produce(topic, one.value, one.key, headers=one.headers, **time)
        producer.produce(topic, told(event_id=f"good-{index}", task_status="ASSIGNED"), b"5430007")
    assert producer.flush(30) == 0
    assert stack.ends() == {0: 2 * len(records)}
    stack.run("cabinet")

    ended: dict[str, str | None] = dict.fromkeys((one.name for one in records), "nowhere")
    for row in stack.tracking():
        if not row["event_id"].startswith("good-"):
            ended[records[row["kafka_offset"] // 2].name] = None
    for letter in stack.dead_letters():
        one = records[letter.offset // 2]
        assert ended[one.name] == "nowhere", f"two ends of: {one.name}"
        ended[one.name] = letter.error_class
        assert (letter.partition, letter.offset % 2, letter.stage) == (0, 0, "parse")
        check_integrity(letter, one.key, one.value)
        assert letter.timestamp == TIMES.get(one.name, letter.timestamp)
        assert letter.headers_omitted or list(letter.record().headers) == one.headers
        assert letter.headers_omitted == (one.name == "bad, with a huge header")
        assert letter.key_omitted == (one.name == "bad, with a huge key")
    assert ended == {one.name: one.ends_as for one in records}
    rows = {row["event_id"]: row for row in stack.tracking()}
    assert {f"good-{index}" for index in range(len(records))} <= rows.keys()
    assert rows["nul"]["task_name"] == "a\0b"
    assert rows["9999"]["event_timestamp"] == datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    assert rows["odd-zone"]["event_timestamp"] == datetime(2026, 1, 10, 9, 19, 9, 123_456, tzinfo=UTC)
    assert json.loads(rows["long-number"]["project_data"]) == {"n": 10**400}
    assert json.loads(rows["twice"]["original_event"])["event_id"] == "twice"
    accepted = {row["event_id"] for row in rows.values() if row["task_status"] == "COMPLETED"}
    assert {s.idempotency_key for s in stack.itel.submissions()} == accepted
    assert [row["event_id"] for row in stack.forms()] == ["9999"]
    assert stack.committed("cabinet") == stack.ends()


def test_odd_answers_of_claimx(stack: Stack, claimx: OddClaimX) -> None:
    """For one assignment only; the lookups of the others, in the same bundle, go on."""
    whole = json.dumps(answer(*FORM, assignmentId=6)).encode()
    odd = {
        1: (Response(200, b'{"assignmentId": 1, "resp'), "wrong_shape"),
        2: (Response(200, b"[]"), "wrong_shape"),
        3: (Response(200, b'{"assignmentId": 3, "response": {"groups": {}}}'), "wrong_shape"),
        4: (Response(200, whole), "wrong_shape"),
        5: (Response(200, b'{"assignmentId": 5, "x": "' + b"x" * 20_000_000 + b'"}'), "wrong_shape"),
        6: (Response.refusal(404, "no assignment"), "unknown_assignment"),
        7: (Response.refusal(400, "no"), "lookup_refused"),
        8: (Response(200, b""), "wrong_shape"),
        10: (Response(200, b'{"assignmentId": 10, "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"), "wrong_shape"),
    }
    claimx.odd = {assignment_id: response for assignment_id, (response, _) in odd.items()}
    for assignment_id in range(1, 23):
        event = tracking_message(event_id=f"event-{assignment_id}", assignment_id=assignment_id)
        stack.tell(event, *FORM, partition=0)
    stack.run("cabinet", max_retries=1)

    letters = {letter.offset + 1: letter for letter in stack.dead_letters()}
    assert len(stack.dead_letters()) == len(letters)
    assert {assignment_id: (letter.stage, letter.error_class) for assignment_id, letter in letters.items()} == {
        assignment_id: ("enrich", error_class) for assignment_id, (_, error_class) in odd.items()
    }
    for assignment_id, letter in letters.items():
        assert json.loads(letter.record().value or b"")["event_id"] == f"event-{assignment_id}"
    good = [f"event-{assignment_id}" for assignment_id in range(1, 23) if assignment_id not in odd]
    assert sorted(row["event_id"] for row in stack.tracking()) == sorted(good)
    assert sorted(row["event_id"] for row in stack.forms()) == sorted(good)
    assert sorted(s.idempotency_key for s in stack.itel.submissions()) == sorted(good)
    assert stack.dead_letters("itel_errors") == []


def test_results_that_their_topics_do_not_take_are_dead_letters(stack: Stack) -> None:
    narrow = {role: f"{stack.prefix}.narrow-{role}" for role in ("itel", "tracked")}
    for name in narrow.values():
        stack.broker.create_topic(name, 1, {"max.message.bytes": "150"})
    for number in range(1, 4):
        stack.tell(tracking_message(event_id=f"event-{number}", assignment_id=number), *FORM, partition=0)
    stack.run("cabinet", itel_success_topic=narrow["itel"], tracking_success_topic=narrow["tracked"])
    ids = [f"event-{number}" for number in range(1, 4)]
    assert sorted(row["event_id"] for row in stack.tracking()) == ids
    assert sorted(s.idempotency_key for s in stack.itel.submissions()) == ids
    for role, topic in (("errors", narrow["tracked"]), ("itel_errors", narrow["itel"])):
        letters = stack.dead_letters(role)
        assert {(letter.stage, letter.error_class) for letter in letters} == {("report", "too_large")}, role
        assert sorted(json.loads(letter.record().value or b"")["event_id"] for letter in letters) == ids
        assert all(letter.error.startswith(f"topic {topic}: ") for letter in letters)


def test_a_form_that_itel_cannot_take(stack: Stack, itel: RepeatingItel) -> None:
    """It has its row, and one dead letter in iTel's error topic."""
    itel.refused = {3: "no such form"}
    stack.tell(tracking_message(event_id="no-number", assignment_id=1, project_id="P-1"), *FORM)
    stack.tell(tracking_message(event_id="no-form-id", assignment_id=2), *FORM, formId=None)
    stack.tell(tracking_message(event_id="refused", assignment_id=3), *FORM)
    stack.tell(tracking_message(event_id="no-form", assignment_id=4), response=None)
    stack.tell(tracking_message(event_id="good", assignment_id=5), *FORM)
    stack.run("cabinet")
    letters = {
        json.loads(letter.record().value or b"")["event_id"]: letter for letter in stack.dead_letters("itel_errors")
    }
    assert {event_id: (letter.stage, letter.error_class) for event_id, letter in letters.items()} == {
        "no-number": ("payload", "incomplete"),
        "no-form-id": ("payload", "incomplete"),
        "refused": ("submit", "refused"),
        "no-form": ("payload", "no_form"),
    }
    assert "projectId" in letters["no-number"].error
    assert "formId" in letters["no-form-id"].error
    assert "400" in letters["refused"].error
    assert "no such form" in letters["refused"].error
    assert len(stack.dead_letters("itel_errors")) == 4
    assert stack.dead_letters() == []
    assert len(stack.tracking()) == 5
    assert [s.idempotency_key for s in stack.itel.submissions()] == ["good"]


PERSONAL = ("Zoë", "Müller-O'Hara", "zoe.mueller@private.example", "5557654321", "Privatstraße", "boss@private.example")


def check_no_personal_data(stack: Stack, jobs: list[RunningJob], roles: tuple[str, ...]) -> None:
    texts = [job.errors for job in jobs]
    for role in roles:
        for message, letter in zip(stack.broker.read(stack.topic(role)), stack.dead_letters(role), strict=True):
            texts += [letter.error, letter.error_class, letter.stage]
            texts += [(value or b"").decode() for _, value in message.headers]
            texts.append((message.key or b"").decode())
    for text in texts:
        for personal in PERSONAL:
            # As it is, escaped as JSON does, or as much of it as stays of a text that was cut off.
            for form in (personal, json.dumps(personal)[1:-1], personal[:8]):
                assert form.lower() not in text.lower()


def test_no_personal_data_in_logs_and_errors(stack: Stack, claimx: OddClaimX, itel: RepeatingItel) -> None:
    first, last, email, phone, street, assignor = PERSONAL
    link = {"firstName": first, "lastName": last, "email": email, "phone": phone, "url": "https://example.com/l/1"}
    person = {"externalLinkData": link, "assignor": assignor}
    groups = (
        *FORM,
        group("Damage Description", question("Enter Damaged Description", {"type": "text", "text": street})),
        group("Lower Cabinets", question("Enter Number of Damaged Lower Boxes", {"type": "text", "text": email})),
    )
    told_of = {"project": link, "task": {"assignor_email": assignor, "note": street}}

    def event(assignment_id: int, **changes: Any) -> dict[str, Any]:
        return tracking_message(event_id=f"event-{assignment_id}", assignment_id=assignment_id, **told_of, **changes)

    itel.refused = {2: "as sent", 3: "escaped", 4: "cut off"}
    claimx.odd = {
        5: Response(200, json.dumps({"assignmentId": 5, **person, "response": email}).encode()),
        6: Response(200, json.dumps(person).encode()),
        7: Response.of(404, link),
        8: Response(200, json.dumps({"assignmentId": 8, **person}).encode()[:-20]),
        9: Response.of(400, link),
    }
    for assignment_id in range(1, 10):
        stack.tell(event(assignment_id), *groups, **person)
    stack.tell(event(10, project_id=last), *groups, **person)
    stack.tell(event(11), response=None, **person)
    producer = stack.broker.producer()
    for bad in (
        json.dumps(event(12)).encode()[:-9],
        json.dumps(link).encode(),
        json.dumps(event(13, task_status=[email])).encode(),
        json.dumps(event(14, timestamp=phone)).encode(),
        json.dumps({**event(15), "event_id": f"{first} {last}"}, ensure_ascii=False).encode(),
        json.dumps(email).encode(),
        email.encode(),
    ):
        producer.produce(stack.topic("tracking"), bad)
    producer.flush()
    enriched = {"event_type": "CUSTOM_TASK_COMPLETED", "project_id": "5400001", **told_of}
    row = {"assignment_id": 1, "task_id": 32513, "status": "COMPLETED", "assignor_email": assignor, "task_name": street}
    for value in (
        {**enriched, "event_id": "t1", "task": row},
        {**enriched, "event_id": "t2", "task": {**row, "status": [email]}},
        {**enriched, "event_id": "t3", "task": email},
        {**enriched, "event_id": "t4", "task": None, "task_assignment_id": 5},
        {**enriched, "event_id": "t5", "task": None, "task_assignment_id": email},
    ):
        producer.produce(stack.topic("enriched"), json.dumps(value).encode())
    producer.flush()
    jobs = [stack.run("cabinet", max_retries=1), stack.run("trigger", max_retries=1)]
    assert len(stack.dead_letters("errors")) == 5 + 7 + 4
    assert [letter.stage for letter in stack.dead_letters("itel_errors")].count("submit") == 3
    assert len(stack.dead_letters("itel_errors")) == 3 + 2
    check_no_personal_data(stack, jobs, ("errors", "itel_errors"))
