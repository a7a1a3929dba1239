"""CAMs and segmenters' probabilities over several scales, a flip and sliding windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Probabilities = Callable[[Tensor], Tensor]
"""A segmenter's forward pass; see Segmenter."""

_GRID = 32  # network input sides are multiples of it: few distinct sizes, whole strides
_OVERLAP = 1 / 3  # least share of a window that it has in common with the next one
_ROUNDING = 1e-6  # of probabilities


def grid_size(height: int, width: int, *, longer_side: int) -> tuple[int, int]:
    """Return the network input size (H, W) of an image: its longer side given, both multiples of 32.

    Few sizes mean that many images can share a batch; the aspect changes by at most half a step.
    """
    scale = longer_side / max(height, width)
    return _round_to_grid(height * scale), _round_to_grid(width * scale)


def multi_scale_cams(
    cams_of: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    present: Tensor,
    *,
    scales: Sequence[float],
    flip: bool,
    competition: float = 0.0,
    on_scale: Callable[[float], None] = lambda _: None,
) -> Tensor:
    """Sum the CAMs of several scales, with and without flip, at the images' size; then min-max per class.

    Method of SemPLeS and its predecessors: bicubic images, bilinear CAMs (corners not aligned), unflipped, summed.
    ``cams_of`` maps images, (B, 3, H, W) in [0, 1], and (image, class) index pairs, (N, 2), to CAMs, (N, h, w); scales
    are relative to the images' size. ``competition`` is the share of an image's strongest other CAM that is taken from
    each, at each place and scale; with 0 each is what it is alone. ``on_scale`` is called before each scale with the
    share done; what it raises stops the work.

    Returns:
        CAMs in [0, 1], (N, H, W), in the order of the pairs; a class without any evidence is 0 everywhere.
    """
    if not scales:
        raise ValueError("expected at least one scale, got none")
    height, width = images.shape[-2:]
    mirrored = present + present.new_tensor([len(images), 0])
    total = images.new_zeros((len(present), 1, height, width))
    for number, scale in enumerate(scales):
        on_scale(number / len(scales))
        size = _round_to_grid(height * scale), _round_to_grid(width * scale)
        scaled = resize_images(images, size)
        # Interpolated in single precision: half precision would be visible.
        if flip:
            both = cams_of(torch.cat([scaled, scaled.flip(-1)]), torch.cat([present, mirrored])).float()
            chosen = both[: len(present)] + both[len(present) :].flip(-1)
        else:
            chosen = cams_of(scaled, present).float()
        if competition:
            chosen = _compete(chosen, present[:, 0], share=competition)
        total += F.interpolate(chosen[:, None], size=(height, width), mode="bilinear", align_corners=False)
    return normalize_cams(total[:, 0])


def _compete(cams: Tensor, images: Tensor, *, share: float) -> Tensor:
    """Take from each CAM, (N, h, w), a share of the highest other CAM of its image; ``images`` are indices, (N,)."""
    others = (images[:, None] == images).fill_diagonal_(False)
    # CAMs are not negative, so 0 stands for those of other images.
    rivals = (others[:, :, None, None] * cams).amax(dim=1)
    return (cams - share * rivals).relu()


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
    return max(_GRID, round(side / _GRID) * _GRID)


def segment_images(
    segmenter: Probabilities,
    images: Tensor,
    *,
    scales: Sequence[float],
    flip: bool,
    window: int | None,
    on_scale: Callable[[float], None] = lambda _: None,
) -> Tensor:
    """Average a segmenter's probabilities over scales, with and without flip; arguments as of ``multi_scale_cams``.

    Scaled images that exceed ``window`` pixels are segmented in overlapping windows of that side.

    Returns:
        Probabilities, background first, (B, K + 1, H, W), or on the segmenter's grid, (B, K + 1, h, w), with one scale,
            the images' own, and no windows: later work costs far less there.
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
        found = segmenter(batch) if whole else _in_windows(segmenter, batch, window=window)
        if flip:
            straight, mirrored = found.chunk(2)
            found = (straight + mirrored.flip(-1)) / 2
        if whole:
            return found
        total = total + upsample(found, (height, width))
    return total / len(scales)


def _in_windows(segmenter: Probabilities, images: Tensor, *, window: int | None) -> Tensor:
    """Probabilities at the images' size, (B, K + 1, H, W), averaged over the overlapping windows of large images."""
    height, width = images.shape[-2:]
    if window is None or not _exceeds((height, width), window):
        return upsample(segmenter(images), (height, width))
    total, count = images.new_zeros(()), images.new_zeros((height, width))
    for top in _window_starts(height, window=window):
        for left in _window_starts(width, window=window):
            rows, columns = slice(top, top + window), slice(left, left + window)
            part = images[..., rows, columns]
            found = upsample(segmenter(part), (part.shape[-2], part.shape[-1]))
            if not total.ndim:
                total = images.new_zeros((*found.shape[:2], height, width))
            total[..., rows, columns] += found
            count[rows, columns] += 1
    return total / count


def _window_starts(length: int, *, window: int) -> list[int]:
    """Starts of the windows along a side: multiples of 32, at least a third overlapping, up to both ends."""
    room = length - window
    if room <= 0:
        return [0]
    step = max(int(window * (1 - _OVERLAP)) // _GRID * _GRID, _GRID)
    return [*range(0, room, step), room]


def upsample(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample maps, (B, C, h, w), bilinearly to a size (H, W); corners not aligned."""
    if probabilities.shape[-2:] == size:
        return probabilities
    return F.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)


def argmax_classes(probabilities: Tensor) -> Tensor:
    """Return the class channels that are the best somewhere, (1, K + 1, H, W) background first → (n,)."""
    numbers = torch.unique(probabilities.argmax(dim=1))
    channels: Tensor = numbers[numbers > 0] - 1
    return channels


def upsampled_argmax_classes(probabilities: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Upsample probabilities, (1, K + 1, h, w), and keep the classes that are the best somewhere.

    Returns their channels, (n,), and the maps of the background and of these classes, (1, n + 1, H, W).
    """
    if probabilities.shape[-2:] == size:
        best = argmax_classes(probabilities)
        return best, _with_background(probabilities, best)
    candidates = _candidate_classes(probabilities)
    maps = upsample(_with_background(probabilities, candidates), size)
    best = argmax_classes(maps)
    return candidates[best], _with_background(maps, best)


def _candidate_classes(probabilities: Tensor) -> Tensor:
    """The class channels that can be the best somewhere once upsampled, (1, K + 1, h, w) → (n,)."""
    kernel = [min(2, side) for side in probabilities.shape[-2:]]
    highest = F.max_pool2d(probabilities, kernel, stride=1)
    lowest = -F.max_pool2d(-probabilities, kernel, stride=1)
    bar = lowest.amax(dim=1, keepdim=True) - _ROUNDING
    competes = (highest >= bar).flatten(2).any(dim=2)[0, 1:]
    channels: Tensor = competes.nonzero()[:, 0]
    return channels


def renormalize(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Return shares of some channels that sum to 1, (1, n + 1, H, W), and their total before, (1, 1, H, W)."""
    total = probabilities.sum(dim=1, keepdim=True)
    return probabilities / total.clamp(min=1e-12), total


def _with_background(probabilities: Tensor, channels: Tensor) -> Tensor:
    return probabilities[:, torch.cat([channels.new_zeros(1), channels + 1])]


def _exceeds(size: tuple[int, int], window: int | None) -> bool:
    return window is not None and max(size) > window
