"""The trigger job's steps: from a ClaimX event to messages on the topics that the rules name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from itel_cabinet.transforms.enrichment import CLOCK_SKEW_SECONDS, LookupFailed, TaskLookup
from itel_cabinet.transforms.events import (
    EnrichedEvent,
    IncompleteTask,
    json_text,
    task_row_from_details,
    tracking_headers,
    tracking_message,
)
from itel_cabinet.transforms.ordering import in_order_per_key
from itel_cabinet.transforms.records import Failure, Record, Skip
from itel_cabinet.transforms.triggers import Rules

__all__ = ["KnownTask", "Publication", "apply_rules", "look_up_missing_tasks"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnownTask:
    """A ClaimX event with its task row (domain: the row made from ClaimX's answer, snake_case keys)."""

    record: Record
    event: EnrichedEvent
    task: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Publication:
    """A message to be published and its origin. The key is the assignment id, so that its events keep their order."""

    record: Record
    topic: str
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


def look_up_missing_tasks(
    events: Sequence[tuple[Record, EnrichedEvent]],
    *,
    lookup: Callable[[], TaskLookup],
    pool: Callable[[], Executor],
    clock: Callable[[], float],
) -> list[KnownTask | Failure]:
    """Each event with its task row, in input order: its own, or ClaimX's where it names only the assignment."""
    claimx = lookup()

    def know(item: tuple[Record, EnrichedEvent]) -> KnownTask | Failure:
        record, event = item
        if event.task is not None or event.task_assignment_id is None:
            return KnownTask(record, event, event.task or {})
        first_at = clock()
        failure = partial(Failure, record, "enrich", event_id=event.event_id, assignment_id=event.assignment_id)
        try:
            # The raw event's own time is the receiver's, so Kafka's timestamp is as good and always there.
            not_before = record.timestamp_ms / 1000 + CLOCK_SKEW_SECONDS
            details = claimx.task(event.task_assignment_id, not_before=not_before)
            return KnownTask(record, event, task_row_from_details(details.raw))
        except LookupFailed as error:
            return failure(error.error_class, str(error), first_at, clock(), error.attempts)
        except IncompleteTask as error:
            return failure("wrong_shape", f"ClaimX's answer: {error}", first_at, clock())

    def by_assignment(item: tuple[Record, EnrichedEvent]) -> Hashable:
        return item[1].assignment_id

    return in_order_per_key(events, by_assignment, know, pool())


def apply_rules(
    tasks: Sequence[KnownTask], *, rules: Rules, topic: str, clock: Callable[[], float]
) -> Iterator[Publication | Skip]:
    """What the rules make of each task: a publication, or a Skip where none applies or all it asks for is a log line.

    ``topic``, if not empty, replaces the topic of every rule.
    """
    for known in tasks:
        record, event, task = known.record, known.event, known.task
        match = rules.match(event.event_type, task["task_id"])
        if match is None:
            yield Skip(record, "no_rule")
            continue
        message = tracking_message(
            event,
            task,
            trigger_name=match.trigger.name,
            now=datetime.fromtimestamp(clock(), UTC),
            include_task=match.trigger.include_task_data,
            include_project=match.trigger.include_project_data,
        )
        if match.actions.publish_to_topic:
            yield Publication(
                record=record,
                topic=topic or match.actions.publish_to_topic,
                key=str(message["assignment_id"]).encode(),
                value=json_text(message).encode(),
                headers=tracking_headers(message, record),
            )
        else:
            yield Skip(record, "logged_only")
        if match.actions.log:
            _LOGGER.log(match.actions.log.level_number, "%s", match.actions.log.render(message))
