"""From soft scores to a label map: options, their defaults, the decision and its description.

NumPy alone and free of torch, so that whoever has the scores can decide again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX, ClassList
from models.refine import parse_chain

OnProgress = Callable[[str, float], None]
"""Called with a stage's name and the fraction of all work done; what it raises stops the work."""

MIN_PHOTOS: Final = 3
"""Classes with fewer photos get no estimated threshold."""

_BAND_VALUES = 2**22  # scores decided at once, so that memory hardly grows with the image
_BINS = 256
_LOWEST, _HIGHEST = 0.1, 0.9  # computed thresholds are clipped to this range
_USUAL_MEAN = 0.25  # of a class's scores, where the slope changes nothing


class CannotSegmentError(ValueError):
    """A model without a segmenter was asked to segment without labels."""


def ignore_progress(stage: str, fraction: float) -> None:
    """Do nothing; the default of ``OnProgress`` arguments."""
    del stage, fraction


@dataclass(frozen=True)
class MaskOptions:
    """How scores are refined and become a label map.

    The background's score is a constant, or a power of what the best class leaves, or (with neither, as for segmenters)
    what all classes leave, 1 - sum. A slope s raises the constant t against a class whose map is small, to
    ``t + s * (0.25 - mean score)``: CAMs are coarse, so the smaller a thing, the more its map spreads beyond it.
    ValueError if a number is out of range, or both rules are given.
    """

    refine: str  # refiner chain, "none" for no refinement
    min_confidence: float  # less confident pixels become 255, in [0, 1)
    background_threshold: float | None = None  # constant score, in (0, 1)
    background_power: float | None = None  # p of (1 - max)^p, in (0, 10]
    class_thresholds: Mapping[str, float] = field(default_factory=dict)  # constants, by class name, without a slope
    threshold_slope: float = 0.0  # of background_threshold, in [0, 1]

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence < 1:
            raise ValueError(f"expected min_confidence in [0, 1), got {self.min_confidence}")
        threshold, power = self.background_threshold, self.background_power
        if threshold is not None and power is not None:
            raise ValueError(
                f"expected background_threshold or background_power, got both of them: {threshold} and {power}"
            )
        if power is not None and not 0 < power <= 10:
            raise ValueError(f"expected background_power in (0, 10], got {power}")
        if not 0 <= self.threshold_slope <= 1:
            raise ValueError(f"expected threshold_slope in [0, 1], got {self.threshold_slope}")
        named = {f"the threshold of {name}": value for name, value in self.class_thresholds.items()}
        if threshold is not None:
            named["background_threshold"] = threshold
        for name, value in named.items():
            if not 0 < value < 1:
                raise ValueError(f"expected {name} in (0, 1), got {value}")

    def for_classes(self, names: Iterable[str]) -> MaskOptions:
        """Return the options with the thresholds of the named classes only, sorted."""
        kept = sorted(set(names) & set(self.class_thresholds))
        return replace(self, class_thresholds={name: self.class_thresholds[name] for name in kept})


def fill_defaults(
    defaults: MaskOptions,
    *,
    refine: str | None = None,
    background_threshold: float | None = None,
    background_power: float | None = None,
    min_confidence: float | None = None,
) -> MaskOptions:
    """Return a request's options; None takes the default. A given background rule replaces all of the default's."""
    parse_chain(defaults.refine if refine is None else refine)
    own_background = background_threshold is not None or background_power is not None
    return MaskOptions(
        refine=defaults.refine if refine is None else refine,
        min_confidence=defaults.min_confidence if min_confidence is None else min_confidence,
        background_threshold=background_threshold if own_background else defaults.background_threshold,
        background_power=background_power if own_background else defaults.background_power,
        class_thresholds={} if own_background else defaults.class_thresholds,
        threshold_slope=0.0 if own_background else defaults.threshold_slope,
    )


@dataclass(frozen=True)
class LabeledImage:
    """An image with its image-level labels."""

    image: NDArray[np.uint8]  # RGB in the upright frame, (H, W, 3)
    labels: Sequence[str]  # names or synonyms of the classes in it
    options: MaskOptions  # from ``Predictor.options``
    classes: ClassList | None = None  # the bundle's and zero-shot ones, if any


@dataclass(frozen=True)
class UnlabeledImage:
    """An image for the segmenter."""

    image: NDArray[np.uint8]  # RGB in the upright frame, (H, W, 3)
    options: MaskOptions  # from ``Predictor.segment_options``


@dataclass(frozen=True)
class ClassResult:
    """The result for one class; without a pixel its confidence, alignment and box are None."""

    index: int  # in the label map
    name: str
    area: float  # share of the image's pixels, in [0, 1]
    confidence: float | None = None  # mean over its pixels, in (0, 1]
    alignment_class: float | None = None  # cosine of its region to the class text
    alignment_background: float | None = None  # and to the background prompt
    box: tuple[int, int, int, int] | None = None  # left, top, right, bottom; last two exclusive
    zero_shot: bool = False  # its CAM is of CLIP's text alone

    def __str__(self) -> str:
        """Return it as a line for a person."""
        name = f"{self.name} (zero-shot)" if self.zero_shot else self.name
        if self.confidence is None:
            return f"{name}: nothing found"
        return f"{name}: {self.area:.1%} of the image, confidence {self.confidence:.2f}"


@dataclass(frozen=True)
class Segmentation:
    """A label map with its scores and statistics."""

    label_map: NDArray[np.uint8]  # class index per pixel, (H, W)
    confidence: NDArray[np.float16]  # per pixel, (H, W)
    scores: NDArray[np.float16]  # refined soft maps, (n, h, w), before any threshold
    cams: NDArray[np.float16] | None  # before refinement, (n, h', w'); None from a segmenter
    classes: tuple[ClassResult, ...]  # in the order of the scores
    ignored: float  # share of pixels that are 255, in [0, 1]
    background: NDArray[np.float16] | None = None  # its own soft map, (h, w), from a segmenter


@dataclass(frozen=True)
class SoftMaps:
    """The input of a decision, as it is stored."""

    scores: NDArray[np.float16]  # refined, in [0, 1], (n, h, w); n may be 0
    indices: NDArray[np.int64]  # the classes' values in label maps, (n,)
    names: tuple[str, ...]
    size: tuple[int, int]  # (H, W) of the image in pixels
    background: NDArray[np.float16] | None = None  # its own map, (h, w), if it has one

    def __post_init__(self) -> None:
        shape, count = self.scores.shape, len(self.names)
        if len(shape) != 3 or shape[0] != count or self.indices.shape != (count,):
            raise ValueError(f"expected one map for each of {count} classes, got {shape}")


@dataclass(frozen=True)
class Decision:
    """A label map and its confidence."""

    label_map: NDArray[np.uint8]  # (H, W), 0 background, 255 ignore
    confidence: NDArray[np.float16]  # the winner's share of a pixel's scores, (H, W)

    @property
    def ignored(self) -> float:
        """Share of pixels that are 255, in [0, 1]."""
        return float((self.label_map == IGNORE_INDEX).mean())


def decide(maps: SoftMaps, options: MaskOptions) -> Decision:
    """Upsample soft scores and take the best class of each pixel, or the background.

    The background enters last, so other options can be tried on stored scores and give exactly what a fresh run would.
    A class wins where it has the highest score and that is above the background's (see MaskOptions) against it.
    """
    height, width = maps.size
    label_map = np.full(maps.size, BACKGROUND_INDEX, dtype=np.uint8)
    confidence = np.ones(maps.size, dtype=np.float16)
    if not maps.names and maps.background is None:
        return Decision(label_map, confidence)
    own = None
    if maps.background is not None:
        own = upsample_bilinear(maps.background[None], width, axis=2)
    thresholds = _thresholds(options, maps)
    palette = maps.indices.astype(np.uint8) if maps.names else np.zeros(1, dtype=np.uint8)
    columns = upsample_bilinear(maps.scores, width, axis=2)
    rows = max(1, _BAND_VALUES // (width * max(len(palette), 1)))
    for top in range(0, height, rows):
        part = slice(top, min(top + rows, height))
        band = upsample_bilinear(columns, height, axis=1, part=part)
        given = None if own is None else upsample_bilinear(own, height, axis=1, part=part)[0]
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


def _thresholds(options: MaskOptions, maps: SoftMaps) -> NDArray[np.float32] | None:
    """The background's constant score against each class; None if it is not constant."""
    if options.background_threshold is None:
        return None
    defaults = np.full(len(maps.names), options.background_threshold)
    if options.threshold_slope:
        means = maps.scores.mean(axis=(1, 2), dtype=np.float64)
        defaults = (defaults + options.threshold_slope * (_USUAL_MEAN - means)).clip(_LOWEST, _HIGHEST)
    found = [options.class_thresholds.get(name, default) for name, default in zip(maps.names, defaults, strict=True)]
    return np.array(found, dtype=np.float32)


def _best(
    band: NDArray[np.float32],
) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.float32]]:
    """The best class, its score, and the sum of all scores at each pixel of (n, h, w) maps; n may be 0."""
    if not len(band):
        nothing = np.zeros(band.shape[1:], dtype=np.float32)
        return nothing.astype(np.intp), nothing, nothing
    return band.argmax(axis=0), band.max(axis=0), band.sum(axis=0)


def upsample_bilinear(
    maps: NDArray[np.floating], length: int, *, axis: int, part: slice = slice(None)
) -> NDArray[np.float32]:
    """Resize axis 1 or 2 of (n, h, w) maps bilinearly (corners not aligned), or a part of it, to float32."""
    count = maps.shape[axis]
    centers = np.arange(length, dtype=np.float64)[part] + 0.5
    source = (centers * (count / length) - 0.5).clip(0, count - 1)
    below = source.astype(np.int64)
    weight = (source - below).astype(np.float32)
    weight = weight.reshape((-1, 1) if axis == 1 else (-1,))
    near = maps.take(below, axis=axis).astype(np.float32)
    far = maps.take(np.minimum(below + 1, count - 1), axis=axis).astype(np.float32)
    upsampled: NDArray[np.float32] = near + (far - near) * weight
    return upsampled


def class_result(
    index: int,
    name: str,
    decision: Decision,
    alignment: tuple[float | None, float | None] = (None, None),
    *,
    zero_shot: bool = False,
) -> ClassResult:
    """Describe a class in a decision; alignment has the cosines to class text and background prompt."""
    region = decision.label_map == index
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    confidence, box = None, None
    if rows.size:
        confidence = float(decision.confidence[region].mean(dtype=np.float64))
        box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return ClassResult(index, name, float(region.mean()), confidence, *alignment, box=box, zero_shot=zero_shot)


def estimate_thresholds(items: Iterable[SoftMaps], *, min_photos: int = MIN_PHOTOS) -> dict[str, float]:
    """Split each class's scores over all its photos into low and high ones (Otsu 1979); no label map is needed.

    Returns thresholds by class name, sorted, in [0.1, 0.9]; classes with fewer photos are left out.
    """
    counts: dict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros(_BINS, dtype=np.int64))
    photos: dict[str, int] = defaultdict(int)
    for maps in items:
        for name, scores in zip(maps.names, maps.scores, strict=True):
            counts[name] += np.histogram(scores, bins=_BINS, range=(0, 1))[0]
            photos[name] += 1
    return {
        name: float(np.clip(_otsu(counts[name]), _LOWEST, _HIGHEST))
        for name in sorted(counts)
        if photos[name] >= min_photos
    }


def _otsu(histogram: NDArray[np.int64]) -> float:
    """Return the value in (0, 1) that splits a histogram over [0, 1] with the largest variance between both sides."""
    edges = np.linspace(0, 1, len(histogram) + 1)
    centers = (edges[:-1] + edges[1:]) / 2
    weight = histogram.cumsum()
    moment = (histogram * centers).cumsum()
    other = weight[-1] - weight
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = moment / weight - (moment[-1] - moment) / other
        between = np.nan_to_num(weight * other * gap**2, nan=0.0, posinf=0.0)
    if not between.max():
        return float(edges[int(np.argmax(histogram)) + 1])
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float(edges[best + 1].mean())
