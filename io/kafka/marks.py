"""What stands beside a committed offset: the topic that it is for, and word of the job that committed it.

Kafka keeps up to 4 KB of text with each offset. A mark is the topic's id, a space, and a JSON object. Workers of other
makes and Kafka's own tools leave none; versions before this one the topic's id alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

__all__ = ["Committed", "Mark", "newest_mark"]

_MOST_STARTS = 10


class _Word(BaseModel):
    job: Annotated[str, Field(max_length=250)] = ""
    at: Annotated[int, Field(ge=0, lt=2**53)] = 0
    starts: Annotated[list[Annotated[int, Field(ge=0, lt=2**53)]], Field(max_length=_MOST_STARTS)] = []
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """``job`` is empty for offsets that a person set with a tool, and None where nothing is known. ``at``, when it was
    committed, and ``starts``, when the latest processes that read this partition started (oldest first), are in epoch
    seconds. ``stopped`` says that the process ended of itself after this commit.
    """

    topic_id: str
    job: str | None = None
    at: int = 0
    starts: tuple[int, ...] = ()
    stopped: bool = False

    def to_text(self) -> str:
        if self.job is None:
            return self.topic_id
        word: dict[str, object] = {"job": self.job, "at": self.at, "starts": list(self.starts[-_MOST_STARTS:])}
        if self.stopped:
            word["stopped"] = True
        return f"{self.topic_id} {json.dumps(word, separators=(',', ':'))}"

    @classmethod
    def from_text(cls, text: str) -> Mark:
        """Never fails: what cannot be read says nothing of a job."""
        if not text:
            return cls("", job="")
        topic_id, _, rest = text.partition(" ")
        try:
            word = _Word.model_validate_json(rest) if rest else None
        except ValidationError:
            word = None
        return cls(topic_id) if word is None else cls(topic_id, word.job, word.at, tuple(word.starts), word.stopped)

    def is_for(self, topic_id: str) -> bool:
        """Whether the offset counts in this incarnation of the topic; one without an id does in any."""
        return self.topic_id in ("", topic_id)


@dataclass(frozen=True, slots=True)
class Committed:
    """An offset and its mark."""

    offset: int
    mark: Mark


def newest_mark(marks: Iterable[Mark]) -> Mark | None:
    """The latest mark that a job left; None if there is none."""
    return max((mark for mark in marks if mark.job), key=lambda mark: mark.at, default=None)
