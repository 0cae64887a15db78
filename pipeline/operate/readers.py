"""Which groups read a topic, for which jobs, and whether a job reads with them now: as their offsets say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from itel_cabinet.pipeline.jobs import JOB_DEFAULTS, Job

if TYPE_CHECKING:
    from itel_cabinet.io.kafka import Committed

__all__ = ["ReadingGroup", "describe_left_behind", "find_job", "lowest_offsets", "reading_groups"]

# A running job commits at least once a minute; on Flink, once a checkpoint.
_SILENT_SECONDS = 300.0
_DEFAULTS = {values["consumer_group"]: job for job, values in JOB_DEFAULTS.items()}
# What both do between them is what cabinet does alone.
_HALVES = (Job.TRACKING.value, Job.API.value)


@dataclass(frozen=True, slots=True)
class ReadingGroup:
    """A group with offsets in a topic. ``job`` is the one that commits with it, None if nothing tells; ``seen_at`` when
    it last did, in epoch seconds, 0 if that is not known; ``stopped``, that it ended after that.
    """

    name: str
    job: str | None
    offsets: Mapping[int, int]
    seen_at: int = 0
    stopped: bool = False

    def is_silent(self, now: float) -> bool:
        """Whether a job has read with it, and does no more."""
        return self.stopped or (self.seen_at > 0 and now - self.seen_at > _SILENT_SECONDS)

    def is_read_with(self, now: float) -> bool:
        """Whether a job reads with it now."""
        return self.seen_at > 0 and not self.is_silent(now)


def reading_groups(committed: Mapping[str, Mapping[int, Committed]], topic_id: str) -> dict[str, ReadingGroup]:
    """The groups with offsets that count in the topic, by name, of what all groups have committed in it."""
    return {
        group.name: group for name, entries in committed.items() if (group := _group(name, entries, topic_id)).offsets
    }


def find_job(name: str, groups: Mapping[str, ReadingGroup]) -> str | None:
    """Whose group this is: by what it has committed, or by its name; None if nothing tells."""
    return groups[name].job if name in groups else _DEFAULTS.get(name)


def _group(name: str, entries: Mapping[int, Committed], topic_id: str) -> ReadingGroup:
    from itel_cabinet.io.kafka import newest_mark

    own = {partition: entry for partition, entry in entries.items() if entry.mark.is_for(topic_id)}
    offsets = {partition: entry.offset for partition, entry in own.items()}
    mark = newest_mark(entry.mark for entry in own.values())
    if mark is None:
        return ReadingGroup(name, _DEFAULTS.get(name), offsets)
    return ReadingGroup(name, mark.job, offsets, mark.at, mark.stopped)


def describe_left_behind(
    taken: Iterable[ReadingGroup], to_job: str | None, groups: Mapping[str, ReadingGroup]
) -> str | None:
    """What would never be done if a job went on from the lowest offsets of these groups; None if nothing.

    ``tracking`` writes rows and ``api`` submits: a group of the one tells nothing of what the other has left.
    """
    taken = list(taken)
    jobs = {group.job for group in taken if group.job in _HALVES}
    lowest = lowest_offsets(taken)
    for group in groups.values() if jobs else ():
        if group.job not in _HALVES or group.job in jobs or to_job not in (None, Job.CABINET, group.job):
            continue
        for partition, offset in sorted(lowest.items()):
            at = group.offsets.get(partition, 0)
            if at < offset:
                return (
                    f"the job {group.job} is at {at} of partition {partition} in its group {group.name}, and "
                    f"{' and '.join(sorted(map(str, jobs)))} at {offset}: what lies between would never be "
                    f"{'submitted' if group.job == Job.API else 'written'}: give --from={group.name} too, and the "
                    "lower offset is taken"
                )
    return None


def lowest_offsets(groups: Iterable[ReadingGroup]) -> dict[int, int]:
    """The lowest offset of each partition that all of the groups have one of."""
    offsets = [group.offsets for group in groups]
    common = set.intersection(*(set(one) for one in offsets)) if offsets else set()
    return {partition: min(one[partition] for one in offsets) for partition in common}
