"""ClaimX as the steps see it: outages waited out, refusals as the record's failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from itel_cabinet.io.claimx import ClaimX, ClaimXOutageError, ClaimXSettings, LookupRefused, get_claimx
from itel_cabinet.io.worker import metrics, retry_outage
from itel_cabinet.transforms.enrichment import TaskLookupError
from itel_cabinet.transforms.forms import TaskDetails, parse_details

__all__ = ["WaitingLookup", "get_task_lookup"]


@dataclass(frozen=True)
class WaitingLookup:
    """A TaskLookup over the ClaimX client. Thread-safe.

    ``on_outage`` says what an outage is: ``wait`` tries again for ``outage_seconds`` and then raises OutageError (an
    expired token must not send the whole stream to the dead letters); ``divert`` raises TaskLookupError at once.
    ``clock`` (monotonic seconds) and ``sleep`` steer the waits.
    """

    client: ClaimX[TaskDetails]
    on_outage: Literal["wait", "divert"]
    outage_seconds: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def task(self, assignment_id: int, *, not_before: float, fresh: bool = False) -> TaskDetails:
        """The task of an assignment; see transforms.enrichment.TaskLookup."""
        with metrics.LOOKUP_SECONDS.time():
            return self._task(assignment_id, not_before, fresh)

    def _task(self, assignment_id: int, not_before: float, fresh: bool) -> TaskDetails:
        try:
            answer = retry_outage(
                lambda: self.client.task_details(assignment_id, not_before=not_before, fresh=fresh),
                what="ClaimX",
                seconds=self.outage_seconds if self.on_outage == "wait" else 0.0,
                is_outage=lambda error: self.on_outage == "wait" and isinstance(error, ClaimXOutageError),
                clock=self.clock,
                sleep=self.sleep,
            )
        except ClaimXOutageError as error:
            raise TaskLookupError("outage", str(error), error.attempts) from None
        if isinstance(answer, LookupRefused):
            raise TaskLookupError(answer.error_class, answer.message, answer.attempts)
        return answer.task


def get_task_lookup(
    settings: ClaimXSettings, *, on_outage: Literal["wait", "divert"], outage_seconds: float
) -> WaitingLookup:
    """The process's lookup with these settings."""
    return WaitingLookup(get_claimx(settings, parse_details), on_outage, outage_seconds)
