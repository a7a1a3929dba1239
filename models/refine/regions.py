"""Region proposals: sets of pixels that probably belong to one thing; they may overlap and leave gaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from skimage.segmentation import felzenszwalb
from torch import Tensor


@dataclass(frozen=True)
class Regions:
    """R sets of pixels of an image, none empty.

    Attributes:
        pixels: their numbers, row by row, region by region, (P,) int64.
        offsets: where each region begins, (R,) int64.
    """

    pixels: Tensor
    offsets: Tensor

    def numbers(self) -> Tensor:
        """Return the region's number of each of the P entries, (P,)."""
        ends = torch.cat([self.offsets[1:], self.offsets.new_tensor([len(self.pixels)])])
        regions = torch.arange(len(self.offsets), device=self.pixels.device)
        return regions.repeat_interleave(ends - self.offsets)


def partition(labels: Tensor) -> Regions:
    """Return the regions of a map, (H, W), of region numbers."""
    ordered, pixels = labels.flatten().sort(stable=True)
    first = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    return Regions(pixels, first.nonzero().flatten())


def from_masks(masks: Tensor) -> Regions:
    """Return the regions that masks, (R, H, W) bool, cover; empty ones are left out."""
    filled = masks.flatten(1)[masks.flatten(1).any(dim=1)]
    region, pixels = filled.nonzero(as_tuple=True)
    return Regions(
        pixels, torch.searchsorted(region, torch.arange(len(filled), device=region.device))
    )


def superpixels(
    image: Tensor, *, scale: float = 200, blur: float = 0.8, min_pixels: int = 150
) -> Regions:
    """Cut an image into superpixels by color (Felzenszwalb and Huttenlocher, IJCV 2004); on the CPU.

    Args:
        image: (3, H, W) in [0, 1].
        scale: higher gives larger superpixels.
        blur: deviation of the smoothing before, in pixels.
        min_pixels: smaller ones are merged.
    """
    pixels = image.permute(1, 2, 0).float().cpu().numpy().astype(np.float64)
    labels = felzenszwalb(pixels, scale=scale, sigma=blur, min_size=min_pixels)
    return partition(torch.from_numpy(labels).to(image.device))
