"""The settings of a worker process."""

from __future__ import annotations

from dataclasses import dataclass, field

from itel_cabinet.io.worker.logs import LogFormat
from itel_cabinet.io.worker.metrics import ExpectedLabels

__all__ = ["WorkerSettings"]


@dataclass(frozen=True)
class WorkerSettings:
    """What a process of a job reports about itself, and how. Hashable.

    Attributes:
        metrics_port: where it first tries to serve metrics and health; the 15 ports after it are next. 0: it does not.
        stuck_after_seconds: without any activity for this long, the process is reported as stuck.
        expected: the metrics that are there from the first scrape on.
    """

    job: str
    group: str
    topic: str
    version: str
    log_format: LogFormat = "auto"
    metrics_port: int = 0
    stuck_after_seconds: float = 120.0
    expected: ExpectedLabels = field(default_factory=ExpectedLabels)
