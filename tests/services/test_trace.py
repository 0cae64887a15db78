"""One timeline of an assignment or an event: prepared fates, each shown as it was; and forms put in line again."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from itel_cabinet.io.kafka import LogReader
from itel_cabinet.io.kafka.admin import when_coordinated
from itel_cabinet.local.services import Broker
from itel_cabinet.pipeline.commands import main
from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS, LEDGER, TRACKING
from itel_cabinet.transforms.dead_letters import decode_dead_letter, encode_dead_letter, encode_replay_note
from itel_cabinet.transforms.records import Failure, Record
from itel_cabinet.transforms.replays import make_replay_headers
from tests.conftest import TopicFactory
from tests.support.cabinet_samples import answer, group, question, tracking_message
from tests.support.filed_submissions import START, TOPIC_ID, append, event, filed, make_tables
from tests.support.jobs import Stack
from tests.support.printed import Printed

GROUP = "itel_cabinet_group"


class Letters:
    """Writes dead letters as jobs do, to two topics of a test's own."""

    def __init__(self, broker: Broker, topic: TopicFactory) -> None:
        self.topics = (topic(1), topic(1))
        self.broker = broker
        self.asked = [
            f"--bootstrap_servers={broker.bootstrap_servers}",
            f"--dead_letter_topic={self.topics[0]}",
            f"--itel_errors_topic={self.topics[1]}",
        ]

    def write(
        self,
        offset: int,
        value: bytes | None,
        stage: str,
        reason: str,
        *,
        topic: str = "itel.cabinet.task.tracking",
        topic_id: str = TOPIC_ID,
        headers: tuple[tuple[str, bytes | None], ...] = (),
        replayed: bool = False,
    ) -> Record:
        record = Record(topic, topic_id, 0, offset, 0, None, value, headers)
        at = (START + timedelta(hours=30)).timestamp()
        failure = Failure(record, stage, reason, "why it failed", at, at)
        key, letter, marks = encode_dead_letter(failure, job="cabinet", group=GROUP)
        producer = self.broker.producer()
        goal = self.topics[stage in ("payload", "submit")]
        producer.produce(goal, letter, key, headers=list(marks))
        if replayed:
            note_key, note, note_marks = encode_replay_note(decode_dead_letter(letter), at)
            producer.produce(goal, note, note_key, headers=list(note_marks))
        assert producer.flush(30) == 0
        return record


@pytest.fixture
def letters(broker: Broker, topic: TopicFactory) -> Letters:
    return Letters(broker, topic)


Traced = Callable[..., dict[str, Any]]


def commit(broker: Broker, group: str, at: TopicPartition) -> None:
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": group})
    try:
        when_coordinated(lambda: consumer.commit(offsets=[at], asynchronous=False), 60)
    finally:
        consumer.close()


@pytest.fixture
def traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Traced:
    def run(identity: str, *asked: str) -> dict[str, Any]:
        assert main(["trace", identity, f"--tables_root={tmp_path}", "--json", *asked]) == 0, capsys.readouterr().err
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


def message(of: dict[str, Any]) -> bytes:
    return json.dumps({"event_id": of["event_id"], "assignment_id": of["assignment_id"]}).encode()


def test_each_fate_is_shown_truthfully(tmp_path: Path, letters: Letters, traced: Traced) -> None:
    specs = make_tables(tmp_path)
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    events = [event(number) for number in range(12)]
    events[9]["task_status"] = "ASSIGNED"
    by_replay = {**events[7], "kafka_offset": 107}
    append(specs[TRACKING], [one for number, one in enumerate(events) if number not in (6, 11)])
    append(specs[FORMS], [{**events[0], "form_response_id": "R-1", "parse_warnings": "[]"}])
    photo = {**events[0], "is_active": True, "question_key": "overview"}
    append(
        specs[ATTACHMENTS],
        [
            {**photo, "claim_media_id": 1, "blob_path": "a.jpg"},
            {**photo, "claim_media_id": 2, "media_warning": "deadline: not within 20 s"},
            {**photo, "claim_media_id": 3, "blob_path": "c.jpg", "is_active": False},
        ],
    )
    append(
        specs[LEDGER],
        [
            filed(
                events[0], "accepted", created_id="ITEL-9", status=201, attempts=1, latency_ms=12.0, traceparent=trace
            ),
            filed(events[1], "duplicate"),
            filed(events[2], "unchanged"),
            filed(events[3], "refused", "refused", status=422, attempts=1),
            filed(events[4], "held"),
            filed(events[5], "refused", "no_form"),
            filed(events[7], "refused", "timeout"),
            filed(by_replay, "accepted", answered_at=START + timedelta(hours=40)),
            filed(events[8], "accepted"),
            filed(events[8], "accepted", resubmission="all", answered_at=START + timedelta(hours=50)),
        ],
    )
    letters.write(3, message(events[3]), "submit", "refused")
    letters.write(5, message(events[5]), "payload", "no_form")
    letters.write(6, b'{"event_id": "evt-000006", "assignment_id": "x"', "parse", "not_json")
    letters.write(7, message(events[7]), "submit", "timeout", replayed=True)
    letters.write(11, message(events[11]), "enrich", "unknown_assignment")
    letters.write(12, b'{"event_id": "other", "task": {"text": "evt-000001 5000001"}}', "parse", "missing")

    def told(number: int) -> tuple[str, list[str]]:
        """The fate of an event, and what its timeline shows, in order; the same by its assignment."""
        identity = events[number]["event_id"]
        found = traced(identity, *letters.asked)
        assert found["not_looked_at"] == []
        assert found["fates"].keys() == {identity} if number != 6 else True
        if number != 6:  # nothing tells its assignment
            same = traced(str(events[number]["assignment_id"]), *letters.asked)
            assert (same["timeline"], same["fates"]) == (found["timeline"], found["fates"])
        (fate,) = found["fates"].values()
        return fate, [one["what"] for one in found["timeline"]]

    assert told(0) == ("accepted", ["event", "form", "photos", "submission"])
    assert told(1) == ("duplicate", ["event", "submission"])
    assert told(2) == ("unchanged", ["event", "submission"])
    assert told(3) == ("dead_letter: submit: refused", ["event", "submission", "dead letter"])
    assert told(4) == ("held", ["event", "submission"])
    assert told(5) == ("dead_letter: payload: no_form", ["event", "submission", "dead letter"])
    assert told(6) == ("dead_letter: parse: not_json", ["dead letter"])
    assert told(7) == ("accepted", ["event", "submission", "dead letter", "submission"])
    assert told(8) == ("accepted", ["event", "submission", "submission"])
    assert told(9) == ("not_submitted: ASSIGNED", ["event"])
    assert told(10) == ("never_tried", ["event"])
    assert told(11) == ("dead_letter: enrich: unknown_assignment", ["dead letter"])

    accepted = traced("evt-000000", *letters.asked)["timeline"]
    assert [one["coordinates"] for one in accepted] == [f"{TOPIC_ID}/0/0"] * 4
    assert accepted[3]["text"] == "accepted, HTTP 201, iTel's id ITEL-9, 12 ms"
    assert accepted[2]["text"] == ("2 photos on the form, 1 with a file; 1 without: deadline; 1 no longer on it")
    assert [one["claim_media_id"] for one in accepted[2]["photos"]] == [1, 2]
    *_, letter, last = traced("evt-000007", *letters.asked)["timeline"]
    assert (letter["state"], len(letter["replayed_at"]), last["coordinates"]) == ("replayed", 1, f"{TOPIC_ID}/0/107")
    assert traced("evt-000008", *letters.asked)["timeline"][-1]["resubmission"] == "all"
    assert traced("evt-000000", *letters.asked)["trace_ids"] == {"evt-000000": ["4bf92f3577b34da6a3ce929d0e0e4736"]}
    assert [len(ids) for ids in traced("evt-000003", *letters.asked)["trace_ids"].values()] == [1]


def test_a_letter_of_a_replay_is_found_by_the_record_that_it_repeats(
    tmp_path: Path, letters: Letters, traced: Traced
) -> None:
    specs = make_tables(tmp_path)
    append(specs[TRACKING], [event(1)])
    first = letters.write(1, message(event(1)), "submit", "outage", replayed=True)
    headers = make_replay_headers(first, group=GROUP, count=1, tracked=True)
    letters.write(60, b"\xff\xfe", "submit", "refused", headers=headers)
    found = traced("evt-000001", *letters.asked)
    assert found["fates"] == {"evt-000001": "dead_letter: submit: refused"}
    assert [one.get("state") for one in found["timeline"]] == [None, "replayed", "open"]


def test_what_is_not_looked_at_is_said(tmp_path: Path, printed: Printed, traced: Traced) -> None:
    specs = make_tables(tmp_path)
    append(specs[TRACKING], [event(1)])
    at = f"--tables_root={tmp_path}"
    (line,) = traced("evt-000001")["not_looked_at"]
    assert line.endswith("give --bootstrap_servers")
    (line,) = traced("evt-000001", "--bootstrap_servers=127.0.0.1:1")["not_looked_at"]
    assert line.startswith("the dead letters: --bootstrap_servers: no broker answers at 127.0.0.1:1")
    assert printed.stdout("trace", "5000001", at).splitlines()[-2:] == [
        "evt-000001: never_tried",
        "not looked at: the dead letters in itel.cabinet.task.tracking.errors and itel.cabinet.api.errors: give "
        "--bootstrap_servers",
    ]
    line = printed.error(1, "trace", "no'body", at)
    assert line.startswith("no'body: nothing is known of such an assignment or event; not looked at: the dead letters")
    line = printed.error(1, "trace", "1", f"--tables_root={tmp_path}/none")
    assert line.count("there is no table") == 4


# -------------------------------------------------------------------------------------------------------- put in line


def test_what_itel_lacks_is_put_in_line_once(
    tmp_path: Path, broker: Broker, topic: TopicFactory, letters: Letters, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each record as it was, for the group, ending its letter; from the history where Kafka has it no more."""
    name = topic(1)
    producer = broker.producer()
    for number in range(5):
        producer.produce(name, message(event(number)), b"5%06d" % number)
    assert producer.flush(30) == 0
    with LogReader({"bootstrap.servers": broker.bootstrap_servers}) as reader:
        topic_id = reader.topic(name).topic_id
        place = {"kafka_topic": name, "kafka_topic_id": topic_id}
        specs = make_tables(tmp_path)
        events = [event(number, **place) for number in range(5)]
        gone = event(5, **{**place, "kafka_topic_id": "AnEarlierTopic"}, original_event=message(event(5)).decode())
        append(specs[TRACKING], [*events, gone])
        append(specs[LEDGER], [filed(events[0], "accepted"), filed(events[1], "refused", "timeout")])
        letters.write(1, message(events[1]), "submit", "timeout", topic=name, topic_id=topic_id)
        commit(broker, GROUP, TopicPartition(name, 0, 4))
        given = [f"--tables_root={tmp_path}", "--resubmit", "--json", f"--consumer_group={GROUP}", *letters.asked]

        def places(*more: str) -> dict[str, str]:
            assert main(["reconcile", *given, *more]) == 0
            printed = capsys.readouterr()
            return {one["event_id"]: one["place"] for one in json.loads(printed.out)["resubmitted"]}

        fresh = {f"evt-{number:06}": "put_in_line" for number in (1, 2, 3, 5)} | {"evt-000004": "still_to_be_read"}
        assert places("--dry_run") == fresh
        assert len([*reader.all(name)]) == 5
        assert places("--older_than=3000d") == {}
        assert places() == fresh
        assert places() == {
            event_id: place.replace("put_in_line", "in_line_already") for event_id, place in fresh.items()
        }
        written = [*reader.all(name)][5:]
        assert [json.loads(one.value or b"")["event_id"] for one in written] == [
            f"evt-{number:06}" for number in (1, 2, 3, 5)
        ]
        marks = dict(written[0].headers)
        assert marks["x-replay-for"] == GROUP.encode()
        assert marks["x-replay-of"] == f"{topic_id}/0/1".encode()
        assert (marks["x-replay-count"], marks["x-replay-tracked"]) == (b"1", b"yes")
        assert [one.key for one in written] == [b"5000001", b"5000002", b"5000003", b"5000005"]
    assert main(["dead-letters", "list", "--count", "--json", *letters.asked]) == 0
    assert [(one["open"], one["replayed"]) for one in json.loads(capsys.readouterr().out)] == [(0, 1)]


def test_what_is_put_in_line_is_submitted_once_by_a_running_job(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every kind: the job has never read it, it had no form, iTel refused it."""
    tracking, photo = stack.topic("tracking"), group("Photos", question("Upload Overview Photo(s)", [11]))
    given = [f"--tables_root={stack.tables_uri}", f"--bootstrap_servers={stack.broker.bootstrap_servers}"]
    given += [f"--dead_letter_topic={stack.topic('errors')}", f"--itel_errors_topic={stack.topic('itel_errors')}"]

    def tell(number: int, *groups: Any) -> None:
        stack.tell(tracking_message(event_id=f"e-{number}", assignment_id=5_430_000 + number), *groups, partition=0)

    def reconcile(status: int, *more: str) -> dict[str, Any]:
        assert main(["reconcile", "--json", *given, *more]) == status
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    for number in (1, 2):
        tell(number, photo)
    stack.run("tracking")
    commit(stack.broker, f"{stack.prefix}.cabinet", TopicPartition(tracking, 0, 2))
    with stack.running("cabinet") as job:
        stack.itel.faults.error_status = 422
        tell(3, photo)
        stack.settle("cabinet")
        stack.itel.faults.error_status = None
        tell(4)
        tell(5, photo)
        stack.settle("cabinet")
        lacking = {one["event_id"]: (one["outcome"], one["reason"]) for one in reconcile(1)["forms"]}
        never = ("never_tried", None)
        refused = {"e-3": ("refused", "refused"), "e-4": ("refused", "no_form")}
        assert lacking == {"e-1": never, "e-2": never, **refused}

        stack.claimx.put_task(answer(photo, assignmentId=5_430_004))
        # The group is found: it is the one that a job which submits reads with.
        places = {one["event_id"]: one["place"] for one in reconcile(0, "--resubmit")["resubmitted"]}
        assert places == dict.fromkeys(lacking, "put_in_line")
        stack.settle("cabinet")
        assert reconcile(0)["forms"] == reconcile(0, "--resubmit")["resubmitted"] == []
        assert job.stop() == 0, job.errors
    assert {one.idempotency_key: one.times for one in stack.itel.submissions()} == dict.fromkeys(
        ("e-1", "e-2", "e-3", "e-4", "e-5"), 1
    )
    # The ledger has each once more, from the record that was put in line; the history has one row as before.
    origins = {
        message.offset: dict(message.headers)["x-replay-of"].decode().rpartition("/")[2]
        for message in stack.broker.read(tracking)
        if "x-replay-of" in dict(message.headers)
    }
    settled = {row["event_id"]: row["kafka_offset"] for row in stack.ledger() if row["settled"]}
    assert {event_id: int(origins.get(at, -1)) for event_id, at in settled.items()} == {
        "e-1": 0, "e-2": 1, "e-3": 2, "e-4": 3, "e-5": -1
    }  # fmt: skip
    assert sorted(row["event_id"] for row in stack.ledger() if row["settled"]) == [*sorted(settled)]
    assert sorted((row["event_id"], row["reason"]) for row in stack.ledger() if not row["settled"]) == [
        ("e-3", "refused"),
        ("e-4", "no_form"),
    ]
    assert sorted(row["event_id"] for row in stack.tracking()) == [f"e-{number}" for number in range(1, 6)]
    assert main(["dead-letters", "list", "--count", "--json", *given[1:]]) == 0
    assert {one["open"] for one in json.loads(capsys.readouterr().out)} == {0}


def test_for_which_group_must_be_known(tmp_path: Path, topic: TopicFactory, letters: Letters, printed: Printed) -> None:
    specs = make_tables(tmp_path)
    append(specs[TRACKING], [event(1, kafka_topic=topic(1))])
    given = ["reconcile", f"--tables_root={tmp_path}", "--resubmit", *letters.asked]
    line = printed.error(2, *given)
    assert line.startswith(
        "--consumer_group is missing: no job that submits reads the forms' topic now: give the group"
    )
    line = printed.error(1, *given, "--consumer_group=nobody")
    assert line == "--consumer_group: the group nobody has no offsets in the forms' topic"
