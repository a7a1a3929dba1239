"""The background's score, where a refiner needs one beside the classes'."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor


def rest(scores: Tensor) -> Tensor:
    """What probabilities, (C, H, W), leave of 1, (H, W)."""
    return (1 - scores.sum(dim=0)).clamp(min=0)


def power_background(threshold: float) -> Callable[[Tensor], Tensor]:
    """Return the background (1 - max)^p that stands even with a class whose score is the threshold.

    Args:
        threshold: in (0, 1).
    """
    power = math.log(threshold) / math.log(1 - threshold)

    def background(scores: Tensor) -> Tensor:
        remaining: Tensor = (1 - scores.amax(dim=0)).clamp(min=0)
        return remaining**power

    return background
