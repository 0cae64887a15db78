"""The jobs on a real Flink cluster: JobManager, TaskManagers and Beam's job server as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions, StandardOptions

from itel_cabinet.io.kafka import KEY_GROUPS
from itel_cabinet.io.kafka.key_groups import evenly_spread, key_group
from itel_cabinet.local.samples import Generator, produce
from itel_cabinet.local.services import FlinkCluster
from itel_cabinet.local.services.guard import session
from itel_cabinet.pipeline.launch import FlinkOptions
from itel_cabinet.pipeline.launch.flink import NotRunningError, check_job_server, set_flink_options
from itel_cabinet.pipeline.options import OptionError
from tests.support.accounting import assert_published_once
from tests.support.jobs import Stack, wait_for


@pytest.mark.timeout(600)
def test_a_killed_task_manager_costs_nothing(stack: Stack, cluster: FlinkCluster) -> None:
    topic = stack.topic("tracking")
    stack.broker.add_partitions(topic, 4)
    messages = list(Generator(6, start=datetime.now(UTC)).tracking_messages(2000))
    receipts = produce(stack.broker.bootstrap_servers, topic, messages[:1000], stack.claimx)

    options = cluster.beam_options() | {"checkpointing_interval": "2000", "shards": "4"}
    with stack.running("cabinet", **options) as launcher:
        assert launcher.wait(240) == 0, launcher.errors
    [job] = [job for job in cluster.jobs() if job.active]
    stack.settle("cabinet", 180)

    # With four shards and two subtasks, each reads two partitions.
    ends = stack.ends()
    halves = sorted([ends[0] + ends[1], ends[2] + ends[3]])
    wait_for(
        lambda: sorted(cluster.counters(job.id, "kafka_records_read").values()) == halves,
        f"the subtasks have read {halves}",
    )

    [victim, _] = cluster.task_managers
    cluster.kill_task_manager(victim)
    cluster.start_task_manager()
    receipts += produce(stack.broker.bootstrap_servers, topic, messages[1000:], stack.claimx)
    stack.settle("cabinet", 240)

    assert cluster.checkpoints(job.id).restored > 0
    cluster.cancel(job.id)
    assert sorted((row["kafka_partition"], row["kafka_offset"]) for row in stack.tracking()) == sorted(
        (r.partition, r.offset) for r in receipts if r.produced.expect in ("tracked", "submitted")
    )
    assert {submission.idempotency_key for submission in stack.itel.submissions()} == {
        r.produced.event_id for r in receipts if r.produced.expect == "submitted"
    }


@pytest.mark.timeout(600)
def test_a_killed_task_manager_publishes_no_event_twice(stack: Stack, cluster: FlinkCluster) -> None:
    events = list(Generator(7, start=datetime.now(UTC)).claimx_events(1200))
    topic = stack.topic("enriched")
    with (
        ThreadPoolExecutor(1) as producer,
        stack.running("trigger", **cluster.beam_options(), checkpointing_interval=2000, shards=3) as launcher,
    ):
        assert launcher.wait(240) == 0, launcher.errors
        [job] = [job for job in cluster.jobs() if job.active]
        fed = producer.submit(produce, stack.broker.bootstrap_servers, topic, events, stack.claimx, rate=100)
        wait_for(lambda: sum(stack.committed("trigger").values()) > 300, "the job works", 120)
        wait_for(lambda: cluster.checkpoints(job.id).completed, "a checkpoint", 60)
        [victim, _] = cluster.task_managers
        cluster.kill_task_manager(victim)
        cluster.start_task_manager()
        receipts = fed.result(120)
        stack.settle("trigger", 240)
    assert cluster.checkpoints(job.id).restored > 0
    cluster.cancel(job.id)
    assert_published_once(stack, receipts)


class TestGuard:
    SLEEPER = "import subprocess, sys, time; subprocess.Popen(['sleep', '300']); print(1, flush=True); time.sleep(300)"

    def start(self, tmp_path: Path, linger: float) -> tuple[subprocess.Popen[bytes], int]:
        """A guard over a command that has started a child of its own, and the command's process id."""
        guard = Path(sys.modules[session.__module__].__file__ or "")
        log = tmp_path / "log"
        with log.open("wb") as errors:
            guarding = subprocess.Popen(
                [sys.executable, "-I", "-S", guard, str(linger), sys.executable, "-c", self.SLEEPER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        assert guarding.stdout is not None
        pid = int(guarding.stdout.readline())
        wait_for(lambda: log.read_text() == "1\n", "the child has started")
        return guarding, pid

    def test_children_end_with_the_command(self, tmp_path: Path) -> None:
        guarding, pid = self.start(tmp_path, linger=0.1)
        assert len(session(guarding.pid)) == 2

        os.kill(pid, signal.SIGKILL)

        assert guarding.wait(30) == 128 + signal.SIGKILL
        wait_for(lambda: session(guarding.pid) == [], "all are gone")

    def test_everything_ends_with_the_starter(self, tmp_path: Path) -> None:
        guarding, _ = self.start(tmp_path, linger=600)
        assert guarding.stdin is not None

        guarding.stdin.close()

        guarding.wait(30)
        wait_for(lambda: session(guarding.pid) == [], "all are gone")

    def test_terminate_reaches_the_command(self, tmp_path: Path) -> None:
        guarding, _ = self.start(tmp_path, linger=0)

        guarding.terminate()

        assert guarding.wait(30) == 128 + signal.SIGTERM


class TestKeyGroups:
    def test_as_java_has_them(self) -> None:
        # From KeyGroupRangeAssignment.assignToKeyGroup(FlinkKeyUtils.encodeKey(element, StringUtf8Coder), 128).
        elements = ['{"v": 1, "shard": 0, "shards": 7}', '{"v": 1, "shard": 1, "shards": 7}', "é" * 100]
        assert [key_group(element) for element in elements] == [73, 71, 75]

    @pytest.mark.parametrize(("shards", "parallelism"), [(1, 1), (4, 2), (4, 4), (6, 3), (12, 5), (8, 3), (16, 16)])
    def test_every_subtask_gets_its_share(self, shards: int, parallelism: int) -> None:
        elements = evenly_spread([{"shard": shard} for shard in range(shards)])
        subtasks = [key_group(element) * parallelism // KEY_GROUPS for element in elements]
        shares = {subtasks.count(subtask) for subtask in range(parallelism)}
        assert shares <= {shards // parallelism, -(-shards // parallelism)}


class TestTuning:
    GOOD = ("--runner=FlinkRunner", "--job_endpoint=127.0.0.1:1", "--checkpointing_interval=2000")

    def test_what_flink_needs_is_set(self) -> None:
        options = PipelineOptions([*self.GOOD])
        set_flink_options(options, "tracking")
        set_flink_options(options, "tracking")

        flink = options.view_as(FlinkOptions)
        assert (flink.finish_bundle_before_checkpointing, flink.max_bundle_time_mills) == (True, 10)
        assert flink.operator_chaining is False
        assert options.view_as(FlinkRunnerOptions).max_parallelism == KEY_GROUPS
        assert options.view_as(StandardOptions).runner == "PortableRunner"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (GOOD[:2], "--checkpointing_interval is missing"),
            ((*GOOD, "--environment_type=LOOPBACK"), "--environment_type: LOOPBACK: give one of PROCESS, "),
            ((*GOOD, "--environment_type=EXTERNAL"), "--environment_config is missing: EXTERNAL needs the host:port"),
            ((*GOOD, "--environment_type=PROCESS"), "--environment_config: must be a JSON object with a command"),
            (
                (*GOOD, "--environment_type=PROCESS", "--environment_config=boot"),
                "--environment_config: must be a JSON object with a command",
            ),
            (
                (*GOOD, "--environment_type=PROCESS", "--environment_config={}"),
                "--environment_config: must be a JSON object with a command",
            ),
            ((*GOOD[:2], "--checkpointing_interval=0"), "--checkpointing_interval is missing"),
            ((GOOD[0], GOOD[2]), "--job_endpoint is missing"),
            ((*GOOD, "--savepoint_path="), "--savepoint_path is empty"),
        ],
    )
    def test_what_cannot_work_is_refused(self, options: tuple[str, ...], message: str) -> None:
        with pytest.raises(OptionError, match=message):
            set_flink_options(PipelineOptions([*options]), "tracking")

    def test_an_unreachable_job_server_is_one_line(self) -> None:
        line = r"^--job_endpoint: Beam's job server does not answer at 127\.0\.0\.1:1: "
        with pytest.raises(NotRunningError, match=line):
            check_job_server(PipelineOptions([*self.GOOD]))
