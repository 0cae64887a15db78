"""Beam's FnApiRunner, made fit to run for longer than a test."""

from __future__ import annotations

from collections.abc import Iterable

from apache_beam.metrics import monitoring_infos
from apache_beam.portability.api import metrics_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner

__all__ = ["get_direct_runner"]


def get_direct_runner() -> fn_runner.FnApiRunner:
    """An FnApiRunner that forgets a bundle when it is done; the change holds for the whole process."""
    fn_runner.consolidate_monitoring_infos = _consolidate
    return fn_runner.FnApiRunner()


def _consolidate(infos: Iterable[metrics_pb2.MonitoringInfo]) -> list[metrics_pb2.MonitoringInfo]:
    """The metrics of a stage, summed up now.

    Beam 2.77 leaves the sum as a generator over the next bundle's generator and so on: an endless job would keep the
    metrics of each bundle it ever ran, and end in a RecursionError when they are asked for after some thousand.
    """
    return list(monitoring_infos.consolidate(infos))
