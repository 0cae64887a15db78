"""A second endpoint that gets each submission too, for the day before it is the first: only its answers are counted.

It holds nothing up: submissions wait in a short queue for a few threads, and what does not fit is dropped, counted.
Each is tried once. Neither breaker nor retries nor health know of it.
"""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass, field

from itel_cabinet.io.http import CallError, Connection, get_connection
from itel_cabinet.io.itel import ItelSettings, make_request, read_answer
from itel_cabinet.io.worker import metrics, once_per_process
from itel_cabinet.transforms.submissions import Submission

__all__ = ["Shadow", "get_shadow"]

_LOGGER = logging.getLogger(__name__)
_QUEUED = 1_000
_THREADS = 4


@dataclass
class Shadow:
    """Sends to one endpoint in the background. Thread-safe; its threads end with the process."""

    settings: ItelSettings
    connection: Connection
    threads: int = _THREADS
    _queue: queue.Queue[tuple[Submission, str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._queue = queue.Queue(_QUEUED)
        for number in range(self.threads):
            threading.Thread(target=self._work, name=f"itel_shadow-{number}", daemon=True).start()

    def offer(self, submission: Submission, outcome: str) -> None:
        """Send it some time soon; ``outcome`` is what became of it at the first endpoint. Never waits."""
        try:
            self._queue.put_nowait((submission, outcome))
        except queue.Full:
            metrics.SHADOW_SUBMISSIONS.labels(outcome, "dropped").inc()

    def _work(self) -> None:
        while True:
            submission, outcome = self._queue.get()
            try:
                answered = self._send(submission)
            except Exception:  # a shadow must not end anything, itself included
                _LOGGER.exception("a submission to the second endpoint")
                answered = "error"
            metrics.SHADOW_SUBMISSIONS.labels(outcome, answered).inc()

    def _send(self, submission: Submission) -> str:
        request = make_request(self.settings, submission)
        reply = self.connection.try_once(
            self.settings.method, request.path, body=submission.payload, headers=request.headers
        )
        if isinstance(reply, CallError):
            return reply.kind
        return read_answer(reply, request.names, self.settings.rules).value


@once_per_process
def get_shadow(settings: ItelSettings) -> Shadow:
    """This process's one shadow with these settings. Raises UnresolvedSecretError."""
    return Shadow(settings, get_connection(settings.connection))
