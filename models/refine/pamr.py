"""PAMR, pixel-adaptive mask refinement, as ten sparse products, without a tensor of neighbors.

Araslanov and Roth, *Single-Stage Semantic Segmentation from Image Labels*, CVPR 2020. An iteration replaces a pixel's
scores by the weighted mean of its neighbors', 8 per dilation. Gathering those would take a (C, 48, H, W) tensor; an
embedding bag computes the weighted sums of the rows of a table, the score map with the channels last, in one fused
kernel. (Where torch has no FBGEMM, as on ARM, it is correct but slower.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from models.refine import RefinerContext, check_pair

DILATIONS: Final = (1, 2, 4, 8, 12, 24)
ITERATIONS: Final = 10
_CHUNK: Final = 1 << 15

_TEMPERATURE = 0.1
_EPSILON = 1e-8


@dataclass(frozen=True)
class _Pamr:
    """`pamr` with its parameters, as a `models.refine.Refiner`."""

    iterations: int = ITERATIONS
    dilations: tuple[int, ...] = DILATIONS

    def __call__(self, image: Tensor, scores: Tensor) -> Tensor:
        """Refine (B, C, H, W) scores by (B, 3, H, W) images in [0, 1]."""
        return pamr(image, scores, iterations=self.iterations, dilations=self.dilations)


def build(context: RefinerContext) -> _Pamr:
    """Build the refiner."""
    del context
    return _Pamr()


@torch.no_grad()
def pamr(
    image: Tensor,
    scores: Tensor,
    *,
    iterations: int = ITERATIONS,
    dilations: Sequence[int] = DILATIONS,
) -> Tensor:
    """Spread scores, (B, C, H, W), between neighbors of similar color in images, (B, 3, H, W) in [0, 1]; no gradient.

    ``iterations`` times ``scores_i = sum_j k_ij scores_j``, with ``k_ij = softmax_j(-mean_rgb(|I_i - I_j| / (1e-8 + 0.1
    std_i)))``, where j runs over the 8 neighbors of i at each dilation (pixels outside repeat the border) and std_i is
    the unbiased deviation over the 3x3 windows of all dilations. Computed in float32, one image after the other;
    besides the scores it holds 8 bytes per pixel and neighbor.

    Raises:
        ValueError: if the shapes or the parameters are not as above.
    """
    check_pair(image, scores)
    _check_parameters(iterations, dilations)
    if scores.numel() == 0 or iterations == 0:
        return scores.clone()
    refined = torch.empty_like(scores)
    index = _neighbor_index(*scores.shape[2:], dilations=dilations, device=scores.device)
    for item in range(len(scores)):
        weights = _affinities(image[item].float(), index)
        table = scores[item].float().flatten(1).t().contiguous()
        for _ in range(iterations):
            table = functional.embedding_bag(index, table, mode="sum", per_sample_weights=weights)
        refined[item] = table.t().view_as(refined[item])
    return refined


def _neighbor_index(height: int, width: int, *, dilations: Sequence[int], device: torch.device) -> Tensor:
    """Number each pixel's neighbors, row by row; outside the image the border is repeated."""
    steps = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
    offsets = torch.tensor([(d * y, d * x) for d in dilations for y, x in steps], device=device)
    rows = torch.arange(height, device=device)[:, None] + offsets[:, 0]
    columns = torch.arange(width, device=device)[:, None] + offsets[:, 1]
    rows = rows.clamp_(0, height - 1).mul_(width).to(torch.int32)
    columns = columns.clamp_(0, width - 1).to(torch.int32)
    return (rows[:, None] + columns).flatten(0, 1)


@torch.no_grad()
def _affinities(image: Tensor, index: Tensor, *, chunk: int = _CHUNK) -> Tensor:
    """Weigh each pixel's neighbors, (H * W, J) of ``_neighbor_index``, by their likeness in color; rows sum to 1."""
    colors = image.flatten(1)
    neighbors = index.shape[1]
    window = neighbors // 8 * 9
    weights = torch.empty_like(index, dtype=image.dtype)
    for start in range(0, len(index), chunk):
        pixels = slice(start, start + chunk)
        chosen = index[pixels].flatten()
        difference = torch.stack([channel.index_select(0, chosen) for channel in colors])
        difference = difference.view(3, -1, neighbors).sub_(colors[:, pixels, None])
        squares = torch.linalg.vector_norm(difference, dim=2).square_()
        variance = (squares - difference.sum(2).square_() / window) / (window - 1)
        scale = variance.sqrt_().mul_(_TEMPERATURE).add_(_EPSILON).mul_(-3).reciprocal_()
        logits = difference.abs_().mul_(scale[:, :, None]).sum(0).exp_()
        torch.div(logits, logits.sum(1, keepdim=True), out=weights[pixels])
    return weights


def _check_parameters(iterations: int, dilations: Sequence[int]) -> None:
    if iterations < 0:
        raise ValueError(f"expected iterations of at least 0, got {iterations}")
    if not dilations or min(dilations) < 1:
        raise ValueError(f"expected dilations of at least 1, got {tuple(dilations)}")
