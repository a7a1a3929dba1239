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


# Segmentation over several scales, a flip and sliding windows.

Probabilities = Callable[[Tensor], Tensor]  # what a segmenter does; see Segmenter.forward

_OVERLAP = 1 / 3  # share of a window that it has in common with the next one, at least
_ROUNDING = 1e-6  # of probabilities


def segment_images(
    segmenter: Probabilities,
    images: Tensor,
    *,
    scales: Sequence[float],
    flip: bool,
    window: int | None,
    on_scale: Callable[[float], None] = lambda _: None,
) -> Tensor:
    """Average a segmenter's probabilities over scales, with and without flip.

    Args:
        segmenter: images (B, 3, H, W) → probabilities (B, K + 1, h, w).
        images: in [0, 1], (B, 3, H, W), sides multiples of 32.
        scales: relative to the images' size; sides are rounded to multiples of 32.
        flip: add the mirrored image's probabilities.
        window: side of the windows in pixels, for scaled images that exceed it; None sees every image whole.
        on_scale: called before each scale with the share done so far; what it raises stops the work.

    Returns:
        Probabilities, background first; they sum to 1 over the channels. (B, K + 1, H, W), or (B, K + 1, h, w) where
        the images are seen as they are alone and whole: what is done on that grid costs far less.

    Raises:
        ValueError: if there is no scale.
    """
    if not scales:
        raise ValueError("expected at least one scale, got none")
    height, width = images.shape[-2:]
    alone = len(scales) == 1
    total = images.new_zeros(())
    for number, scale in enumerate(scales):
        on_scale(number / len(scales))
        size = grid_size(height, width, longer_side=round(scale * max(height, width)))
        scaled = resize_images(images, size)
        batch = torch.cat([scaled, scaled.flip(-1)]) if flip else scaled
        whole = alone and size == (height, width) and not _exceeds(size, window)
        found = segmenter(batch) if whole else in_windows(segmenter, batch, window=window)
        if flip:
            straight, mirrored = found.chunk(2)
            found = (straight + mirrored.flip(-1)) / 2
        if whole:
            return found
        total = total + _stretch(found, (height, width))
    return total / len(scales)


def in_windows(segmenter: Probabilities, images: Tensor, *, window: int | None) -> Tensor:
    """Return a segmenter's probabilities at the images' size; large images are seen through overlapping windows.

    Where windows overlap, their probabilities are averaged.

    Args:
        segmenter: images (B, 3, H, W) → probabilities (B, K + 1, h, w).
        images: (B, 3, H, W), sides multiples of 32.
        window: a multiple of 32; images no larger are seen whole, and so are all without a window.

    Returns:
        (B, K + 1, H, W).
    """
    height, width = images.shape[-2:]
    if window is None or not _exceeds((height, width), window):
        return _stretch(segmenter(images), (height, width))
    total, count = images.new_zeros(()), images.new_zeros((height, width))
    for top in window_starts(height, window=window):
        for left in window_starts(width, window=window):
            rows, columns = slice(top, top + window), slice(left, left + window)
            part = images[..., rows, columns]
            found = _stretch(segmenter(part), (part.shape[-2], part.shape[-1]))
            if not total.ndim:
                total = images.new_zeros((*found.shape[:2], height, width))
            total[..., rows, columns] += found
            count[rows, columns] += 1
    return total / count


def window_starts(length: int, *, window: int) -> list[int]:
    """Return where windows along a side begin: at multiples of 32, at least a third overlapping, up to both ends."""
    room = length - window
    if room <= 0:
        return [0]
    step = max(int(window * (1 - _OVERLAP)) // GRID * GRID, GRID)
    return [*range(0, room, step), room]


def _stretch(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    if probabilities.shape[-2:] == size:
        return probabilities
    return F.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)


def argmax_classes(probabilities: Tensor) -> Tensor:
    """Return the class channels that are the best somewhere, (1, K + 1, H, W) background first → (n,)."""
    numbers = torch.unique(probabilities.argmax(dim=1))
    channels: Tensor = numbers[numbers > 0] - 1
    return channels


def upsampled_argmax_classes(probabilities: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the class channels that are the best somewhere once stretched to a size, and only their maps.

    Args:
        probabilities: background first, (1, K + 1, h, w).
        size: (H, W).

    Returns:
        The channels of the classes, (n,), and the stretched maps of the background and of these, (1, n + 1, H, W).
    """
    if probabilities.shape[-2:] == size:
        best = argmax_classes(probabilities)
        return best, _with_background(probabilities, best)
    competing = candidate_classes(probabilities)
    maps = _stretch(_with_background(probabilities, competing), size)
    best = argmax_classes(maps)
    return competing[best], _with_background(maps, best)


def candidate_classes(probabilities: Tensor) -> Tensor:
    """Return the class channels that can be the best somewhere once stretched, (1, K + 1, h, w) → (n,).

    What bilinear interpolation gives between four places is no higher than a class's highest there, and no lower than
    another's lowest.
    """
    kernel = [min(2, side) for side in probabilities.shape[-2:]]
    highest = F.max_pool2d(probabilities, kernel, stride=1)
    lowest = -F.max_pool2d(-probabilities, kernel, stride=1)
    bar = lowest.amax(dim=1, keepdim=True) - _ROUNDING
    competes = (highest >= bar).flatten(2).any(dim=2)[0, 1:]
    channels: Tensor = competes.nonzero()[:, 0]
    return channels


def renormalize(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Return what some channels, (1, n + 1, H, W), have among themselves, and what they have together.

    Returns:
        Shares that sum to 1, (1, n + 1, H, W), and the sum of the probabilities they were, (1, 1, H, W).
    """
    together = probabilities.sum(dim=1, keepdim=True)
    return probabilities / together.clamp(min=1e-12), together


def _with_background(probabilities: Tensor, channels: Tensor) -> Tensor:
    return probabilities[:, torch.cat([channels.new_zeros(1), channels + 1])]


def _exceeds(size: tuple[int, int], window: int | None) -> bool:
    return window is not None and max(size) > window
