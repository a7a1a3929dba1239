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
    indices = [bundle.info.classes.classes[channel].index for channel in channels.tolist()]
    filled = [bool((label_map == index).any()) for index in indices]
    if tower is None or not any(filled):
        return [NO_ALIGNMENT] * len(indices)
    size = tower.input_size
    # Area averages of the mask keep thin parts visible at CLIP's small size.
    masks = [_area(label_map == index, size) for index in indices]
    seen = tower.normalize(resize_images(image, size))
    regions = torch.stack(masks).to(image.device)[:, None] * seen
    foreground = tower.embed_images(regions)
    to_class = (foreground * bundle.class_text[channels]).sum(dim=-1).tolist()
    if bundle.prompts is None:
        to_background: list[float | None] = [None] * len(indices)
    else:
        to_background = (foreground * bundle.prompts[channels]).sum(dim=-1).tolist()
    return [
        Alignment(near, far) if found else NO_ALIGNMENT
        for near, far, found in zip(to_class, to_background, filled, strict=True)
    ]


def _area(region: NDArray[np.bool_], size: tuple[int, int]) -> Tensor:
    """Share of each cell of a grid of the given size that a region covers."""
    maps = torch.from_numpy(region.astype(np.float32))[None, None]
    return torch.nn.functional.interpolate(maps, size=size, mode="area")[0, 0]
