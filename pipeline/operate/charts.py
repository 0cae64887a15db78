"""Charts as plain geometry, for a template to draw as SVG: what is where, in units of the drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

__all__ = ["Bar", "BarChart", "Column", "ColumnChart", "Tick", "bar_chart", "column_chart", "number"]

# As wide as a phone shows it at about its own size, so that the text of a chart can be read there too.
_WIDTH = 400
_VALUES = 70  # right of the bars
_ROW = 44
_LABEL = 20  # of a row, above its bar
_LONGEST_LABEL = 50
_PLOT_HEIGHT = 180
_MOST_DAYS = 60


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar from the left on, its label above it; ``label`` is whole, ``short`` what there is room for."""

    label: str
    short: str
    value: float
    shown: str
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


@dataclass(frozen=True, slots=True)
class BarChart:
    """Bars under each other, from the same zero."""

    width: int
    height: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """The two columns of a day; heights reach up from the chart's ``floor``."""

    day: date
    first: int
    second: int
    x: float
    width: float
    first_height: float
    second_height: float


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark of an axis: where, what it says, and which end of that is there."""

    at: float
    text: str
    anchor: str


@dataclass(frozen=True, slots=True)
class ColumnChart:
    """Two columns a day, the days without any too."""

    width: int
    height: int
    left: int
    floor: int
    columns: tuple[Column, ...]
    values: tuple[Tick, ...]
    days: tuple[Tick, ...]

    @property
    def highest(self) -> int:
        return max(max(column.first, column.second) for column in self.columns)


def number(value: float) -> str:
    """A number for people: thousands apart, no decimals where there are none."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def bar_chart(rows: Sequence[tuple[str, float]]) -> BarChart:
    """A bar for each (label, value); values are not negative."""
    most = max((value for _, value in rows), default=0)
    room = _WIDTH - _VALUES
    bars = [
        Bar(
            label=label,
            short=label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…",
            value=value,
            shown=number(value),
            y=place * _ROW + _LABEL,
            width=round(room * value / most, 1) if most else 0,
            height=_ROW - _LABEL - 8,
        )
        for place, (label, value) in enumerate(rows)
    ]
    return BarChart(_WIDTH, _ROW * len(rows), tuple(bars))


def column_chart(rows: Mapping[date, tuple[int, int]]) -> ColumnChart | None:
    """Two columns for each day up to the last one of ``rows``, 60 days at most; None if there is no day."""
    if not rows:
        return None
    last = max(rows)
    length = min(_MOST_DAYS, (last - min(rows)).days + 1)
    days = [last - timedelta(days=back) for back in reversed(range(length))]
    counts = [rows.get(day, (0, 0)) for day in days]
    most = max(map(max, counts))
    step = _step(most)
    top = max(step, step * -(-most // step))
    left, above = 44, 10
    pitch = (_WIDTH - left) / length
    unit = _PLOT_HEIGHT / top
    floor = above + _PLOT_HEIGHT
    columns = [
        Column(
            day=day,
            first=first,
            second=second,
            x=round(left + place * pitch + pitch * 0.1, 1),
            width=round(pitch * 0.4, 1),
            first_height=round(first * unit, 1),
            second_height=round(second * unit, 1),
        )
        for place, (day, (first, second)) in enumerate(zip(days, counts, strict=True))
    ]
    marked = {0: "start", length - 1: "end"} if length > 1 else {0: "middle"}
    if length > 4:
        marked[length // 2] = "middle"
    return ColumnChart(
        width=_WIDTH,
        height=floor + 26,
        left=left,
        floor=floor,
        columns=tuple(columns),
        values=tuple(Tick(round(floor - value * unit, 1), number(value), "end") for value in range(0, top + 1, step)),
        days=tuple(
            Tick(round(left + (place + 0.5) * pitch, 1), days[place].isoformat(), anchor)
            for place, anchor in marked.items()
        ),
    )


def _step(most: int) -> int:
    """The distance of the marks of an axis up to ``most``: 1, 2 or 5 times a power of ten."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if most <= 5 * factor * step:
                return factor * step
        step *= 10
