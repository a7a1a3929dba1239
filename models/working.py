"""Photos to the tensors that networks and refinement work on, and back to soft maps of the photo."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.cam import grid_size
from models.data.classes import ClassInfo
from models.pseudo_masks import SoftMaps


def working_images(
    images: Sequence[NDArray[np.uint8]], longer_side: int, *, device: torch.device
) -> Tensor:
    """Bring photos to the size that networks and refinement work on, (B, 3, H, W) in [0, 1].

    Args:
        images: RGB in the upright frame, (H, W, 3) each.
        longer_side: in pixels.
        device: where the tensor goes.

    Raises:
        ValueError: if there are none, one has another form, or they come to different sizes.
    """
    small = [_resized(image, longer_side) for image in images]
    sizes = {pixels.shape[:2] for pixels in small}
    if len(sizes) != 1:
        raise ValueError(f"expected images of one working size, got {sorted(sizes)}")
    # As bytes to the device: a quarter of what goes there as numbers.
    return torch.from_numpy(np.stack(small)).to(device).permute(0, 3, 1, 2).float() / 255


def soft_maps(
    scores: Tensor,
    classes: Sequence[ClassInfo],
    image: NDArray[np.uint8],
    *,
    background: Tensor | None = None,
) -> SoftMaps:
    """Bring a photo's scores, (n, h, w), and its background's, (h, w), to where label maps are decided."""
    return SoftMaps(
        scores=scores.cpu().numpy(),
        indices=np.array([each.index for each in classes], dtype=np.int64),
        names=tuple(each.name for each in classes),
        size=(image.shape[0], image.shape[1]),
        background=None if background is None else background.half().cpu().numpy(),
    )


def _resized(image: NDArray[np.uint8], longer_side: int) -> NDArray[np.uint8]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected an image (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = grid_size(*image.shape[:2], longer_side=longer_side)
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(small)
