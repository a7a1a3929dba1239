"""Confusion matrix and intersection over union."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.data.classes import IGNORE_INDEX


@dataclass(frozen=True)
class IouReport:
    """Intersection over union of a set of label maps.

    Attributes:
        iou: per index, (K + 1,), NaN where an index occurs in neither side.
        pixels: ground truth pixels per index, (K + 1,).
        mean_iou: mean of the defined values among the counted classes, in [0, 1]; NaN if there is none.
    """

    iou: Tensor
    pixels: Tensor
    mean_iou: float


def confusion_matrix(ground_truth: Tensor, prediction: Tensor, *, indices: int) -> Tensor:
    """Count pixels by (ground truth, prediction), → (indices, indices + 1) int64.

    Pixels whose ground truth is 255 do not count. The last column holds what the prediction ignored (255)
    or calls by an index out of range: such a pixel belongs to its ground truth and to no prediction, so it is missed.

    Args:
        ground_truth: (H, W) integer label map.
        prediction: (H, W) integer label map.
        indices: number of label map indices, background included.

    Raises:
        ValueError: if the shapes differ, or the ground truth has an index out of range.
    """
    return count_pairs(ground_truth, prediction.clamp(max=indices), indices, indices + 1)


def count_pairs(ground_truth: Tensor, prediction: Tensor, rows: int, columns: int) -> Tensor:
    """Count pixels by (ground truth, prediction) below (rows, columns), but for those whose ground truth is 255.

    Raises:
        ValueError: if the shapes differ, or the ground truth has an index out of range.
    """
    if ground_truth.shape != prediction.shape:
        raise ValueError(
            f"expected a prediction of the ground truth's size {tuple(ground_truth.shape)}, "
            f"got {tuple(prediction.shape)}"
        )
    counted = ground_truth != IGNORE_INDEX
    truth, guess = ground_truth[counted].long(), prediction[counted].long()
    if truth.numel() and int(truth.max()) >= rows:
        raise ValueError(f"expected ground truth below {rows}, got {int(truth.max())}")
    return torch.bincount(truth * columns + guess, minlength=rows * columns).view(rows, columns)


def iou_report(matrix: Tensor, *, min_pixels: int = 0) -> IouReport:
    """Turn a summed confusion matrix into IoU: TP / (T + P - TP).

    Args:
        matrix: (indices, indices + 1), as ``confusion_matrix`` counts.
        min_pixels: classes with fewer ground truth pixels stay out of the mean;
            with 0 a class that is only predicted counts as 0.
    """
    true_positive = matrix.diagonal().double()
    pixels = matrix.sum(dim=1)
    predicted = matrix[:, : matrix.shape[0]].sum(dim=0)
    union = pixels + predicted - true_positive
    iou = torch.where(union > 0, true_positive / union, torch.nan)
    return IouReport(iou=iou, pixels=pixels, mean_iou=float(iou[pixels >= min_pixels].nanmean()))
