"""Whether this process lives, and the numbers it has counted, over HTTP: ``/healthz`` and ``/metrics``.

A process is alive as long as it does something now and then: polls the broker, ends a call, commits, retries during an
outage. Each of these calls :func:`beat`. A process that has done nothing for ``stuck_after_seconds`` is stuck.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from itel_cabinet.io.worker import metrics
from itel_cabinet.io.worker.errors import RefusedError
from itel_cabinet.io.worker.logs import LogFormat
from itel_cabinet.io.worker.outcomes import OUTCOMES, Outcomes
from itel_cabinet.io.worker.process import once_per_process

__all__ = ["PULSE", "Health", "Pulse", "WorkerSettings", "beat", "check_port", "serve", "waiting_for"]

_LOGGER = logging.getLogger(__name__)
# Workers on one machine share the option, so each takes the next port that is free.
_PORTS = 16


class Pulse:
    """When the process last did something, and what it waits for. Thread-safe. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._beat_at = clock()
        self._waits: Counter[str] = Counter()

    def beat(self) -> None:
        self._beat_at = self._clock()
        metrics.HEARTBEAT.set_to_current_time()

    @property
    def age(self) -> float:
        """Seconds since the last beat."""
        return self._clock() - self._beat_at

    @property
    def waits(self) -> list[str]:
        """The outages that are being waited out."""
        with self._lock:
            return sorted(+self._waits)

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """An outage of ``what`` is waited out in here; several threads may wait for the same."""
        self._wait(what, 1)
        try:
            yield
        finally:
            self._wait(what, -1)

    def _wait(self, what: str, change: int) -> None:
        with self._lock:
            self._waits[what] += change
            metrics.WAITING.labels(what).set(bool(self._waits[what]))


PULSE = Pulse()
"""This process's."""
beat = PULSE.beat
"""Record that this process has just done something."""
waiting_for = PULSE.waiting_for
"""A context in which this process waits out an outage."""


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
    expected: metrics.ExpectedLabels = field(default_factory=metrics.ExpectedLabels)


@dataclass(frozen=True)
class Health:
    """The WSGI application: ``/metrics`` in Prometheus's formats, ``/healthz`` as JSON with 200, or 503 if stuck."""

    settings: WorkerSettings
    pulse: Pulse = PULSE
    outcomes: Outcomes = OUTCOMES
    registry: CollectorRegistry = metrics.REGISTRY

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start_response)
            return answer
        if path == "/healthz":
            document = self.document()
            status = "503 Service Unavailable" if document["status"] == "stuck" else "200 OK"
            return _answer(start_response, status, "application/json", json.dumps(document) + "\n")
        return _answer(start_response, "404 Not Found", "text/plain", "there is /metrics and /healthz\n")

    @functools.cached_property
    def _metrics(self) -> Callable[..., Any]:
        exposed = CollectorRegistry()
        exposed.register(_Labelled(self.registry, self.settings.job))
        app: Callable[..., Any] = make_wsgi_app(exposed)
        return app

    def document(self) -> dict[str, Any]:
        """``status``: ``ok``, ``failing`` (most of a stage's records fail), ``waiting`` (for an outage to end) or
        ``stuck``; and what it rests on."""
        age, waits, settings, failing = self.pulse.age, self.pulse.waits, self.settings, self.outcomes.failing()
        status = "waiting" if waits else "failing" if failing else "ok"
        if age > settings.stuck_after_seconds:
            status = "stuck"
        return {
            "status": status,
            "job": settings.job,
            "group": settings.group,
            "topic": settings.topic,
            "version": settings.version,
            "seconds_since_heartbeat": round(age, 3),
            "stuck_after_seconds": settings.stuck_after_seconds,
            "waiting_for": waits,
            "failing": failing,
            "unknown_questions": self.outcomes.questions,
            **({"skipped": skips} if (skips := self.outcomes.skips) else {}),
        }


def _answer(start_response: Callable[..., Any], status: str, kind: str, text: str) -> list[bytes]:
    start_response(status, [("Content-Type", f"{kind}; charset=utf-8")])
    return [text.encode()]


@dataclass(frozen=True)
class _Labelled(Collector):
    """A registry whose samples all bear the label ``pipeline``: Prometheus uses ``job`` for names of its own."""

    registry: CollectorRegistry
    pipeline: str

    def collect(self) -> Iterator[Metric]:
        for metric in self.registry.collect():
            metric.samples = [s._replace(labels={"pipeline": self.pipeline, **s.labels}) for s in metric.samples]
            yield metric


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes come every few seconds and are not worth a log line."""


def check_port(port: int) -> None:
    """Raise RefusedError unless a server can listen there; free it again at once."""
    try:
        _listen(port).server_close()
    except OSError as error:
        raise RefusedError(f"{port} cannot be used ({error.strerror}): give another one") from None


class _Server(ThreadingWSGIServer):
    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)
        # Not its own look-up of this machine's name, which may ask a DNS server that is away.
        self.server_name, self.server_port = "localhost", self.server_address[1]
        self.setup_environ()


class _DualStackServer(_Server):
    address_family = socket.AF_INET6


def _listen(port: int) -> WSGIServer:
    """Listen on IPv6 and IPv4, or on the latter alone where there is no other."""
    if socket.has_dualstack_ipv6():
        try:
            return _DualStackServer(("::", port), _QuietHandler)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return _Server(("", port), _QuietHandler)


@once_per_process
def serve(settings: WorkerSettings) -> int | None:
    """Serve ``/metrics`` and ``/healthz`` in a thread of its own, once per process.

    Returns:
        The port; None, and an ERROR in the log, if none is free: metrics must not stop a job.
    """
    metrics.STARTED.set_to_current_time()
    for port in range(settings.metrics_port, min(settings.metrics_port + _PORTS, 65_536)):
        try:
            server = _listen(port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            _LOGGER.error("metrics port %d cannot be used: %s", port, error.strerror)
            return None
        server.set_app(Health(settings))
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        _LOGGER.info("metrics and health at port %d: /metrics, /healthz", port)
        return port
    _LOGGER.error("none of the %d ports from %d is free: this process has no metrics", _PORTS, settings.metrics_port)
    return None
