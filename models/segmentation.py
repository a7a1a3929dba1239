"""What a segmentation is, and what decides it. Free of torch, so that the wire layer can use it too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

# Told a stage's name and the fraction of all work done; what it raises stops the work.
OnProgress = Callable[[str, float], None]


def ignore_progress(stage: str, fraction: float) -> None:
    """Do nothing."""
    del stage, fraction


@dataclass(frozen=True)
class MaskOptions:
    """How scores are made and become a label map.

    The background's score is a constant, or a power of what the best class leaves, or (with neither, as segmenters
    want it) what all classes leave, 1 - sum.

    Attributes:
        refine: refiner chain, "none" for no refinement.
        min_confidence: pixels less sure become 255, in [0, 1).
        background_threshold: the background's score everywhere, in (0, 1).
        background_power: p of the background's score (1 - max)^p, in (0, 10].
        class_thresholds: by class name, where the background's score depends on which class it stands against.
    """

    refine: str
    min_confidence: float
    background_threshold: float | None = None
    background_power: float | None = None
    class_thresholds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence < 1:
            raise ValueError(f"expected min_confidence in [0, 1), got {self.min_confidence}")
        both = (self.background_threshold, self.background_power)
        if None not in both:
            raise ValueError(
                "expected background_threshold or background_power, got both of them: "
                f"{both[0]} and {both[1]}"
            )
        if self.background_power is not None and not 0 < self.background_power <= 10:
            raise ValueError(f"expected background_power in (0, 10], got {self.background_power}")
        for name, threshold in self._thresholds().items():
            if not 0 < threshold < 1:
                raise ValueError(f"expected {name} in (0, 1), got {threshold}")

    def _thresholds(self) -> dict[str, float]:
        named = {f"the threshold of {name}": value for name, value in self.class_thresholds.items()}
        if self.background_threshold is not None:
            named["background_threshold"] = self.background_threshold
        return named

    def among(self, names: Iterable[str]) -> MaskOptions:
        """Return the same options without the thresholds of classes that are not among some."""
        kept = set(names) & set(self.class_thresholds)
        thresholds = {name: self.class_thresholds[name] for name in sorted(kept)}
        return replace(self, class_thresholds=thresholds)

    def thresholds_of(self, names: tuple[str, ...]) -> NDArray[np.float32] | None:
        """Return the background's constant score against each of some classes; None if it is not constant."""
        if self.background_threshold is None:
            return None
        found = [self.class_thresholds.get(name, self.background_threshold) for name in names]
        return np.array(found, dtype=np.float32)


@dataclass(frozen=True)
class Alignment:
    """Cosines of a masked region, in [-1, 1]; None where the mask is empty or the bundle cannot tell.

    Attributes:
        to_class: cos(f_k, t_k), how much the region looks like its class.
        to_background: cos(f_k, p_k), how much like the background that usually comes with it.
    """

    to_class: float | None
    to_background: float | None


NO_ALIGNMENT = Alignment(None, None)


@dataclass(frozen=True)
class ClassResult:
    """What became of one class.

    Attributes:
        index: in the label map.
        name: canonical.
        area: share of the image's pixels, in [0, 1].
        confidence: mean over its pixels, in (0, 1]; None if it has none.
        alignment_class: cosine of the masked region to the class text; None without pixels or without CLIP.
        alignment_background: cosine of the masked region to the learned background prompt; likewise.
        box: left, top, right, bottom in pixels, right and bottom exclusive; None if it has no pixel.
        zero_shot: whether it is an open class, whose CAM CLIP's text alone wrote.
    """

    index: int
    name: str
    area: float
    confidence: float | None
    alignment_class: float | None
    alignment_background: float | None
    box: tuple[int, int, int, int] | None
    zero_shot: bool = False

    def __str__(self) -> str:
        """Return it as a line for a person."""
        name = f"{self.name} (zero-shot)" if self.zero_shot else self.name
        if self.confidence is None:
            return f"{name}: nothing found"
        return f"{name}: {self.area:.1%} of the image, confidence {self.confidence:.2f}"


@dataclass(frozen=True)
class Segmentation:
    """A label map and how it came about.

    Attributes:
        label_map: class index per pixel, (H, W) uint8, in the image's own size.
        confidence: per pixel, (H, W) float16.
        scores: refined soft maps of the classes, (n, h, w) float16, before any threshold.
        cams: their CAMs before refinement on the mask generator's grid, (n, h', w') float16; None from a segmenter.
        classes: one result a class, in channel order, as scores and cams.
        ignored: share of pixels that are 255, in [0, 1].
        background: the background's own soft map, (h, w) float16; None where a constant or a power stands for it.
    """

    label_map: NDArray[np.uint8]
    confidence: NDArray[np.float16]
    scores: NDArray[np.float16]
    cams: NDArray[np.float16] | None
    classes: tuple[ClassResult, ...]
    ignored: float
    background: NDArray[np.float16] | None = None
