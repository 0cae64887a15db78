"""What a worker process has: metrics, health, log lines, outages waited out, what lives once a process."""

from __future__ import annotations

from itel_cabinet.io.worker.crash_points import reached
from itel_cabinet.io.worker.health import PULSE, HealthSettings, beat, check_port, serve, waiting_for
from itel_cabinet.io.worker.logs import LogFormat, format_logs
from itel_cabinet.io.worker.outages import (
    STOP,
    OutageError,
    full_jitter,
    last_outage_error,
    one_line,
    patience,
    retry_outage,
)
from itel_cabinet.io.worker.pools import get_pool
from itel_cabinet.io.worker.process import once_per_process

__all__ = [
    "PULSE",
    "STOP",
    "HealthSettings",
    "LogFormat",
    "OutageError",
    "beat",
    "check_port",
    "format_logs",
    "full_jitter",
    "get_pool",
    "last_outage_error",
    "once_per_process",
    "one_line",
    "patience",
    "reached",
    "retry_outage",
    "serve",
    "waiting_for",
]
