"""Questions of the kept forms that are not known: which, how often, since when, and where to see one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

__all__ = ["UnknownQuestion", "rank_unknown_questions"]

_UNKNOWN = re.compile(r"unknown question '(.*)' in group '(.*)'", re.DOTALL)
_MOST_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class UnknownQuestion:
    """A question that no column takes. ``forms`` is how many kept forms hold it, ``examples`` are some of their
    assignments, the newest first."""

    question: str
    group: str
    forms: int
    first_at: datetime
    last_at: datetime
    examples: tuple[int, ...]


def rank_unknown_questions(forms: Iterable[tuple[int, datetime, str]]) -> list[UnknownQuestion]:
    """Those that the parse warnings of forms name, the most frequent first. ``forms``: assignment, when its row was
    written, and its ``parse_warnings``."""
    found: dict[tuple[str, str], list[tuple[datetime, int]]] = {}
    for assignment_id, updated_at, warnings in forms:
        for warning in json.loads(warnings):
            if named := _UNKNOWN.fullmatch(warning):
                found.setdefault((named[1], named[2]), []).append((updated_at, assignment_id))
    questions = []
    for (question, group), seen in found.items():
        seen.sort(reverse=True)
        examples = tuple(assignment_id for _, assignment_id in seen[:_MOST_EXAMPLES])
        questions.append(UnknownQuestion(question, group, len(seen), seen[-1][0], seen[0][0], examples))
    return sorted(questions, key=lambda one: (-one.forms, one.group, one.question))
