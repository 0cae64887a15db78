"""What went into a job and where each record of it was found, set against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["End", "Entry", "Ledger"]


class End(StrEnum):
    """A place where a record can end; one record may end at two."""

    PUBLISHED = "published"
    ROW = "row in Delta"
    ACCEPTED = "accepted by iTel"
    DEAD_LETTER = "dead letter"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Entry:
    """A record that went in: why it is there, and the ends that it must come to (none: it must be skipped)."""

    kind: str
    expected: tuple[End, ...]


@dataclass
class Ledger:
    """One job's records, by coordinates (``topic_id/partition/offset``), and what was found of them. Not thread-safe.

    ``skipped`` is the job's own count of the records that it left alone, by reason: those leave no other trace.
    """

    entries: Mapping[str, Entry]
    skipped: Mapping[str, int]
    _found: dict[str, list[tuple[End, str]]] = field(default_factory=dict)

    def found(self, coordinates: str, end: End, reason: str = "") -> None:
        """Take down that a record was seen at ``end``; ``reason`` is a dead letter's."""
        self._found.setdefault(coordinates, []).append((end, reason))

    def by_kind(self) -> dict[str, Counter[str]]:
        """How many records of each kind came to which ends."""
        kinds: dict[str, Counter[str]] = {}
        for coordinates, entry in self.entries.items():
            kinds.setdefault(entry.kind, Counter())[self._ends(coordinates)] += 1
        return kinds

    def totals(self) -> dict[str, int]:
        """How many records came to which ends, most frequent first; counted from what was found, not from what went
        in.
        """
        totals = Counter(map(self._ends, self._found))
        totals.update({_told(End.SKIPPED, reason): count for reason, count in self.skipped.items()})
        return dict(totals.most_common())

    def problems(self) -> list[str]:
        """What does not add up or is not as expected, one line each."""
        problems = []
        accounted = sum(self.totals().values())
        if accounted != len(self.entries):
            problems.append(f"{len(self.entries)} records went in, {accounted} are accounted for")
        problems += [
            f"nobody produced {stray}: {self._ends(stray)}" for stray in sorted({*self._found} - {*self.entries})
        ]
        for coordinates, entry in self.entries.items():
            if sorted(end for end, _ in self._found.get(coordinates, [])) != sorted(entry.expected):
                expected = _joined(entry.expected)
                problems.append(f"{entry.kind} {coordinates}: {self._ends(coordinates)}; expected: {expected}")
        return problems

    def _ends(self, coordinates: str) -> str:
        seen = sorted(self._found.get(coordinates, []), key=lambda found: (_ORDER[found[0]], found[1]))
        return " + ".join(_told(end, reason) for end, reason in seen) or End.SKIPPED


_ORDER = {end: position for position, end in enumerate(End)}


def _told(end: End, reason: str) -> str:
    return f"{end} ({reason})" if reason else str(end)


def _joined(ends: tuple[End, ...]) -> str:
    return " + ".join(sorted(ends, key=_ORDER.__getitem__)) or End.SKIPPED
