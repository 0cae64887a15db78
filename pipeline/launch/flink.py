"""What a launch on Flink needs beyond the job itself: the options of Beam's job server, the tuning without which the
source and the sinks do not work there, and an answer to "does it run?".
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import requests
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.runners.runner import PipelineResult, PipelineState

from itel_cabinet.io.kafka import KEY_GROUPS
from itel_cabinet.io.worker import ALLOCATORS, RefusedError
from itel_cabinet.pipeline.launch.arguments import FlinkOptions
from itel_cabinet.pipeline.options import OptionError

__all__ = [
    "NotRunningError",
    "check_job_server",
    "describe_submission_error",
    "is_on_flink",
    "is_waited_for",
    "set_flink_options",
    "wait_until_running",
]

# One element is a whole shard, and its bundle closes only when this time is up: Beam's own 1,000 would cap each shard.
_BUNDLE_MILLISECONDS = 10
_CONNECT_SECONDS = 10.0
_RUNNING_SECONDS = 180.0
_POLL_SECONDS = 0.2
# Flink starts a job again after any failure. This often in a row, and before it has ever run, is no accident.
_MOST_FAILURES = 3
_CAUSE = re.compile(r"^Caused by: (.*)$", re.MULTILINE)
_CLASSES = re.compile(r"^(?:[\w.$]+(?:Exception|Error): )*")
_NO_WORKER = re.compile(r"Cannot run program|Connection refused|Process died")


class NotRunningError(RefusedError):
    """The job did not come up on the cluster; the message is one line."""


def is_on_flink(options: PipelineOptions) -> bool:
    """Whether the runner is Flink's, named itself or as a portable runner at a job server."""
    return options.view_as(StandardOptions).runner in ("FlinkRunner", "PortableRunner")


def is_waited_for(options: PipelineOptions) -> bool:
    """Whether the launcher stays until the job has ended."""
    return bool(options.view_as(FlinkOptions).wait_until_finish)


def set_flink_options(options: PipelineOptions, job: str) -> None:
    """Set what Flink needs, and refuse what cannot work there. Changes ``options``; idempotent.

    Raises OptionRefused.
    """
    flink = options.view_as(FlinkOptions)
    if not flink.checkpointing_interval or flink.checkpointing_interval < 0:
        raise OptionError.missing(
            "checkpointing_interval", "without checkpoints nothing flows on Flink; give milliseconds, 2000 for example"
        )
    if not options.view_as(PortableOptions).job_endpoint:
        raise OptionError.missing("job_endpoint", "give host:port of Beam's job server for Flink")
    if flink.savepoint_path == "":
        raise OptionError(
            "--savepoint_path is empty: leave it out, or give the savepoint's URI", field="savepoint_path"
        )
    _set_environment(options.view_as(PortableOptions))
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


def _set_environment(options: PortableOptions) -> None:
    known = ("PROCESS", "EXTERNAL", "DOCKER")
    # Beam's LOOPBACK would put the workers into the launcher, which does not stay.
    if options.environment_type not in (None, *known):
        raise OptionError.about("environment_type", f"{options.environment_type}: give one of {', '.join(known)}")
    if options.environment_type == "PROCESS":
        try:
            config = json.loads(options.environment_config or "")
            command = config["command"]
        except (ValueError, TypeError, KeyError):
            command = None
        if not command or not isinstance(command, str):
            raise OptionError.about(
                "environment_config",
                'must be a JSON object with a command for PROCESS, such as {"command": "/opt/apache/beam/boot"}',
            )
        # deltalake reads them when it is imported, which in a worker is before anything of ours is called.
        options.environment_config = json.dumps({**config, "env": ALLOCATORS | config.get("env", {})})
    if options.environment_type == "EXTERNAL" and not options.environment_config:
        raise OptionError.missing("environment_config", "EXTERNAL needs the host:port of the worker pools")


def check_job_server(options: PipelineOptions) -> None:
    """Raise NotRunning unless something listens at ``--job_endpoint``, and at ``--flink_master`` where it is given."""
    _check_listening("job_endpoint", options.view_as(PortableOptions).job_endpoint, "Beam's job server")
    if master := _get_master(options):
        _check_listening("flink_master", master.partition("://")[2], "Flink's JobManager")


def _check_listening(option: str, address: str, what: str) -> None:
    host, _, port = address.rstrip("/").rpartition(":")
    if not host or not port.isdigit():
        raise NotRunningError(f"--{option}: {address} is no host:port: give the address of {what}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise NotRunningError(f"--{option}: {what} does not answer at {address}: {error.strerror or error}") from None


def _get_master(options: PipelineOptions) -> str | None:
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
    NotRunning when the job has failed, has failed to start several times, or does not run within three minutes; it is
    cancelled then, so that it cannot come up later, beside the one that is launched next.
    """
    master, name = _get_master(options), options.view_as(GoogleCloudOptions).job_name
    deadline = clock() + _RUNNING_SECONDS
    while True:
        state = result.state
        if PipelineState.is_terminal(state) and state != PipelineState.DONE:
            raise NotRunningError(_describe_failure(name, f"ended as {state}", _find_reason(result), options))
        found = _find_job(master, name) if master else None
        if state == PipelineState.DONE or (state == PipelineState.RUNNING and (not master or _is_running(found))):
            return
        if master and found and len(failures := _list_failures(master, found["jid"])) >= _MOST_FAILURES:
            _cancel(result, master, found)
            raise NotRunningError(_describe_failure(name, "does not start and is cancelled", failures[0], options))
        if clock() > deadline:
            _cancel(result, master, found)
            raise NotRunningError(
                f"job {name} does not run after {_RUNNING_SECONDS:.0f} s and is cancelled: see the JobManager's log, "
                "and whether it has enough free slots"
            )
        sleep(_POLL_SECONDS)


def describe_submission_error(error: grpc.RpcError, options: PipelineOptions) -> str:
    """The line for a job server that does not take a job."""
    code, details = error.code().name, " ".join((error.details() or "no reason given").split())
    detector = options.view_as(FlinkOptions).pipeline_resources_detector_factory_class
    hint = f"; --pipeline_resources_detector_factory_class={detector} must be on its class path" if detector else ""
    endpoint = options.view_as(PortableOptions).job_endpoint
    return (
        f"--job_endpoint: Beam's job server at {endpoint} does not take the job ({code}: {details}): see its log{hint}"
    )


def _describe_failure(name: str, state: str, reason: str, options: PipelineOptions) -> str:
    """The line for a job that did not come up, with the option to fix where the reason gives it away."""
    line = f"job {name} {state}: {reason.rstrip('.')}"
    if state == "ended as FAILED" and options.view_as(FlinkOptions).savepoint_path:
        return f"--savepoint_path: {line}; give the URI of a savepoint of this job that the JobManager can read"
    if _NO_WORKER.search(reason):
        return f"--environment_config: {line}; give what starts Beam's Python workers on the TaskManagers"
    return line


def _find_reason(result: PipelineResult) -> str:
    with _mute_beam():
        try:
            result.wait_until_finish()
        except Exception as error:
            # "Pipeline NAME failed in state FAILED: java.io.IOException: what happened"
            reason = " ".join(str(error).split())
            return _CLASSES.sub("", reason.partition(" failed in state FAILED: ")[2] or reason)[:500]
    return "no reason given"


@contextlib.contextmanager
def _mute_beam() -> Iterator[None]:
    """Beam logs the reason itself when it is asked for it."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _find_job(master: str, name: str) -> dict[str, Any] | None:
    """The job as the JobManager reports it; None while it does not."""
    jobs: list[dict[str, Any]] = _get_json(f"{master}/jobs/overview").get("jobs", [])
    return next((job for job in jobs if job["name"] == name), None)


def _list_failures(master: str, job_id: str) -> list[str]:
    """Why the job failed, the newest first, as far as the JobManager remembers."""
    history = _get_json(f"{master}/jobs/{job_id}/exceptions?maxExceptions={_MOST_FAILURES}").get("exceptionHistory", {})
    return [_find_root_cause(entry["stacktrace"]) for entry in history.get("entries", [])]


def _find_root_cause(stacktrace: str) -> str:
    """The innermost cause's message, or an outer one's that has it and tells more, such as which program."""
    causes = [stacktrace.partition("\n")[0], *_CAUSE.findall(stacktrace)]
    *outer, innermost = (_CLASSES.sub("", cause) for cause in causes)
    for message in reversed(outer):
        innermost = message if innermost in message else innermost
    return " ".join(innermost.split())[:500]


def _get_json(url: str) -> dict[str, Any]:
    try:
        answer = requests.get(url, timeout=_CONNECT_SECONDS)
        return dict(answer.json()) if answer.ok else {}
    except (requests.RequestException, ValueError):
        return {}


def _cancel(result: PipelineResult, master: str | None, found: dict[str, Any] | None) -> None:
    """As far as it can be done."""
    with contextlib.suppress(Exception):
        if master and found:
            requests.patch(f"{master}/jobs/{found['jid']}?mode=cancel", timeout=_CONNECT_SECONDS)
        else:
            result.cancel()


def _is_running(job: dict[str, Any] | None) -> bool:
    """Whether a job runs with all its tasks."""
    if job is None or job["state"] != "RUNNING":
        return False
    tasks: dict[str, int] = job["tasks"]
    return tasks["running"] + tasks["finished"] == tasks["total"] > 0
