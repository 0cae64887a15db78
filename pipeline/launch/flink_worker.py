"""A Python worker of a TaskManager, for installations where everything that jobs need is installed already.

Beam's own program for it, `boot`, can install what was staged with a job. So before it starts Python it asks pip for
all that is installed, twice, and whether Beam is: seconds at each start of a job and after each crash. And it starts
Python again when a TaskManager has died, to wait for nothing. This does the rest of what it does, as the worker itself;
TaskManagers and worker pools call it with ``--id=ID --provision_endpoint=HOST:PORT`` and other addresses. A job that
brings files is left to `boot` where Beam's images, and this project's, have it.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Iterable, Sequence

import grpc
from apache_beam.portability.api import (
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
    endpoints_pb2,
)
from apache_beam.runners.worker import sdk_worker_main
from apache_beam.runners.worker.log_handler import FnApiLogRecordHandler
from google.protobuf import json_format, text_format

__all__ = ["StagedFilesError", "main"]

_LOGGER = logging.getLogger(__name__)

_ASK_SECONDS = 30.0
# What a job's DoFns need: imported before the first bundle, not in it.
_JOB = "itel_cabinet.pipeline.graph"
_BOOT = "/opt/apache/beam/boot"
# Which packages the launcher has, for the log: nothing to install.
_HARMLESS = "submission_environment_dependencies.txt"


class StagedFilesError(RuntimeError):
    """The job brings files that would have to be installed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Work for a TaskManager until it lets go; 0 then. What goes wrong is in the TaskManager's log."""
    parser = argparse.ArgumentParser(prog="itel-cabinet-worker", description="A Python worker of a TaskManager.")
    parser.add_argument("--id", required=True, help="The worker's id.")
    parser.add_argument("--provision_endpoint", required=True, metavar="HOST:PORT", help="Who says what to do.")
    arguments = sys.argv[1:] if arguments is None else arguments
    given, _ = parser.parse_known_args(arguments)  # the other addresses, which are part of the answer
    with grpc.insecure_channel(given.provision_endpoint) as channel:
        provision = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        info = provision.GetProvisionInfo(
            beam_provision_api_pb2.GetProvisionInfoRequest(),
            metadata=[("worker_id", given.id)],
            timeout=_ASK_SECONDS,
            wait_for_ready=True,
        ).info
    os.environ |= {
        "WORKER_ID": given.id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.logging_endpoint),
        "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.control_endpoint),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }
    staged = _find_staged_files(info.dependencies)
    if staged and os.access(_BOOT, os.X_OK):
        os.execv(_BOOT, [_BOOT, *arguments])
    try:
        if staged:
            raise StagedFilesError(
                f"the job brings {', '.join(staged)}, which this worker does not install: let Beam's boot start the "
                "workers, or install it where they are"
            )
        importlib.import_module(_JOB)
    except Exception:
        _report(info.logging_endpoint)
        raise
    sdk_worker_main.main([])
    return 0


def _find_staged_files(dependencies: Iterable[beam_runner_api_pb2.ArtifactInformation]) -> list[str]:
    roles = (beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(one.role_payload) for one in dependencies)
    return sorted({role.staged_name for role in roles} - {_HARMLESS})


def _report(logging_endpoint: endpoints_pb2.ApiServiceDescriptor) -> None:
    """Send the error being handled to the TaskManager's log: what a worker prints is thrown away."""
    handler = FnApiLogRecordHandler(logging_endpoint)
    logging.getLogger().addHandler(handler)
    _LOGGER.critical("the worker cannot start", exc_info=True)
    handler.close()


if __name__ == "__main__":
    sys.exit(main())
