"""The losses of SemPLeS, soft masks and masked images, and means over noisy pixels.

The losses take L2-normalized embeddings, (N, D), one row for each of N regions, and return a scalar in nats; no region
gives 0 with a gradient. Unequal shapes are a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MasksOf = Callable[..., Tensor]
"""(images, present, and what else a batch has) → soft masks (N, H, W) at CLIP's input size."""

_MIN_COSINE, _MAX_COSINE = 1e-4, 0.9999


def segment_label_matching(
    foreground: Tensor, background: Tensor, class_text: Tensor, *, background_weight: float
) -> Tensor:
    """Pull foreground regions towards their class text and push background regions away.

    L_match of SemPLeS: ``mean(-log cos(f, t)) + w_b * mean(-log(1 - cos(b, t)))``, with f of ``mask * image``, b of
    ``(1 - mask) * image`` and t of each region's class text.
    """
    _check_same_shape(foreground=foreground, background=background, class_text=class_text)
    attraction = _attract(_cosine(foreground, class_text))
    return attraction + background_weight * _repel(_cosine(background, class_text))


def contrastive_prompt_learning(
    background: Tensor, prompt: Tensor, class_text: Tensor, *, text_weight: float
) -> Tensor:
    """Pull each background prompt towards its class's background regions and away from the class text.

    L_prompt of SemPLeS: ``mean(-log cos(b, p)) + w_t * mean(log cos(t, p))``, with p of each region's background
    prompt. The second term is plus log, so its gradient is 1/cos: it drives the cosine to 0 rather than away from 1.
    """
    _check_same_shape(background=background, prompt=prompt, class_text=class_text)
    attraction = _attract(_cosine(background, prompt))
    return attraction + text_weight * _mean(torch.log(_cosine(class_text, prompt)))


def semantic_refinement(foreground: Tensor, prompt: Tensor, *, refinement_weight: float) -> Tensor:
    """Push foreground regions away from what the background prompts learned.

    L_refine of SemPLeS: ``w_r * mean(-log(1 - cos(f, p)))``; stage (c) adds it to L_match.
    """
    _check_same_shape(foreground=foreground, prompt=prompt)
    return refinement_weight * _repel(_cosine(foreground, prompt))


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of the valid values, both (B, H, W); none valid gives 0 with a gradient."""
    if values.shape != valid.shape or values.ndim != 3:
        raise ValueError(f"expected equal shapes (B, H, W), got {tuple(values.shape)} and {tuple(valid.shape)}")
    return (values * valid).sum() / valid.sum().clamp(min=1)


def noise_aware_mean(values: Tensor, valid: Tensor, *, trusted_below: float = 1.2, tile: int = 120) -> Tensor:
    """Return the mean of pixel losses, (B, H, W), each clipped at the usual loss around it.

    WeakTr's gradient clipping: pixels whose loss exceeds the mean of their tile and the mean of the batch probably have
    wrong labels. They count with the larger of the two means, without a gradient. While the mean of the batch is above
    ``trusted_below`` nats, the network has learned too little to doubt the labels, and nothing is clipped.
    """
    mean = masked_mean(values, valid)
    if mean.item() > trusted_below:
        return mean
    with torch.no_grad():
        counted = torch.stack([values * valid, valid.to(values)], dim=1)
        loss, share = F.avg_pool2d(counted, tile, ceil_mode=True).unbind(dim=1)
        usual = torch.maximum(loss / share.clamp(min=1e-12), mean)
        limits = usual.repeat_interleave(tile, dim=1).repeat_interleave(tile, dim=2)
        limits = limits[:, : values.shape[1], : values.shape[2]]
    return masked_mean(torch.where(values > limits, limits, values), valid)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    # Both clamps bound the gradient of the logarithms; a cosine outside gets none.
    return (a * b).sum(dim=-1).clamp(_MIN_COSINE, _MAX_COSINE)


def _attract(cosine: Tensor) -> Tensor:
    return _mean(-torch.log(cosine))


def _repel(cosine: Tensor) -> Tensor:
    return _mean(-torch.log1p(-cosine))


def _mean(values: Tensor) -> Tensor:
    # Not .mean(): a batch without a present class must give 0 with a gradient, never NaN.
    return values.sum() / max(values.numel(), 1)


def _check_same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    first = next(iter(shapes.values()))
    if len(first) != 2 or any(shape != first for shape in shapes.values()):
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"expected equal shapes (N, D), got {got}")


@dataclass(frozen=True)
class _MaskedImages:
    """The inputs of CLIP: one foreground and one background per (image, present class), (N, 3, H, W)."""

    foreground: Tensor  # ``mask * image``
    background: Tensor  # ``(1 - mask) * image``


def present_pairs(labels: Tensor) -> Tensor:
    """Return the (image, class) index pairs of multi-hot labels, (B, K) → (N, 2) int64, image by image."""
    if labels.ndim != 2:
        raise ValueError(f"expected labels (B, K), got {tuple(labels.shape)}")
    return torch.nonzero(labels > 0)


def soft_masks(cams: Tensor, *, size: tuple[int, int], epsilon: float) -> Tensor:
    """Turn the CAMs of present classes, (N, h, w), into soft masks in [0, 1), (N, H, W), at CLIP's input size.

    Bilinear with aligned corners, then ``(cam - min) / (max - min + epsilon)`` over space (SemPLeS' released
    experiments: epsilon 0.1 where the generator learns, 1e-4 where the prompts do).
    """
    if cams.shape[0] == 0:
        return cams.new_zeros((0, *size)) + cams.sum()
    maps = F.interpolate(cams[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]
    low = maps.amin(dim=(1, 2), keepdim=True)
    high = maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low + epsilon)


def mask_images(images: Tensor, masks: Tensor, present: Tensor) -> _MaskedImages:
    """Multiply each normalized image, (B, 3, H, W), by its masks in [0, 1], (N, H, W), and by their complements."""
    if images.shape[-2:] != masks.shape[-2:] or masks.shape[0] != present.shape[0]:
        raise ValueError(
            f"expected one mask of the images' size for each of {present.shape[0]} pairs, "
            f"got images {tuple(images.shape)} and masks {tuple(masks.shape)}"
        )
    chosen = images[present[:, 0]]
    foreground = masks[:, None] * chosen
    return _MaskedImages(foreground=foreground, background=chosen - foreground)
