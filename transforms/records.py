"""What flows between the steps: a Kafka record, and its two ends other than success.

A step never raises for what is wrong with one record. It returns a :class:`Failure` (which ends as a dead letter) or a
:class:`Skip` (which is counted), and the good records go on beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from itel_cabinet.transforms.ledger import Entry

__all__ = ["STAGES", "Failure", "Record", "Skip"]


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record, with the coordinates that make it unique for ever.

    ``topic_id`` is the broker's id of this incarnation of the topic: a topic deleted and created again has another.
    ``offset`` counts within ``(topic_id, partition)``. ``timestamp_ms`` is Kafka's, in milliseconds since the epoch.
    """

    topic: str
    topic_id: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    arrived: float | None = field(default=None, compare=False, repr=False)
    """When it was read, by this process's monotonic clock; None where that does not matter."""

    @property
    def coordinates(self) -> str:
        """``topic_id/partition/offset``: the key under which a repeat of this record is recognised."""
        return f"{self.topic_id}/{self.partition}/{self.offset}"


STAGES = ("parse", "enrich", "payload", "submit", "publish", "report")
"""Where a record can fail: read, looked up, built for iTel, handed in, published by a trigger, reported."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A record that cannot go on, as a value.

    ``stage`` is the step that gave up, one of STAGES, ``error_class`` a short stable name to group by (``not_json``,
    ``unknown_assignment``, ``no_form`` ...) and ``error`` one line for a person, free of personal data and secrets.
    ``attempts`` counts the tries of a call; ``first_at`` and ``last_at`` are epoch seconds. ``event_id`` and
    ``assignment_id`` are there if the record could be read, for the logs.
    """

    record: Record
    stage: str
    error_class: str
    error: str
    first_at: float
    last_at: float
    attempts: int = 1
    event_id: str | None = None
    assignment_id: int | None = None
    entries: tuple[Entry, ...] = field(default=(), compare=False, repr=False)
    """What the ledger is to hold of it."""


@dataclass(frozen=True, slots=True)
class Skip:
    """A valid record that this job has nothing to do with; counted under ``reason``."""

    record: Record
    reason: str
    entries: tuple[Entry, ...] = field(default=(), compare=False, repr=False)
    """What the ledger is to hold of it."""
