"""Consumer groups' offsets, shown, reset and copied by command, and what the jobs make of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from itel_cabinet.io.kafka import Cluster, ConsumerGroup, GroupError, Mark
from itel_cabinet.io.kafka.admin import when_coordinated
from itel_cabinet.local.samples import Generator, Receipt, Shares, produce
from itel_cabinet.local.services import Broker
from itel_cabinet.pipeline.commands import main
from tests.conftest import TopicFactory
from tests.support.accounting import assert_tracked_once, topic_id
from tests.support.cabinet_samples import tracking_message
from tests.support.jobs import Stack, every, wait_for
from tests.support.printed import Printed

NOW = "--watch_seconds=0.1"


def commit(broker: Broker, group: str, topic: str, offsets: Mapping[int, int], metadata: str | None = None) -> None:
    """As Kafka's own tools and the old workers do it: without metadata."""
    with closing(Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": group})) as consumer:
        marks = () if metadata is None else (metadata,)
        places = [TopicPartition(topic, p, o, *marks) for p, o in offsets.items()]
        when_coordinated(lambda: consumer.commit(offsets=places, asynchronous=False), 60)


def metadata(broker: Broker, group: str, topic: str, partitions: int) -> list[str | None]:
    with closing(Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": group})) as consumer:
        answer = consumer.committed([TopicPartition(topic, p) for p in range(partitions)], timeout=30)
    return [entry.metadata for entry in answer]


def fill(broker: Broker, topic: str, *numbers: int, at: int = 0) -> None:
    """So many records in each partition; the n-th is of the time ``at`` + n, in milliseconds."""
    producer = broker.producer()
    for partition, number in enumerate(numbers):
        for n in range(number):
            producer.produce(topic, b"{}", partition=partition, timestamp=at + n)
    assert producer.flush(30) == 0


@pytest.fixture
def group(broker: Broker, topic: TopicFactory) -> tuple[str, str, list[str]]:
    """A group and a topic with 5, 3 and 4 records in its partitions, and the options that name them."""
    name = topic(3, {"retention.ms": "-1"})
    fill(broker, name, 5, 3, 4, at=1_767_225_600_000)  # 2026-01-01
    group = f"{name}.group"
    options = [f"--bootstrap_servers={broker.bootstrap_servers}", f"--group={group}", f"--topic={name}"]
    return group, name, options


# ---------------------------------------------------------------------------------------------------------------- show


def test_show(broker: Broker, group: tuple[str, str, list[str]], printed: Printed) -> None:
    name, topic, options = group
    this = Cluster({"bootstrap.servers": broker.bootstrap_servers}).topic(topic).topic_id
    commit(broker, name, topic, {0: 4}, this)
    commit(broker, name, topic, {1: 3})
    commit(broker, name, topic, {2: 4}, "AnotherTopic")
    assert json.loads(printed.stdout("offsets", "show", *options, "--json")) == {
        "group": name,
        "topic": topic,
        "topic_id": this,
        "partitions": [
            {"partition": 0, "committed": 4, "committed_for": this, "counts": True, "start": 0, "end": 5, "lag": 1},
            {"partition": 1, "committed": 3, "committed_for": None, "counts": True, "start": 0, "end": 3, "lag": 0},
            {"partition": 2, "committed": 4, "committed_for": "AnotherTopic", "counts": False, "start": 0, "end": 4,
             "lag": 4},
        ],
    }  # fmt: skip
    assert f"{name} in {topic} ({this}): 5 behind\n" in printed.stdout("offsets", "show", *options)
    assert printed.cells("offsets", "show", *options) == [
        ["0", "4", "0", "5", "1", "this topic"],
        ["1", "3", "0", "3", "0", "not said"],
        ["2", "4", "0", "4", "4", "another topic of this name: AnotherTopic"],
    ]


# --------------------------------------------------------------------------------------------------------------- reset


@pytest.mark.parametrize(
    ("way", "offsets"),
    [
        ("--to_start", {0: 0, 1: 0, 2: 0}),
        ("--to_end", {0: 5, 1: 3, 2: 4}),
        ("--to_time=2026-01-01T00:00:00.003Z", {0: 3, 1: 3, 2: 3}),
        ("--to_time=2025-01-01", {0: 0, 1: 0, 2: 0}),
        ("--to_time=2027-01-01", {0: 5, 1: 3, 2: 4}),
        ("--to_offset=0=5, 2=0", {0: 5, 1: 2, 2: 0}),
    ],
)
def test_reset(
    broker: Broker, group: tuple[str, str, list[str]], printed: Printed, way: str, offsets: dict[int, int]
) -> None:
    name, topic, options = group
    commit(broker, name, topic, {0: 2, 1: 2})
    before = broker.committed(name, topic)
    told = printed.stdout("offsets", "reset", *options, way, "--dry_run")
    assert broker.committed(name, topic) == before == {0: 2, 1: 2}
    done = printed.stdout("offsets", "reset", *options, way, NOW)
    assert told.replace("would be set", "set") == done
    assert broker.committed(name, topic) == offsets
    this = Cluster({"bootstrap.servers": broker.bootstrap_servers}).topic(topic).topic_id
    marks = metadata(broker, name, topic, 3)
    moved = [Mark.from_text(marks[p] or "") for p in offsets if "--to_offset" not in way or p != 1]
    assert {(mark.topic_id, mark.job) for mark in moved} == {(this, "")}


def test_reset_says_what_it_means(broker: Broker, group: tuple[str, str, list[str]], printed: Printed) -> None:
    name, topic, options = group
    commit(broker, name, topic, {0: 2, 1: 3})
    to = "--to_offset=0=1,1=3,2=2"
    cells = printed.cells("offsets", "reset", *options, to, "--dry_run")
    assert cells == [["0", "2", "1", "reads [1, 2) again"], ["1", "3", "3", "as it was"], ["2", "-", "2", "had none"]]
    report = json.loads(printed.stdout("offsets", "reset", *options, to, "--dry_run", "--json"))
    assert report == {
        "group": name,
        "topic": topic,
        "dry_run": True,
        "partitions": [
            {"partition": 0, "before": 2, "after": 1, "means": "reads [1, 2) again"},
            {"partition": 1, "before": 3, "after": 3, "means": "as it was"},
            {"partition": 2, "before": None, "after": 2, "means": "had none"},
        ],
    }
    only_back = printed.cells("offsets", "reset", *options, to, NOW, "--only_back")
    assert only_back == cells[:1]
    assert broker.committed(name, topic) == {0: 1, 1: 3}
    assert printed.cells("offsets", "reset", *options, "--to_end", NOW)[0] == ["0", "1", "5", "never reads [1, 5)"]
    assert printed.stdout("offsets", "reset", *options, "--to_end", NOW, "--only_back") == (
        f"{name} in {topic}: 0 partitions set\n"
    )


def test_offsets_are_saved_and_brought_back(
    broker: Broker, group: tuple[str, str, list[str]], printed: Printed, tmp_path: Path
) -> None:
    name, topic, options = group
    commit(broker, name, topic, {0: 2, 2: 1})
    saved = tmp_path / "offsets.json"
    saved.write_text(printed.stdout("offsets", "show", *options, "--json"))
    printed.stdout("offsets", "reset", *options, "--to_end", NOW)
    printed.stdout("offsets", "reset", *options, f"--from_json={saved}", NOW)
    assert broker.committed(name, topic) == {0: 2, 1: 3, 2: 1}


def test_a_group_that_is_new_must_be_meant(broker: Broker, group: tuple[str, str, list[str]], printed: Printed) -> None:
    name, topic, options = group
    commit(broker, f"{name}s", topic, {0: 1})
    told = f"the broker knows no group '{name}': did you mean {name}s?"
    for command in (["show"], ["reset", "--to_start"]):
        assert printed.error(1, "offsets", command[0], *options, *command[1:]) == told
    printed.stdout("offsets", "reset", *options, "--to_start", "--new_group", NOW)
    assert broker.committed(name, topic) == {0: 0, 1: 0, 2: 0}


def test_what_reset_refuses(
    broker: Broker, group: tuple[str, str, list[str]], printed: Printed, tmp_path: Path
) -> None:
    name, topic, options = group
    commit(broker, name, topic, {0: 2})
    for text, file in [("{}", "empty"), ('{"topic_id": "x", "partitions": []}', "other"), ("x", "none")]:
        (tmp_path / file).write_text(text)
    ways = "--to_start, --to_end, --to_time, --to_offset, --from_json"
    form = "--to_offset: must be partition=offset, each partition once, such as 0=120,1=98: got "
    for status, line, *given in [
        (2, f"give one of {ways}: none is there"),
        (2, f"give one of {ways}: not --to_start and --to_end", "--to_start", "--to_end"),
        (2, f"{form}'0'", "--to_offset=0"),
        (2, f"{form}'0=1,0=2'", "--to_offset=0=1,0=2"),
        (2, f"{form}'0=-1'", "--to_offset=0=-1"),
        (2, "--to_time: must be a date and time such as 2026-01-10T15:00 ", "--to_time=yesterday"),
        (2, "--to_time: must be a date and time such as 2026-01-10T15:00 ", "--to_time=1969-12-31T23:59:59.999Z"),
        (1, f"partition 0 of topic {topic} goes from 0 to 5, which 6 is out of", "--to_offset=0=6"),
        (1, f"topic {topic} has no partition 3: it has 0 to 2", "--to_offset=3=0"),
        (1, "--topic_id: topic ", "--to_start", "--topic_id=another"),
        (2, f"--from_json: {tmp_path}/nowhere cannot be read: No such file", f"--from_json={tmp_path}/nowhere"),
        (2, f"--from_json: {tmp_path}/none is not what `itel-cabinet offsets show --json` prints: the whole: ",
         f"--from_json={tmp_path}/none"),
        (2, f"--from_json: {tmp_path}/empty is not what `itel-cabinet offsets show --json` prints: topic_id: ",
         f"--from_json={tmp_path}/empty"),
        (1, f"--from_json: {tmp_path}/other is about the topic x, which was deleted: this one is ",
         f"--from_json={tmp_path}/other"),
    ]:  # fmt: skip
        told = printed.error(status, "offsets", "reset", *options, *given, NOW)
        assert told.startswith(line), told
    assert printed.error(1, "offsets", "reset", *options[:2], "--topic=no.such.topic", "--to_start").startswith(
        "--topic: topic 'no.such.topic' does not exist"
    )
    assert broker.committed(name, topic) == {0: 2}


def test_what_retention_has_deleted_is_out_of_range(
    broker: Broker, group: tuple[str, str, list[str]], printed: Printed
) -> None:
    name, topic, options = group
    commit(broker, name, topic, {0: 1, 1: 2, 2: 4})
    delete_records(broker, topic, {0: 3})
    assert printed.error(1, "offsets", "reset", *options, "--to_offset=0=2") == (
        f"partition 0 of topic {topic} goes from 3 to 5, which 2 is out of; retention has deleted what lies before 3"
    )
    copy = [options[0], options[2], f"--from={name}", f"--to={name}.new", NOW]
    assert printed.error(1, "offsets", "copy", *copy) == (
        f"--from: retention has deleted [1, 3) of partition 0 before {name} read it; to go on without: `itel-cabinet "
        f"offsets reset --new_group --topic={topic} --to_offset=0=3,1=2,2=4 --group=...`"
    )
    assert broker.committed(f"{name}.new", topic) == {}


def delete_records(broker: Broker, topic: str, before: Mapping[int, int]) -> None:
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    for future in admin.delete_records([TopicPartition(topic, p, o) for p, o in before.items()]).values():
        future.result(30)


# ------------------------------------------------------------------------------------------------------------- at rest


@contextmanager
def reading(broker: Broker, group: str, topic: str) -> Iterator[None]:
    """A member of the group, as the old workers are."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": group, "enable.auto.commit": False})
    with closing(consumer):
        consumer.subscribe([topic])
        wait_for(lambda: consumer.poll(0.1) is None and consumer.assignment(), "an assignment")
        yield


def test_a_group_with_members_is_left_alone(
    broker: Broker, group: tuple[str, str, list[str]], printed: Printed
) -> None:
    name, topic, options = group
    commit(broker, name, topic, {0: 2})
    one = ConsumerGroup({"bootstrap.servers": broker.bootstrap_servers}, name, topic)
    with reading(broker, name, topic):
        told = f"the group {name} has members that read (1): stop them first"
        assert printed.error(1, "offsets", "reset", *options, "--to_start") == told
        for groups in ([f"--from={name}", f"--to={name}.new"], [f"--from={name}.old", f"--to={name}"]):
            commit(broker, f"{name}.old", topic, {0: 1})
            assert printed.error(1, "offsets", "copy", options[0], options[2], *groups, NOW) == told
        with pytest.raises(GroupError, match="has got members that read: stop them first"):
            one.move({0: 0})
        assert printed.cells("offsets", "reset", *options, "--to_start", "--dry_run")[0][1:3] == ["2", "0"]
    assert broker.committed(name, topic) == {0: 2}


@pytest.mark.timeout(600)
def test_a_group_that_moves_is_left_alone(stack: Stack, printed: Printed) -> None:
    """A job is no member; its commits give it away."""
    numbers = count(1)
    group = [f"--group={stack.prefix}.tracking"]
    where = [f"--bootstrap_servers={stack.broker.bootstrap_servers}", f"--topic={stack.topic('tracking')}"]

    def tell() -> None:
        n = next(numbers)
        stack.tell(tracking_message(event_id=f"e{n}", assignment_id=n), partition=n % 3)

    with stack.running("tracking") as job:
        tell()
        stack.settle("tracking")
        with every(0.1, tell):
            told = printed.error(1, "offsets", "reset", *where, *group, "--to_start", "--watch_seconds=10")
            copied = ["offsets", "copy", *where, f"--from={stack.prefix}.tracking", "--to=another"]
            assert "moves: " in printed.error(1, *copied, "--watch_seconds=10")
        assert told.startswith(f"the group {stack.prefix}.tracking moves: partition ")
        assert told.endswith("stop the job that reads with it first")
        stack.settle("tracking")
        assert job.stop() == 0, job.errors
    assert stack.committed("tracking") == stack.ends()
    assert len(stack.tracking()) == next(numbers) - 1


# ----------------------------------------------------------------------------------------------------- jobs go on there


EVENTS = Shares(assigned=0.5, resubmitted=0.1, repeated=0.0, bad=0.0, other_task=0.0)


def produced(stack: Stack, n: int, seed: int) -> list[Receipt]:
    start = datetime.now(UTC) + timedelta(seconds=seed)
    records = Generator(seed, start=start, shares=EVENTS).tracking_messages(n)
    return produce(stack.broker.bootstrap_servers, stack.topic("tracking"), records, stack.claimx)


def options(stack: Stack, group: str | None = None) -> list[str]:
    return [
        f"--bootstrap_servers={stack.broker.bootstrap_servers}",
        f"--group={group or stack.prefix + '.tracking'}",
        f"--topic={stack.topic('tracking')}",
        NOW,
    ]


def at(row: dict[str, Any]) -> tuple[int, int]:
    return row["kafka_partition"], row["kafka_offset"]


@pytest.mark.timeout(600)
def test_a_job_goes_on_where_its_group_was_set(stack: Stack, printed: Printed) -> None:
    receipts = produced(stack, 60, 1)
    stack.run("tracking")
    rows = stack.tracking()
    printed.stdout("offsets", "reset", *options(stack), "--to_start")
    assert stack.committed("tracking") == dict.fromkeys(range(3), 0)
    stack.run("tracking")
    assert (stack.committed("tracking"), stack.tracking()) == (stack.ends(), rows), "read again, and nothing added"

    never = produced(stack, 40, 2)
    printed.stdout("offsets", "reset", *options(stack), "--to_end")
    receipts += produced(stack, 30, 3)
    stack.run("tracking")
    assert_tracked_once(stack, receipts)
    assert not {at(row) for row in stack.tracking()} & {(r.partition, r.offset) for r in never}, "skipped, these alone"

    # The table's fences are above them by now, and hide nothing that is read.
    printed.stdout("offsets", "reset", *options(stack), "--to_start")
    stack.run("tracking")
    assert_tracked_once(stack, receipts + never)


def test_a_new_job_goes_on_where_an_old_worker_stopped(
    stack: Stack, printed: Printed, capsys: pytest.CaptureFixture[str]
) -> None:
    done = produced(stack, 60, 1)
    old, topic = f"{stack.prefix}.old-worker", stack.topic("tracking")
    ends = stack.ends()
    commit(stack.broker, old, topic, {0: ends[0], 1: ends[1] - 2})
    copy = ["offsets", "copy", *options(stack), f"--from={old}", f"--to={stack.prefix}.tracking"]
    copy.remove(f"--group={stack.prefix}.tracking")
    assert main([*copy, "--dry_run"]) == 0
    assert stack.committed("tracking") == {}
    assert main(copy) == 0
    told = capsys.readouterr()
    warned = f"itel-cabinet: warning: partition 2: its offset in {old} is not there, and is not copied"
    assert told.err.splitlines() == [warned, warned]
    assert stack.committed("tracking") == {0: ends[0], 1: ends[1] - 2}
    marks = [Mark.from_text(text or "") for text in metadata(stack.broker, f"{stack.prefix}.tracking", topic, 2)]
    assert [(mark.topic_id, mark.job) for mark in marks] == [(topic_id(stack), "")] * 2

    receipts = [r for r in done if r.partition == 2 or (r.partition == 1 and r.offset >= ends[1] - 2)]
    assert len(receipts) > 2
    receipts += produced(stack, 30, 2)
    stack.run("tracking")
    assert_tracked_once(stack, receipts)
    assert printed.error(2, *copy[:-1], f"--to={old}") == f"--to: is the same group as --from, {old}"
    assert printed.error(1, *copy[:-2], "--from=nobody", "--to=x").startswith("the broker knows no group 'nobody': ")
    assert printed.error(1, *copy[:-2], f"--from={stack.prefix}.away", "--to=x").startswith("the broker knows no group")


def test_a_topic_made_anew_is_noticed(stack: Stack, printed: Printed, tmp_path: Path) -> None:
    produced(stack, 30, 1)
    stack.run("tracking")
    first, saved = topic_id(stack), tmp_path / "offsets.json"
    show = options(stack)[:-1]
    saved.write_text(printed.stdout("offsets", "show", *show, "--json"))
    topic = stack.topic("tracking")
    stack.broker.delete_topic(topic)
    stack.broker.create_topic(topic, 3)
    # A broker forgets the offsets of a topic that is deleted, but not those that a job commits just after.
    commit(stack.broker, f"{stack.prefix}.tracking", topic, {0: 5}, first)
    assert printed.cells("offsets", "show", *show)[0] == [
        "0",
        "5",
        "0",
        "0",
        "0",
        f"another topic of this name: {first}",
    ]
    reset = ["offsets", "reset", *options(stack)]
    assert printed.error(1, *reset, f"--from_json={saved}").startswith(
        f"--from_json: {saved} is about the topic {first}, which was deleted: this one is {topic_id(stack)}"
    )
    assert printed.error(1, *reset, "--to_start", f"--topic_id={first}").startswith(
        f"--topic_id: topic {topic} is {topic_id(stack)} now, not {first}: it was deleted and created again"
    )
    copy = ["offsets", "copy", show[0], show[2], f"--from={stack.prefix}.tracking", "--to=x"]
    assert printed.error(1, *copy) == (
        f"--from: the group {stack.prefix}.tracking has no offsets in topic {topic} ({topic_id(stack)})"
    )
    assert printed.cells(*reset, "--to_start")[0] == ["0", "-", "0", "had none"]
