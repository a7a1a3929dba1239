"""Random walk: class evidence travels between places that look alike to the mask generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from models.refine import Surroundings
from models.refine.checks import check_pair

ROUNDS: Final = 3
SHARPNESS: Final = 4.0
BOX_SHARE: Final = 0.4


@dataclass(frozen=True)
class RandomWalk:
    """`walk` on each image's affinity, as a `models.refine.Refiner`.

    Attributes:
        affinity: images (B, 3, H, W) → (B, h, w, h, w), not negative.
        sharpness: power of the affinity; cosines of rectified features are high everywhere, and this leaves near ones.
        box_share: evidence stays inside boxes around what exceeds this share of a map's maximum.
    """

    affinity: Callable[[Tensor], Tensor]
    sharpness: float = SHARPNESS
    box_share: float = BOX_SHARE

    def __call__(self, image: Tensor, scores: Tensor) -> Tensor:
        """Refine (B, C, H, W) scores by (B, 3, H, W) images in [0, 1]."""
        check_pair(image, scores)
        refined = torch.empty_like(scores)
        if not scores.numel():
            return refined
        for item in range(len(scores)):
            affinity = self.affinity(image[item : item + 1].float())[0] ** self.sharpness
            refined[item] = walk(scores[item].float(), affinity, box_share=self.box_share)
        return refined


def build(surroundings: Surroundings) -> RandomWalk:
    """Build the refiner on the surroundings' affinity."""
    return RandomWalk(surroundings.affinity)


@torch.no_grad()
def walk(scores: Tensor, affinity: Tensor, *, box_share: float = BOX_SHARE) -> Tensor:
    """Spread scores over the affinity's grid, inside the boxes of what is there already.

    Args:
        scores: (C, H, W) float32, not negative.
        affinity: (h, w, h, w), not negative.
        box_share: see RandomWalk.

    Returns:
        (C, H, W), each map with the minimum and maximum that it had.
    """
    height, width = affinity.shape[:2]
    coarse = F.interpolate(scores[None], size=(height, width), mode="area")[0]
    spread = coarse.flatten(1) @ transition(affinity.flatten(2).flatten(0, 1)).t()
    kept = spread.view_as(coarse) * boxes(coarse, share=box_share)
    fine = F.interpolate(kept[None], size=scores.shape[-2:], mode="bilinear", align_corners=False)[
        0
    ]
    return _into_range_of(fine, scores)


def transition(affinity: Tensor, *, rounds: int = ROUNDS) -> Tensor:
    """Turn an affinity into two steps of a random walk that favors no place.

    Sinkhorn's normalization of columns, then rows, some rounds; symmetrized; squared. (Lin et al., *CLIP is Also an
    Efficient Segmenter*, CVPR 2023.) Rows are normalized once more, so that a constant map stays constant.

    Args:
        affinity: (N, N), not negative. A place that is like none, not even itself, stays by itself.
        rounds: of the normalization.

    Returns:
        (N, N), each row summing to 1.
    """
    lonely = (affinity.sum(dim=1) <= 0) | (affinity.sum(dim=0) <= 0)
    matrix = affinity + torch.diag(lonely.to(affinity.dtype))
    for _ in range(rounds):
        matrix = matrix / matrix.sum(dim=0, keepdim=True)
        matrix = matrix / matrix.sum(dim=1, keepdim=True)
    matrix = (matrix + matrix.t()) / 2
    matrix = matrix @ matrix
    return matrix / matrix.sum(dim=1, keepdim=True)


def boxes(maps: Tensor, *, share: float) -> Tensor:
    """Mark the bounding boxes of the parts that reach a share of each map's maximum, (C, h, w) → bool."""
    peaks = maps.amax(dim=(1, 2), keepdim=True)
    high = (maps >= share * peaks).cpu().numpy()
    marked = torch.zeros(maps.shape, dtype=torch.bool)
    for channel, region in enumerate(high):
        parts, _ = ndimage.label(region, structure=np.ones((3, 3)))
        for rows, columns in ndimage.find_objects(parts):
            marked[channel, rows, columns] = True
    return marked.to(maps.device)


def _into_range_of(maps: Tensor, original: Tensor) -> Tensor:
    """Stretch each map, (C, H, W), to the minimum and maximum of the original; a flat one becomes the original."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    floor, top = original.amin(dim=(1, 2), keepdim=True), original.amax(dim=(1, 2), keepdim=True)
    flat = (high - low) <= 1e-5 * high.abs()
    stretched = floor + (maps - low) / (high - low).clamp(min=1e-12) * (top - floor)
    return torch.where(flat | (top <= floor), original, stretched)
