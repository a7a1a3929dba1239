"""Soft masks of the present classes, and the image regions inside and outside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# (images, present) → soft masks (N, H, W) at CLIP's input size
MasksOf = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Regions:
    """What CLIP looks at: one foreground and one background per (image, present class).

    Attributes:
        foreground: ``mask * image``, (N, 3, H, W).
        background: ``(1 - mask) * image``, (N, 3, H, W).
    """

    foreground: Tensor
    background: Tensor


def present_pairs(labels: Tensor) -> Tensor:
    """Return the (image, class) index pairs with label 1, (N, 2) int64, image by image.

    Args:
        labels: multi-hot image-level labels, (B, K).

    Raises:
        ValueError: if labels is not two-dimensional.
    """
    if labels.ndim != 2:
        raise ValueError(f"expected labels (B, K), got {tuple(labels.shape)}")
    return torch.nonzero(labels > 0)


def soft_masks(cams: Tensor, present: Tensor, *, size: tuple[int, int], epsilon: float) -> Tensor:
    """Turn the CAMs of present classes into soft masks at CLIP's input size.

    Bilinear with aligned corners, then ``(cam - min) / (max - min + epsilon)`` over space (SemPLeS' released
    experiments: epsilon 0.1 where the generator learns, 1e-4 where the prompts do). Absent classes are never upsampled.

    Args:
        cams: class activation maps, (B, K, h, w).
        present: (image, class) index pairs, (N, 2).
        size: (H, W) in pixels.
        epsilon: in units of the CAM; positive.

    Returns:
        Masks in [0, 1), (N, H, W).
    """
    chosen = cams[present[:, 0], present[:, 1]]
    if chosen.shape[0] == 0:
        return chosen.new_zeros((0, *size)) + chosen.sum()
    maps = F.interpolate(chosen[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]
    low = maps.amin(dim=(1, 2), keepdim=True)
    high = maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low + epsilon)


def split_regions(images: Tensor, masks: Tensor, present: Tensor) -> Regions:
    """Cut each image into the inside and the outside of its masks.

    Args:
        images: images as CLIP takes them, that is normalized, so that 0 is the mean color, (B, 3, H, W).
        masks: soft masks in [0, 1], (N, H, W).
        present: (image, class) index pairs of the masks, (N, 2).

    Raises:
        ValueError: if images and masks differ in size, or masks and present in number.
    """
    if images.shape[-2:] != masks.shape[-2:] or masks.shape[0] != present.shape[0]:
        raise ValueError(
            f"expected one mask of the images' size for each of {present.shape[0]} pairs, "
            f"got images {tuple(images.shape)} and masks {tuple(masks.shape)}"
        )
    chosen = images[present[:, 0]]
    foreground = masks[:, None] * chosen
    return Regions(foreground=foreground, background=chosen - foreground)
