"""Dense conditional random field: neighbors in place and color agree on their class.

Krähenbühl and Koltun, *Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials*, NeurIPS 2011.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from models.refine import Surroundings
from models.refine.checks import check_pair
from models.refine.permutohedral import build_lattice

_EPSILON: Final = 1e-8


@dataclass(frozen=True)
class Kernel:
    """What makes two pixels neighbors.

    Attributes:
        spread: deviation in place, in pixels.
        colors: deviation in color, of 255; None for neighbors whatever their color.
        compatibility: how much disagreeing neighbors cost.
    """

    spread: float
    colors: float | None
    compatibility: float


VOC_KERNELS: Final = (Kernel(4, None, 3), Kernel(83, 5, 3))
COCO_KERNELS: Final = (Kernel(3, None, 3), Kernel(50, 5, 10))
ITERATIONS: Final = 10


@dataclass(frozen=True)
class DenseCrf:
    """`dense_crf` as a `models.refine.Refiner`.

    Attributes:
        background: scores (C, H, W) → the background's score (H, W), which takes part and is dropped again.
        kernels: see Kernel.
        iterations: of the mean field.
    """

    background: Callable[[Tensor], Tensor]
    kernels: tuple[Kernel, ...] = VOC_KERNELS
    iterations: int = ITERATIONS

    def __call__(self, image: Tensor, scores: Tensor) -> Tensor:
        """Refine (B, C, H, W) scores in [0, 1] by (B, 3, H, W) images in [0, 1]."""
        check_pair(image, scores)
        refined = torch.empty_like(scores)
        if not scores.numel():
            return refined
        for item, (photo, maps) in enumerate(zip(image.float(), scores.float(), strict=True)):
            all_scores = torch.cat([self.background(maps)[None], maps]).clamp(min=_EPSILON)
            probabilities = all_scores / all_scores.sum(dim=0)
            refined[item] = dense_crf(
                photo, probabilities, kernels=self.kernels, iterations=self.iterations
            )[1:]
        return refined


def build(surroundings: Surroundings) -> DenseCrf:
    """Build the refiner with VOC's kernels and the surroundings' background."""
    return DenseCrf(surroundings.background)


def build_coco(surroundings: Surroundings) -> DenseCrf:
    """Build the refiner with COCO's kernels: `dense_crf_coco`."""
    return DenseCrf(surroundings.background, COCO_KERNELS)


@torch.no_grad()
def dense_crf(
    image: Tensor, probabilities: Tensor, *, kernels: Sequence[Kernel], iterations: int = ITERATIONS
) -> Tensor:
    """Run the mean field with a Potts model and Gaussian kernels on permutohedral lattices.

    Starting from q = p, ``q = softmax(log p + Σ_k w_k n_k K_k (n_k q))`` with ``n_k = (K_k 1)^-½``.

    Args:
        image: (3, H, W) float32 in [0, 1].
        probabilities: p, (C, H, W) float32 in (0, 1], summing to 1.
        kernels: K_k and w_k.
        iterations: 0 returns p.

    Returns:
        (C, H, W), summing to 1.
    """
    channels, height, width = probabilities.shape
    lattices = [
        build_lattice(_features(image, kernel)).normalized(strength=kernel.compatibility)
        for kernel in kernels
    ]
    unary = probabilities.flatten(1).clamp(min=_EPSILON).log()
    beliefs = unary.softmax(dim=0)
    for _ in range(iterations):
        # Lattices want the channels last, the softmax is far quicker with them first.
        table = beliefs.t().contiguous()
        logits = unary.clone()
        for lattice in lattices:
            logits += lattice.filter(table).t()
        beliefs = logits.softmax(dim=0)
    return beliefs.view(channels, height, width)


def _features(image: Tensor, kernel: Kernel) -> Tensor:
    """Return each pixel's place, and color if it counts, in deviations, (H W, 2 or 5)."""
    _, height, width = image.shape
    rows = torch.arange(height, device=image.device)[:, None].expand(height, width)
    columns = torch.arange(width, device=image.device).expand(height, width)
    place = torch.stack([columns, rows]).float() / kernel.spread
    if kernel.colors is None:
        return place.flatten(1).t()
    return torch.cat([place, image * (255 / kernel.colors)]).flatten(1).t()
