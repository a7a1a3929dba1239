"""Line plots and pictures of a report: SVG coordinates and data URIs, which the page's template draws."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX, Sample
from models.data.images import ImageError, read_image
from models.data.mask_files import overlay, read_label_map, soft_overlay, vivid_palette
from models.inference.masks import upsample_bilinear
from models.inference.predictor import Predictor

WIDTH: Final = 400
HEIGHT: Final = 220
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 14, 40  # margins, with room for tick labels
_TICKS = 5

_LONGER_SIDE = 320  # pixels of a picture; with the quality it bounds the page's size
_QUALITY = 80
# Red, blue, green, yellow, magenta, cyan, orange, violet of the overlays' palette; its other colors are less distinct.
_COLORS = (1, 4, 2, 3, 5, 6, 11, 12)

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A named line through points (x, y); points that are not finite are left out."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class _Tick:
    """A label on an axis, and its coordinate."""

    at: float
    label: str


@dataclass(frozen=True)
class _DrawnLine:
    """A line as the ``points`` of an SVG polyline."""

    name: str
    points: str


@dataclass(frozen=True)
class Plot:
    """A plot of WIDTH × HEIGHT, in SVG coordinates."""

    title: str
    x_name: str
    lines: tuple[_DrawnLine, ...]
    x_ticks: tuple[_Tick, ...]
    y_ticks: tuple[_Tick, ...]
    marks: tuple[Point, ...]


@dataclass(frozen=True)
class _Chip:
    """A class of a photo: its color, and its mask's area and confidence."""

    name: str
    color: str
    area: float
    confidence: float | None


@dataclass(frozen=True)
class _PhotoPart:
    """A photo's classes and pictures, data URIs by name, or why it could not be read."""

    name: str
    chips: tuple[_Chip, ...] = ()
    panels: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


def draw(
    lines: Sequence[Line],
    *,
    title: str,
    x_name: str,
    marks: Sequence[Point] = (),
    x_span: Sequence[float] = (),
) -> Plot | None:
    """Return a plot of lines and marked points, whose x axis includes ``x_span``; None without any point."""
    kept = [Line(line.name, [point for point in line.points if all(map(math.isfinite, point))]) for line in lines]
    known = [point for line in kept for point in line.points]
    if not known:
        return None
    x_axis = _Axis([*(x for x, _ in known), *x_span], start=LEFT, end=WIDTH - RIGHT)
    y_axis = _Axis([y for _, y in known], start=HEIGHT - BOTTOM, end=TOP)

    def place(point: Point) -> Point:
        return x_axis.place(point[0]), y_axis.place(point[1])

    drawn = (_DrawnLine(line.name, _polyline(list(map(place, line.points)))) for line in kept)
    return Plot(
        title=title,
        x_name=x_name,
        lines=tuple(drawn),
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(),
        marks=tuple(map(place, marks)),
    )


def thin(points: Sequence[Point], *, most: int) -> list[Point]:
    """Return at most ``most`` points, each the mean of consecutive points."""
    size = max(math.ceil(len(points) / most), 1)
    runs = (points[at : at + size] for at in range(0, len(points), size))
    return [(fmean(x for x, _ in run), fmean(y for _, y in run)) for run in runs]


def _nice_step(low: float, high: float) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that divides a positive range into at most five parts."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def choose_samples(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Choose labeled photos evenly over the classes: of each, the one with the fewest labels, first by name."""
    left = sorted(
        (each for each in samples if each.channels),
        key=lambda each: (len(each.channels), each.name),
    )
    classes = sorted({channel for sample in left for channel in sample.channels})
    distance = max(len(classes) / max(count, 1), 1.0)
    spread = [classes[int(at * distance)] for at in range(min(count, len(classes)))]
    chosen: list[Sample] = []
    for channel in cycle(spread):
        if len(chosen) == count or not left:
            break
        found = next((each for each in left if channel in each.channels), left[0])
        left.remove(found)
        chosen.append(found)
    return chosen


def photo_parts(
    predictor: Predictor,
    samples: Sequence[Sample],
    *,
    ground_truth: Path | None,
    on_fraction: Callable[[float], None],
) -> tuple[_PhotoPart, ...]:
    """Make the pictures of some labeled photos: CAM, refined scores, pseudo mask and, if there is one, ground truth."""
    parts = []
    for done, sample in enumerate(samples, start=1):
        truth = ground_truth / f"{sample.stem}.png" if ground_truth is not None else None
        try:
            parts.append(_photo_part(predictor, sample, truth))
        except (ImageError, OSError) as error:
            parts.append(_PhotoPart(sample.name, problem=str(error)))
        on_fraction(done / len(samples))
    return tuple(parts)


class _Axis:
    """Linear scale from values to coordinates, with ticks at both ends."""

    def __init__(self, values: Sequence[float], *, start: float, end: float) -> None:
        low, high = min(values), max(values)
        if high - low <= 1e-9 * max(abs(low), abs(high)):  # a constant: extended to both sides
            room = abs(low) / 2 or 1.0
            low, high = low - room, high + room
        self._step = _nice_step(low, high)
        self._first = math.floor(low / self._step + 1e-6)
        self._last = math.ceil(high / self._step - 1e-6)
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        share = (value / self._step - self._first) / (self._last - self._first)
        return round(self._start + share * (self._end - self._start), 1)

    def ticks(self) -> tuple[_Tick, ...]:
        values = (index * self._step for index in range(self._first, self._last + 1))
        return tuple(_Tick(self.place(value), _label(value, self._step)) for value in values)


def _label(value: float, step: float) -> str:
    """A tick's value with the digits that distinguish it from its neighbors."""
    digit = math.floor(math.log10(step) + 1e-6)  # the step's decimal place, -1 for tenths
    if 1e-4 <= step < 1e6:
        return f"{value:.{max(-digit, 0)}f}"
    first = math.floor(math.log10(max(abs(value), step)) + 1e-6)
    return f"{value:.{first - digit + 1}g}"


def _polyline(places: Sequence[Point]) -> str:
    # A single point is repeated: with round line ends it is a dot.
    return " ".join(f"{x:g},{y:g}" for x, y in (places if len(places) != 1 else [*places, *places]))


def _photo_part(predictor: Predictor, sample: Sample, truth: Path | None) -> _PhotoPart:
    image = read_image(sample.path.read_bytes()).pixels
    labels = [predictor.info.classes.names[channel] for channel in sample.channels]
    made = predictor.pseudo_mask(image, labels, predictor.options())
    small = _thumbnail(image)
    colors = {each.index: color for each, color in zip(made.classes, cycle(_COLORS), strict=False)}
    panels = {"photo": small}
    if made.cams is not None:
        panels["CAM"] = _soft(small, made.cams, colors)
    panels["refined scores"] = _soft(small, made.scores, colors)
    panels["pseudo mask"] = _hard(small, made.label_map, colors)
    if truth is not None and truth.is_file():
        label_map = read_label_map(truth)
        if label_map.shape == image.shape[:2]:
            panels["ground truth"] = _hard(small, label_map, colors)
    palette = vivid_palette()
    return _PhotoPart(
        name=sample.name,
        chips=tuple(
            _Chip(each.name, f"#{palette[color].tobytes().hex()}", each.area, each.confidence)
            for each, color in zip(made.classes, colors.values(), strict=True)
        ),
        panels={name: _data_uri(pixels) for name, pixels in panels.items()},
    )


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = Image.fromarray(image)
    picture.thumbnail((_LONGER_SIDE, _LONGER_SIDE), Image.Resampling.BICUBIC)
    return np.array(picture)


def _soft(small: NDArray[np.uint8], maps: NDArray[np.float16], colors: Mapping[int, int]) -> NDArray[np.uint8]:
    height, width = small.shape[:2]
    upsampled = upsample_bilinear(upsample_bilinear(maps, width, axis=2), height, axis=1)
    return soft_overlay(small, upsampled, list(colors.values()))


def _hard(small: NDArray[np.uint8], label_map: NDArray[np.uint8], colors: Mapping[int, int]) -> NDArray[np.uint8]:
    """Lay a label map over a thumbnail; classes without a label look like ignored pixels."""
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    table[BACKGROUND_INDEX] = BACKGROUND_INDEX
    table[list(colors)] = list(colors.values())
    rows, columns = (
        np.arange(length) * whole // length for length, whole in zip(small.shape[:2], label_map.shape, strict=True)
    )
    return overlay(small, table[label_map[np.ix_(rows, columns)]])


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
