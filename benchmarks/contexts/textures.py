"""Procedural textures of contexts and backdrops: a random generator in, (S, S, 3) in [0, 1] out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.float32]
Texture = Callable[[np.random.Generator, int], Pixels]


def smooth_noise(random: np.random.Generator, side: int, cells: int) -> Pixels:
    """Return noise in [0, 1] that changes over about side / cells pixels, (S, S)."""
    coarse = Image.fromarray(random.random((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BILINEAR))


def _paint(low: tuple[float, ...], high: tuple[float, ...], share: Pixels) -> Pixels:
    """Mix two colors by a share in [0, 1], (S, S)."""
    first, second = np.array(low, np.float32), np.array(high, np.float32)
    return first + (second - first) * share[..., None].clip(0, 1)


def _grid(random: np.random.Generator, side: int) -> tuple[Pixels, Pixels]:
    """Return rows and columns in pixels, from a random origin so that patterns are cut anywhere."""
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    return rows + random.uniform(0, 32), columns + random.uniform(0, 32)


def rails(random: np.random.Generator, side: int) -> Pixels:
    """Sleepers across two bright lines, on gravel."""
    rows, columns = _grid(random, side)
    pixels = _paint((0.36, 0.3, 0.26), (0.56, 0.5, 0.44), smooth_noise(random, side, side // 2))
    pixels[columns % 9 < 4] = (0.25, 0.16, 0.1)
    pixels[rows % 13 < 2.5] = (0.8, 0.8, 0.83)
    return pixels


def water(random: np.random.Generator, side: int) -> Pixels:
    """Blue with waves."""
    rows, _ = _grid(random, side)
    bend = smooth_noise(random, side, 8) * 9
    return _paint((0.08, 0.26, 0.5), (0.3, 0.55, 0.75), 0.5 + 0.5 * np.sin((rows + bend) * 0.9))


def clouds(random: np.random.Generator, side: int) -> Pixels:
    """White puffs on light blue."""
    puffs = (smooth_noise(random, side, 12) + 0.5 * smooth_noise(random, side, 24)) / 1.5
    return _paint((0.5, 0.7, 0.95), (0.98, 0.98, 1.0), (puffs - 0.4) * 5)


def grass(random: np.random.Generator, side: int) -> Pixels:
    """Green with blades."""
    blades = random.random((side // 6, side), dtype=np.float32).repeat(6, axis=0)
    return _paint((0.12, 0.32, 0.08), (0.45, 0.7, 0.25), np.resize(blades, (side, side)))


def road(random: np.random.Generator, side: int) -> Pixels:
    """Asphalt with yellow dashes."""
    rows, columns = _grid(random, side)
    pixels = _paint((0.16, 0.16, 0.18), (0.3, 0.3, 0.32), random.random((side, side), np.float32))
    pixels[(rows % 14 < 2.5) & (columns % 16 < 10)] = (0.85, 0.75, 0.2)
    return pixels


def fence(random: np.random.Generator, side: int) -> Pixels:
    """Orange planks with dark gaps."""
    _, columns = _grid(random, side)
    pixels = _paint((0.6, 0.33, 0.12), (0.78, 0.48, 0.2), smooth_noise(random, side, 16))
    pixels[columns % 8 < 2] = (0.15, 0.08, 0.03)
    return pixels


def table(random: np.random.Generator, side: int) -> Pixels:
    """A cloth checkered red and white."""
    rows, columns = _grid(random, side)
    odd = (rows // 6 + columns // 6) % 2
    return _paint((0.8, 0.12, 0.15), (0.97, 0.94, 0.92), odd.astype(np.float32))


def beach(random: np.random.Generator, side: int) -> Pixels:
    """Sand with dark speckles."""
    pixels = _paint((0.78, 0.66, 0.42), (0.92, 0.82, 0.6), smooth_noise(random, side, 20))
    pixels[random.random((side, side)) < 0.08] = (0.45, 0.33, 0.2)
    return pixels


def fog(random: np.random.Generator, side: int) -> Pixels:
    """Smooth gray."""
    return _paint((0.42, 0.43, 0.45), (0.6, 0.6, 0.6), smooth_noise(random, side, 3))


def paper(random: np.random.Generator, side: int) -> Pixels:
    """Grayish yellow, faintly ruled."""
    rows, _ = _grid(random, side)
    return _paint((0.56, 0.54, 0.46), (0.6, 0.58, 0.5), (rows % 10 > 1).astype(np.float32))


def wall(random: np.random.Generator, side: int) -> Pixels:
    """Faint gray bricks."""
    rows, columns = _grid(random, side)
    shifted = columns + 8 * (rows // 8 % 2)
    seams = (rows % 8 < 1) | (shifted % 16 < 1)
    return _paint((0.5, 0.48, 0.5), (0.42, 0.4, 0.42), seams.astype(np.float32))


TEXTURES: dict[str, Texture] = {
    texture.__name__: texture
    for texture in (rails, water, clouds, grass, road, fence, table, beach, fog, paper, wall)
}
