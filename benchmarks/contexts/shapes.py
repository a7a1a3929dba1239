"""The objects: flat parts in the square [-1, 1]², drawn with a body color, a pose and a texture of their own."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_OVERSAMPLING = 3
_DARK, _LIGHT, _GLASS = (0.12, 0.11, 0.12), (0.95, 0.94, 0.9), (0.7, 0.85, 0.92)
Color = tuple[float, float, float] | Literal["body", "second"]


@dataclass(frozen=True)
class Part:
    """A polygon (corners x, y, x, y, …) or an ellipse (left, top, right, bottom)."""

    kind: Literal["polygon", "ellipse"]
    points: tuple[float, ...]
    color: Color = "body"


def _box(left: float, top: float, right: float, bottom: float, color: Color = "body") -> Part:
    return Part("polygon", (left, top, right, top, right, bottom, left, bottom), color)


def _ball(x: float, y: float, radius: float, color: Color = "body") -> Part:
    return Part("ellipse", (x - radius, y - radius, x + radius, y + radius), color)


SHAPES: dict[str, tuple[Part, ...]] = {
    "boat": (
        Part("polygon", (-0.95, 0.2, 0.95, 0.2, 0.6, 0.75, -0.6, 0.75)),
        _box(-0.1, -0.95, 0.0, 0.2, _DARK),
        Part("polygon", (0.05, -0.9, 0.05, 0.1, 0.8, 0.1), _LIGHT),
        Part("polygon", (-0.15, -0.7, -0.15, 0.1, -0.7, 0.1), "second"),
    ),
    "bottle": (
        _box(-0.2, -0.95, 0.2, -0.75, _DARK),
        _box(-0.18, -0.75, 0.18, -0.3),
        Part("polygon", (-0.18, -0.4, 0.18, -0.4, 0.5, -0.05, 0.5, 0.95, -0.5, 0.95, -0.5, -0.05)),
        _box(-0.5, 0.25, 0.5, 0.65, _LIGHT),
        _ball(0.0, 0.45, 0.14, "second"),
    ),
    "car": (
        _box(-1.0, -0.1, 1.0, 0.4),
        Part("polygon", (-0.6, -0.1, -0.4, -0.55, 0.35, -0.55, 0.65, -0.1)),
        Part("polygon", (-0.48, -0.12, -0.33, -0.45, -0.05, -0.45, -0.05, -0.12), _GLASS),
        Part("polygon", (0.05, -0.12, 0.05, -0.45, 0.28, -0.45, 0.5, -0.12), _GLASS),
        _ball(-0.55, 0.4, 0.24, _DARK),
        _ball(0.55, 0.4, 0.24, _DARK),
        _ball(-0.55, 0.4, 0.1, _LIGHT),
        _ball(0.55, 0.4, 0.1, _LIGHT),
    ),
    "cow": (
        _box(-0.65, 0.1, -0.5, 0.75, _LIGHT),
        _box(0.3, 0.1, 0.45, 0.75, _LIGHT),
        Part("ellipse", (-0.85, -0.45, 0.65, 0.4), _LIGHT),
        Part("ellipse", (-0.6, -0.4, -0.15, 0.05), "body"),
        Part("ellipse", (0.0, -0.15, 0.45, 0.3), "body"),
        Part("ellipse", (0.45, -0.75, 1.0, -0.15), _LIGHT),
        Part("ellipse", (0.6, -0.45, 1.0, -0.15), (0.9, 0.6, 0.6)),
    ),
    "kite": (
        Part("polygon", (0.0, -1.0, 0.65, -0.25, 0.0, -0.25)),
        Part("polygon", (0.0, -1.0, -0.65, -0.25, 0.0, -0.25), "second"),
        Part("polygon", (0.65, -0.25, 0.0, 0.6, 0.0, -0.25), "second"),
        Part("polygon", (-0.65, -0.25, 0.0, 0.6, 0.0, -0.25)),
        Part("polygon", (0.0, 0.6, 0.2, 0.72, -0.2, 0.84, 0.1, 1.0, -0.05, 1.0, -0.3, 0.84, 0.1, 0.72)),
    ),
    "plane": (
        Part("polygon", (0.35, 0.0, -0.3, -0.9, -0.05, -0.9, 0.6, 0.0), "second"),
        Part("polygon", (0.35, 0.0, -0.3, 0.9, -0.05, 0.9, 0.6, 0.0), "second"),
        Part("ellipse", (-1.0, -0.2, 1.0, 0.2)),
        Part("polygon", (-0.95, 0.0, -1.0, -0.5, -0.75, -0.5, -0.55, 0.0), "second"),
        Part("ellipse", (0.6, -0.12, 0.85, 0.12), _GLASS),
    ),
    "sheep": (
        _box(-0.5, 0.3, -0.38, 0.8, _DARK),
        _box(0.25, 0.3, 0.37, 0.8, _DARK),
        *(_ball(0.5 * np.cos(a) - 0.1, 0.25 * np.sin(a), 0.34, _LIGHT) for a in np.arange(8) / 8 * 2 * np.pi),
        Part("ellipse", (0.45, -0.5, 0.95, 0.1), _DARK),
        _ball(0.62, -0.3, 0.06, _LIGHT),
    ),
    "train": (
        _box(-1.0, -0.5, 1.0, 0.35),
        _box(-1.0, 0.0, 1.0, 0.12, "second"),
        *(_box(x, -0.38, x + 0.28, -0.1, _GLASS) for x in (-0.9, -0.5, -0.1, 0.3)),
        Part("polygon", (0.72, -0.5, 1.0, -0.5, 1.0, -0.05, 0.85, -0.05), _DARK),
        *(_ball(x, 0.4, 0.16, _DARK) for x in (-0.75, -0.35, 0.25, 0.65)),
    ),
}  # fmt: skip


HUES = {
    "boat": 0.5, "bottle": 0.36, "car": 0.05, "cow": 0.08,
    "kite": 0.9, "plane": 0.15, "sheep": 0.1, "train": 0.76,
}  # fmt: skip


def draw(
    random: np.random.Generator, name: str, *, side: int, center: tuple[float, float], size: float
) -> NDArray[np.float32]:
    """Draw an object on nothing.

    Hue, brightness, aspect, mirror and a slight turn vary within a class.

    Args:
        random: source of all variation.
        name: of the object.
        side: S in pixels.
        center: of the object (x, y) in pixels.
        size: of its square in pixels.

    Returns:
        Color and opacity in [0, 1], (S, S, 4).
    """
    canvas = Image.new("RGBA", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    hue = HUES[name] + random.uniform(-0.05, 0.05)
    colors = {
        "body": colorsys.hsv_to_rgb(hue % 1, random.uniform(0.4, 0.9), random.uniform(0.5, 0.9)),
        "second": colorsys.hsv_to_rgb((hue + 0.4) % 1, 0.5, random.uniform(0.6, 0.95)),
    }
    pose = _pose(random, np.array(center), size)
    for part in SHAPES[name]:
        color = colors[part.color] if isinstance(part.color, str) else part.color
        corners = _corners(part) @ pose[:2] + pose[2]
        pen.polygon(
            [tuple(each) for each in corners.tolist()],
            fill=tuple(round(255 * each) for each in color),
        )
    small = np.asarray(canvas.resize((side, side), Image.Resampling.BOX), np.float32) / 255
    noise = random.normal(0, 0.03, (side, side, 1)).astype(np.float32)
    small[..., :3] = small[..., :3] * random.uniform(0.85, 1.1) + noise
    return small.clip(0, 1)


def _pose(
    random: np.random.Generator, center: NDArray[np.float64], size: float
) -> NDArray[np.float64]:
    """Return a 2×2 map and a shift below it, from [-1, 1]² to oversampled pixels, (3, 2)."""
    angle, aspect = random.uniform(-0.2, 0.2), random.uniform(0.85, 1.15)
    mirror = random.choice((-1, 1))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    scale = np.diag([mirror * aspect, 1 / aspect]) * size / 2
    return np.vstack([scale @ turn, center]) * _OVERSAMPLING


def _corners(part: Part) -> NDArray[np.float64]:
    if part.kind == "polygon":
        return np.array(part.points).reshape(-1, 2)
    left, top, right, bottom = part.points
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.stack(
        [(left + right) / 2 + (right - left) / 2 * np.cos(angles),
         (top + bottom) / 2 + (bottom - top) / 2 * np.sin(angles)], axis=1,
    )  # fmt: skip
