"""Soft maps as pictures whose pixel values are the maps' own, in steps of 1/255. Free of torch."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def soft_map_png(values: NDArray[np.floating]) -> bytes:
    """Encode values in [0, 1], (H, W), as a palette PNG.

    A pixel's index is ``round(255 * value)``; what lies outside is clipped. The palette is ``cubehelix``'s, so that the
    picture looks the brighter the higher the value is.
    """
    steps = (np.asarray(values, dtype=np.float32).clip(0, 1) * 255).round().astype(np.uint8)
    picture = Image.fromarray(steps)
    picture.putpalette(cubehelix().tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)  # to look at: speed before size
    return buffer.getvalue()


@cache
def cubehelix(*, start: float = 0.5, rotations: float = -1.5) -> NDArray[np.uint8]:
    """Return 256 colors from black to white, (256, 3), whose perceived brightness grows evenly.

    A helix around the gray diagonal of the color cube: Green 2011, "A colour scheme for the display of astronomical
    intensity images", equation 2, hue 1, gamma 1.

    Args:
        start: hue at black, in thirds of a turn: 1 is red, 2 green, 3 blue.
        rotations: turns from black to white.
    """
    gray = np.linspace(0, 1, 256)
    angle = 2 * np.pi * (start / 3 + 1 + rotations * gray)
    amplitude = gray * (1 - gray) / 2
    turned = np.stack([np.cos(angle), np.sin(angle)])
    # Directions of equal perceived brightness, as the paper gives them.
    weights = np.array([[-0.14861, 1.78277], [-0.29227, -0.90649], [1.97294, 0.0]])
    colors = gray + amplitude * (weights @ turned)
    table: NDArray[np.uint8] = (colors.T.clip(0, 1) * 255).round().astype(np.uint8)
    return table
