"""Random walk: class evidence spreads between places that are similar to the mask generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from models.refine import RefinerContext, check_pair

_ROUNDS: Final = 3


@dataclass(frozen=True)
class _RandomWalk:
    """``_walk`` on each image's affinity, as a refiner."""

    affinity: Callable[[Tensor], Tensor]  # images (B, 3, H, W) → (B, h, w, h, w), not negative
    rescale: Callable[[Tensor, Tensor], Tensor]  # see RefinerContext
    box_share: float  # see MaskGenerator
    from_boxes: bool = False  # see MaskGenerator.walk_from_boxes

    def __call__(self, image: Tensor, scores: Tensor) -> Tensor:
        """Refine (B, C, H, W) scores by (B, 3, H, W) images in [0, 1]."""
        check_pair(image, scores)
        refined = torch.empty_like(scores)
        if not scores.numel():
            return refined
        affinities = self.affinity(image.float())
        for item, (maps, affinity) in enumerate(zip(scores.float(), affinities, strict=True)):
            walked = _walk(maps, affinity, box_share=self.box_share, from_boxes=self.from_boxes)
            refined[item] = self.rescale(walked, maps)
        return refined


def build(context: RefinerContext) -> _RandomWalk:
    """Build the refiner on the context's affinity."""
    return _RandomWalk(context.affinity, context.rescale, context.box_share, context.walk_from_boxes)


@torch.no_grad()
def _walk(scores: Tensor, affinity: Tensor, *, box_share: float, from_boxes: bool = False) -> Tensor:
    """Spread scores, (C, H, W), over the affinity's grid, (h, w, h, w), inside or from the boxes of the high scores."""
    height, width = affinity.shape[:2]
    coarse = F.interpolate(scores[None], size=(height, width), mode="area")[0]
    between = affinity.flatten(2).flatten(0, 1)
    if from_boxes:
        inside = coarse * _source_boxes(coarse, share=box_share)
        kept = (inside.flatten(1) @ _two_steps(between).t()).view_as(coarse)
    else:
        spread = coarse.flatten(1) @ _transition(between).t()
        kept = spread.view_as(coarse) * _boxes(coarse, share=box_share)
    size = (scores.shape[1], scores.shape[2])
    fine: Tensor = F.interpolate(kept[None], size=size, mode="bilinear", align_corners=False)
    return fine[0]


def _transition(affinity: Tensor) -> Tensor:
    """Turn a nonnegative affinity (N, N) into two steps of a random walk without preferred places; rows sum to 1."""
    matrix = _two_steps(affinity)
    return matrix / matrix.sum(dim=1, keepdim=True)


def _two_steps(affinity: Tensor) -> Tensor:
    """Normalize columns and rows in turn, symmetrize and square, as CLIP-ES; rows sum to nearly 1."""
    isolated = (affinity.sum(dim=1) <= 0) | (affinity.sum(dim=0) <= 0)
    matrix = affinity + torch.diag(isolated.to(affinity.dtype))
    for _ in range(_ROUNDS):
        matrix = matrix / matrix.sum(dim=0, keepdim=True)
        matrix = matrix / matrix.sum(dim=1, keepdim=True)
    matrix = (matrix + matrix.t()) / 2
    return matrix @ matrix


def _source_boxes(maps: Tensor, *, share: float) -> Tensor:
    """Mark the boxes as CLIP-ES does, (C, h, w) → bool: of the maps in 0…255, and never the last row or column."""
    levels = (maps * 255).floor()
    bars = (share * levels.amax(dim=(1, 2), keepdim=True)).floor()
    marked = _bounding_boxes(levels > bars)
    marked[:, -1], marked[:, :, -1] = False, False
    return marked


def _boxes(maps: Tensor, *, share: float) -> Tensor:
    """Mark the bounding boxes of the parts that reach a share of each map's maximum, (C, h, w) → bool."""
    peaks = maps.amax(dim=(1, 2), keepdim=True)
    return _bounding_boxes(maps >= share * peaks)


def _bounding_boxes(high: Tensor) -> Tensor:
    """Mark the bounding box of each connected part of each map, (C, h, w) bool → bool."""
    marked = torch.zeros(high.shape, dtype=torch.bool)
    for channel, region in enumerate(high.cpu().numpy()):
        parts, _ = ndimage.label(region, structure=np.ones((3, 3)))
        for rows, columns in ndimage.find_objects(parts):
            marked[channel, rows, columns] = True
    return marked.to(high.device)
