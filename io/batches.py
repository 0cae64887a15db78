"""Batches as elements of a PCollection, how large they may be, and the coder that keeps Beam from weighing them at the
cost of the work."""

from __future__ import annotations

import pickle
import threading
from dataclasses import dataclass
from typing import Any

from apache_beam import coders

__all__ = ["FETCHED", "Batch", "BatchLimit", "FetchedBytes", "UnweighedCoder"]

_FIRST_RECORDS = 500


class Batch(list[Any]):
    """A list that travels as one element. Steps declare it as their output type; any list will do as the value."""


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
    """How many records the next batch may have, so that it comes to ``most_bytes`` at most, judged by the last one.

    The first batch is small, and each may be twice the one before: the size of what will be fetched is not known. Not
    thread-safe.
    """

    most_records: int
    most_bytes: int
    records: int = 0

    def __post_init__(self) -> None:
        self.records = min(self.most_records, _FIRST_RECORDS)

    def learn(self, records: int, size: int) -> None:
        """Take in that the last batch had so many records, and that with what was fetched for them it was so large."""
        if records:
            fit = self.most_bytes * records // size if size else self.most_records
            self.records = max(1, min(self.most_records, 2 * self.records, fit))


class UnweighedCoder(coders.Coder):  # type: ignore[misc]
    """Pickles a value as a whole, and tells Beam a nominal size instead of encoding it to find out.

    Beam samples the encoded size of elements for its metrics: of the first ones always, and all batches are first ones.
    With the default coder that pickles each record once for each step (measured: half the time of a job). Between the
    steps of a fused stage nothing is ever encoded for real.
    """

    def encode(self, value: Any) -> bytes:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    def decode(self, encoded: bytes) -> Any:
        return pickle.loads(encoded)

    def estimate_size(self, value: Any) -> int:
        return 1_000 * len(value) if isinstance(value, list) else 1_000

    def is_deterministic(self) -> bool:
        return False


coders.registry.register_coder(Batch, UnweighedCoder)
