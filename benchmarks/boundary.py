"""How closely a label map follows the outlines of the ground truth."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX

# Of the image's diagonal; what Csurka et al., "What is a good evaluation measure for semantic segmentation?" (BMVC
# 2013), take too.
TOLERANCE = 0.0075


def boundary_scores(
    ground_truth: NDArray[np.uint8], prediction: NDArray[np.uint8], *, tolerance: float = TOLERANCE
) -> dict[int, float]:
    """Return the boundary F-score of each foreground class that the ground truth shows.

    Precision is the share of the predicted outline that has true outline within the tolerance, recall the share of the
    true one that has predicted outline there; F is their harmonic mean, 0 if nothing meets.

    Args:
        ground_truth: (H, W) label map; predicted outlines where it is 255 do not count.
        prediction: (H, W) label map.
        tolerance: as a share of the diagonal; at least one pixel.

    Returns:
        F in [0, 1] by class index. Classes that only the prediction shows are not in it.

    Raises:
        ValueError: if the shapes differ.
    """
    if ground_truth.shape != prediction.shape:
        raise ValueError(
            f"expected a prediction of the ground truth's size {ground_truth.shape}, got {prediction.shape}"
        )
    reach = max(1.0, tolerance * math.hypot(*ground_truth.shape))
    counted = ground_truth != IGNORE_INDEX
    present = set(np.unique(ground_truth).tolist()) - {BACKGROUND_INDEX, IGNORE_INDEX}
    return {index: _f_score(ground_truth == index, prediction == index, counted, reach) for index in sorted(present)}


def _f_score(truth: NDArray[np.bool_], guess: NDArray[np.bool_], counted: NDArray[np.bool_], reach: float) -> float:
    true_line, guessed_line = _outline(truth), _outline(guess)
    if not guessed_line.any():
        return 0.0
    # An outline that runs through unlabeled pixels is neither right nor wrong there.
    precision = _near(guessed_line & counted, true_line, reach)
    recall = _near(true_line, guessed_line, reach)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _outline(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The region's own pixels that touch something else, or the image's border."""
    inside: NDArray[np.bool_] = ndimage.binary_erosion(region)
    return region & ~inside


def _near(line: NDArray[np.bool_], other: NDArray[np.bool_], reach: float) -> float:
    """Share of a line's pixels that have the other line within reach; all of them where there are none."""
    if not line.any():
        return 1.0
    distance = ndimage.distance_transform_edt(~other)
    return float((distance[line] <= reach).mean())
