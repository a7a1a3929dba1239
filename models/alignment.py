"""How well a mask fits its class by the method's own yardstick."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import Bundle
from models.cam import resize_images
from models.segmentation import NO_ALIGNMENT, Alignment


def score_alignment(
    bundle: Bundle, image: Tensor, label_map: NDArray[np.uint8], channels: Tensor
) -> list[Alignment]:
    """Score each class's mask: CLIP sees the masked image, its other pixels the mean color.

    Args:
        bundle: with or without CLIP's image tower and prompts.
        image: in [0, 1], (1, 3, H, W).
        label_map: class indices, of any size.
        channels: of the classes to score, (n,).

    Returns:
        One alignment a class, in the order of channels.
    """
    tower = bundle.image_tower
    regions = [
        label_map == bundle.info.classes.classes[channel].index for channel in channels.tolist()
    ]
    filled = [number for number, region in enumerate(regions) if region.any()]
    scored = [NO_ALIGNMENT] * len(regions)
    if tower is None or not filled:
        return scored
    size = tower.input_size
    # Area averages of the mask keep thin parts visible at CLIP's small size.
    masks = torch.stack([_area(regions[number], size) for number in filled])
    seen = tower.normalize(resize_images(image, size))
    foreground = tower.embed_images(masks.to(image.device)[:, None] * seen)
    chosen = channels[filled]
    to_class = (foreground * bundle.class_text[chosen]).sum(dim=-1).tolist()
    to_background: list[float] | list[None] = [None] * len(filled)
    if bundle.prompts is not None:
        to_background = (foreground * bundle.prompts[chosen]).sum(dim=-1).tolist()
    for number, near, far in zip(filled, to_class, to_background, strict=True):
        scored[number] = Alignment(near, far)
    return scored


def _area(region: NDArray[np.bool_], size: tuple[int, int]) -> Tensor:
    """Share of each cell of a grid of the given size that a region covers."""
    maps = torch.from_numpy(region.astype(np.float32))[None, None]
    return torch.nn.functional.interpolate(maps, size=size, mode="area")[0, 0]
