"""From soft scores to a label map with doubt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX

# Rows are decided in bands of about this many scores, so that memory hardly grows with the image.
_BAND_VALUES = 2**24


@dataclass(frozen=True)
class Decision:
    """A label map and how sure it is.

    Attributes:
        label_map: class index per pixel, 0 background, 255 ignore, (H, W) uint8.
        confidence: the winner's share of all scores at a pixel, in (0, 1], (H, W) float16.
    """

    label_map: Tensor
    confidence: Tensor


def decide(
    scores: Tensor,
    indices: Tensor,
    *,
    size: tuple[int, int],
    background_threshold: float,
    min_confidence: float,
) -> Decision:
    """Upsample soft scores, put a constant background beside them, and let the best win.

    The background enters last, so other thresholds can be tried on stored scores and give what a fresh run would. (For
    refiners that keep a constant channel constant, as PAMR does, this equals refining the background too.)

    Args:
        scores: refined CAMs of the labeled classes in [0, 1], (n, h, w).
        indices: their indices in label maps, (n,).
        size: (H, W) of the image in pixels.
        background_threshold: the background's score everywhere, in (0, 1).
        min_confidence: pixels less sure become 255, in [0, 1); 0 keeps all.

    Raises:
        ValueError: if a threshold is out of range, or scores and indices differ in number.
    """
    check_thresholds(background_threshold, min_confidence)
    if scores.ndim != 3 or scores.shape[0] != len(indices) or not len(indices):
        raise ValueError(
            f"expected one map for each of {len(indices)} classes, got {tuple(scores.shape)}"
        )
    height, width = size
    palette = torch.cat([indices.new_tensor([BACKGROUND_INDEX]), indices]).to(torch.uint8)
    label_map = torch.empty(size, dtype=torch.uint8)
    confidence = torch.empty(size, dtype=torch.float16)
    columns = upsample_columns(scores, width)
    rows = max(1, _BAND_VALUES // (width * len(indices)))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band = upsample_rows(columns, height, top, bottom)
        best, winner = band.max(dim=0)
        # The background is a strict threshold: a score that only equals it is not yet the object.
        background = best <= background_threshold
        share = best.clamp(min=background_threshold) / (band.sum(dim=0) + background_threshold)
        labels = palette.to(band.device)[torch.where(background, 0, winner + 1)]
        label_map[top:bottom] = labels.masked_fill(share < min_confidence, IGNORE_INDEX).cpu()
        confidence[top:bottom] = share.cpu()
    return Decision(label_map=label_map, confidence=confidence)


def check_thresholds(background_threshold: float, min_confidence: float) -> None:
    """Raise ValueError unless 0 < background_threshold < 1 and 0 <= min_confidence < 1."""
    if not 0 < background_threshold < 1:
        raise ValueError(f"expected background_threshold in (0, 1), got {background_threshold}")
    if not 0 <= min_confidence < 1:
        raise ValueError(f"expected min_confidence in [0, 1), got {min_confidence}")


def upsample_columns(scores: Tensor, width: int) -> Tensor:
    """Stretch scores, (n, h, w), to a width bilinearly (corners not aligned), → (n, h, width) float32."""
    return F.interpolate(
        scores.float()[None], size=(scores.shape[1], width), mode="bilinear", align_corners=False
    )[0]


def upsample_rows(scores: Tensor, height: int, top: int, bottom: int) -> Tensor:
    """Return rows top…bottom of scores, (n, h, W), stretched to a height as ``upsample_columns`` does to a width."""
    rows = scores.shape[1]
    centers = torch.arange(top, bottom, device=scores.device) + 0.5
    source = (centers * (rows / height) - 0.5).clamp(0, rows - 1)
    below = source.floor().long()
    above = (below + 1).clamp(max=rows - 1)
    return torch.lerp(scores[:, below], scores[:, above], (source - below)[:, None])
