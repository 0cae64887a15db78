"""The Kafka source and sink against a real broker: content, order, offsets, and what happens when the ground moves."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.sdf_utils import ThreadsafeRestrictionTracker
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from itel_cabinet.io.batch_limits import FETCHED
from itel_cabinet.io.kafka import (
    Cluster,
    ConfigError,
    KafkaSinkSettings,
    KafkaSource,
    Message,
    ReadFromKafka,
    RefusedMessage,
    UnknownTopicError,
    WriteToKafka,
    client_config,
    group_lag,
    resolve_config,
)
from itel_cabinet.io.kafka.offsets import get_group_offsets
from itel_cabinet.io.kafka.reader import ShardReader
from itel_cabinet.io.kafka.source import ShardTracker
from itel_cabinet.io.kafka.spec import ShardPosition
from itel_cabinet.io.secrets import UnresolvedSecretError
from itel_cabinet.io.worker import STOP, metrics
from itel_cabinet.local.services import Broker
from itel_cabinet.transforms.records import Record
from tests.support.raw_kafka import produce_raw

SEEN: dict[str, list[Record]] = defaultdict(list)
BATCHES: dict[str, list[int]] = defaultdict(list)


def _keep(batch: list[Record], name: str) -> None:
    SEEN[name] += batch
    BATCHES[name].append(len(batch))


def _source(broker: Broker, topic: str, group: str = "readers", **settings: object) -> KafkaSource:
    settings = {"until_caught_up": True, "outage_seconds": 30.0, "max_batch_records": 100} | settings
    return KafkaSource(client=client_config(broker.bootstrap_servers), topic=topic, group=group, **settings)  # type: ignore[arg-type]


def _read(source: KafkaSource) -> tuple[list[Record], dict[str, int]]:
    """Run a job to its end; the records it read in order, and its counters."""
    name = f"{source.topic}/{time.monotonic()}"
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions(["--streaming"]))
    pipeline | ReadFromKafka(source) | beam.Map(_keep, name=name)
    result = pipeline.run()
    counters = {c.key.metric.name: c.committed for c in result.metrics().query()["counters"]}
    return SEEN[name], counters


@contextmanager
def _reading(source: KafkaSource) -> Iterator[list[Record]]:
    """An endless job in the background; what it has read so far. It is stopped as SIGTERM would."""
    name = f"{source.topic}/{time.monotonic()}"
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions(["--streaming"]))
    pipeline | ReadFromKafka(source) | beam.Map(_keep, name=name)
    job = threading.Thread(target=lambda: pipeline.run(), daemon=True)
    job.start()
    try:
        yield SEEN[name]
    finally:
        STOP.set()
        job.join(30)
        STOP.clear()
        assert not job.is_alive()


def _wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come about"
        threading.Event().wait(0.05)


def _produce(broker: Broker, topic: str, values: list[bytes], partition: int = 0) -> None:
    producer = broker.producer()
    for value in values:
        producer.produce(topic, value, partition=partition)
    assert producer.flush(30) == 0


def _values(records: list[Record]) -> list[bytes | None]:
    return [record.value for record in records]


# ------------------------------------------------------------------------------------------------- restrictions, splits


def test_a_position_survives_json() -> None:
    position = ShardPosition("abc", {0: 5, 12: 7}, {0: 9, 12: 9})
    assert ShardPosition.from_json(position.to_json()) == position
    assert position.to_json() == (
        b'{"ends": {"0": 9, "12": 9}, "offsets": {"0": 5, "12": 7}, "topic_id": "abc", "v": 1}'
    )
    with pytest.raises(ValueError, match="version 2"):
        ShardPosition.from_json(b'{"v": 2}')


def test_a_runner_cannot_split_a_shard() -> None:
    tracker = ShardTracker(ShardPosition("t", {0: 0}))
    safe = ThreadsafeRestrictionTracker(tracker)
    splits: list[object] = []

    def ask() -> None:
        splits.extend([safe.try_split(0.5), safe.try_split(0)])

    def from_another_thread() -> None:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()

    from_another_thread()
    safe.try_claim(ShardPosition("t", {0: 7}))
    from_another_thread()
    assert splits == [None, None, None, None]
    safe.defer_remainder()
    assert safe.deferred_status()[0] == ShardPosition("t", {0: 7})  # type: ignore[index]
    from_another_thread()
    assert splits[4:] == [None, None]
    safe.check_done()


def test_an_abandoned_shard_is_noticed() -> None:
    tracker = ShardTracker(ShardPosition("t", {0: 0}))
    tracker.try_claim(ShardPosition("t", {0: 7}))
    with pytest.raises(ValueError, match="without finishing"):
        tracker.check_done()
    tracker.try_claim(None)
    tracker.check_done()


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("enable.auto.commit", True, "after the sinks"),
        ("auto.offset.reset", "latest", "given by itself; an offset lost to retention"),
        ("isolation.level", "read_uncommitted", "aborted"),
        ("group.id", "x", "the group is given by itself"),
        ("group.protocol", "consumer", "the job's consumers join no group"),
        *(
            (key, "hunter2", "must be a reference")
            for key in (
                *("sasl.password", "ssl.key.password", "ssl.keystore.password", "ssl.key.pem"),
                *("sasl.oauthbearer.client.secret", "sasl.oauthbearer.client.credentials.client.secret"),
                *("sasl.oauthbearer.assertion.private.key.passphrase", "sasl.oauthbearer.assertion.private.key.pem"),
            )
        ),
    ],
)
def test_contradicting_settings_are_refused(key: str, value: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refusal:
        client_config("localhost:9092", {key: value})
    assert key in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


def test_references_resolve_in_any_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pem = "-----BEGIN KEY-----\nabc\n-----END KEY-----"
    (tmp_path / "key").write_text(f"{pem}\n")
    (tmp_path / "password").write_text("\ufeffpäßwörd\r\n", encoding="utf-8")
    monkeypatch.setenv("KAFKA_USER", "cabinet")
    given = {
        "ssl.key.pem": f"file:{tmp_path}/key",
        "sasl.password": f"file:{tmp_path}/password",
        "sasl.username": "env:KAFKA_USER",
        "sasl.oauthbearer.client.credentials.client.secret": "env:KAFKA_USER",
        "group.protocol": "classic",
        "compression.type": "gzip",
    }
    config = client_config("localhost:9092", given)
    assert "pä" not in repr(config)
    resolved = resolve_config(config)
    assert {key: resolved[key] for key in given} == {
        "ssl.key.pem": pem,
        "sasl.password": "päßwörd",
        "sasl.username": "cabinet",
        "sasl.oauthbearer.client.credentials.client.secret": "cabinet",
        "group.protocol": "classic",
        "compression.type": "gzip",
    }


@pytest.mark.parametrize("content", [b"caf\xe9", b"a\x00b", b"\xef\xbb\xbf", b" \n"])
def test_a_file_that_holds_no_text_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(UnresolvedSecretError, match=r"is no text in UTF-8|is empty"):
        resolve_config(client_config("localhost:9092", {"sasl.password": f"file:{tmp_path}/secret"}))


# --------------------------------------------------------------------------------------------------------------- source


def test_all_records_are_read_in_order_and_offsets_committed(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic(partitions=3)
    for partition in range(3):
        _produce(broker, name, [b"%d-%d" % (partition, i) for i in range(250)], partition)
    records, counters = _read(_source(broker, name))
    for partition in range(3):
        of_partition = [r for r in records if r.partition == partition]
        assert _values(of_partition) == [b"%d-%d" % (partition, i) for i in range(250)]
        assert [r.offset for r in of_partition] == list(range(250))
    assert counters["records_read"] == 750
    topic_id = Cluster(dict(client_config(broker.bootstrap_servers))).topic(name).topic_id
    assert {r.topic_id for r in records} == {topic_id}
    assert broker.committed("readers", name) == {0: 250, 1: 250, 2: 250}
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": "readers"})
    assert [o.metadata for o in consumer.committed([TopicPartition(name, 0)])] == [topic_id]
    consumer.close()


_NAMES = [b"\xff", b"caf\xe9", b"\xed\xa0\xbd", b"traceparent\xc0\x80", bytes(range(128, 256))]


def test_a_header_s_name_may_be_any_bytes(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic(1)
    names = _NAMES * 20  # more than it takes CPython to specialize the calls
    values = [b"plain", *(b"value %d" % n for n in range(len(names))), b"plain too"]
    produce_raw(broker, name, [([(b"x", b"1")], values[0])])
    produce_raw(
        broker, name, [([(raw, b"\xff\x00"), (b"x", None)], v) for raw, v in zip(names, values[1:], strict=False)]
    )
    produce_raw(broker, name, [([("ключ".encode(), b"\xfe"), (b"", b"")], values[-1])])
    before = metrics.HEADERS_UNREADABLE.labels(name)._value.get()
    records, _ = _read(_source(broker, name))
    assert [record.value for record in records] == values
    assert records[0].headers == (("x", b"1"),)
    assert records[-1].headers == (("ключ", b"\xfe"), ("", b""))
    assert {record.headers for record in records[1:-1]} == {()}
    assert metrics.HEADERS_UNREADABLE.labels(name)._value.get() - before == len(names)


def test_a_consumer_that_fell_silent_is_assigned_again(
    broker: Broker, topic: Callable[..., str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here its partitions are taken away behind the reader's back."""
    monkeypatch.setattr("itel_cabinet.io.kafka.shard_consumer._SILENT_SECONDS", 1.0)
    name = topic(2)
    _produce(broker, name, [b"%d" % n for n in range(10)])
    reader = ShardReader(replace(_source(broker, name), until_caught_up=False), 0, 1)
    position, values = reader.initial(), []
    deadline = time.monotonic() + 60
    while len(values) < 20 and time.monotonic() < deadline:
        batch = reader.read(position)
        position = batch.fetched.position
        values += [record.value for record in batch.fetched.records]
        if len(values) == 10 and batch.fetched.records:
            caplog.clear()
            reader._consumer._consumer.unassign()
            _produce(broker, name, [b"%d" % n for n in range(10, 20)], partition=1)
    assert sorted(values) == sorted(b"%d" % n for n in range(20))
    assert "though partitions" in caplog.text


def test_shards_share_the_partitions(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic(partitions=3)
    for partition in range(3):
        _produce(broker, name, [b"x"] * 20, partition)
    records, _ = _read(_source(broker, name, shards=5))
    assert sorted((r.partition, r.offset) for r in records) == [(p, o) for p in range(3) for o in range(20)]
    assert [lag.lag for lag in group_lag(dict(client_config(broker.bootstrap_servers)), "readers", name)] == [0, 0, 0]


def test_a_restart_goes_on_from_the_groups_offsets(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic(partitions=1)
    _produce(broker, name, [b"a", b"b"])
    assert _values(_read(_source(broker, name))[0]) == [b"a", b"b"]
    _produce(broker, name, [b"c"])
    assert _values(_read(_source(broker, name))[0]) == [b"c"]
    assert _values(_read(_source(broker, name, group="others"))[0]) == [b"a", b"b", b"c"]


def test_offsets_set_by_kafkas_tools_count(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic(partitions=1)
    _produce(broker, name, [b"a", b"b", b"c"])
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": "readers"})
    consumer.commit(offsets=[TopicPartition(name, 0, 2)], asynchronous=False)
    consumer.close()
    assert _values(_read(_source(broker, name))[0]) == [b"c"]


def test_a_batch_ends_at_its_record_limit(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic(partitions=1)
    _produce(broker, name, [b"x"] * 95)
    source = _source(broker, name, max_batch_records=10, max_batch_seconds=5.0)
    records, _ = _read(source)
    assert len(records) == 95
    batches = next(sizes for key, sizes in BATCHES.items() if key.startswith(name))
    assert max(batches) <= 10


def test_what_has_waited_for_the_batch_before_is_not_waited_for_again(
    broker: Broker, topic: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = topic(partitions=1)
    limits = {"max_batch_records": 3, "max_batch_seconds": 600.0, "max_bundle_seconds": 1e6}
    reader = ShardReader(_source(broker, name, until_caught_up=False, **limits), 0, 1)
    _produce(broker, name, [b"a", b"b", b"c"])
    first = reader.read(reader.initial())
    assert _values(first.fetched.records) == [b"a", b"b", b"c"]
    _produce(broker, name, [b"d", b"e"])
    _wait_for(lambda: reader.lag(0) == 2)
    # The first batch takes ten minutes to work on.
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 601)
    monkeypatch.setattr("itel_cabinet.io.kafka.shard_consumer.time", later)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(reader.read, first.fetched.position).result(60)
    assert _values(second.fetched.records) == [b"d", b"e"]


def test_the_next_batch_is_made_while_one_is_worked_on(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic(partitions=1)
    _produce(broker, name, [b"%d" % n for n in range(6)])
    reader = ShardReader(_source(broker, name, until_caught_up=False, max_batch_records=3), 0, 1)
    made: list[list[bytes | None]] = []

    def make(records: list[Record]) -> list[bytes | None]:
        made.append(_values(records))
        return made[-1]

    first = reader.read(reader.initial(), make)
    assert first.element == [b"0", b"1", b"2"]
    _wait_for(lambda: len(made) == 2)  # nobody has asked for it
    assert reader.lag(0) == 3, "it is not handed on yet"
    second = reader.read(first.fetched.position, make)
    assert second.element == [b"3", b"4", b"5"]
    assert made == [first.element, second.element]


def test_what_was_made_long_ago_is_made_again(
    broker: Broker, topic: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an outage: somebody may have been erased meanwhile."""
    name = topic(partitions=1)
    _produce(broker, name, [b"%d" % n for n in range(6)])
    reader = ShardReader(_source(broker, name, until_caught_up=False, max_batch_records=3), 0, 1)
    made: list[list[bytes | None]] = []
    first = reader.read(reader.initial(), lambda records: made.append(_values(records)) or len(made))
    _wait_for(lambda: len(made) == 2)
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 21, process_time=time.process_time)
    monkeypatch.setattr("itel_cabinet.io.kafka.reader.time", later)
    second = reader.read(first.fetched.position, lambda records: made.append(_values(records)) or len(made))
    assert (first.element, second.element) == (1, 3)
    assert made == [[b"0", b"1", b"2"], [b"3", b"4", b"5"], [b"3", b"4", b"5"]]


def test_reading_ahead_loses_nothing_where_batches_fail_and_offsets_move(
    broker: Broker, topic: Callable[..., str]
) -> None:
    """At random: a batch is done, or its bundle fails and is run again, as from a checkpoint also a few batches later;
    or it cannot be made; or a person sets the group back."""
    chance = random.Random(7)
    name = topic(partitions=2)
    for partition in range(2):
        _produce(broker, name, [b"%d" % n for n in range(150)], partition)
    source = _source(broker, name, until_caught_up=False, max_batch_records=7, max_batch_seconds=0.05)
    reader, offsets = ShardReader(source, 0, 1), get_group_offsets(source)
    person = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": source.group})
    broken = threading.Event()

    def make(records: list[Record]) -> list[tuple[int, int]]:
        if broken.is_set():
            broken.clear()
            raise ValueError("cannot be made")
        return [(record.partition, record.offset) for record in records]

    checkpoints = [reader.initial()]
    done: dict[int, list[int]] = {0: [], 1: []}
    happened: Counter[str] = Counter()
    deadline = time.monotonic() + 120
    while checkpoints[-1].offsets != {0: 150, 1: 150} or happened.total() < 40:
        assert time.monotonic() < deadline
        start = checkpoints[-1]
        try:
            batch = reader.read(start, make)
        except ValueError:
            happened["not made"] += 1
            continue
        if batch.fetched.records:
            assert [(r.partition, r.offset) for r in batch.fetched.records] == batch.element
        elif batch.fetched.position.offsets != start.offsets:
            happened["followed"] += 1
            checkpoints = [batch.fetched.position]
            done = {p: offsets[: batch.fetched.position.offsets[p]] for p, offsets in done.items()}
            continue
        for partition, offset in batch.element or []:
            assert offset == len(done[partition]), "in order, none left out and none twice"
            done[partition].append(offset)
        offsets.commit(batch.fetched.position, offsets.generation)
        checkpoints.append(batch.fetched.position)
        what = chance.choice(["done"] * 6 + ["failed", "not made next", "set back"])
        happened[what] += 1
        if what == "failed":
            del checkpoints[-chance.randint(1, min(3, len(checkpoints) - 1)) :]
            done = {p: offsets[: checkpoints[-1].offsets[p]] for p, offsets in done.items()}
        elif what == "not made next":
            broken.set()
        elif what == "set back":
            back = [TopicPartition(name, p, max(0, at - 12)) for p, at in batch.fetched.position.offsets.items()]
            person.commit(offsets=back, asynchronous=False)
    assert done == {0: [*range(150)], 1: [*range(150)]}
    assert min(happened[what] for what in ("done", "failed", "not made", "followed")) > 0, happened
    person.close()


def test_a_batch_ends_at_its_limit_of_bytes(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic(partitions=1)
    _produce(broker, name, [b"x" * 10_000] * 95)
    source = _source(broker, name, max_batch_bytes=100_000, max_batch_seconds=5.0)
    records, _ = _read(source)
    assert len(records) == 95
    batches = next(sizes for key, sizes in BATCHES.items() if key.startswith(name))
    assert max(batches) <= 11, "and one more, since the first says how large they are"


def test_a_batch_is_smaller_where_much_is_fetched_for_its_records(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic(partitions=1)
    _produce(broker, name, [b"x"] * 60)
    source = _source(broker, name, max_batch_records=10, max_batch_bytes=50_000, max_batch_seconds=5.0)
    FETCHED.take()
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions(["--streaming"]))
    pipeline | ReadFromKafka(source) | beam.Map(_fetch_10_kb_each) | beam.Map(_keep, name=name)
    pipeline.run()
    assert sum(BATCHES[name]) == 60
    assert BATCHES[name][:2] == [10, 10], "the second is read while the first is worked on"
    assert max(BATCHES[name][2:]) <= 5


def _fetch_10_kb_each(batch: list[Record]) -> list[Record]:
    FETCHED.add(10_000 * len(batch))
    return batch


def test_a_partition_added_while_running_is_read_from_its_beginning(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic(partitions=1)
    _produce(broker, name, [b"old"])
    with _reading(_source(broker, name, until_caught_up=False, relist_seconds=0.2)) as records:
        _wait_for(lambda: _values(records) == [b"old"])
        broker.add_partitions(name, 2)
        _produce(broker, name, [b"new-0", b"new-1"], partition=1)
        _wait_for(lambda: len(records) == 3)
    assert [(r.partition, r.offset, r.value) for r in records[1:]] == [(1, 0, b"new-0"), (1, 1, b"new-1")]
    assert broker.committed("readers", name) == {0: 1, 1: 2}


def test_a_partition_added_between_runs_is_read_whole_even_by_latest(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic(partitions=1)
    _produce(broker, name, [b"old"])
    _read(_source(broker, name))
    broker.add_partitions(name, 2)
    _produce(broker, name, [b"new"], partition=1)
    assert _values(_read(_source(broker, name, start_offset="latest"))[0]) == [b"new"]


def test_latest_starts_at_the_end(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic(partitions=1)
    _produce(broker, name, [b"old"])
    with _reading(_source(broker, name, until_caught_up=False, start_offset="latest")) as records:
        # The end is committed before anything is read, so a restart misses nothing either.
        _wait_for(lambda: broker.committed("readers", name) == {0: 1})
        _produce(broker, name, [b"new"])
        _wait_for(lambda: len(records) == 1)
    assert _values(records) == [b"new"]


def test_transactions_at_the_end_do_not_hang_and_aborted_ones_are_not_read(
    broker: Broker, topic: Callable[..., str]
) -> None:
    name = topic(partitions=1)
    producer = broker.producer(**{"transactional.id": name})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(name, b"kept", partition=0)
    producer.commit_transaction(30)
    producer.begin_transaction()
    producer.produce(name, b"aborted", partition=0)
    producer.flush(30)
    producer.abort_transaction(30)
    records, _ = _read(_source(broker, name))
    assert _values(records) == [b"kept"]
    # One record, two markers and an aborted record: the position is past all four.
    assert broker.committed("readers", name) == {0: 4}


@pytest.mark.parametrize("running", [True, False])
def test_a_topic_made_anew_loses_nothing(broker: Broker, topic: Callable[..., str], running: bool) -> None:
    name = topic(partitions=1)
    _produce(broker, name, [b"old-%d" % i for i in range(5)])
    source = _source(broker, name, until_caught_up=not running, relist_seconds=0.2)

    def make_anew() -> None:
        broker.delete_topic(name)
        broker.create_topic(name, 1)
        _produce(broker, name, [b"new-%d" % i for i in range(8)])

    if running:
        with _reading(source) as records:
            _wait_for(lambda: len(records) == 5)
            make_anew()
            _wait_for(lambda: len(records) >= 13)
    else:
        old, _ = _read(source)
        make_anew()
        new, _ = _read(source)
        records = [*old, *new]
    ids = [r.topic_id for r in records]
    assert len(set(ids)) == 2
    assert _values([r for r in records if r.topic_id == ids[0]]) == [b"old-%d" % i for i in range(5)]
    assert _values([r for r in records if r.topic_id != ids[0]]) == [b"new-%d" % i for i in range(8)]
    assert broker.committed("readers", name) == {0: 8}


def test_what_retention_took_is_reported_as_lost(
    broker: Broker, topic: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    name = topic(partitions=1)
    _produce(broker, name, [b"%d" % i for i in range(10)])
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": "readers"})
    consumer.commit(offsets=[TopicPartition(name, 0, 3)], asynchronous=False)
    consumer.close()
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    for future in admin.delete_records([TopicPartition(name, 0, 7)]).values():
        future.result()
    with caplog.at_level(logging.ERROR):
        records, counters = _read(_source(broker, name))
    assert _values(records) == [b"7", b"8", b"9"]
    assert counters["records_lost_to_retention"] == 4
    assert "offsets [3, 7)" in caplog.text


def test_a_group_beyond_the_end_is_refused(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic(partitions=1)
    _produce(broker, name, [b"x"])
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": "readers"})
    consumer.commit(offsets=[TopicPartition(name, 0, 50)], asynchronous=False)
    consumer.close()
    with pytest.raises(Exception, match="the log was cut") as refusal:
        _read(_source(broker, name))
    assert f"topic {name} partition 0 ends at 1, but the group readers stands at 50" in str(refusal.value)


def test_an_unknown_topic_is_named(broker: Broker) -> None:
    with pytest.raises(UnknownTopicError, match="'nowhere' does not exist"):
        Cluster(dict(client_config(broker.bootstrap_servers))).topic("nowhere")


# ----------------------------------------------------------------------------------------------------------------- sink


REFUSED: list[tuple[object, str]] = []


def _keep_refused(refused: list[RefusedMessage]) -> None:
    REFUSED.extend((one.message.origin, one.reason) for one in refused)


def test_too_large_a_message_is_handed_back_and_the_others_arrive(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic(partitions=1)
    REFUSED.clear()
    messages = [
        Message(name, b"k1", b"small", (("h", b"1"),)),
        Message(name, b"k2", random.Random(1).randbytes(2_000_000), origin="the large one"),
        Message(name, b"k3", None),
    ]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        (
            pipeline
            | beam.Create([messages])
            | WriteToKafka(KafkaSinkSettings(client_config(broker.bootstrap_servers), 30.0))
            | beam.Map(_keep_refused)
        )
    assert [(m.key, m.value, list(m.headers)) for m in broker.read(name)] == [
        (b"k1", b"small", [("h", b"1")]),
        (b"k3", None, []),
    ]
    assert [origin for origin, _ in REFUSED] == ["the large one"]
    assert "too large" in REFUSED[0][1]


def test_a_full_batch_over_the_topics_limit_still_arrives(broker: Broker, topic: Callable[..., str]) -> None:
    name = topic(partitions=1, config={"max.message.bytes": "20000"})
    values = [random.Random(i).randbytes(5_000) for i in range(40)]
    REFUSED.clear()
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        (
            pipeline
            | beam.Create([[Message(name, None, value) for value in values]])
            | WriteToKafka(KafkaSinkSettings(client_config(broker.bootstrap_servers), 30.0))
            | beam.Map(_keep_refused)
        )
    assert sorted(m.value or b"" for m in broker.read(name)) == sorted(values)
    assert REFUSED == []


def test_a_broker_that_stays_away_is_the_worlds_error() -> None:
    settings = KafkaSinkSettings(client_config("127.0.0.1:1"), 1.0)
    with pytest.raises(Exception, match=r"Kafka at 127\.0\.0\.1:1 took no messages for \d+ s"):  # noqa: SIM117
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            pipeline | beam.Create([[Message("t", b"k", b"v")]]) | WriteToKafka(settings)


def test_a_source_without_its_broker_gives_up_after_its_patience() -> None:
    source = KafkaSource(client=client_config("127.0.0.1:1"), topic="t", group="g", outage_seconds=1.0)
    with pytest.raises(Exception, match=r"Kafka at 127\.0\.0\.1:1, topic t"):
        _read(replace(source, until_caught_up=True))
