"""Photos to be segmented, with what to do. Free of torch, so that the worker's loop can use them too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.classes import ClassList
from models.segmentation import MaskOptions


@dataclass(frozen=True)
class Labeled:
    """One photo of a batch, with what it shows.

    Attributes:
        image: RGB in the upright frame, (H, W, 3).
        labels: names or synonyms of classes that it shows.
        options: from ``Predictor.options``.
        classes: that labels may name: the bundle's, with open ones after them (``models.data.open_labels``); None for
            the bundle's alone.
    """

    image: NDArray[np.uint8]
    labels: Sequence[str]
    options: MaskOptions
    classes: ClassList | None = None


@dataclass(frozen=True)
class Unlabeled:
    """One photo of a batch that nothing is said of.

    Attributes:
        image: RGB in the upright frame, (H, W, 3).
        options: from ``Predictor.segment_options``.
    """

    image: NDArray[np.uint8]
    options: MaskOptions
