"""Which dead letters of a group are still open: neither replayed nor deleted by their topic's retention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from itel_cabinet.transforms.dead_letters import decode_replay_note
from itel_cabinet.transforms.records import Record

__all__ = ["OLD_LETTER_SECONDS", "OpenLetters", "describe_old_letters"]

OLD_LETTER_SECONDS = 7 * 86_400
"""A letter that is open for longer has been forgotten: its topic keeps it for 30 days by default."""


class _Place(NamedTuple):
    topic: str
    partition: int
    offset: int
    timestamp_ms: int


class OpenLetters:
    """A group's open letters, as the messages of the error topics are added in the order of each partition.

    Of repeats, as a crash leaves them, the first counts. Not thread-safe.
    """

    def __init__(self, group: str) -> None:
        self._group = group.encode()
        self._open: dict[bytes, _Place] = {}

    def add(self, message: Record) -> None:
        """Take a letter of this group as open, a note of its replay as its end; anything else is passed over."""
        if message.key is None:
            return
        if dict(message.headers).get("x-group") == self._group:
            place = _Place(message.topic, message.partition, message.offset, message.timestamp_ms)
            self._open.setdefault(message.key, place)
        else:
            note = decode_replay_note(message)
            if note is not None and note.group.encode() == self._group:
                self._open.pop(message.key, None)

    def forget_deleted(self, topic: str, starts: Mapping[int, int]) -> int:
        """Take out those that retention has deleted, below the log's start of their partition; how many they were."""
        deleted = [k for k, at in self._open.items() if at.topic == topic and at.offset < starts.get(at.partition, 0)]
        for key in deleted:
            del self._open[key]
        return len(deleted)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def oldest_at(self) -> float | None:
        """When the oldest one was written, in epoch seconds; None if none is open."""
        return min((at.timestamp_ms / 1000 for at in self._open.values()), default=None)


def describe_old_letters(number: int, oldest_at: float | None, now: float) -> str | None:
    """One line if the oldest of so many open letters is older than OLD_LETTER_SECONDS; times in epoch seconds."""
    if oldest_at is None or now - oldest_at <= OLD_LETTER_SECONDS:
        return None
    letters = "1 dead letter is" if number == 1 else f"{number} dead letters are"
    return f"{letters} open, the oldest for {(now - oldest_at) / 86_400:.0f} days"
