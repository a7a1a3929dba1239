"""A background threshold for each class, estimated from soft scores alone. Free of torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.pseudo_masks import SoftMaps

MIN_PHOTOS: Final = 3
_BINS = 256
_LOWEST, _HIGHEST = 0.1, 0.9


def estimate_thresholds(
    items: Iterable[SoftMaps], *, min_photos: int = MIN_PHOTOS
) -> dict[str, float]:
    """Split each class's scores over all its photos into low and high ones (Otsu 1979); no label map is needed.

    Args:
        items: soft maps of the photos.
        min_photos: classes with fewer photos get no threshold of their own.

    Returns:
        By class name, sorted, in [0.1, 0.9].
    """
    counts: dict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros(_BINS, dtype=np.int64))
    photos: dict[str, int] = defaultdict(int)
    for maps in items:
        for name, scores in zip(maps.names, maps.scores, strict=True):
            counts[name] += np.histogram(scores, bins=_BINS, range=(0, 1))[0]
            photos[name] += 1
    return {
        name: float(np.clip(otsu(counts[name]), _LOWEST, _HIGHEST))
        for name in sorted(counts)
        if photos[name] >= min_photos
    }


def otsu(histogram: NDArray[np.int64]) -> float:
    """Return the value in (0, 1) that splits a histogram over [0, 1] with the largest variance between both sides.

    Several equally good values give their mean; a histogram with one filled bin gives its upper edge.
    """
    edges = np.linspace(0, 1, len(histogram) + 1)
    centers = (edges[:-1] + edges[1:]) / 2
    weight = histogram.cumsum()
    moment = (histogram * centers).cumsum()
    total = weight[-1]
    other = total - weight
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = moment / weight - (moment[-1] - moment) / other
        between = np.nan_to_num(weight * other * gap**2, nan=0.0, posinf=0.0)
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    if not between.max():
        return float(edges[int(np.argmax(histogram)) + 1])
    return float(edges[best + 1].mean())
