"""A worker process: prepared once, its metrics and health, its logs, retries during outages, objects it has once."""

from __future__ import annotations

from itel_cabinet.io.worker import crash_points, metrics
from itel_cabinet.io.worker.allocators import ALLOCATORS, give_back
from itel_cabinet.io.worker.errors import RefusedError, SettingError
from itel_cabinet.io.worker.health import PULSE, WorkerSettings, beat, check_port, serve, waiting_for
from itel_cabinet.io.worker.logs import LogFormat
from itel_cabinet.io.worker.metrics import ExpectedLabels
from itel_cabinet.io.worker.outages import STOP, OutageError, describe_error, full_jitter, limit_wait, retry_outage
from itel_cabinet.io.worker.outcomes import OUTCOMES
from itel_cabinet.io.worker.pools import get_pool
from itel_cabinet.io.worker.preparation import prepare
from itel_cabinet.io.worker.process import once_per_process

__all__ = [
    "ALLOCATORS",
    "OUTCOMES",
    "PULSE",
    "STOP",
    "ExpectedLabels",
    "LogFormat",
    "OutageError",
    "RefusedError",
    "SettingError",
    "WorkerSettings",
    "beat",
    "check_port",
    "crash_points",
    "describe_error",
    "full_jitter",
    "get_pool",
    "give_back",
    "limit_wait",
    "metrics",
    "once_per_process",
    "prepare",
    "retry_outage",
    "serve",
    "waiting_for",
]
