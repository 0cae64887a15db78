"""A real Flink cluster on this machine, with Beam's job server: JobManager, TaskManagers and job server as processes of
their own.

Example::

    with FlinkCluster.start(Path("flink"), task_managers=2) as cluster:
        options = [f"--{name}={value}" for name, value in cluster.beam_options().items()]
        subprocess.run([*command_that_launches_a_job, *options], check=True)
        [job] = cluster.jobs()
        cluster.kill_task_manager(0)
        cluster.start_task_manager()
        savepoint = cluster.stop_with_savepoint(job.id)
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from itel_cabinet.local.services.artifacts import BOOT, FLINK, jars, java
from itel_cabinet.local.services.guarded import Guarded
from itel_cabinet.local.services.ports import HOST, free_port
from itel_cabinet.local.services.service import Service

__all__ = ["Checkpoints", "FlinkCluster", "FlinkError", "Job", "Subtask"]

_START_SECONDS = 120.0
_CALL_SECONDS = 30.0
_SAVEPOINT_SECONDS = 120.0
_LOG_LINES = 15
_LOGGED_ERROR = re.compile(r"\b(ERROR|FATAL|Exception)\b")
# What a killed TaskManager leaves behind goes on for this long, as it would in a container that is torn down.
_LINGER_SECONDS = 1.0

_JVM = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xss512k",
    "-XX:ReservedCodeCacheSize=64m",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
    *(
        f"--add-opens=java.base/{package}=ALL-UNNAMED"
        for package in (
            "java.lang",
            "java.lang.reflect",
            "java.net",
            "java.io",
            "java.nio",
            "java.text",
            "java.time",
            "java.util",
            "java.util.concurrent",
            "java.util.concurrent.atomic",
            "java.util.concurrent.locks",
            "sun.nio.ch",
        )
    ),
    "--add-exports=java.base/sun.net.util=ALL-UNNAMED",
    "--add-exports=java.rmi/sun.rmi.registry=ALL-UNNAMED",
    "--add-exports=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
)
_JOB_MANAGER_HEAP = "-Xmx192m"
_JOB_SERVER_HEAP = "-Xmx256m"
_TASK_MANAGER_HEAP = "-Xmx320m"

_ACTIVE = frozenset({"INITIALIZING", "CREATED", "RUNNING", "RESTARTING", "FAILING", "CANCELLING", "RECONCILING"})


class FlinkError(RuntimeError):
    """The cluster did not start or did not do what it was asked; the text says what, and ends with a log where one
    helps.
    """


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the JobManager reports it; ``state`` is Flink's (RUNNING, RESTARTING, FINISHED, CANCELED, FAILED)."""

    id: str
    name: str
    state: str

    @property
    def active(self) -> bool:
        """Whether it has not ended."""
        return self.state in _ACTIVE


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """A job's checkpoint statistics. ``restored`` counts the restorations; sizes are bytes, durations milliseconds,
    both of the last completed checkpoint and 0 before it.
    """

    completed: int
    failed: int
    restored: int
    last_size: int
    last_duration: int


@dataclass(frozen=True, slots=True)
class Subtask:
    """One subtask of one of a job's vertices; the counters lag by some 10 s."""

    vertex: str
    index: int
    task_manager: str
    state: str
    records_in: int
    records_out: int


class _Process(Guarded):
    """A JVM under its guard, in a folder of its own."""

    def __init__(self, name: str, folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        log = folder / f"{name}.log"
        super().__init__(command, log=log, cwd=folder, linger=_LINGER_SECONDS, environment=environment)

    def tail(self) -> str:
        """The log from its first error on, or its end."""
        lines = self.log.read_text(errors="replace").splitlines()
        first = next((index for index, line in enumerate(lines) if _LOGGED_ERROR.search(line)), -_LOG_LINES)
        return f"from {self.log}:\n" + "\n".join(lines[first:][:_LOG_LINES])


@dataclass(eq=False)
class FlinkCluster(Service):
    """One JobManager, its TaskManagers and Beam's job server; all files (logs, checkpoints, savepoints) lie in
    ``folder``.

    Use :meth:`start`, then ``with`` or :meth:`stop`. Nothing of it outlives this process, even if that is killed.
    ``environment`` is added to what the TaskManagers, and so the Python workers, see; the workers are of the Python
    that runs this. Methods raise :class:`FlinkError`. Not thread-safe, but for the methods that only ask.
    """

    folder: Path
    slots: int
    environment: Mapping[str, str]
    rest_port: int = field(default_factory=free_port)
    rpc_port: int = field(default_factory=free_port)
    blob_port: int = field(default_factory=free_port)
    job_port: int = field(default_factory=free_port)
    artifact_port: int = field(default_factory=free_port)
    _task_managers: dict[int, _Process] = field(default_factory=dict, repr=False)
    _masters: dict[str, _Process] = field(default_factory=dict, repr=False)
    _started: int = field(default=0, repr=False)
    _reporters: dict[str, int] = field(default_factory=dict, repr=False)

    @classmethod
    def start(
        cls, folder: Path, *, task_managers: int = 2, slots: int = 1, environment: Mapping[str, str] | None = None
    ) -> FlinkCluster:
        """Start everything and wait until each TaskManager has its ``slots`` free and the job server answers.

        Raises :class:`FlinkError`, and ``ArtifactError`` if jars, Beam's boot or Java are missing.
        """
        cluster = cls(folder.absolute(), slots, dict(environment or {}))
        cluster.folder.mkdir(parents=True, exist_ok=True)
        try:
            cluster._start(task_managers)
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def _start(self, task_managers: int) -> None:
        boot = self.folder / "boot"
        # By default every worker on a machine unpacks its files to the same folder; here to its TaskManager's.
        boot.write_text(f'#!/bin/sh\nexec "{BOOT.path}" --semi_persist_dir="$PWD" "$@"\n', encoding="utf-8")
        boot.chmod(0o755)
        worker = self.folder / "worker"
        command = f"{shlex.quote(sys.executable)} -m itel_cabinet.pipeline.launch.flink_worker"
        worker.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        worker.chmod(0o755)
        config = self._configured("jobmanager", {"parallelism.default": task_managers * self.slots})
        self.start_job_manager()
        for _ in range(task_managers):
            self.start_task_manager()
        self._masters["jobserver"] = job_server = self._spawn(
            "jobserver",
            config,
            [_JOB_SERVER_HEAP],
            "org.apache.beam.runners.flink.FlinkJobServerDriver",
            f"--flink-master={HOST}:{self.rest_port}",
            f"--flink-conf-dir={config}",
            f"--job-host={HOST}",
            f"--job-port={self.job_port}",
            f"--artifact-port={self.artifact_port}",
            "--expansion-port=-1",
            f"--artifacts-dir={self.folder / 'artifacts'}",
        )
        self.wait_for_task_managers()
        self._until(lambda: _listens(self.job_port), "the job server answers", job_server)

    # ------------------------------------------------------------------------------------------------- the processes

    @property
    def job_endpoint(self) -> str:
        """``host:port`` of Beam's job server, for ``--job_endpoint``."""
        return f"{HOST}:{self.job_port}"

    def beam_options(self) -> dict[str, str]:
        """The options, by name, that make a launch run here. The tuning that Flink needs is the launcher's.

        Workers are of the Python that runs this; ``boot`` in ``folder`` is Beam's own program, which installs what a
        job brings.
        """
        return {
            "runner": "FlinkRunner",
            "job_endpoint": self.job_endpoint,
            "flink_master": f"http://{HOST}:{self.rest_port}",
            "environment_type": "PROCESS",
            "environment_config": json.dumps({"command": str(self.folder / "worker")}),
            "pipeline_resources_detector_factory_class": "NothingToStage",
        }

    def start_job_manager(self) -> None:
        """Start the JobManager, at the address it has had before; :meth:`wait_for_task_managers` waits until it can
        take jobs.
        """
        config = self.folder / "jobmanager"
        entry_point = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        self._masters["jobmanager"] = self._spawn(
            "jobmanager", config, [_JOB_MANAGER_HEAP], entry_point, "--configDir", str(config)
        )

    def kill_job_manager(self) -> None:
        """SIGKILL. Its jobs are lost with it, since this cluster keeps no record of them elsewhere; their checkpoints
        stay. Idempotent.
        """
        self._masters["jobmanager"].kill()

    @property
    def task_managers(self) -> dict[int, int]:
        """Process ids of the TaskManagers that run, by index. An index is never used twice."""
        return {index: process.pid for index, process in self._task_managers.items() if process.running}

    @property
    def reporter_ports(self) -> dict[str, int]:
        """Where Flink's own metrics are, for Prometheus: of ``jobmanager`` and of each ``taskmanager-INDEX``."""
        return dict(self._reporters)

    def start_task_manager(self) -> int:
        """Start one more and return its index at once; :meth:`wait_for_task_managers` waits until it has registered."""
        index = self._started
        self._started += 1
        name = f"taskmanager-{index}"
        config = self._configured(
            name,
            {
                "taskmanager.host": HOST,
                "taskmanager.bind-host": HOST,
                "taskmanager.resource-id": name,
                "taskmanager.numberOfTaskSlots": self.slots,
                "taskmanager.cpu.cores": 1.0,
                "taskmanager.memory.task.heap.size": "192m",
                "taskmanager.memory.task.off-heap.size": "0m",
                "taskmanager.memory.framework.heap.size": "128m",
                "taskmanager.memory.framework.off-heap.size": "64m",
                "taskmanager.memory.managed.size": "16m",
                "taskmanager.memory.network.min": "32m",
                "taskmanager.memory.network.max": "32m",
                "taskmanager.memory.jvm-metaspace.size": "128m",
                "taskmanager.memory.jvm-overhead.min": "64m",
                "taskmanager.memory.jvm-overhead.max": "64m",
            },
        )
        entry_point = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        self._task_managers[index] = self._spawn(
            name, config, [_TASK_MANAGER_HEAP, "-XX:MaxDirectMemorySize=256m"], entry_point, "--configDir", str(config)
        )
        return index

    def kill_task_manager(self, index: int) -> None:
        """SIGKILL. Its Python workers, orphans then, work on for a second as they would anywhere, and are then killed.

        Returns when they are gone. Idempotent; raises ``KeyError`` for an index that never was.
        """
        self._task_managers[index].kill()

    def wait_for_task_managers(self, count: int | None = None) -> None:
        """Return once as many TaskManagers as run (or ``count``) are registered."""
        wanted = len(self.task_managers) if count is None else count
        self._until(
            lambda: self._registered() >= wanted,
            f"{wanted} TaskManagers are registered",
            *self._masters.values(),
            *(process for process in self._task_managers.values() if process.running),
        )

    def python_workers(self, index: int) -> list[int]:
        """Process ids of the Python workers of a TaskManager."""
        return [pid for pid in self._task_managers[index].members() if _is_python_worker(pid)]

    def stop(self) -> None:
        """End everything; running jobs are not asked. Idempotent."""
        for process in (*self._task_managers.values(), *self._masters.values()):
            process.end()

    # ------------------------------------------------------------------------------------------------------ the jobs

    def jobs(self) -> list[Job]:
        """All jobs the JobManager knows, the newest first; it forgets ended ones after an hour."""
        found = sorted(self._get("/jobs/overview")["jobs"], key=lambda job: -job["start-time"])
        return [Job(job["jid"], job["name"], job["state"]) for job in found]

    def job(self, job_id: str) -> Job:
        """One job; raises :class:`FlinkError` if there is none of that id."""
        found = self._get(f"/jobs/{job_id}")
        return Job(found["jid"], found["name"], found["state"])

    def wait_for(self, job_id: str, state: str, seconds: float = _CALL_SECONDS) -> None:
        """Return once the job is in ``state`` with all its subtasks, where that is RUNNING; raises FlinkError."""

        def reached() -> bool:
            found = self._get(f"/jobs/{job_id}")
            return bool(found["state"] == state) and (
                state != "RUNNING" or all(vertex["status"] == state for vertex in found["vertices"])
            )

        self._until(reached, f"job {job_id} is {state}", seconds=seconds)

    def cancel(self, job_id: str) -> None:
        """Cancel a job and wait until it has ended. Idempotent."""
        if self.job(job_id).active:
            self._call("PATCH", f"/jobs/{job_id}?mode=cancel")
        self._until(lambda: not self.job(job_id).active, f"job {job_id} has ended", seconds=_SAVEPOINT_SECONDS)

    def stop_with_savepoint(self, job_id: str) -> str:
        """Let a job finish with a savepoint, without draining (an endless source does not drain).

        Returns the savepoint's URI, for ``--savepoint_path``.
        """
        path = self._savepoint(job_id, "stop", {"targetDirectory": self._uri("savepoints"), "drain": False})
        self._until(lambda: not self.job(job_id).active, f"job {job_id} has ended", seconds=_SAVEPOINT_SECONDS)
        return path

    def savepoint(self, job_id: str) -> str:
        """Take a savepoint while the job goes on; returns its URI."""
        return self._savepoint(job_id, "savepoints", {"target-directory": self._uri("savepoints"), "cancel-job": False})

    def _savepoint(self, job_id: str, endpoint: str, request: dict[str, object]) -> str:
        trigger = self._call("POST", f"/jobs/{job_id}/{endpoint}", request)["request-id"]
        answer: dict[str, Any] = {}

        def completed() -> bool:
            answer.update(self._get(f"/jobs/{job_id}/savepoints/{trigger}"))
            return bool(answer["status"]["id"] == "COMPLETED")

        self._until(completed, f"the savepoint of job {job_id} is complete", seconds=_SAVEPOINT_SECONDS)
        operation = answer["operation"]
        if "location" not in operation:
            cause = operation.get("failure-cause", {}).get("stack-trace", "").strip().splitlines()
            raise FlinkError(f"no savepoint of job {job_id}: {cause[0] if cause else 'no reason given'}")
        return str(operation["location"])

    def checkpoints(self, job_id: str) -> Checkpoints:
        """The job's checkpoint statistics."""
        found = self._get(f"/jobs/{job_id}/checkpoints")
        last = (found.get("latest") or {}).get("completed") or {}
        counts = found["counts"]
        return Checkpoints(
            counts["completed"],
            counts["failed"],
            counts["restored"],
            last.get("state_size", 0),
            last.get("end_to_end_duration", 0),
        )

    def kept_checkpoint(self, job_id: str) -> str | None:
        """The URI of the newest whole checkpoint on disk, for ``--savepoint_path``; for a job whose JobManager died."""
        whole = (self.folder / "checkpoints" / job_id).glob("chk-*/_metadata")
        newest = max(whole, key=lambda metadata: int(metadata.parent.name.removeprefix("chk-")), default=None)
        return newest.parent.as_uri() if newest else None

    def subtasks(self, job_id: str) -> list[Subtask]:
        """Every subtask of the job with its counters."""
        found = []
        for vertex in self._get(f"/jobs/{job_id}")["vertices"]:
            for subtask in self._get(f"/jobs/{job_id}/vertices/{vertex['id']}")["subtasks"]:
                metrics = subtask["metrics"]
                found.append(
                    Subtask(
                        vertex["name"],
                        subtask["subtask"],
                        subtask["taskmanager-id"],
                        subtask["status"],
                        metrics["read-records"],
                        metrics["write-records"],
                    )
                )
        return found

    def counters(self, job_id: str, name: str) -> dict[int, int]:
        """A Beam counter (``kafka_records_read``: namespace and name) by subtask since its last start, seconds old.

        Empty until the JobManager has heard of it.
        """
        counted: dict[int, int] = {}
        for vertex in self._get(f"/jobs/{job_id}")["vertices"]:
            for index in range(vertex["parallelism"]):
                path = f"/jobs/{job_id}/vertices/{vertex['id']}/subtasks/{index}/metrics"
                for known in self._get(path):
                    if known["id"].endswith(f".{name}"):
                        [metric] = self._get(f"{path}?get={quote(known['id'])}")
                        counted[index] = counted.get(index, 0) + int(float(metric["value"]))
        return counted

    def totals(self, job_id: str) -> dict[str, int]:
        """The Beam counters of all subtasks by name, as Beam itself adds them up; final once the job has ended."""
        totals: Counter[str] = Counter()
        for kept in self._get(f"/jobs/{job_id}/accumulators")["user-task-accumulators"]:
            if kept["name"] == "__metricscontainers":
                for metric in json.loads(kept["value"])["metrics"]["attempted"]:
                    if metric["urn"] == "beam:metric:user:sum_int64:v1":
                        # A varint: seven bits a byte, the lowest first.
                        payload = enumerate(base64.b64decode(metric["payload"]))
                        totals[metric["labels"]["NAME"]] += sum((byte & 0x7F) << 7 * index for index, byte in payload)
        return dict(totals)

    # --------------------------------------------------------------------------------------------------------- inside

    def _configured(self, name: str, config: Mapping[str, object]) -> Path:
        """Write a process's configuration into a folder of its own; returns the folder."""
        folder = self.folder / name
        temporary = folder / "tmp"
        temporary.mkdir(parents=True)
        self._reporters[name] = free_port()
        settings = {
            "jobmanager.rpc.address": HOST,
            "jobmanager.rpc.port": self.rpc_port,
            "jobmanager.bind-host": HOST,
            "rest.address": HOST,
            "rest.bind-address": HOST,
            "rest.port": self.rest_port,
            "rest.flamegraph.enabled": False,
            "blob.server.port": self.blob_port,
            "io.tmp.dirs": str(temporary),
            "web.upload.dir": str(temporary),
            "classloader.resolve-order": "parent-first",
            "heartbeat.interval": 2000,
            "heartbeat.timeout": 8000,
            "cluster.evenly-spread-out-slots": True,
            "jobmanager.memory.process.size": "512m",
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": 1_000_000,
            "restart-strategy.fixed-delay.delay": "1 s",
            "state.backend.type": "hashmap",
            "state.checkpoints.dir": self._uri("checkpoints"),
            "state.savepoints.dir": self._uri("savepoints"),
            "metrics.fetcher.update-interval": 1000,
            "metrics.reporter.prom.factory.class": "org.apache.flink.metrics.prometheus.PrometheusReporterFactory",
            "metrics.reporter.prom.port": str(self._reporters[name]),  # a number is overlooked
            **config,
        }
        lines = (f"{key}: {json.dumps(value)}\n" for key, value in settings.items())
        (folder / "config.yaml").write_text("".join(lines), encoding="utf-8")
        return folder

    def _uri(self, name: str) -> str:
        return (self.folder / name).as_uri()

    def _spawn(self, name: str, config: Path, options: list[str], main_class: str, *arguments: str) -> _Process:
        path = os.pathsep.join(filter(None, (str(Path(sys.executable).parent), os.environ.get("PATH"))))
        classes = jars(FLINK)
        command = [
            java(),
            *_JVM,
            *options,
            f"-Djava.io.tmpdir={config / 'tmp'}",
            "-cp",
            # The folder's own classes first: one of them stands in for Beam's.
            f"{classes}{os.pathsep}{classes}/*",
            main_class,
            *arguments,
        ]
        process = _Process(
            name,
            config,
            command,
            {
                **self.environment,
                "PATH": path,
                "TMPDIR": str(config / "tmp"),
                # Else Beam's boot makes a virtual environment for each worker and finds nothing of ours in it.
                "RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT": "1",
            },
        )
        if not process.pid:
            raise FlinkError(f"{name} could not be started; {process.tail()}")
        return process

    def _registered(self) -> int:
        try:
            found = requests.get(f"http://{HOST}:{self.rest_port}/taskmanagers", timeout=_CALL_SECONDS)
            alive = {f"taskmanager-{index}" for index in self.task_managers}
            return sum(each["id"] in alive for each in found.json()["taskmanagers"])
        except (requests.RequestException, KeyError):
            return 0

    def _get(self, path: str) -> Any:
        return self._call("GET", path)

    def _call(self, method: str, path: str, body: object = None) -> Any:
        try:
            answer = requests.request(method, f"http://{HOST}:{self.rest_port}{path}", json=body, timeout=_CALL_SECONDS)
        except requests.RequestException as error:
            raise FlinkError(
                f"the JobManager does not answer: {error}; {self._masters['jobmanager'].tail()}"
            ) from error
        if answer.status_code >= 400:
            raise FlinkError(f"{method} {path}: the JobManager answers {answer.status_code}: {answer.text[:300]}")
        return answer.json()

    def _until(
        self, condition: Callable[[], bool], what: str, *processes: _Process, seconds: float = _START_SECONDS
    ) -> None:
        """Return once ``condition`` holds; FlinkError after ``seconds``, or when one of ``processes`` has ended."""
        deadline = time.monotonic() + seconds
        while not condition():
            for process in processes:
                if not process.running:
                    raise FlinkError(f"{process.name} ended, and was waited for until {what}; {process.tail()}")
            if time.monotonic() > deadline:
                tail = f"; {processes[-1].tail()}" if processes else ""
                raise FlinkError(f"not within {seconds:.0f} s: {what}{tail}")
            time.sleep(0.05)


def _is_python_worker(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return any(module in command for module in (b"launch.flink_worker", b"worker.sdk_worker_main"))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0
