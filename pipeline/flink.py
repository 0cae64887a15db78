"""What a launch on Flink needs beyond the job itself: the options of Beam's job server, the tuning without which the
source and the sinks do not work there, and an answer to "does it run?".
"""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

import requests
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.runners.runner import PipelineResult, PipelineState

from itel_cabinet.io.key_groups import KEY_GROUPS
from itel_cabinet.pipeline.options import FlinkOptions, OptionRefused

__all__ = ["NotRunning", "check_job_server", "on_flink", "tune", "wait_until_running", "waits"]

# One element is a whole shard, and its bundle closes only when this time is up: Beam's own 1,000 would cap each shard.
_BUNDLE_MILLISECONDS = 10
_CONNECT_SECONDS = 10.0
_RUNNING_SECONDS = 180.0
_POLL_SECONDS = 0.2


class NotRunning(RuntimeError):
    """The job did not come up on the cluster; the message is one line."""


def on_flink(options: PipelineOptions) -> bool:
    """Whether the runner is Flink's, named itself or as a portable runner at a job server."""
    return options.view_as(StandardOptions).runner in ("FlinkRunner", "PortableRunner")


def waits(options: PipelineOptions) -> bool:
    """Whether the launcher stays until the job has ended."""
    return bool(options.view_as(FlinkOptions).wait_until_finish)


def tune(options: PipelineOptions, job: str) -> None:
    """Set what Flink needs, and refuse what cannot work there. Changes ``options``; idempotent.

    Raises OptionRefused.
    """
    flink = options.view_as(FlinkOptions)
    if not flink.checkpointing_interval or flink.checkpointing_interval < 0:
        raise OptionRefused(
            "--checkpointing_interval is missing: without checkpoints nothing flows on Flink; "
            "give milliseconds, 2000 for example"
        )
    if not options.view_as(PortableOptions).job_endpoint:
        raise OptionRefused("--job_endpoint is missing: give host:port of Beam's job server for Flink")
    if flink.savepoint_path == "":
        raise OptionRefused("--savepoint_path is empty: leave it out, or give the savepoint's URI")
    # A checkpoint that finds a bundle open would keep its output until the next bundle, which may never come.
    flink.finish_bundle_before_checkpointing = True
    # Flink derives an operator's name in a savepoint from what it is chained to, and that changes with the parallelism.
    flink.operator_chaining = False
    if flink.max_bundle_time_mills is None:
        flink.max_bundle_time_mills = _BUNDLE_MILLISECONDS
    flink_runner = options.view_as(FlinkRunnerOptions)
    if flink_runner.max_parallelism == -1:
        # Shards are spread over this number of key groups, and a savepoint keeps the number it was taken with.
        flink_runner.max_parallelism = KEY_GROUPS
    cloud = options.view_as(GoogleCloudOptions)
    if not cloud.job_name:
        cloud.job_name = f"itel-cabinet-{job}-{uuid.uuid4().hex[:8]}"
    # With an endpoint given, FlinkRunner is PortableRunner; by itself it would download a job server.
    options.view_as(StandardOptions).runner = "PortableRunner"


def check_job_server(options: PipelineOptions) -> None:
    """Raise NotRunning unless something listens at ``--job_endpoint``, and at ``--flink_master`` where it is given."""
    _check_listening("job_endpoint", options.view_as(PortableOptions).job_endpoint, "Beam's job server")
    if master := _master(options):
        _check_listening("flink_master", master.partition("://")[2], "Flink's JobManager")


def _check_listening(option: str, address: str, what: str) -> None:
    host, _, port = address.rstrip("/").rpartition(":")
    if not host or not port.isdigit():
        raise NotRunning(f"--{option}: {address} is no host:port: give the address of {what}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise NotRunning(f"--{option}: {what} does not answer at {address}: {error.strerror or error}") from None


def _master(options: PipelineOptions) -> str | None:
    """The JobManager's base URL, or None where only the job server knows it."""
    master: str = options.view_as(FlinkRunnerOptions).flink_master
    if not master or master.startswith("["):
        return None
    return (master if "://" in master else f"http://{master}").rstrip("/")


def wait_until_running(
    result: PipelineResult,
    options: PipelineOptions,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return once the submitted job runs, with all its tasks where ``--flink_master`` tells whom to ask.

    Without it the word of the job server has to do, and that says RUNNING as soon as it begins to submit. Raises
    NotRunning when the job has failed or does not run within three minutes; it is then left as it is.
    """
    master, name = _master(options), options.view_as(GoogleCloudOptions).job_name
    deadline = clock() + _RUNNING_SECONDS
    while True:
        state = result.state
        if PipelineState.is_terminal(state) and state != PipelineState.DONE:
            raise NotRunning(f"job {name} ended as {state}: {_reason(result)}")
        if state == PipelineState.DONE or (state == PipelineState.RUNNING and (not master or _all_run(master, name))):
            return
        if clock() > deadline:
            raise NotRunning(f"job {name} does not run after {_RUNNING_SECONDS:.0f} s: see the JobManager's log")
        sleep(_POLL_SECONDS)


def _reason(result: PipelineResult) -> str:
    try:
        result.wait_until_finish()
    except Exception as error:
        return " ".join(str(error).split())[:300]
    return "no reason given"


def _all_run(master: str, name: str) -> bool:
    try:
        jobs: list[dict[str, Any]] = requests.get(f"{master}/jobs/overview", timeout=_CONNECT_SECONDS).json()["jobs"]
    except requests.RequestException:
        return False
    return any(job["name"] == name and job["state"] == "RUNNING" and _runs(job["tasks"]) for job in jobs)


def _runs(tasks: dict[str, int]) -> bool:
    return tasks["running"] + tasks["finished"] == tasks["total"] > 0
