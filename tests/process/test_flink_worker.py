"""A Python worker of a TaskManager, beside the services that a TaskManager has for it. The cluster's tests show it at
work, killed and restored."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
)

from itel_cabinet.local.services import free_port
from tests.support.jobs import wait_for


class TaskManager(
    beam_provision_api_pb2_grpc.ProvisionServiceServicer,  # type: ignore[misc]
    beam_fn_api_pb2_grpc.BeamFnLoggingServicer,  # type: ignore[misc]
    beam_fn_api_pb2_grpc.BeamFnControlServicer,  # type: ignore[misc]
):
    """Lets each worker go as soon as it is ready."""

    def __init__(self) -> None:
        self.info = beam_provision_api_pb2.ProvisionInfo()
        self.asked_by: list[str] = []
        self.ready: list[str] = []
        self.log: list[str] = []

    def GetProvisionInfo(self, _request: Any, context: Any) -> Any:
        self.asked_by.append(dict(context.invocation_metadata())["worker_id"])
        return beam_provision_api_pb2.GetProvisionInfoResponse(info=self.info)

    def Logging(self, entries: Any, _context: Any) -> Iterator[Any]:
        for batch in entries:
            self.log += [f"{entry.message}\n{entry.trace}" for entry in batch.log_entries]
        yield beam_fn_api_pb2.LogControl()

    def Control(self, _responses: Any, context: Any) -> Iterator[Any]:
        self.ready.append(dict(context.invocation_metadata())["worker_id"])
        yield from ()


@pytest.fixture
def task_manager() -> Iterator[TaskManager]:
    services = TaskManager()
    server = grpc.server(ThreadPoolExecutor(8))
    beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(services, server)
    beam_fn_api_pb2_grpc.add_BeamFnLoggingServicer_to_server(services, server)
    beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(services, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    services.info.logging_endpoint.url = services.info.control_endpoint.url = address
    server.start()
    yield services
    server.stop(None).wait(30)


def run_worker(task_manager: TaskManager) -> int:
    command = [sys.executable, "-m", "itel_cabinet.pipeline.launch.flink_worker", "--id=7-1"]
    command += [f"--provision_endpoint={task_manager.info.control_endpoint.url}", "--artifact_endpoint=unused:1"]
    return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode


def start_worker_of_a_pool(task_manager: TaskManager, folder: Path) -> None:
    """As the manifests have it: Beam's pool, which calls our worker with Beam's arguments."""
    executable = folder / "itel-cabinet-worker"
    executable.write_text(f'#!/bin/sh\nexec {sys.executable} -m itel_cabinet.pipeline.launch.flink_worker "$@"\n')
    executable.chmod(0o755)
    port = free_port()
    command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    pool = subprocess.Popen([*command, f"--container_executable={executable}"], stderr=subprocess.DEVNULL)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = beam_fn_api_pb2.StartWorkerRequest(
                worker_id="7-1",
                control_endpoint=task_manager.info.control_endpoint,
                logging_endpoint=task_manager.info.logging_endpoint,
                provision_endpoint=task_manager.info.control_endpoint,
            )
            start = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel).StartWorker
            assert start(request, timeout=60, wait_for_ready=True).error == ""
        wait_for(lambda: task_manager.ready, "the worker is ready")
    finally:
        pool.kill()
        pool.wait(30)


def staged(name: str) -> Any:
    role = beam_runner_api_pb2.ArtifactStagingToRolePayload(staged_name=name)
    return beam_runner_api_pb2.ArtifactInformation(role_payload=role.SerializeToString())


def test_a_worker_is_ready_with_the_job_imported_and_ends_when_it_is_let_go(task_manager: TaskManager) -> None:
    task_manager.info.dependencies.append(staged("submission_environment_dependencies.txt"))
    assert run_worker(task_manager) == 0
    assert task_manager.asked_by == task_manager.ready == ["7-1"]


def test_a_worker_of_a_pool(task_manager: TaskManager, tmp_path: Path) -> None:
    start_worker_of_a_pool(task_manager, tmp_path)
    assert task_manager.ready == ["7-1"]


def test_a_worker_that_would_have_to_install_something_says_so_in_the_task_manager_s_log(
    task_manager: TaskManager,
) -> None:
    task_manager.info.dependencies.append(staged("workflow.tar.gz"))
    assert run_worker(task_manager) == 1
    assert task_manager.ready == []
    [line] = task_manager.log
    assert "the job brings workflow.tar.gz, which this worker does not install" in line
