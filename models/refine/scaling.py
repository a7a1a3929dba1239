"""What becomes of maps that a refiner flattened."""

from __future__ import annotations

import torch
from torch import Tensor


def into_range_of(maps: Tensor, original: Tensor) -> Tensor:
    """Stretch each map, (C, H, W), to the minimum and maximum of the original; a flat one becomes the original.

    For CAMs, whose range says nothing: they were stretched to [0, 1] themselves.
    """
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    floor, top = original.amin(dim=(1, 2), keepdim=True), original.amax(dim=(1, 2), keepdim=True)
    flat = (high - low) <= 1e-5 * high.abs()
    stretched = floor + (maps - low) / (high - low).clamp(min=1e-12) * (top - floor)
    return torch.where(flat | (top <= floor), original, stretched)


def as_they_are(maps: Tensor, original: Tensor) -> Tensor:
    """Return the maps: probabilities mean what they say."""
    del original
    return maps
