"""What `itel-cabinet lag` prints: for programs as JSON, for people as a screen. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from itel_cabinet.io.kafka import PartitionLag, Topic

__all__ = ["describe_age", "describe_place", "lag_report", "lag_view", "round_seconds"]

Report = dict[str, Any]


def lag_report(
    job: str,
    group: str,
    topic: Topic,
    positions: Sequence[PartitionLag],
    ages: Mapping[int, float],
    threshold: int,
) -> Report:
    """One job's lag. ``ages`` are those of the oldest unread records, in seconds by partition."""
    lag = sum(one.lag for one in positions)
    return {
        "job": job,
        "group": group,
        "topic": topic.name,
        "topic_id": topic.topic_id,
        "lag": lag,
        "oldest_unread_seconds": round_seconds(max(ages.values(), default=None)),
        "threshold": threshold,
        "behind": lag > threshold,
        "partitions": [_partition(one, ages.get(one.partition)) for one in positions],
    }


def _partition(one: PartitionLag, age: float | None) -> Report:
    return {
        "partition": one.partition,
        "start": one.start,
        "end": one.end,
        "committed": one.committed,
        "lag": one.lag,
        "oldest_unread_seconds": round_seconds(age),
        "note": describe_place(one),
    }


def describe_place(one: PartitionLag) -> str:
    """What is odd about a group's place in a partition; empty where nothing is."""
    if one.held:
        return f"{one.held} more, from a transaction on that is still open"
    if one.committed is None:
        stale = "" if one.stale is None else f" ({one.stale} is of an earlier topic of this name)"
        return f"no offset{stale}: it starts as --start_offset says"
    if one.is_beyond_the_end:
        return "beyond the end: the log was cut, and the job refuses to read on"
    if one.committed < one.start:
        return f"{one.start - one.committed} offsets lost to retention"
    return ""


def lag_view(reports: Sequence[Report]) -> RenderableType:
    """The screen of some jobs' lag."""
    return Group(*(part for report in reports for part in _lag_parts(report)))


def _lag_parts(report: Report) -> Iterator[RenderableType]:
    age = report["oldest_unread_seconds"]
    waits = "" if age is None else f", the oldest unread record {describe_age(age)} old"
    over = f" (more than {report['threshold']})" if report["behind"] else ""
    yield Text(f"{report['job']}: {report['group']} in {report['topic']}: {report['lag']} behind{over}{waits}")
    table = Table()
    for column in ("partition", "start", "committed", "end", "lag", "oldest unread"):
        table.add_column(column, justify="right")
    table.add_column("")
    for one in report["partitions"]:
        numbers = ("-" if one[k] is None else str(one[k]) for k in ("partition", "start", "committed", "end", "lag"))
        table.add_row(*numbers, describe_age(one["oldest_unread_seconds"]), one["note"])
    yield table


def round_seconds(number: float | None) -> float | None:
    """To milliseconds; a rate too."""
    return None if number is None else round(number, 3)


def describe_age(seconds: float | None) -> str:
    """Seconds in the unit that a person would take; ``-`` for None."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"
