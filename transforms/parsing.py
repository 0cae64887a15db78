"""The first step of every job: from Kafka records to events, in whole batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from itel_cabinet.transforms.events import EnrichedEvent, TaskEvent, parse_enriched, parse_event
from itel_cabinet.transforms.records import Failure, Record, Skip
from itel_cabinet.transforms.replays import is_for_another

__all__ = ["parse_claimx_events", "parse_task_events", "with_status"]


def parse_task_events(
    records: Sequence[Record], *, group: str, clock: Callable[[], float]
) -> Iterator[tuple[Record, TaskEvent] | Failure | Skip]:
    """The task event of each record, for the jobs that read the tracking topic."""
    now = clock()
    for record in records:
        event = _not_for(record, group) or parse_event(record, now)
        yield (record, event) if isinstance(event, TaskEvent) else event


def parse_claimx_events(
    records: Sequence[Record], *, group: str, clock: Callable[[], float]
) -> Iterator[tuple[Record, EnrichedEvent] | Failure | Skip]:
    """The ClaimX event of each record, for the trigger job."""
    now = clock()
    for record in records:
        event = _not_for(record, group) or parse_enriched(record, now)
        yield (record, event) if isinstance(event, EnrichedEvent) else event


def with_status(
    events: Sequence[tuple[Record, TaskEvent]], *, statuses: frozenset[str]
) -> Iterator[tuple[Record, TaskEvent] | Skip]:
    """The events with one of ``statuses`` (upper case); the others are skipped before they cost a lookup."""
    for record, event in events:
        yield (record, event) if event.task_status in statuses else Skip(record, "status_not_submitted")


def _not_for(record: Record, group: str) -> Skip | None:
    return Skip(record, "replay_for_another_group") if is_for_another(record, group) else None
