"""Class activation maps over several scales and a flip."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 32  # network input sides are multiples of it: few distinct sizes, whole strides


def grid_size(height: int, width: int, *, longer_side: int) -> tuple[int, int]:
    """Return the network input size (H, W) of an image: its longer side given, both multiples of 32.

    Few sizes mean that many images can share a batch; the aspect changes by at most half a step.
    """
    scale = longer_side / max(height, width)
    return _round_to_grid(height * scale), _round_to_grid(width * scale)


def multi_scale_cams(
    generator: Callable[[Tensor], Tensor],
    images: Tensor,
    present: Tensor,
    *,
    scales: Sequence[float],
    flip: bool,
    on_scale: Callable[[float], None] = lambda _: None,
) -> Tensor:
    """Sum the CAMs of several scales, with and without flip, at the images' size; then min-max per class.

    Method of SemPLeS and its predecessors: bicubic images, bilinear CAMs (corners not aligned), unflipped, summed.
    All images of a scale, straight and mirrored, go through the generator at once; only present classes are upsampled.

    Args:
        generator: the mask generator, (B, 3, H, W) → (B, K, h, w).
        images: in [0, 1], (B, 3, H, W).
        present: (image, class) index pairs that are wanted, (N, 2) int64.
        scales: relative to the images' size; sides are rounded to multiples of 32.
        flip: add the mirrored image's CAMs.
        on_scale: called before each scale with the share done so far; what it raises stops the work.

    Returns:
        CAMs in [0, 1], (N, H, W), in the order of the pairs; a class without any evidence is 0 everywhere.

    Raises:
        ValueError: if there is no scale.
    """
    if not scales:
        raise ValueError("expected at least one scale, got none")
    height, width = images.shape[-2:]
    image, channel = present.unbind(1)
    total = images.new_zeros((len(present), 1, height, width))
    for number, scale in enumerate(scales):
        on_scale(number / len(scales))
        size = _round_to_grid(height * scale), _round_to_grid(width * scale)
        scaled = resize_images(images, size)
        cams = generator(torch.cat([scaled, scaled.flip(-1)]) if flip else scaled)
        chosen = cams[
            image, channel
        ].float()  # half precision would be seen in what is interpolated
        if flip:
            chosen = chosen + cams[image + len(images), channel].flip(-1)
        total += F.interpolate(
            chosen[:, None], size=(height, width), mode="bilinear", align_corners=False
        )
    return normalize_cams(total[:, 0])


def normalize_cams(cams: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """Min-max each map over space, (..., H, W) → the same shape in [0, 1]; a constant map becomes 0."""
    low = cams.amin(dim=(-2, -1), keepdim=True)
    high = cams.amax(dim=(-2, -1), keepdim=True)
    span = high - low
    # Interpolating a constant leaves rounding noise, which must not be blown up to a full range.
    flat = span <= 1e-5 * high.abs()
    return ((cams - low) / (span + epsilon)).masked_fill(flat, 0)


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images in [0, 1], bicubic with antialiasing, clamped to [0, 1] since bicubic overshoots."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)


def _round_to_grid(side: float) -> int:
    return max(GRID, round(side / GRID) * GRID)
