"""A real Kafka broker on this machine: one KRaft node in a folder of its own, started, killed and started again by
code.

Example::

    with Broker.start(Path("broker")) as broker:
        broker.create_topic("events")
        producer = broker.producer()
        producer.produce("events", key=b"5430007", value=b"{}")
        producer.flush()
        assert [message.key for message in broker.read("events")] == [b"5430007"]
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from confluent_kafka.cimpl import NewPartitions, NewTopic

from itel_cabinet.local.services.artifacts import KAFKA, jars, java
from itel_cabinet.local.services.ports import HOST, free_port
from itel_cabinet.local.services.service import Service

__all__ = ["Broker", "BrokerError", "Message"]

_START_SECONDS = 90.0
_STOP_SECONDS = 30.0
_CALL_SECONDS = 30.0
_LOG_LINES = 15
_LOGGED_ERROR = re.compile(r"\b(ERROR|FATAL|Exception)\b")

# A short-lived broker on a machine that it shares: a quick start and little memory, not peak throughput.
_JVM = (
    "-Xms128m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Djava.awt.headless=true",
)
_COORDINATOR_NOT_READY = (
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
)
_LOGGING = (
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
    "-Dlog4j2.statusLoggerLevel=OFF",
)

# Runs the rest of the command line as a process that the kernel kills when its parent dies, however the parent dies.
# Not a preexec_fn: that would fork this process with all its threads, which gRPC and others do not survive.
_BOUND = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

# The kernel takes the death of the *thread* that started a child for the death of the parent, so one thread, which
# lives as long as the process, starts them all.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="broker-spawner")


class BrokerError(RuntimeError):
    """The broker did not start, or ended on its own; the text ends with its log, from the first error on."""


@dataclass(frozen=True, slots=True)
class Message:
    """One record as read from a topic; ``timestamp`` is Kafka's, in milliseconds since the epoch."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    partition: int
    offset: int
    timestamp: int


@dataclass(eq=False)
class Broker(Service):
    """A single-node Kafka whose data, configuration and log (``broker.log``) lie in ``folder``.

    Use :meth:`start`, then ``with`` or :meth:`stop`. The broker never outlives this process (on Linux not even if that
    is killed). Ctrl-C does not reach it: the one that started it stops it, after its clients. The methods that talk to
    the broker raise ``KafkaException`` within 30 s when it does not answer. Not thread-safe, but for :meth:`producer`
    and the properties.
    """

    folder: Path
    port: int
    controller_port: int
    config: Mapping[str, str] = field(default_factory=dict)
    proxy_port: int | None = None
    proxied_port: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _admin: AdminClient | None = field(default=None, repr=False)
    _asker: tuple[str, Consumer] | None = field(default=None, repr=False)
    _log_offset: int = field(default=0, repr=False)

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        port: int | None = None,
        config: Mapping[str, str] | None = None,
        proxy_port: int | None = None,
    ) -> Broker:
        """Format ``folder`` unless it holds a broker's data already, start the broker and wait until it serves.

        ``port`` defaults to a free one. ``config`` overrides lines of server.properties. With ``proxy_port`` the broker
        listens at ``proxied_port`` too, and tells clients that come there to use the proxy's port. Raises
        :class:`BrokerError`, and ``ArtifactError`` if the jars or Java are missing.
        """
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        proxied_port = free_port() if proxy_port else 0
        broker = cls(folder, port or free_port(), free_port(), dict(config or {}), proxy_port, proxied_port)
        broker.start_again()
        return broker

    @property
    def bootstrap_servers(self) -> str:
        """``host:port``, for any Kafka client."""
        return f"{HOST}:{self.port}"

    @property
    def log(self) -> Path:
        """What the broker printed, over all its starts."""
        return self.folder / "broker.log"

    @property
    def pid(self) -> int | None:
        """The id of the broker's process, or None while it is down."""
        return self._process.pid if self._process is not None else None

    def start_again(self) -> None:
        """Start on the same folder and port, after :meth:`stop` or :meth:`kill`; waits until it serves. Idempotent."""
        if self._process is not None and self._process.poll() is None:
            return
        # Of a former life's: librdkafka's admin client never finds the groups' coordinator again.
        self._admin = None
        self._forget_asker()
        properties = self.folder / "server.properties"
        properties.write_text(
            "".join(f"{name}={value}\n" for name, value in self._properties().items()), encoding="utf-8"
        )
        if not (self.folder / "data" / "meta.properties").exists():
            self._format(properties)
        self._log_offset = self.log.stat().st_size
        self._process = self._spawn("kafka.Kafka", str(properties))
        weakref.finalize(self, _end, self._process)
        self._wait_until_ready(self._process)

    def stop(self) -> None:
        """End in order (SIGTERM), or by force after 30 s. Idempotent; wakes a paused broker first."""
        if self._process is not None:
            self.resume()
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
            self.kill()

    def kill(self) -> None:
        """End at once (SIGKILL), as a crash would. Idempotent."""
        self._forget_asker()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Freeze the process (SIGSTOP): its connections stay open and nothing answers, from the return of this on."""
        self._signal(signal.SIGSTOP)
        if self._process is not None and self._process.poll() is None:
            # On a busy machine its threads run on for a while after the signal was sent.
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a paused broker go on (SIGCONT); harmless if it was not paused."""
        self._signal(signal.SIGCONT)

    def create_topic(self, name: str, partitions: int = 3, config: Mapping[str, str] | None = None) -> None:
        """Create a topic and wait until each of its partitions has a leader; raises ``KafkaException`` if it exists."""
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=dict(config or {}))
        self._client().create_topics([topic], operation_timeout=_CALL_SECONDS)[name].result(_CALL_SECONDS)
        self._wait_for_topic(name, partitions)

    def add_partitions(self, name: str, total: int) -> None:
        """Grow a topic to ``total`` partitions and wait until each has a leader."""
        self._client().create_partitions([NewPartitions(name, total)])[name].result(_CALL_SECONDS)
        self._wait_for_topic(name, total)

    def delete_topic(self, name: str) -> None:
        """Delete a topic and wait until it is gone, so that it can be created again at once."""
        self._client().delete_topics([name], operation_timeout=_CALL_SECONDS)[name].result(_CALL_SECONDS)
        self._wait_for_topic(name, 0)

    def end_offsets(self, topic: str) -> dict[int, int]:
        """The next offset to be written, by partition (so markers of transactions count)."""
        wanted = {partition: OffsetSpec.latest() for partition in self._partitions(topic)}
        return {
            partition.partition: future.result(_CALL_SECONDS).offset
            for partition, future in self._client().list_offsets(wanted, request_timeout=_CALL_SECONDS).items()
        }

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """The offsets that ``group`` has committed, by partition; a partition without one is left out."""
        asker, deadline = self._asker_of(group), time.monotonic() + _CALL_SECONDS
        while True:
            try:
                found = asker.committed(self._partitions(topic), timeout=_CALL_SECONDS)
                break
            except KafkaException as error:
                if error.args[0].code() not in _COORDINATOR_NOT_READY or time.monotonic() > deadline:
                    self._forget_asker()
                    raise
                time.sleep(0.02)
        return {partition.partition: partition.offset for partition in found if partition.offset >= 0}

    def read(self, topic: str) -> list[Message]:
        """All committed records from the beginning to the end of now, in order within each partition."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": "itel_cabinet.local.read",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 50,
                "fetch.error.backoff.ms": 20,
                "log_level": 0,
            }
        )
        messages: list[Message] = []
        try:
            # Asked of the consumer itself: one that knows the leaders already starts at once, else half a second later.
            unfinished = set(_listed(consumer, topic))
            consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in unfinished])
            deadline = time.monotonic() + _CALL_SECONDS
            while unfinished:
                message = consumer.poll(0.1)
                if message is None:
                    if time.monotonic() > deadline:
                        raise KafkaException(
                            KafkaError(KafkaError._TIMED_OUT, f"topic {topic} could not be read to its end")
                        )
                    continue
                error = message.error()
                if error is None:
                    deadline = time.monotonic() + _CALL_SECONDS
                    messages.append(_message(message))
                elif error.code() == KafkaError._PARTITION_EOF:
                    unfinished.discard(message.partition())
                elif not error.retriable():
                    raise KafkaException(error)
        finally:
            consumer.close()
        return messages

    def producer(self, **config: str | int | bool) -> Producer:
        """A producer that keeps the order; ``config`` takes librdkafka's names with ``_`` for ``.``.

        A request whose answer is lost may be written twice: ``enable_idempotence=True`` rules that out, and costs half
        a second before the first record.
        """
        return Producer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "acks": "all",
                "max.in.flight.requests.per.connection": 1,
                "linger.ms": 5,
                "log_level": 0,
                **{name.replace("_", "."): value for name, value in config.items()},
            }
        )

    def _properties(self) -> dict[str, str]:
        listeners, advertised = (f"PLAINTEXT://{HOST}:{self.port}",) * 2
        if self.proxy_port:
            listeners += f",PROXIED://{HOST}:{self.proxied_port}"
            advertised += f",PROXIED://{HOST}:{self.proxy_port}"
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{HOST}:{self.controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{listeners},CONTROLLER://{HOST}:{self.controller_port}",
            "advertised.listeners": advertised,
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # After a kill, the broker may register again only when the session of its former life has ended.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "num.network.threads": "2",
            "num.io.threads": "4",
            "log.cleaner.dedupe.buffer.size": "4194304",
            **self.config,
        }

    def _format(self, properties: Path) -> None:
        process = self._spawn(
            "kafka.tools.StorageTool",
            "format",
            "-t",
            uuid.uuid4().hex[:22],
            "-c",
            str(properties),
        )
        if process.wait(_START_SECONDS) != 0:
            raise BrokerError(f"the folder of the Kafka broker could not be formatted; {self._tail()}")

    def _spawn(self, main_class: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [java(), *_JVM, *_LOGGING, "-cp", f"{jars(KAFKA)}/*", main_class, *arguments]

        def popen() -> subprocess.Popen[bytes]:
            with self.log.open("ab") as log:
                return subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid()), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    start_new_session=True,
                )

        return _spawner.submit(popen).result()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        # Who answers on the port may be another broker, until ours finds the port taken and ends.
        cluster = re.search(r"^cluster\.id=(.*)$", (self.folder / "data" / "meta.properties").read_text(), re.MULTILINE)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            if process.poll() is not None:
                self._process = None
                raise BrokerError(
                    f"the Kafka broker ended with status {process.returncode} while starting; {self._tail()}"
                )
            try:
                metadata = self._client().list_topics(timeout=1.0)
                if metadata.brokers and cluster is not None and metadata.cluster_id == cluster[1]:
                    return
            except KafkaException:
                pass
            time.sleep(0.02)
            if time.monotonic() > deadline:
                self.kill()
                raise BrokerError(f"the Kafka broker did not serve within {_START_SECONDS:.0f} s; {self._tail()}")

    def _wait_for_topic(self, name: str, partitions: int) -> None:
        deadline = time.monotonic() + _CALL_SECONDS
        while time.monotonic() < deadline:
            found = self._client().list_topics(timeout=_CALL_SECONDS).topics.get(name)
            led = (
                [part for part in found.partitions.values() if part.leader >= 0 and part.error is None] if found else []
            )
            if len(led) == partitions:
                return
            time.sleep(0.02)
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"topic {name} did not reach {partitions} partitions"))

    def _partitions(self, topic: str) -> list[TopicPartition]:
        return [TopicPartition(topic, partition) for partition in _listed(self._client(), topic)]

    def _client(self) -> AdminClient:
        if self._admin is None:
            self._admin = AdminClient(
                {
                    "bootstrap.servers": self.bootstrap_servers,
                    "reconnect.backoff.ms": 50,
                    "reconnect.backoff.max.ms": 200,
                    # That the broker is down is what callers ask for; librdkafka would print it on stderr each time.
                    "log_level": 0,
                }
            )
        return self._admin

    def _asker_of(self, group: str) -> Consumer:
        """Kept for the next call, as who waits for a group asks again and again, and to connect costs 20 times as much.

        Not the admin client, which crashes the process while a broker that has just started loads its groups. Offsets
        are reported as they are, without waiting for the end of a transaction that moves them.
        """
        if self._asker is None or self._asker[0] != group:
            self._forget_asker()
            config = {"bootstrap.servers": self.bootstrap_servers, "group.id": group, "log_level": 0}
            self._asker = (group, Consumer({**config, "isolation.level": "read_uncommitted"}))
        return self._asker[1]

    def _forget_asker(self) -> None:
        if self._asker is not None:
            self._asker[1].close()
            self._asker = None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _tail(self) -> str:
        """The log of this start from its first error on, or its end."""
        lines = self.log.read_bytes()[self._log_offset :].decode(errors="replace").splitlines()
        first = next((index for index, line in enumerate(lines) if _LOGGED_ERROR.search(line)), -_LOG_LINES)
        return f"from {self.log}:\n" + "\n".join(lines[first:][:_LOG_LINES])


def _message(message: Any) -> Message:
    return Message(
        key=message.key(),
        value=message.value(),
        headers=tuple(message.headers() or ()),
        partition=message.partition(),
        offset=message.offset(),
        timestamp=message.timestamp()[1],
    )


def _listed(client: AdminClient | Consumer, topic: str) -> list[int]:
    found = client.list_topics(topic, timeout=_CALL_SECONDS).topics[topic]
    if found.error is not None:
        raise KafkaException(found.error)
    return sorted(found.partitions)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
