"""From soft scores to a label map with doubt. NumPy alone, so that whoever has the scores can decide anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX
from models.segmentation import NO_ALIGNMENT, Alignment, ClassResult, MaskOptions

# Rows are decided in bands of about this many scores, so that memory hardly grows with the image.
_BAND_VALUES = 2**22


@dataclass(frozen=True)
class Decision:
    """A label map and how sure it is.

    Attributes:
        label_map: class index per pixel, 0 background, 255 ignore, (H, W) uint8.
        confidence: the winner's share of all scores at a pixel, in [0, 1], (H, W) float16.
    """

    label_map: NDArray[np.uint8]
    confidence: NDArray[np.float16]

    @property
    def ignored(self) -> float:
        """Share of pixels that are 255, in [0, 1]."""
        return float((self.label_map == IGNORE_INDEX).mean())


@dataclass(frozen=True)
class SoftMaps:
    """All that a decision needs, as it is stored.

    Attributes:
        scores: refined soft maps in [0, 1], (n, h, w) float16; n may be 0.
        indices: the classes' values in label maps, (n,).
        names: the classes' names.
        size: (H, W) of the image in pixels.
        background: the background's own map, (h, w) float16, if it has one.
    """

    scores: NDArray[np.float16]
    indices: NDArray[np.int64]
    names: tuple[str, ...]
    size: tuple[int, int]
    background: NDArray[np.float16] | None = None

    def __post_init__(self) -> None:
        shape, count = self.scores.shape, len(self.names)
        if len(shape) != 3 or shape[0] != count or self.indices.shape != (count,):
            raise ValueError(f"expected one map for each of {count} classes, got {shape}")


def decide(maps: SoftMaps, options: MaskOptions) -> Decision:
    """Upsample soft scores, put the background beside them, and let the best win.

    The background enters last, so other options can be tried on stored scores and give exactly what a fresh run would.
    A class wins where it has the highest score and that is above the background's (see MaskOptions) against it.
    """
    height, width = maps.size
    label_map = np.full(maps.size, BACKGROUND_INDEX, dtype=np.uint8)
    confidence = np.ones(maps.size, dtype=np.float16)
    if not maps.names and maps.background is None:
        return Decision(label_map, confidence)
    own = None if maps.background is None else stretch(maps.background[None], width, axis=2)
    thresholds = options.thresholds_of(maps.names)
    palette = maps.indices.astype(np.uint8) if maps.names else np.zeros(1, dtype=np.uint8)
    columns = stretch(maps.scores, width, axis=2)
    rows = max(1, _BAND_VALUES // (width * max(len(palette), 1)))
    for top in range(0, height, rows):
        part = slice(top, min(top + rows, height))
        band = stretch(columns, height, axis=1, part=part)
        given = None if own is None else stretch(own, height, axis=1, part=part)[0]
        winner, best, total = _best(band)
        if thresholds is not None:
            background = thresholds[winner]
        elif options.background_power is not None:
            background = (1 - best).clip(min=0) ** np.float32(options.background_power)
        else:
            background = (1 - total).clip(min=0) if given is None else given
        whole = total + background
        if given is not None:  # probabilities: classes that were dropped have the rest
            whole = np.maximum(whole, 1)
        # A strict threshold: a score that only equals the background's is not yet the object.
        labels = np.where(best > background, palette[winner], np.uint8(BACKGROUND_INDEX))
        share = np.maximum(best, background) / np.maximum(whole, 1e-12)
        label_map[part] = np.where(share < options.min_confidence, IGNORE_INDEX, labels)
        confidence[part] = share
    return Decision(label_map, confidence)


def _best(
    band: NDArray[np.float32],
) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.float32]]:
    """Return the best class, its score, and the sum of all scores at each pixel of (n, h, w) maps; n may be 0."""
    if not len(band):
        nothing = np.zeros(band.shape[1:], dtype=np.float32)
        return nothing.astype(np.intp), nothing, nothing
    return band.argmax(axis=0), band.max(axis=0), band.sum(axis=0)


def stretch(
    maps: NDArray[np.floating], length: int, *, axis: int, part: slice = slice(None)
) -> NDArray[np.float32]:
    """Stretch one axis of (n, h, w) maps bilinearly (corners not aligned).

    Args:
        maps: floating point.
        length: of the stretched axis, in pixels.
        axis: 1 for rows, 2 for columns.
        part: which of the stretched axis's places to return.

    Returns:
        float32; the axis has the part's length.
    """
    count = maps.shape[axis]
    centers = np.arange(length, dtype=np.float64)[part] + 0.5
    source = (centers * (count / length) - 0.5).clip(0, count - 1)
    below = source.astype(np.int64)
    weight = (source - below).astype(np.float32)
    weight = weight.reshape((-1, 1) if axis == 1 else (-1,))
    near = maps.take(below, axis=axis).astype(np.float32)
    far = maps.take(np.minimum(below + 1, count - 1), axis=axis).astype(np.float32)
    stretched: NDArray[np.float32] = near + (far - near) * weight
    return stretched


def class_result(
    index: int,
    name: str,
    decision: Decision,
    alignment: Alignment = NO_ALIGNMENT,
    *,
    zero_shot: bool = False,
) -> ClassResult:
    """Describe what became of a class in a decision."""
    region = decision.label_map == index
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    found = rows.size > 0
    return ClassResult(
        index=index,
        name=name,
        area=float(region.mean()),
        confidence=float(decision.confidence[region].mean(dtype=np.float64)) if found else None,
        alignment_class=alignment.to_class,
        alignment_background=alignment.to_background,
        box=(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        if found
        else None,
        zero_shot=zero_shot,
    )
