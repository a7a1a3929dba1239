"""Dense conditional random field: neighbors in place and color agree on their class.

Krähenbühl and Koltun, *Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials*, NeurIPS 2011.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from models.refine import RefinerContext, check_pair

# Gaussian sums over many points in a few dimensions, on a permutohedral lattice of sparse products.
#
# Adams, Baek and Davis, *Fast High-Dimensional Filtering Using the Permutohedral Lattice*, 2010. Values are
# splatted onto the corners of the simplex around each point, blurred along the lattice's d + 1 directions, and sliced
# back. Each of the three is one weighted sum of table rows, so each is an embedding bag; the lattice of an image is
# built once and serves any number of channels and iterations.

_TINY = 1e-20
_FARTHEST = 1e5  # beyond it single precision no longer tells neighbors apart


@dataclass(frozen=True)
class Lattice:
    """A lattice around N points in d dimensions with V corners.

    Attributes:
        corners: of the simplex around each point, (N, d + 1) int32, in [0, V).
        weights: with which a point takes from them, (N, d + 1).
        points: the points that touch each corner, corner by corner, (N (d + 1),) int32.
        point_weights: with which they give, barycentric, (N (d + 1),).
        offsets: where each corner's points begin, (V,) int32.
        neighbors: of each corner along each direction: itself, the one before, the one after, (d + 1, V, 3) int32.
        neighbor_weights: 1, ½, ½; 0 where there is no such corner, (d + 1, V, 3).
    """

    corners: Tensor
    weights: Tensor
    points: Tensor
    point_weights: Tensor
    offsets: Tensor
    neighbors: Tensor
    neighbor_weights: Tensor

    def filter(self, values: Tensor) -> Tensor:
        """Sum values over all points, weighted by exp(-½ distance²), approximately; a point counts itself.

        Args:
            values: (N, C) float32.

        Returns:
            (N, C).
        """
        table = _bag(self.points, values, self.point_weights, self.offsets)
        for near, weights in zip(self.neighbors, self.neighbor_weights, strict=True):
            table = _bag(near, table, weights)
        return _bag(self.corners, table, self.weights)

    def normalized(self, *, strength: float = 1.0) -> Lattice:
        """Return the lattice that filters by strength · n K n, with n = 1 / √(K 1): no point outweighs the others."""
        ones = torch.ones_like(self.weights[:, :1])
        norm = self.filter(ones).add_(_TINY).rsqrt_()
        return replace(
            self,
            weights=self.weights * norm * strength,
            point_weights=self.point_weights * norm[self.points, 0],
        )


def build_lattice(features: Tensor) -> Lattice:
    """Build the lattice around points.

    Args:
        features: (N, d) float32, in standard deviations; N at least 1.

    Raises:
        ValueError: if points are not finite, or too far apart.
    """
    count, dimensions = features.shape
    spread = float(features.abs().max())
    if not spread < _FARTHEST:
        raise ValueError(f"expected points within {_FARTHEST:g} deviations of 0, got {spread:g}")
    base, rank, weights = _simplices(features.t())
    low = base[:-1].amin(dim=1)
    # Room for the other corners of a simplex, and for neighbors that lie one step outside.
    spans = base[:-1].amax(dim=1) - low + 4 * (dimensions + 1)
    if float(spans.double().prod()) >= 2.0**62:
        raise ValueError(f"expected points that 64 bits can number, got spans of {spans.tolist()}")
    # A corner's number in mixed radix; its last coordinate follows from the others, whose sum is 0.
    radix = torch.cat([spans.new_ones(1), spans[:-1].cumprod(0), spans.new_zeros(1)])
    codes = _corner_codes(base, rank, radix)
    ordered, order = codes.flatten().sort()
    first = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    index = torch.empty_like(order).scatter_(0, order, first.cumsum(0) - 1)
    near, near_weights = _neighbors(ordered[first], radix, dimensions)
    return Lattice(
        corners=index.view(dimensions + 1, count).t().int().contiguous(),
        # What the blur makes of a single point is too high by this factor (Adams et al.).
        weights=weights.t().contiguous() / (1 + 2.0**-dimensions),
        points=(order % count).int(),
        point_weights=weights.flatten()[order],
        offsets=first.nonzero().flatten().int(),
        neighbors=near,
        neighbor_weights=near_weights,
    )


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the simplex around each point, for features (d, N).

    Returns:
        Its corner of color 0, (d + 1, N) int64; the rank of each coordinate's residual, (d + 1, N); and the barycentric
        weights of its corners by color, (d + 1, N).
    """
    size = len(features) + 1
    steps = torch.arange(1, size, device=features.device)[:, None]
    # The lattice's blur has a deviation of √(2/3) (d + 1) spacings; the points are scaled to match.
    scaled = features * (size * (2 / 3) ** 0.5 / (steps * (steps + 1)).sqrt())
    # Into the hyperplane of d + 1 coordinates that sum to 0.
    after = functional.pad(scaled.flip(0).cumsum(0).flip(0), (0, 0, 0, 1))
    elevated = after - functional.pad(steps * scaled, (0, 0, 1, 0))
    rounded = (elevated / size).round()
    residual = elevated - rounded * size
    # Rank 0 is the largest residual; ties go to the lower coordinate.
    rank = torch.stack(
        [
            (residual[:row] >= residual[row]).sum(0) + (residual[row + 1 :] > residual[row]).sum(0)
            for row in range(size)
        ]
    )
    rank += rounded.sum(dim=0).long()
    wrap = (rank < 0).long() - (rank >= size).long()
    rank += wrap * size
    base = (rounded.long() + wrap) * size
    # Barycentric weights are the gaps between the sorted residuals.
    ordered = torch.empty_like(elevated).scatter_(0, rank, (elevated - base) / size)
    gaps = ordered - ordered.roll(-1, 0)
    return base, rank, torch.cat([1 + gaps[-1:], gaps[:-1].flip(0)])


def _corner_codes(base: Tensor, rank: Tensor, radix: Tensor) -> Tensor:
    """Number the corners of each simplex by color, (d + 1, N).

    Color k adds k to each coordinate, and takes d + 1 off the k coordinates of highest rank.
    """
    size = len(base)
    first = (base * radix[:, None]).sum(dim=0)
    by_rank = torch.empty_like(base).scatter_(0, rank, radix[:, None].expand_as(base))
    taken = functional.pad(by_rank.flip(0)[:-1].cumsum(0), (0, 0, 1, 0))
    colors = torch.arange(size, device=base.device)[:, None]
    return first + colors * radix.sum() - size * taken


def _neighbors(corners: Tensor, radix: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """Look up each corner's two neighbors along each direction; (d + 1, V, 3) numbers and weights."""
    count = len(corners)
    numbers = torch.arange(count, device=corners.device)
    near, weights = [], []
    for direction in range(dimensions + 1):
        step = torch.full_like(radix, -1)
        step[direction] = dimensions
        columns, found = [numbers], [torch.ones(count, dtype=torch.bool, device=corners.device)]
        for sign in (1, -1):
            wanted = corners + sign * (step * radix).sum()
            place = torch.searchsorted(corners, wanted).clamp_(max=count - 1)
            columns.append(place)
            found.append(corners[place] == wanted)
        near.append(torch.stack(columns, dim=1).int())
        halves = torch.tensor([1.0, 0.5, 0.5], device=corners.device)
        weights.append(torch.stack(found, dim=1) * halves)
    return torch.stack(near), torch.stack(weights)


def _bag(index: Tensor, table: Tensor, weights: Tensor, offsets: Tensor | None = None) -> Tensor:
    return functional.embedding_bag(index, table, offsets, mode="sum", per_sample_weights=weights)


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


def build(context: RefinerContext) -> DenseCrf:
    """Build the refiner with VOC's kernels and the context' background."""
    return DenseCrf(context.background)


def build_coco(context: RefinerContext) -> DenseCrf:
    """Build the refiner with COCO's kernels: `dense_crf_coco`."""
    return DenseCrf(context.background, COCO_KERNELS)


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
