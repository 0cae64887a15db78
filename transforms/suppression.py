"""Events of people who were erased: left out where they are read, so that nothing is looked up or sent for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from itel_cabinet.transforms.records import Failure, Record, Skip

__all__ = ["ASSIGNMENT", "PROJECT", "ErasedPeople", "leave_out_erased"]

ASSIGNMENT = "assignment"
PROJECT = "project"
"""The kinds of ids on the list of what was erased."""


class ErasedPeople(Protocol):
    """The list as the step sees it. Implementations are thread-safe."""

    def find(self, events: Sequence[Any]) -> set[int]:
        """The positions of those events whose assignment or project was erased; what may have been left of them by a
        process that died is removed. Raises OutageError if the list cannot be read."""


def leave_out_erased(
    records: Sequence[Record],
    *,
    parse: Callable[[Sequence[Record]], Iterable[tuple[Record, Any] | Failure | Skip]],
    erased: Callable[[], ErasedPeople] | None,
) -> Iterator[tuple[Record, Any] | Failure | Skip]:
    """What ``parse`` makes of the records, but a Skip for each event of a person who was erased.

    Args:
        parse: gives records with their events, which name ``assignment_id`` and ``project_id``.
        erased: gives the process-wide list; called on the worker. None where there is none to look at.
    """
    if erased is None:
        yield from parse(records)
        return
    outcomes = [*parse(records)]
    read = [index for index, one in enumerate(outcomes) if not isinstance(one, Failure | Skip)]
    found = {read[at] for at in erased().find([outcomes[index][1] for index in read])}  # type: ignore[index]
    for index, one in enumerate(outcomes):
        yield Skip(one[0], "suppressed") if index in found else one  # type: ignore[index]
