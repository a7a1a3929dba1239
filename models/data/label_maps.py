"""Label maps as files: palette or gray images whose values are class indices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def read_label_map(path: Path) -> NDArray[np.uint8]:
    """Read a label map, (H, W): class index per pixel, 0 background, 255 ignore.

    Raises:
        ValueError: if the file is no image of mode L or P.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("L", "P"):
                raise ValueError(
                    f"expected a label map in mode L or P in {path}, got {picture.mode}"
                )
            label_map: NDArray[np.uint8] = np.array(picture)
            return label_map
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected a label map in {path}, got {error}") from error


def occurring(label_map: NDArray[np.uint8]) -> list[int]:
    """Return the indices that a label map, (H, W), holds, ascending."""
    # numpy's unique() sorts all pixels, which takes ten times as long.
    found: list[int] = np.flatnonzero(np.bincount(label_map.ravel(), minlength=256)).tolist()
    return found
