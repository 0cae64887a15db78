"""The local Kafka broker: its life in a folder of its own, its helpers, and how its jars are fetched."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import KafkaException

from itel_cabinet.local.services import ArtifactError, Broker, BrokerError, Message, artifacts
from itel_cabinet.local.services.artifacts import FLINK, KAFKA, Component
from tests.conftest import TopicFactory
from tests.support.jobs import wait_for


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def write(broker: Broker, topic: str, *values: bytes, partition: int = 0) -> None:
    producer = broker.producer()
    for value in values:
        producer.produce(topic, value, key=b"key", partition=partition, headers=[("x-kind", b"test")])
    assert producer.flush(30) == 0


class TestHelpers:
    def test_read_returns_what_was_written_in_order_per_partition(self, broker: Broker, topic: TopicFactory) -> None:
        name = topic(partitions=2)
        write(broker, name, b"a", b"b", partition=0)
        write(broker, name, b"c", partition=1)

        messages = broker.read(name)

        assert [(m.offset, m.value) for m in messages if m.partition == 0] == [(0, b"a"), (1, b"b")]
        assert [(m.offset, m.value) for m in messages if m.partition == 1] == [(0, b"c")]
        first = messages[0]
        assert first == Message(b"key", first.value, (("x-kind", b"test"),), first.partition, 0, first.timestamp)
        assert first.timestamp > 1_700_000_000_000
        assert broker.end_offsets(name) == {0: 2, 1: 1}

    def test_read_of_an_empty_topic_is_empty(self, broker: Broker, topic: TopicFactory) -> None:
        name = topic(partitions=3)

        assert broker.read(name) == []
        assert broker.end_offsets(name) == {0: 0, 1: 0, 2: 0}

    def test_read_ends_behind_the_marker_of_a_transaction_and_leaves_out_what_was_aborted(
        self, broker: Broker, topic: TopicFactory
    ) -> None:
        name = topic(partitions=1)
        producer = broker.producer(transactional_id=name, enable_idempotence=True)
        producer.init_transactions(30)
        for value, end in ((b"kept", producer.commit_transaction), (b"aborted", producer.abort_transaction)):
            producer.begin_transaction()
            producer.produce(name, value)
            assert producer.flush(30) == 0
            end(30)

        assert [message.value for message in broker.read(name)] == [b"kept"]
        assert broker.end_offsets(name) == {0: 4}

    def test_committed_lists_the_partitions_with_an_offset(self, broker: Broker, topic: TopicFactory) -> None:
        from confluent_kafka import Consumer, TopicPartition

        name = topic(partitions=3)
        assert broker.committed(f"group-of-{name}", name) == {}

        consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": f"group-of-{name}"})
        consumer.commit(offsets=[TopicPartition(name, 1, 7)], asynchronous=False)
        consumer.close()

        assert broker.committed(f"group-of-{name}", name) == {1: 7}

    def test_a_deleted_topic_can_be_created_anew_at_once(self, broker: Broker, topic: TopicFactory) -> None:
        name = topic(partitions=1)
        write(broker, name, b"old")

        broker.delete_topic(name)
        broker.create_topic(name, partitions=2)
        write(broker, name, b"new", partition=1)

        assert [(m.partition, m.offset, m.value) for m in broker.read(name)] == [(1, 0, b"new")]

    def test_added_partitions_can_be_written(self, broker: Broker, topic: TopicFactory) -> None:
        name = topic(partitions=1)

        broker.add_partitions(name, 3)
        write(broker, name, b"late", partition=2)

        assert broker.end_offsets(name) == {0: 0, 1: 0, 2: 1}

    def test_topics_are_made_by_nobody_else(self, broker: Broker) -> None:
        with pytest.raises(KafkaException, match="Unknown topic"):
            broker.read("nobody-created-this")

    def test_creating_a_topic_twice_is_an_error(self, broker: Broker, topic: TopicFactory) -> None:
        name = topic()

        with pytest.raises(KafkaException, match="already exists"):
            broker.create_topic(name)


@pytest.mark.services
class TestLife:
    def test_data_and_port_outlast_stop_kill_and_pause(self, tmp_path: Path) -> None:
        with Broker.start(tmp_path / "broker", config={"log.retention.hours": "1"}) as broker:
            address, first = broker.bootstrap_servers, broker.pid
            assert first is not None
            assert "log.retention.hours=1\n" in (tmp_path / "broker" / "server.properties").read_text()
            broker.create_topic("kept", partitions=1)
            write(broker, "kept", b"1")

            broker.stop()
            assert broker.pid is None
            assert not is_alive(first)
            broker.stop()

            broker.start_again()
            second = broker.pid
            assert second not in {None, first}
            broker.start_again()
            assert broker.pid == second
            write(broker, "kept", b"2")

            broker.kill()
            broker.start_again()
            write(broker, "kept", b"3")
            assert [message.value for message in broker.read("kept")] == [b"1", b"2", b"3"]
            assert broker.bootstrap_servers == address

            broker.pause()
            producer = broker.producer()
            producer.produce("kept", b"4")
            assert producer.flush(0.5) == 1
            broker.resume()
            assert producer.flush(30) == 0
            assert broker.end_offsets("kept") == {0: 4}

            broker.pause()
            last = broker.pid
        assert last is not None
        assert not is_alive(last)
        with Broker.start(tmp_path / "broker") as later:
            assert [message.value for message in later.read("kept")] == [b"1", b"2", b"3", b"4"]
        assert "shut down completed" in broker.log.read_text()

    def test_it_dies_with_a_parent_that_is_killed(self, tmp_path: Path) -> None:
        script = (
            "import sys, threading, time\n"
            "from pathlib import Path\n"
            "from itel_cabinet.local.services.kafka import Broker\n"
            # Started by a thread that ends at once: only the end of the process may count.
            "thread = threading.Thread(target=lambda: globals().update(broker=Broker.start(Path(sys.argv[1]))))\n"
            "thread.start(); thread.join()\n"
            "broker.create_topic('alive')\n"
            "print(broker.pid, flush=True)\n"
            "time.sleep(600)\n"
        )
        parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert is_alive(pid)
        finally:
            parent.send_signal(signal.SIGKILL)
            parent.communicate()

        wait_for(lambda: not is_alive(pid), "the broker ends after its parent")

    def test_one_that_cannot_start_says_why(self, broker: Broker, tmp_path: Path) -> None:
        with pytest.raises(BrokerError, match=r"ended with status 1 while starting.*(?s:.)*Address already in use"):
            Broker.start(tmp_path, port=broker.port)

    def test_a_wrong_setting_is_told_with_the_log(self, tmp_path: Path) -> None:
        with pytest.raises(BrokerError, match=r"could not be formatted.*(?s:.)*num\.io\.threads"):
            Broker.start(tmp_path, config={"num.io.threads": "many"})


class TestArtifacts:
    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("ITEL_CABINET_LOCAL", str(tmp_path / "home"))
        return tmp_path / "home"

    @staticmethod
    def maven(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
        """Put a stand-in for `mvn` first in the PATH."""
        folder.mkdir()
        stand_in = folder / "mvn"
        stand_in.write_text(f"#!/bin/sh\n{script}\n")
        stand_in.chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def test_the_version_is_that_of_the_pom(self, home: Path) -> None:
        assert (KAFKA.name, KAFKA.version, KAFKA.folder.parent) == ("kafka", "4.3.1", home)
        assert re.fullmatch(r"kafka-4\.3\.1-[0-9a-f]{8}", KAFKA.folder.name)

    def test_a_changed_pom_or_java_file_has_a_folder_of_its_own(self, tmp_path: Path) -> None:
        pom = Path(shutil.copy(FLINK.pom, tmp_path))
        sources = [Path(shutil.copy(source, tmp_path)) for source in FLINK.sources]
        assert Component.of(pom, *sources).folder == FLINK.folder

        pom.write_text(pom.read_text().replace("<!-- ", "<!-- Told in other words: "))
        assert Component.of(pom, *sources).folder == FLINK.folder
        sources[-1].write_text(sources[-1].read_text() + "// changed")
        changed = Component.of(pom, *sources).folder
        pom.write_text(pom.read_text().replace("1.7.36", "1.7.35"))
        assert len({FLINK.folder, changed, Component.of(pom, *sources).folder}) == 3

    def test_home_is_absolute_and_local_by_default(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("ITEL_CABINET_LOCAL")
        monkeypatch.chdir(tmp_path)

        assert artifacts.home() == tmp_path / ".local"

    def test_missing_jars_are_one_line_with_the_mend(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"kafka 4\.3\.1 is not in .*: run `make setup`") as caught:
            Broker.start(tmp_path / "broker")
        assert "\n" not in str(caught.value)

    def test_fetched_once_and_whole(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # The last argument is -DoutputDirectory=FOLDER.
        copy = 'for last; do :; done; folder="${last#*=}"; mkdir -p "$folder"; echo x >"$folder/a.jar"'
        self.maven(tmp_path / "bin", monkeypatch, f"{copy}; echo >>{tmp_path}/calls")

        assert artifacts.main() == 0
        assert artifacts.main() == 0

        assert [path.name for path in home.rglob("*")] == [KAFKA.folder.name, "a.jar"]
        assert (tmp_path / "calls").read_text() == "\n"
        assert capsys.readouterr().out == f"fetching kafka 4.3.1 by Maven into {KAFKA.folder}\n"

    def test_a_failed_fetch_says_what_and_leaves_nothing(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.maven(tmp_path / "bin", monkeypatch, "echo '[ERROR] no route to the mirror'; exit 1")

        assert artifacts.main() == 1

        error = capsys.readouterr().err
        assert error.startswith(
            "Maven could not fetch kafka 4.3.1 (pom.xml): [ERROR] no route to the mirror; check the network"
        )
        assert "run `make setup` again" in error
        assert list(home.iterdir()) == []

    def test_without_maven_the_error_names_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))

        assert artifacts.main() == 1
        assert "no `mvn` found" in capsys.readouterr().err

    def test_without_java_the_error_names_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        KAFKA.folder.mkdir(parents=True)
        monkeypatch.delenv("JAVA_HOME", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))

        with pytest.raises(ArtifactError, match="no `java` found"):
            Broker.start(tmp_path / "broker")
