"""Sample events and the forms behind them, made from a seed; of each it is known what must become of it."""

from __future__ import annotations

from itel_cabinet.local.samples.events import (
    BAD_KINDS,
    ENRICHED_BAD_KINDS,
    Expect,
    Generator,
    Produced,
    Receipt,
    Shares,
    produce,
)
from itel_cabinet.local.samples.forms import SampleForms

__all__ = [
    "BAD_KINDS",
    "ENRICHED_BAD_KINDS",
    "Expect",
    "Generator",
    "Produced",
    "Receipt",
    "SampleForms",
    "Shares",
    "produce",
]
