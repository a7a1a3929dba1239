"""Training augmentation: a decoded photo in, a crop in [0, 1] out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from torch import Tensor

Transform = Callable[[NDArray[np.uint8]], Tensor]

# At 10, which one photo in some hundreds draws, timm posterizes to 0 bits a color, and Pillow refuses.
_STRONGEST = 9.99


def light_augmentation(size: int, *, min_area: float) -> Transform:
    """Random resized crop (bicubic) and flip, what stage (b) uses.

    Args:
        size: side of the crop in pixels.
        min_area: smallest share of the photo that a crop shows.
    """
    return _pipeline(size, min_area=min_area, policy=None)


def strong_augmentation(size: int, *, min_area: float) -> Transform:
    """Add RandAugment (m9, mstd 0.5, inc1) and random erasing (0.25, pixel noise).

    Stages (a) and (c) of the released experiments. Their settings name a color jitter of 0.4 too, but timm, which
    they use as we do, leaves it out beside RandAugment, whose policy has color operations of its own.

    Args:
        size: side of the crop in pixels.
        min_area: smallest share of the photo that a crop shows.
    """
    crop = _pipeline(size, min_area=min_area, policy="rand-m9-mstd0.5-inc1")
    erase = RandomErasing(probability=0.25, mode="pixel", device="cpu")

    def transform(pixels: NDArray[np.uint8]) -> Tensor:
        # Erasing draws unit normal noise, which is meant for normalized pixels: center and scale around it.
        noisy: Tensor = erase((crop(pixels) - 0.5) / 0.25)
        return (noisy * 0.25 + 0.5).clamp(0, 1)

    return transform


def _pipeline(size: int, *, min_area: float, policy: str | None) -> Transform:
    compose = create_transform(
        size,
        is_training=True,
        scale=(min_area, 1.0),
        color_jitter=0.0,
        auto_augment=policy,
        interpolation="bicubic",
        normalize=False,
    )
    for step in compose.transforms:
        if isinstance(step, RandAugment):
            for operation in step.ops:
                operation.magnitude_max = _STRONGEST
    return lambda pixels: torch.as_tensor(compose(Image.fromarray(pixels))).float() / 255
