"""Each process's watch on the forms that iTel lacks: of how many of the last week's, and since when.

Counters count calls, and a form of which no call was ever made raises none of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from itel_cabinet.io.delta import TableSpec
from itel_cabinet.io.worker import OutageError, metrics, once_per_process
from itel_cabinet.pipeline.tables import LEDGER
from itel_cabinet.transforms.ledger import Outcome

__all__ = ["look_at_forms", "watch_forms"]

_LOGGER = logging.getLogger(__name__)

_FIRST_SECONDS = 5.0  # leaves a start its processor
_EVERY_SECONDS = 600.0
_BACK = timedelta(days=7)


def look_at_forms(specs: dict[str, TableSpec], statuses: frozenset[str], now: datetime) -> None:
    """Compare the tables, and report what iTel lacks by outcome: of events of the last week (``now`` is aware), and
    since there is a ledger, which knows nothing of what was before. Raises TableMissingError and OutageError.
    """
    # DuckDB takes a tenth of a second to import, for which a job's start need not wait.
    from itel_cabinet.pipeline.queries import Session, open_present
    from itel_cabinet.pipeline.reconciliation import NEVER_TRIED, reconcile

    began = datetime.fromtimestamp((open_present(specs[LEDGER]).metadata().created_time or 0) / 1000, UTC)
    with Session(specs) as session:
        gaps = reconcile(session, statuses=statuses, since=max(now - _BACK, began)).gaps
    for outcome in (NEVER_TRIED, Outcome.REFUSED.value, Outcome.HELD.value):
        times = [gap.event_timestamp.timestamp() for gap in gaps if gap.outcome == outcome]
        metrics.UNRECONCILED_FORMS.labels(outcome).set(len(times))
        metrics.OLDEST_UNRECONCILED.labels(outcome).set(min(times, default=0.0))


@once_per_process
def watch_forms(
    specs: tuple[tuple[str, TableSpec], ...],
    statuses: frozenset[str],
    sleep: Callable[[float], None] = time.sleep,
) -> threading.Thread:
    """Look soon, and then each ten minutes for as long as the process lives. A look that fails is left to the next."""

    def run() -> None:
        sleep(_FIRST_SECONDS)
        from itel_cabinet.pipeline.queries import TableMissingError  # as above

        while True:
            try:
                look_at_forms(dict(specs), statuses, datetime.now(UTC))
            except (TableMissingError, OutageError) as error:
                _LOGGER.warning("the forms that iTel lacks were not counted: %s", error)
            sleep(_EVERY_SECONDS)

    thread = threading.Thread(target=run, name="forms", daemon=True)
    thread.start()
    return thread
