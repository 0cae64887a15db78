"""`itel-cabinet dead-letters`: what failed is seen, brought back once its cause is mended, and brought back once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from itel_cabinet.io.kafka import FencedError, LogReader, LogWriter, UnwritableError
from itel_cabinet.io.kafka import Message as Outgoing
from itel_cabinet.local.services import Broker, Message
from itel_cabinet.pipeline.commands import main
from itel_cabinet.pipeline.operate import Filter, Outcome, Replayer, error_log
from itel_cabinet.transforms.dead_letters import encode_dead_letter
from itel_cabinet.transforms.records import Failure
from tests.conftest import TopicFactory
from tests.support.accounting import topic_id
from tests.support.cabinet_samples import answer, group, question, record, tracking_message
from tests.support.jobs import Stack, wait_for

COMMAND = str(Path(sys.executable).with_name("itel-cabinet"))
FORM = (group("Photos", question("Upload Overview Photo(s)", [11, 12])),)
JANUARY = 1_768_057_500.0  # 2026-01-10T15:05:00Z
PERSONAL = "pat.roe@private.example"


@dataclass
class Letters:
    """The command `dead-letters` on a stack's error topics, and letters written there by hand."""

    stack: Stack
    capsys: pytest.CaptureFixture[str]

    def command(self, *arguments: str) -> list[str]:
        stack = self.stack
        topics = (f"--dead_letter_topic={stack.topic('errors')}", f"--itel_errors_topic={stack.topic('itel_errors')}")
        return ["dead-letters", *arguments, f"--bootstrap_servers={stack.broker.bootstrap_servers}", *topics]

    def run(self, *arguments: str, status: int = 0) -> tuple[str, list[str]]:
        """What a command prints, and the lines on stderr."""
        self.capsys.readouterr()
        ended = main(self.command(*arguments))
        printed = self.capsys.readouterr()
        assert ended == status, printed.err
        return printed.out, printed.err.splitlines()

    def list(self, *arguments: str) -> list[dict[str, Any]]:
        out, err = self.run("list", "--json", *arguments)
        assert err == []
        rows: list[dict[str, Any]] = json.loads(out)
        return rows

    def replay(self, *arguments: str, status: int = 0, warnings: int = 0) -> dict[str, int]:
        """How many letters had each outcome, those that had none left out."""
        root = f"--tables_root={self.stack.tables_root}"
        tables = [root] if self.stack.tables_root.exists() else []
        out, err = self.run("replay", "--json", *tables, *arguments, status=status)
        assert len(err) == warnings, err
        counts = json.loads(out)
        assert counts.pop("dry_run") == ("--dry_run" in arguments)
        assert sum(goal["records"] for goal in counts.pop("for")) == counts["replayed"]
        return {outcome: number for outcome, number in counts.items() if number}

    def produce(self, *values: bytes, role: str = "tracking", key: bytes = b"5430007", partition: int = 0) -> None:
        producer = self.stack.broker.producer()
        for value in values:
            producer.produce(self.stack.topic(role), value, key, partition=partition)
        assert producer.flush(30) == 0

    def write(self, offset: int, value: bytes | None = b"{", *, role: str = "errors", **changes: Any) -> None:
        """A letter of the record at ``offset`` of partition 0 of the tracking topic; ``changes`` of record and letter.

        By itself it is of the job `tracking`, and its group has read on.
        """
        coordinates = {"topic": self.stack.topic("tracking"), "topic_id": topic_id(self.stack), "partition": 0}
        of_record = {
            name: changes.pop(name) for name in ("topic", "topic_id", "partition", "headers") if name in changes
        }
        source = record(value, **{**coordinates, "offset": offset, **of_record})
        told = {name: changes.pop(name) for name in ("job", "group", "max_bytes") if name in changes}
        failure = Failure(source, **{"stage": "parse", "error_class": "not_json", "error": "the value is not JSON",
                                     "first_at": JANUARY, "last_at": JANUARY, **changes})  # fmt: skip
        key, letter, headers = encode_dead_letter(failure, **{"job": "tracking", "group": "g", **told})
        producer = self.stack.broker.producer()
        producer.produce(self.stack.topic(role), letter, key, headers=list(headers))
        assert producer.flush(30) == 0

    def read_on(self, offset: int, group: str = "g") -> None:
        """A group has committed ``offset`` in partition 0 of the tracking topic."""
        commit(self.stack.broker, group, TopicPartition(self.stack.topic("tracking"), 0, offset))

    def replays(self, role: str = "tracking") -> list[Message]:
        return [m for m in self.stack.broker.read(self.stack.topic(role)) if "x-replay-of" in dict(m.headers)]


def commit(broker: Broker, group: str, at: TopicPartition) -> None:
    from confluent_kafka import Consumer

    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": group})
    try:
        consumer.commit(offsets=[at], asynchronous=False)
    finally:
        consumer.close()


@pytest.fixture
def letters(stack: Stack, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Letters:
    monkeypatch.setenv("COLUMNS", "240")
    return Letters(stack, capsys)


# ----------------------------------------------------------------------------------------------------- with real jobs


def test_what_failed_is_delivered_once_when_its_cause_is_mended(stack: Stack, letters: Letters) -> None:
    claimx, itel = stack.claimx, stack.itel

    def tell(event_id: str, assignment_id: int, *groups: Any, known: bool = True, **details: Any) -> None:
        message = tracking_message(event_id=event_id, assignment_id=assignment_id)
        if known:
            stack.tell(message, *groups, **details)
        else:
            letters.produce(json.dumps(message).encode(), key=str(assignment_id).encode(), partition=1)

    with stack.running("cabinet", max_retries=0) as job:
        tell("good", 1, *FORM)
        tell("unknown", 2, known=False)
        tell("formless", 3, response=...)
        letters.produce(b"poison", partition=2)
        stack.settle("cabinet")
        itel.faults.error_status = 422
        tell("refused", 4, *FORM)
        stack.settle("cabinet")
        failed = Counter((row["stage"], row["error_class"], row["state"]) for row in letters.list())
        assert failed == {
            ("enrich", "unknown_assignment", "open"): 1,
            ("payload", "no_form", "open"): 1,
            ("parse", "not_json", "open"): 1,
            ("submit", "refused", "open"): 1,
        }
        assert Counter(row["event_id"] for row in stack.tracking()) == {"good": 1, "formless": 1, "refused": 1}

        itel.faults = type(itel.faults)()
        claimx.put_task(answer(*FORM, assignmentId=2))
        claimx.put_task(answer(*FORM, assignmentId=3))
        assert letters.replay("--dry_run") == {"replayed": 4}
        assert letters.replays() == []
        assert letters.replay() == {"replayed": 4}
        stack.settle("cabinet")

        replays = letters.replays()
        assert Counter((m.value or b"")[:6] for m in replays)[b"poison"] == 1
        assert {dict(m.headers)["x-replay-for"] for m in replays} == {f"{stack.prefix}.cabinet".encode()}
        assert Counter(dict(m.headers).get("x-replay-tracked") for m in replays) == {None: 2, b"yes": 2}
        # Each in the partition of its original, bytes and key as they were.
        originals = [m for m in stack.broker.read(stack.topic("tracking")) if "x-replay-of" not in dict(m.headers)]
        contents = {(m.partition, m.key, m.value) for m in originals}
        assert {(m.partition, m.key, m.value) for m in replays} < contents
        everyone = dict.fromkeys(("good", "unknown", "formless", "refused"), 1)
        assert Counter(row["event_id"] for row in stack.tracking()) == everyone
        assert Counter(row["assignment_id"] for row in stack.forms()) == {1: 1, 2: 1, 3: 1, 4: 1}
        assert {s.idempotency_key: s.times for s in itel.submissions()} == everyone

        # The poison has failed again, and does so until it is parked; all else stays as it is.
        assert letters.replay() == {"already_replayed": 4, "replayed": 1}
        stack.settle("cabinet")
        assert letters.replay() == {"already_replayed": 5, "replayed": 1}
        stack.settle("cabinet")
        assert letters.replay(warnings=1) == {"already_replayed": 6, "parked": 1}
        assert letters.replay("--max_replays=4", "--dry_run") == {"already_replayed": 6, "replayed": 1}
        stack.settle("cabinet")
        assert job.stop() == 0, job.errors
    assert Counter(row["event_id"] for row in stack.tracking()) == everyone
    assert {s.idempotency_key: s.times for s in itel.submissions()} == everyone
    assert [dict(m.headers)["x-replay-count"] for m in letters.replays() if m.value == b"poison"] == [b"1", b"2", b"3"]


def test_what_failed_is_written_once_its_offsets_are_set_back(stack: Stack, letters: Letters) -> None:
    """The other way, for those who mend a cause and read again; a replay then finds nothing left to do."""
    events = {"unknown": 1, "good": 2, "formless": 3}
    for event_id, assignment_id in events.items():
        letters.produce(json.dumps(tracking_message(event_id=event_id, assignment_id=assignment_id)).encode())
    stack.claimx.put_task(answer(*FORM, assignmentId=2))
    stack.claimx.put_task(answer(assignmentId=3, response=...))
    stack.run("cabinet")
    assert Counter(row["event_id"] for row in stack.tracking()) == {"good": 1, "formless": 1}

    stack.claimx.put_task(answer(*FORM, assignmentId=1))
    stack.claimx.put_task(answer(*FORM, assignmentId=3))
    for _ in range(2):
        stack.rewind("cabinet")
        stack.run("cabinet")
        assert Counter(row["event_id"] for row in stack.tracking()) == dict.fromkeys(events, 1)
        assert Counter(row["assignment_id"] for row in stack.forms()) == {1: 1, 2: 1, 3: 1}
        assert {row["assignment_id"] for row in stack.attachments() if row["is_active"]} == {1, 2, 3}
    assert letters.replay("--stage=enrich") == {"in_the_table": 1}
    assert {s.idempotency_key for s in stack.itel.submissions()} == events.keys()


def test_each_group_gets_its_own_failures_back(stack: Stack, letters: Letters) -> None:
    """`tracking` and `api` both gave the event up; `trigger` is another topic's."""
    message = json.dumps(tracking_message(event_id="e", assignment_id=7)).encode()
    letters.produce(message)
    claimx_event = {"event_id": "t", "event_type": "CUSTOM_TASK_ASSIGNED", "project_id": "1", "taskAssignmentId": 8}
    letters.produce(json.dumps(claimx_event).encode(), role="enriched")
    for job in ("tracking", "api", "trigger"):
        stack.run(job)
    assert Counter((row["job"], row["error_class"]) for row in letters.list()) == {
        ("tracking", "unknown_assignment"): 1,
        ("api", "unknown_assignment"): 1,
        ("trigger", "unknown_assignment"): 1,
    }
    stack.claimx.put_task(answer(*FORM, assignmentId=7))
    stack.claimx.put_task(answer(assignmentId=8, status="ASSIGNED"))
    assert letters.replay("--job=api", "--tables_root=") == {"replayed": 1}
    for job in ("api", "tracking"):
        stack.run(job)
    assert [s.idempotency_key for s in stack.itel.submissions()] == ["e"]
    assert not stack.tracked("e")
    assert letters.replay("--tables_root=", warnings=1) == {"already_replayed": 1, "replayed": 2}
    for job in ("trigger", "tracking", "api"):
        stack.run(job)
    assert Counter(row["event_id"] for row in stack.tracking()) == {"e": 1, "t": 1}
    assert {s.idempotency_key: s.times for s in stack.itel.submissions()} == {"e": 1}


# -------------------------------------------------------------------------------------------------- left out, or lost


def test_what_has_its_row_or_will_be_read_again_is_left_out(stack: Stack, letters: Letters) -> None:
    for number in range(2):
        stack.tell(tracking_message(event_id=f"e{number}", assignment_id=number + 1), *FORM, partition=0)
    stack.run("tracking")
    group = f"{stack.prefix}.tracking"
    letters.write(0, group=group, stage="enrich")
    letters.write(1, group=group, stage="enrich")
    letters.write(2, group=group)
    letters.write(0, group="never-committed")
    letters.write(0, group="other-job", job="api")
    letters.read_on(2, "other-job")
    ends = stack.ends()
    assert letters.replay() == {"in_the_table": 2, "read_again": 2, "replayed": 1}
    assert [dict(m.headers)["x-replay-for"] for m in letters.replays()] == [b"other-job"]
    assert sum(stack.ends().values()) == sum(ends.values()) + 2, "the record, and the transaction's marker"


def test_a_value_that_had_no_room_is_read_again_by_its_coordinates(stack: Stack, letters: Letters) -> None:
    values = [bytes([65 + n]) * 2_000 for n in range(3)]
    producer = stack.broker.producer()
    for value in values:
        producer.produce(stack.topic("tracking"), value, b"k\xff", headers=[("h", b"\x00")], partition=0)
    assert producer.flush(30) == 0
    letters.read_on(3)
    for offset, value in enumerate(values):
        letters.write(offset, value, max_bytes=0, headers=(("h", b"\x00"),))
    letters.write(1, values[1], max_bytes=0, topic_id="AnEarlierTopicOfThatName", headers=(("h", b"\x00"),))
    letters.write(7, b"x" * 2_000, max_bytes=0, topic_id="AnEarlierTopicOfThatName", headers=(("h", b"\x00"),))
    admin = AdminClient({"bootstrap.servers": stack.broker.bootstrap_servers})
    [deleted] = admin.delete_records([TopicPartition(stack.topic("tracking"), 0, 1)]).values()
    deleted.result(30)

    shown, err = letters.run("show", f"{topic_id(stack)}/0/1", "--raw")
    assert (shown.encode(), err) == (values[1], [])
    _, err = letters.run("show", f"{topic_id(stack)}/0/0")
    assert err == [
        "itel-cabinet: warning: the dead letter had no room for all of the record, and its topic no longer has it"
    ]
    out, err = letters.run("replay", "--tables_root=", status=1)
    assert "2 replayed\n" in out
    assert "3 gone, no longer to be had\n" in out
    assert sum("gone: the dead letter had no room for the record (2000 bytes)" in line for line in err) == 3
    assert [(m.key, m.value, m.headers[0], m.partition) for m in letters.replays()] == [
        (b"k\xff", value, ("h", b"\x00"), 0) for value in values[1:]
    ]
    # Those that are gone stay on the list, for whoever can mend it.
    assert Counter(row["state"] for row in letters.list()) == {"replayed": 2, "open": 3}


def test_a_letter_can_be_replayed_again_until_it_is_parked(letters: Letters) -> None:
    letters.produce(b"{")
    letters.read_on(1)
    letters.write(0, headers=(("x-replay-count", b"1"), ("mine", b"m")), job="api")
    assert letters.replay() == {"replayed": 1}
    assert letters.replay() == {"already_replayed": 1}
    assert letters.replay("--again") == {"replayed": 1}
    assert letters.replay("--again", warnings=1) == {"parked": 1}
    assert [(dict(m.headers)["x-replay-count"], m.headers[0]) for m in letters.replays()] == [
        (b"2", ("mine", b"m")),
        (b"3", ("mine", b"m")),
    ]


def test_a_repeated_letter_is_one(letters: Letters) -> None:
    """A crash repeats letters, in either error topic; the latest counts, and that the event has its row is kept."""
    letters.produce(b"{")
    letters.read_on(1)
    letters.write(0, job="cabinet", stage="enrich", last_at=JANUARY + 1)
    letters.write(0, job="cabinet", stage="submit", last_at=JANUARY + 3, role="itel_errors")
    letters.write(0, job="cabinet", stage="enrich", last_at=JANUARY + 2)
    assert [(row["stage"], row["error_topic"]) for row in letters.list()] == [
        ("submit", letters.stack.topic("itel_errors"))
    ]
    assert letters.replay() == {"replayed": 1}
    assert [dict(m.headers)["x-replay-tracked"] for m in letters.replays()] == [b"yes"]
    letters.write(0, job="cabinet", stage="enrich", last_at=JANUARY + 9)
    assert letters.replay() == {"already_replayed": 1}


# ------------------------------------------------------------------------------------------------------ hostile letters


def test_strangers_on_an_error_topic_are_told_and_left_alone(stack: Stack, letters: Letters) -> None:
    letters.produce(b"{", b"[")
    letters.read_on(2)
    producer = stack.broker.producer()
    for value in (b"", b"\x00\xff", b"[]", b"{" * 100_000, b'{"version": 1, "offset": -1}', None):
        producer.produce(stack.topic("errors"), value, b"key")
    assert producer.flush(30) == 0
    letters.write(0)
    warning = (
        f"itel-cabinet: warning: 6 messages are no dead letters and left alone, the first one in "
        f"{stack.topic('errors')} at 0/0: not a dead letter of version 1: not a JSON object"
    )
    assert letters.run("list")[1] == [warning]
    assert letters.replay("--tables_root=", warnings=2) == {"replayed": 1}
    assert [m.value for m in letters.replays()] == [b"{"]


def test_forged_letters_reach_no_other_topic(stack: Stack, letters: Letters) -> None:
    stack.broker.create_topic(f"__{stack.prefix}", 1)
    hidden = (f"__{stack.prefix}", stack.topic("errors"), stack.topic("itel_errors"))
    for offset, topic in enumerate((*hidden, "no-such-topic", "bad topic")):
        letters.write(offset, topic=topic, topic_id="T", job="api")
    ends = [stack.broker.end_offsets(topic) for topic in (f"__{stack.prefix}", stack.topic("itel_errors"))]
    out, err = letters.run("replay", status=1)
    assert out.splitlines() == ["0 replayed", "5 refused"]
    assert len(err) == 5
    assert [stack.broker.end_offsets(t) for t in (f"__{stack.prefix}", stack.topic("itel_errors"))] == ends


def _at_the_end(stack: Stack, group: str) -> None:
    topic = stack.topic("tracking")
    wait_for(lambda: stack.broker.committed(group, topic) == stack.ends("tracking"), f"{group} at the end", 60)


def test_letters_of_a_group_that_runs_no_more_are_for_one_that_is_named(stack: Stack, letters: Letters) -> None:
    letters.produce(b"{")
    stack.run("tracking", consumer_group=f"{stack.prefix}.old")
    tables = f"--tables_root={stack.tables_root}"
    old, new = f"{stack.prefix}.old", f"{stack.prefix}.new"
    with stack.running("cabinet", consumer_group=new) as job:
        _at_the_end(stack, new)
        out, err = letters.run("replay", tables, f"--consumer_group={old}", status=1)
        assert out.splitlines() == ["0 replayed", "1 refused"]
        assert err[0].endswith(
            f"no job reads with its group {old} now, but one does with {new}: give --to_group={new}, or "
            f"--to_group={old} if that job will run again"
        )
        assert letters.replays() == []
        out, err = letters.run("replay", tables, f"--consumer_group={old}", "--to_group=nobody", status=1)
        assert err[0].endswith("refused: the group nobody (--to_group) has no offsets in " + stack.topic("tracking"))

        out, _ = letters.run("replay", tables, f"--consumer_group={old}", f"--to_group={new}")
        assert out.splitlines() == ["1 replayed", f"  1 for the group {new}"]
        _at_the_end(stack, new)
        assert job.stop() == 0, job.errors
    again = letters.list("--job=cabinet", f"--consumer_group={new}")
    assert [row["times_replayed"] for row in again if row["state"] == "open"] == [0, 1]
    assert [row["state"] for row in letters.list(f"--consumer_group={old}")] == ["replayed"]


def test_a_partition_that_is_no_more_leaves_it_to_the_key(letters: Letters) -> None:
    letters.write(5, b"v", partition=77, topic_id="AnEarlierTopicOfThatName", job="api")
    letters.write(2**63 - 1, b"w", partition=2**31 - 1, topic_id="'; DROP TABLE", job="api")
    assert letters.replay() == {"replayed": 2}
    assert sorted((m.key, m.value) for m in letters.replays()) == [(b"5430007", b"v"), (b"5430007", b"w")]


def test_what_the_topic_does_not_take_does_not_sink_its_neighbours(stack: Stack, letters: Letters) -> None:
    narrow = f"{stack.prefix}.narrow"
    stack.broker.create_topic(narrow, 1, {"max.message.bytes": "20000"})
    for offset, value in enumerate([b"first", Random(0).randbytes(50_000), b"last"]):
        letters.write(offset, value, topic=narrow, topic_id="AnEarlierTopicOfThatName", job="api")
    out, err = letters.run("replay", status=1)
    waiting = "which no job reads with now: they wait till one does"
    assert out.splitlines() == ["2 replayed", "1 refused", f"  2 for the group g, {waiting}"]
    [line] = err
    assert line.startswith(
        f"itel-cabinet: AnEarlierTopicOfThatName/0/1 of {narrow}: refused: {narrow} does not take it: "
    )
    assert [m.value for m in stack.broker.read(narrow)] == [b"first", b"last"]
    assert Counter(row["state"] for row in letters.list()) == {"replayed": 2, "open": 1}


# ----------------------------------------------------------------------------------------------- once, whatever happens


def test_replays_cut_off_and_side_by_side_write_each_record_once(letters: Letters) -> None:
    values = [str(n).encode() for n in range(60)]
    letters.produce(*values)
    letters.read_on(60)
    for offset, value in enumerate(values):
        letters.write(offset, value, job="api")
    command = [COMMAND, *letters.command("replay", "--rate=40")]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def written(number: int) -> bool:
        return len(letters.replays()) >= number

    with start() as killed:
        wait_for(lambda: written(1), "the first replays")
        killed.send_signal(signal.SIGKILL)
    with start() as overtaken:
        first = len(letters.replays())
        wait_for(lambda: written(first + 1), "replays of the second run")
        with start() as last:
            out, err = last.communicate(timeout=120)
            assert (last.returncode, err) == (0, "")
        ends = overtaken.communicate(timeout=120)
        # It had ended just before the last one began, or was told to give way.
        gave_way = "another replay of these topics has begun, so this one has stopped: see what that one says"
        assert (overtaken.returncode, ends[1]) in ((0, ""), (1, f"itel-cabinet: {gave_way}\n"))
    assert "replayed" in out
    assert sorted(int(m.value or b"") for m in letters.replays()) == list(range(60))
    assert letters.replay() == {"already_replayed": 60}


def test_a_writer_gives_way_to_the_next_of_its_name(broker: Broker, topic: TopicFactory) -> None:
    name = topic(1)
    client = {"bootstrap.servers": broker.bootstrap_servers}
    first = LogWriter(client, name)
    first.write([Outgoing(name, b"k", b"first", partition=0)], then=[Outgoing(name, b"k", None, (("h", None),))])
    second = LogWriter(client, name)
    with pytest.raises(FencedError):
        first.write([Outgoing(name, b"k", b"late", partition=0)])
    second.write([Outgoing(name, b"k", b"second", partition=0)])
    assert [m.value for m in broker.read(name)] == [b"first", None, b"second"]


@pytest.mark.parametrize("transactions", [True, False])
def test_a_list_with_a_message_too_large_is_not_written(
    broker: Broker, topic: TopicFactory, transactions: bool
) -> None:
    name, notes = topic(1, {"max.message.bytes": "20000"}), topic(1)
    writer = LogWriter({"bootstrap.servers": broker.bootstrap_servers}, name, transactions=transactions)
    large = Random(0).randbytes(50_000)
    with pytest.raises(UnwritableError):
        writer.write([Outgoing(name, None, large, partition=0)], then=[Outgoing(notes, None, b"note", partition=0)])
    assert [broker.read(name), broker.read(notes)] == [[], []]
    writer.write([Outgoing(name, None, b"small", partition=0)], then=[Outgoing(notes, None, b"note", partition=0)])
    assert [m.value for at in (name, notes) for m in broker.read(at)] == [b"small", b"note"]


def test_a_broker_without_transactions(stack: Stack, letters: Letters) -> None:
    narrow = f"{stack.prefix}.narrow"
    stack.broker.create_topic(narrow, 1, {"max.message.bytes": "20000"})
    # Each refused one is followed by one that must not suffer from it.
    values = [Random(0).randbytes(50_000) if offset % 2 else b"small" for offset in range(11)]
    for offset, value in enumerate(values):
        letters.write(offset, value, topic=narrow, topic_id="AnEarlierTopicOfThatName", job="api")
    assert letters.replay("--no_transactions", status=1, warnings=5) == {"replayed": 6, "refused": 5}
    assert [m.value for m in stack.broker.read(narrow)] == [b"small"] * 6
    assert stack.broker.end_offsets(narrow) == {0: 6}, "no marker of a transaction"
    assert letters.replay("--no_transactions", status=1, warnings=5) == {"already_replayed": 6, "refused": 5}


def test_a_rate_is_kept(stack: Stack, letters: Letters) -> None:
    for offset in range(25):
        letters.write(offset, b"v", topic_id="AnEarlierTopicOfThatName", job="api")
    now = [1_000.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    client = {"bootstrap.servers": stack.broker.bootstrap_servers}
    topics = (stack.topic("errors"), stack.topic("itel_errors"))
    with LogReader(client) as reader, LogReader(client) as originals:
        replayer = Replayer(
            letters=reader,
            originals=originals,
            writer=LogWriter(client, stack.prefix),
            committed=lambda _group, _topic: {},
            groups=lambda _topic: {},
            error_topics=topics,
            rate=10.0,
            clock=lambda: now[0],
            sleep=sleep,
        )
        outcomes = [one.outcome for one in replayer.replay(error_log(reader, topics, Filter()).entries)]
    assert outcomes == [Outcome.REPLAYED] * 25
    # Five at a time: the first at once, each next half a second later.
    assert slept == pytest.approx([0.0, 0.5, 0.5, 0.5, 0.5])


# -------------------------------------------------------------------------------------------------- list, show, filters


@pytest.fixture
def shelf(letters: Letters) -> Letters:
    """Five letters that differ in what filters ask for."""
    letters.write(0, json.dumps({"email": PERSONAL}).encode(), headers=(("who", PERSONAL.encode()),))
    letters.write(1, None, stage="enrich", error_class="unknown_assignment", last_at=JANUARY + 3600)
    letters.write(2, b"\xff", job="cabinet", group="c", stage="submit", error_class="outage", role="itel_errors")
    letters.write(3, b"v", job="cabinet", group="c", stage="submit", error_class="refused", role="itel_errors")
    letters.write(3, b"v", topic=letters.stack.topic("enriched"), topic_id="Other", partition=1, job="trigger")
    return letters


@pytest.mark.parametrize(
    ("arguments", "offsets"),
    [
        ([], [0, 1, 2, 3, 3]),
        (["--stage=submit"], [2, 3]),
        (["--error-class=outage"], [2]),
        (["--job=tracking"], [0, 1]),
        (["--group=c"], [2, 3]),
        (["--since=2026-01-10T15:05:01Z"], [1]),
        (["--until=2026-01-10 16:05:01+01:00"], [0, 2, 3, 3]),
        (["--since=2026-01-10T16:05", "--until=2026-01-10T16:05:00.001"], [1]),
        (["--topic=ENRICHED"], [3]),
        (["--partition=1"], [3]),
        (["--offset=1-2"], [1, 2]),
        (["--offset=3", "--partition=0"], [3]),
        (["--stage=submit", "--job=tracking"], []),
    ],
)
def test_filters(shelf: Letters, arguments: list[str], offsets: list[int]) -> None:
    given = [argument.replace("ENRICHED", shelf.stack.topic("enriched")) for argument in arguments]
    assert sorted(row["offset"] for row in shelf.list(*given)) == offsets
    dry = shelf.run("replay", "--dry_run", "--json", "--tables_root=", *given)[0]
    assert sum(number for name, number in json.loads(dry).items() if name not in ("dry_run", "for")) == len(offsets)


def test_a_list_tells_why_and_nothing_of_the_record(shelf: Letters) -> None:
    topic = shelf.stack.topic("tracking")
    [row] = shelf.list("--offset=0")
    assert row == {
        "coordinates": f"{topic_id(shelf.stack)}/0/0",
        "topic": topic,
        "topic_id": topic_id(shelf.stack),
        "partition": 0,
        "offset": 0,
        "timestamp": "2026-01-10T15:04:09.120000Z",
        "key_omitted": False,
        "value_omitted": False,
        "headers_omitted": False,
        "value_size": len(PERSONAL) + 13,
        "value_sha256": row["value_sha256"],
        "stage": "parse",
        "error_class": "not_json",
        "error": "the value is not JSON",
        "attempts": 1,
        "first_at": "2026-01-10T15:05:00Z",
        "last_at": "2026-01-10T15:05:00Z",
        "job": "tracking",
        "group": "g",
        "times_replayed": 0,
        "state": "open",
        "error_topic": shelf.stack.topic("errors"),
    }
    table = shelf.run("list")[0]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in table.splitlines() if "│" in line]
    assert [row[1] for row in cells] == [row["coordinates"] for row in shelf.list()]
    assert cells[0][2:] == [topic, "tracking", "parse", "not_json", "open", "the value is not JSON"]
    assert PERSONAL not in table + json.dumps(shelf.list())


def test_a_list_moves_no_offset_and_makes_no_group(shelf: Letters) -> None:
    admin = AdminClient({"bootstrap.servers": shelf.stack.broker.bootstrap_servers})
    before = {group.group_id for group in admin.list_consumer_groups().result(30).valid}
    shelf.list()
    shelf.run("show", f"{topic_id(shelf.stack)}/0/0")
    assert {group.group_id for group in admin.list_consumer_groups().result(30).valid} == before


def test_counts_by_stage_and_reason(shelf: Letters) -> None:
    shelf.read_on(9, "c")
    assert shelf.replay("--group=c", "--error_class=refused") == {"replayed": 1}
    assert json.loads(shelf.run("list", "--count", "--json")[0]) == [
        {"stage": "enrich", "error_class": "unknown_assignment", "open": 1, "replayed": 0},
        {"stage": "parse", "error_class": "not_json", "open": 2, "replayed": 0},
        {"stage": "submit", "error_class": "outage", "open": 1, "replayed": 0},
        {"stage": "submit", "error_class": "refused", "open": 0, "replayed": 1},
    ]
    table = shelf.run("list", "--count", "--stage=submit")[0]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in table.splitlines() if "│" in line]
    assert cells == [["submit", "outage", "1", "0"], ["submit", "refused", "0", "1"]]


def test_a_letter_is_shown_with_its_bytes(shelf: Letters) -> None:
    at = topic_id(shelf.stack)
    shown = json.loads(shelf.run("show", f"{at}/0/0")[0])
    assert json.loads(shown["value"]) == {"email": PERSONAL}
    assert (shown["key"], shown["headers"], shown["error_class"]) == ("5430007", [["who", PERSONAL]], "not_json")
    assert json.loads(shelf.run("show", f"{at}/0/1")[0])["value"] is None
    assert json.loads(shelf.run("show", f"{at}/0/2")[0])["value"] == {"base64": "/w=="}
    assert shelf.run("show", f"{at}/0/0", "--raw")[0] == json.dumps({"email": PERSONAL})


def test_control_characters_do_not_reach_the_terminal(letters: Letters) -> None:
    forged = {"stage": "s", "error_class": "e", "error": "x"}
    letters.write(0, topic="a\x1b[31m[red]", topic_id="i\x1b]0;x\x07", **forged)
    table, err = letters.run("list")
    assert err == []
    assert "\x1b" not in table
    assert "[red]" in table
    _, err = letters.run("replay", "--tables_root=", status=1)
    assert "\x1b" not in "".join(err)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["list", "--since=yesterday"], 2, "--since: must be a date and time such as 2026-01-10T15:00"),
        (
            ["replay", "--stage=parsing"],
            2,
            "--stage: must be one of parse, enrich, payload, submit, publish, report, got 'parsing'",
        ),
        (["list", "--offset=x"], 2, "--offset: must be N or N-M, got 'x'"),
        (["list", "--offset=1-"], 2, "--offset: must be N or N-M, got '1-'"),
        (["list", "--dead_letter_topic=none"], 1, "--dead_letter_topic: topic 'none' does not exist"),
        (["replay", "--itel_errors_topic=none"], 1, "--itel_errors_topic: topic 'none' does not exist"),
        (["show", "T/0/1"], 1, "T/0/1: has no dead letter in "),
        (["replay", "--kafka_config=["], 2, "--kafka_config: must be a JSON object"),
    ],
)
def test_refusals_are_one_line(letters: Letters, arguments: Sequence[str], status: int, told: str) -> None:
    command, *options = arguments
    positional = [one for one in options if not one.startswith("--")]
    given = letters.command(command, *positional) + [one for one in options if one.startswith("--")]
    letters.capsys.readouterr()
    assert main(given) == status
    out, err = letters.capsys.readouterr()
    [line] = err.splitlines()
    assert (out, line[: len(told) + 14]) == ("", f"itel-cabinet: {told}")


def test_a_tables_root_without_the_table_is_refused(letters: Letters, tmp_path: Path) -> None:
    letters.write(0)
    _, err = letters.run("replay", f"--tables_root={tmp_path}/elsewhere", status=1)
    [line] = err
    assert line.startswith(
        f"itel-cabinet: --tables_root: Delta table {tmp_path}/elsewhere/itel_cabinet_task_tracking: "
    )
    assert letters.list()[0]["state"] == "open"


def test_no_broker_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dead-letters", "list", "--bootstrap_servers=127.0.0.1:1"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("itel-cabinet: --bootstrap_servers: no broker answers at 127.0.0.1:1 ")
