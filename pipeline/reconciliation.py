"""Which completed forms iTel lacks: the history and the kept forms against the ledger of submissions, by the queries
`unreconciled` and `completed-forms`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from itel_cabinet.pipeline.queries import Session, bind, find

__all__ = ["NEVER_TRIED", "Gap", "Lack", "Reconciliation", "rank_gaps", "reconcile"]

NEVER_TRIED = "never_tried"
"""The outcome of a form of which the ledger has nothing: its event is unread, or what became of it is lost."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A completed form that iTel lacks, as far as the ledger says.

    Attributes:
        outcome: of the last try: ``refused`` or ``held``, or NEVER_TRIED.
        reason: the ledger's, such as an error class; None where there is none.
        tried_at: when that was; None for one that was never tried.
        tracked: whether the event has its row in the history; otherwise only its form is kept.
    """

    event_timestamp: datetime
    event_id: str
    assignment_id: int
    project_id: str
    outcome: str
    reason: str | None
    tried_at: datetime | None
    tracked: bool
    kafka_topic: str
    kafka_topic_id: str
    kafka_partition: int
    kafka_offset: int

    @property
    def coordinates(self) -> str:
        """``topic_id/partition/offset`` of the event's record."""
        return f"{self.kafka_topic_id}/{self.kafka_partition}/{self.kafka_offset}"

    def age_seconds(self, now: datetime) -> float:
        """How long iTel has lacked it: the time since its event."""
        return max(0.0, (now - self.event_timestamp).total_seconds())


@dataclass(frozen=True, slots=True)
class Lack:
    """How many forms iTel lacks for one reason, and the time of the oldest one's event."""

    outcome: str
    reason: str | None
    forms: int
    oldest_at: datetime


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """``completed`` forms were looked at, each event once. Of ``gaps``, the oldest first, iTel has nothing; of
    ``superseded`` neither, but a newer form of the assignment."""

    completed: int
    superseded: int
    gaps: tuple[Gap, ...]

    @property
    def settled(self) -> int:
        """How many iTel has, or would learn nothing new from."""
        return self.completed - self.superseded - len(self.gaps)


def reconcile(
    session: Session, *, statuses: Collection[str], since: datetime | None = None, until: datetime | None = None
) -> Reconciliation:
    """Compare the tables; only reads, beside running jobs too. Memory: some hundred bytes for each gap.

    Args:
        session: reads the tables.
        statuses: those that are submitted, in upper case.
        since: only events of then or later (aware), and ``until``: before then.

    Raises:
        QueryError: a status is not a word.
        TableMissingError, OutageError: a table is not there, or cannot be read.
    """
    bounds = {name: at.isoformat() for name, at in (("since", since), ("until", until)) if at}
    given = {"statuses": ",".join(sorted(statuses)), **bounds}
    now = datetime.now(UTC)
    counted, listed = (find(name) for name in ("completed-forms", "unreconciled"))
    completed = next(session.run(counted, bind(counted, given, now=now)).rows)[0]
    answer = session.run(listed, bind(listed, given, now=now))
    gaps: list[Gap] = []
    superseded = 0
    for row in answer.rows:
        columns = dict(zip(answer.columns, row, strict=True))
        if columns.pop("superseded"):
            superseded += 1
        else:
            gaps.append(Gap(**columns))
    return Reconciliation(completed, superseded, tuple(gaps))


def rank_gaps(gaps: Iterable[Gap]) -> list[Lack]:
    """The gaps by outcome and reason, the most frequent first."""
    forms: dict[tuple[str, str | None], int] = {}
    oldest: dict[tuple[str, str | None], datetime] = {}
    for gap in gaps:
        why = gap.outcome, gap.reason
        forms[why] = forms.get(why, 0) + 1
        oldest[why] = min(oldest.get(why, gap.event_timestamp), gap.event_timestamp)
    ranked = sorted(forms, key=lambda why: (-forms[why], why[0], why[1] or ""))
    return [Lack(*why, forms[why], oldest[why]) for why in ranked]
