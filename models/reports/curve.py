"""A line plot as SVG geometry: numbers in, places in the picture out. The page's template draws it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 400
HEIGHT: Final = 220
# Room for the labels of the ticks, in the picture's own units; at this width they stay readable on a phone.
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 14, 40
_TICKS = 5

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A named line through points (x, y); those that are not finite are left out."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Tick:
    """A labeled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class DrawnLine:
    """A line as the ``points`` of an SVG polyline."""

    name: str
    points: str


@dataclass(frozen=True)
class Plot:
    """All that the template needs to draw a plot of WIDTH × HEIGHT.

    Attributes:
        title: what it shows, in words.
        x_name: of the horizontal axis.
        lines: as they were given.
        x_ticks: left to right.
        y_ticks: bottom to top.
        marks: the marked points.
    """

    title: str
    x_name: str
    lines: tuple[DrawnLine, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Point, ...]


def draw(
    lines: Sequence[Line],
    *,
    title: str,
    x_name: str,
    marks: Sequence[Point] = (),
    x_span: Sequence[float] = (),
) -> Plot | None:
    """Lay lines out; None if they have no point.

    Args:
        lines: to draw.
        title: what they show, in words.
        x_name: of the horizontal axis.
        marks: points to mark.
        x_span: values that the horizontal axis reaches, whatever the lines do.
    """
    kept = [_finite(line) for line in lines]
    known = [point for line in kept for point in line.points]
    if not known:
        return None
    x_axis = _Axis([*(x for x, _ in known), *x_span], start=LEFT, end=WIDTH - RIGHT)
    y_axis = _Axis([y for _, y in known], start=HEIGHT - BOTTOM, end=TOP)

    def place(point: Point) -> Point:
        return x_axis.place(point[0]), y_axis.place(point[1])

    drawn = (DrawnLine(line.name, _polyline(list(map(place, line.points)))) for line in kept)
    return Plot(
        title=title,
        x_name=x_name,
        lines=tuple(drawn),
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(),
        marks=tuple(map(place, marks)),
    )


def thin(points: Sequence[Point], *, most: int) -> list[Point]:
    """Return at most so many points, each the mean of a run of neighbors."""
    size = max(math.ceil(len(points) / most), 1)
    runs = (points[at : at + size] for at in range(0, len(points), size))
    return [(_mean([x for x, _ in run]), _mean([y for _, y in run])) for run in runs]


def nice_step(low: float, high: float) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that goes at most five times into a range above 0."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


class _Axis:
    """Where values lie between two ends of the picture, both of them ticks."""

    def __init__(self, values: Sequence[float], *, start: float, end: float) -> None:
        low, high = min(values), max(values)
        if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value: give it room on both sides
            room = abs(low) / 2 or 1.0
            low, high = low - room, high + room
        self._step = nice_step(low, high)
        self._first = math.floor(low / self._step + 1e-6)
        self._last = math.ceil(high / self._step - 1e-6)
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        share = (value / self._step - self._first) / (self._last - self._first)
        return round(self._start + share * (self._end - self._start), 1)

    def ticks(self) -> tuple[Tick, ...]:
        values = (index * self._step for index in range(self._first, self._last + 1))
        return tuple(Tick(self.place(value), _label(value, self._step)) for value in values)


def _label(value: float, step: float) -> str:
    """Write a tick's value with as many digits as tell it from its neighbors."""
    place = math.floor(math.log10(step) + 1e-6)  # of the step's digit: -1 for tenths
    if 1e-4 <= step < 1e6:
        return f"{value:.{max(-place, 0)}f}"
    first = math.floor(math.log10(max(abs(value), step)) + 1e-6)
    return f"{value:.{first - place + 1}g}"


def _finite(line: Line) -> Line:
    return Line(line.name, [point for point in line.points if all(map(math.isfinite, point))])


def _polyline(places: Sequence[Point]) -> str:
    # A single point twice: with round ends it shows as a dot.
    return " ".join(f"{x:g},{y:g}" for x, y in (places if len(places) != 1 else [*places, *places]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
