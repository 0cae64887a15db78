"""How many records a batch may have, by the bytes and the time that the last one came to. Needs no Beam."""

from __future__ import annotations

import threading
from dataclasses import dataclass

__all__ = ["FETCHED", "BatchLimit", "FetchedBytes"]

_FIRST_RECORDS = 100  # a job that is killed again and again gets something done in each life


class FetchedBytes:
    """How many bytes the steps have fetched for their records: what a batch of small ones may come to. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = 0

    def add(self, size: int) -> None:
        with self._lock:
            self._bytes += size

    def take(self) -> int:
        """What was added since the last call."""
        with self._lock:
            size, self._bytes = self._bytes, 0
        return size


FETCHED = FetchedBytes()
"""This process's."""


@dataclass
class BatchLimit:
    """How many records the next batch may have, so that it comes to ``most_bytes`` and its work to ``most_seconds`` at
    most, judged by the last one.

    The first batch is small, and each may be twice the one before: the size of what will be fetched is not known. While
    calls are slow batches are small, so that a crash loses little. Not thread-safe.
    """

    most_records: int
    most_bytes: int
    most_seconds: float
    records: int = 0

    def __post_init__(self) -> None:
        self.records = min(self.most_records, _FIRST_RECORDS)

    def learn(self, records: int, size: int, seconds: float) -> None:
        """Take in that the last batch had so many records, that with what was fetched for them it was so large, and
        that its work took so long."""
        if records:
            fit = self.most_bytes * records // size if size else self.most_records
            done = int(min(self.most_records, self.most_seconds * records / seconds)) if seconds else self.most_records
            self.records = max(1, min(self.most_records, 2 * self.records, fit, done))
