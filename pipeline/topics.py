"""The Kafka topics that the four jobs use, and how they should be made."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CLAIMX_EVENTS",
    "DAY_MS",
    "ITEL_ERRORS",
    "ITEL_SUCCESSES",
    "TASK_ERRORS",
    "TASK_EVENTS",
    "TASK_SUCCESSES",
    "TOPICS",
    "TopicSpec",
]

CLAIMX_EVENTS = "claimx.events.enriched"
TASK_EVENTS = "itel.cabinet.task.tracking"
TASK_SUCCESSES = f"{TASK_EVENTS}.success"
TASK_ERRORS = f"{TASK_EVENTS}.errors"
ITEL_SUCCESSES = "itel.cabinet.api.success"
ITEL_ERRORS = "itel.cabinet.api.errors"

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic to make. ``retention_days`` None leaves the retention to the broker's default."""

    name: str
    partitions: int
    retention_days: int | None = None

    @property
    def config(self) -> dict[str, str]:
        """The topic's configuration in Kafka's terms."""
        return {} if self.retention_days is None else {"retention.ms": str(self.retention_days * DAY_MS)}


TOPICS = (
    TopicSpec(CLAIMX_EVENTS, 3, 7),
    TopicSpec(TASK_EVENTS, 3, 7),
    TopicSpec(TASK_SUCCESSES, 1, 3),
    TopicSpec(TASK_ERRORS, 1, 30),
    TopicSpec(ITEL_SUCCESSES, 1),
    TopicSpec(ITEL_ERRORS, 1, 30),
)
"""The topics by their default names."""
