"""The one place where a process is changed: its memory, its logs, its crash points, its metrics server."""

from __future__ import annotations

from itel_cabinet.io.worker import metrics
from itel_cabinet.io.worker.allocators import collect_seldom, limit_allocators
from itel_cabinet.io.worker.crash_points import arm_crash_points
from itel_cabinet.io.worker.health import WorkerSettings, serve
from itel_cabinet.io.worker.logs import drop_known_warnings, format_logs

__all__ = ["prepare"]


def prepare(settings: WorkerSettings | None = None) -> None:
    """Prepare this process for work. Idempotent. Importing a module changes nothing in the process; this does.

    A program calls it first, before Beam and deltalake are imported, and again once it has ``settings``. A worker of a
    cluster calls it once, with ``settings``: its allocators are limited by the environment it is started with.

    Args:
        settings: how the process logs and where it serves metrics and health; None leaves both as they are.
    """
    limit_allocators()
    collect_seldom()
    drop_known_warnings()
    arm_crash_points()
    if settings is None:
        return
    format_logs(settings.log_format, job=settings.job, group=settings.group)
    if settings.metrics_port:
        metrics.start_at_zero(settings.expected)
        serve(settings)
