"""What went into a job and where each record of it was found, set against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["End", "Entry", "Ledger"]


class End(StrEnum):
    """A place where a record can end; one record may end at two."""

    PUBLISHED = "published"
    ROW = "row in Delta"
    ACCEPTED = "accepted by iTel"
    UNCHANGED = "unchanged for iTel"
    """Its form is the one that iTel accepted last for the assignment, by another event."""
    HELD = "held by the gate"
    """The contract does not want it submitted."""
    SKIPPED = "skipped"
    DEAD_LETTER = "dead letter"


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
    _contradictions: list[str] = field(default_factory=list)

    def found(self, coordinates: str, end: End, reason: str = "") -> None:
        """Take down that a record was seen at ``end``; ``reason`` is a dead letter's."""
        self._found.setdefault(coordinates, []).append((end, reason))

    def compare(self, what: str, one: int, other: int) -> None:
        """Take down two counts that must be equal; ``what`` names them both."""
        if one != other:
            self._contradictions.append(f"{what}: {one}, {other}")

    def rows(self) -> list[tuple[str, str, int]]:
        """Of what kind, to which ends, how many; ordered by the ends, then by kind."""
        counts = Counter((self._ends(coordinates), entry.kind) for coordinates, entry in self.entries.items())
        return [(kind, ends, count) for (ends, kind), count in sorted(counts.items(), key=_by_end)]

    def totals(self) -> dict[str, int]:
        """How many records came to which ends; counted from what was found, not from what went in."""
        totals = Counter(map(self._ends, self._found))
        totals.update({_told(End.SKIPPED, reason): count for reason, count in self.skipped.items()})
        return dict(sorted(totals.items(), key=lambda item: _rank(item[0])))

    def problems(self) -> list[str]:
        """What does not add up or is not as expected, one line each."""
        problems = []
        accounted = sum(self.totals().values())
        if accounted != len(self.entries):
            problems.append(f"{len(self.entries)} records went in, {accounted} are accounted for")
        for stray in sorted({*self._found} - {*self.entries}):
            problems.append(f"nobody produced {stray}: {self._ends(stray)}")
        for coordinates, entry in self.entries.items():
            if sorted(end for end, _ in self._found.get(coordinates, [])) != sorted(entry.expected):
                expected = _joined([(end, "") for end in entry.expected])
                problems.append(f"{entry.kind} {coordinates}: {self._ends(coordinates)}; expected: {expected}")
        return problems + self._contradictions

    def _ends(self, coordinates: str) -> str:
        return _joined(self._found.get(coordinates, []))


def _joined(ends: Iterable[tuple[End, str]]) -> str:
    return " and ".join(sorted((_told(end, reason) for end, reason in ends), key=_rank)) or End.SKIPPED


def _told(end: End, reason: str) -> str:
    return f"{end} ({reason})" if reason else str(end)


def _rank(ends: str) -> tuple[int, str]:
    return (next(position for position, end in enumerate(End) if end in ends), ends)


def _by_end(item: tuple[tuple[str, str], int]) -> tuple[tuple[int, str], str]:
    (ends, kind), _ = item
    return (_rank(ends), kind)
