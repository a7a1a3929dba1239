"""Photos to be segmented, with what to do. Free of torch, so that the worker's loop can use them too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.segmentation import MaskOptions

# Told a stage's name and the fraction of all work done; what it raises stops the work.
OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class Labeled:
    """One photo of a batch, with what it shows.

    Attributes:
        image: RGB in the upright frame, (H, W, 3).
        labels: names or synonyms of classes that it shows.
        options: from ``Predictor.options``.
    """

    image: NDArray[np.uint8]
    labels: Sequence[str]
    options: MaskOptions


@dataclass(frozen=True)
class Unlabeled:
    """One photo of a batch that nothing is said of.

    Attributes:
        image: RGB in the upright frame, (H, W, 3).
        options: from ``Predictor.segment_options``.
    """

    image: NDArray[np.uint8]
    options: MaskOptions
