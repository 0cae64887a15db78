"""Batches as elements of a PCollection, and the coder that keeps Beam from weighing them at the cost of the work."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

from apache_beam import coders

__all__ = ["Batch", "Passing", "UnweighedCoder"]


class Batch(list[Any]):
    """A list that travels as one element. Steps declare it as their output type; any list will do as the value."""


@dataclass(frozen=True, slots=True)
class Passing:
    """What goes through a sink as it is. The step behind, which gets it at once, ends its bundle after the sink: when
    it commits, all that the sink was given is durable."""

    item: Any


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


for _kind in (Batch, Passing):
    coders.registry.register_coder(_kind, UnweighedCoder)
