"""Dense conditional random field: pixels that are close in place and color agree on their class.

Krähenbühl and Koltun, *Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials*, NeurIPS 2011.
The Gaussian sums over all pixels are computed on permutohedral lattices: Adams, Baek and Davis, *Fast High-Dimensional
Filtering Using the Permutohedral Lattice*, 2010. Values are added to the lattice points around each pixel (splat),
blurred along the d + 1 directions of the lattice, and read back (slice). In each of the three, a row of the result is a
weighted sum of rows of a table, which is what an embedding bag computes on a CPU and on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from operator import add
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from models.refine import RefinerContext, check_pair

_EPSILON: Final = 1e-8
_LARGEST_EXPONENT: Final = 80.0  # exp of it is finite in single precision, and so is the sum over classes
_FARTHEST: Final = 1e5  # in deviations; beyond it single precision no longer separates pixels
_CACHED_PIXELS: Final = 1 << 19  # a lattice of place takes about 52 bytes a pixel


@dataclass(frozen=True)
class _Kernel:
    """A Gaussian kernel between pixels."""

    spread: float
    colors: float | None
    compatibility: float


VOC_KERNELS: Final = (_Kernel(4, None, 3), _Kernel(83, 5, 3))
COCO_KERNELS: Final = (_Kernel(3, None, 3), _Kernel(50, 5, 10))
ITERATIONS: Final = 10


@dataclass(frozen=True)
class _DenseCrf:
    """`dense_crf` as a `models.refine.Refiner`."""

    background: Callable[[Tensor], Tensor]
    kernels: tuple[_Kernel, ...] = VOC_KERNELS
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
            refined[item] = dense_crf(photo, probabilities, kernels=self.kernels, iterations=self.iterations)[1:]
        return refined


def build(context: RefinerContext) -> _DenseCrf:
    """Build the refiner with VOC's kernels and the context's background."""
    return _DenseCrf(context.background)


def build_coco(context: RefinerContext) -> _DenseCrf:
    """Build the refiner with COCO's kernels: `dense_crf_coco`."""
    return _DenseCrf(context.background, COCO_KERNELS)


@torch.no_grad()
def dense_crf(
    image: Tensor,
    probabilities: Tensor,
    *,
    kernels: Sequence[_Kernel],
    iterations: int = ITERATIONS,
) -> Tensor:
    """Run mean field inference with Gaussian kernels and a Potts model.

    Starting from q = p, each iteration is ``q = softmax(log p + Σ_k w_k n_k K_k (n_k q))`` with ``n_k = (K_k 1)^-½``.

    Args:
        image: (3, H, W) float32 in [0, 1].
        probabilities: p, (C, H, W) float32 in (0, 1], summing to 1.
        kernels: K_k and w_k; at least one.
        iterations: 0 returns p.

    Returns:
        (C, H, W), summing to 1.
    """
    channels, height, width = probabilities.shape
    lattices = [_kernel_lattice(image, kernel) for kernel in kernels]
    slices = _joined_slices(lattices)
    # One row per pixel, as the lattices need it. The softmax is written out, p · exp(messages) divided by its sum,
    # and the sum is a matrix product: torch's own softmax and sum are several times slower on rows this short.
    prior = probabilities.flatten(1).clamp(min=_EPSILON).t().contiguous()
    ones = prior.new_ones(channels)
    beliefs = prior / (prior @ ones)[:, None]
    for _ in range(iterations):
        messages = slices(torch.cat([lattice.blurred(beliefs) for lattice in lattices]))
        beliefs = messages.clamp_(max=_LARGEST_EXPONENT).exp_().mul_(prior)
        beliefs /= (beliefs @ ones)[:, None]
    return beliefs.t().contiguous().view(channels, height, width)


def _kernel_lattice(image: Tensor, kernel: _Kernel) -> _Lattice:
    """Return the lattice that filters by w n K n."""
    _, height, width = image.shape
    if kernel.colors is None:
        small = height * width <= _CACHED_PIXELS
        build_place = _place_lattice if small else _place_lattice.__wrapped__
        return build_place(height, width, kernel.spread, kernel.compatibility, image.device)
    place = _place(height, width, kernel.spread, image.device)
    color = image.flatten(1) * (255 / kernel.colors)
    return _build_lattice(torch.cat([place, color])).normalized(strength=kernel.compatibility)


@lru_cache(maxsize=4)
def _place_lattice(height: int, width: int, spread: float, strength: float, device: torch.device) -> _Lattice:
    """Return the lattice of place alone, which is the same for all images of a size and is kept for the next one."""
    return _build_lattice(_place(height, width, spread, device)).normalized(strength=strength)


def _place(height: int, width: int, spread: float, device: torch.device) -> Tensor:
    """Return column and row of each pixel in standard deviations, (2, H W)."""
    rows = torch.arange(height, device=device)[:, None].expand(height, width)
    columns = torch.arange(width, device=device).expand(height, width)
    return torch.stack([columns, rows]).flatten(1).float() / spread


@dataclass(frozen=True)
class _RowSums:
    """Weighted sums of table rows: a sparse matrix, stored row by row."""

    rows: Tensor
    weights: Tensor
    starts: Tensor

    def __call__(self, table: Tensor) -> Tensor:
        """Return the sums of rows of a (V, C) table, one row each."""
        return functional.embedding_bag(self.rows, table, self.starts, mode="sum", per_sample_weights=self.weights)


def _equal_sums(rows: Tensor, weights: Tensor) -> _RowSums:
    """Return M sums of k rows each, from (M, k) rows and weights."""
    count, size = rows.shape
    starts = torch.arange(0, count * size, size, dtype=torch.int32, device=rows.device)
    return _RowSums(rows.int().flatten(), weights.flatten(), starts)


@dataclass(frozen=True)
class _Lattice:
    """A permutohedral lattice around N pixels with V lattice points."""

    splat: _RowSums
    blurs: tuple[_RowSums, ...]
    slice: _RowSums

    def filter(self, values: Tensor) -> Tensor:
        """Sum (N, C) values over all pixels, weighted by about exp(-½ distance²); a pixel counts itself."""
        return self.slice(self.blurred(values))

    def blurred(self, values: Tensor) -> Tensor:
        """Splat (N, C) values and blur them, (V, C)."""
        table = self.splat(values)
        for blur in self.blurs:
            table = blur(table)
        return table

    def normalized(self, *, strength: float) -> _Lattice:
        """Return the lattice that filters by strength · n K n, with n = (K 1)^-½."""
        count = len(self.slice.starts)
        norm = self.filter(self.slice.weights.new_ones(count, 1)).add_(1e-20).rsqrt_()
        given = self.splat.weights * norm[:, 0].index_select(0, self.splat.rows)
        taken = self.slice.weights.view(count, -1) * (norm * strength)
        return _Lattice(
            replace(self.splat, weights=given),
            self.blurs,
            replace(self.slice, weights=taken.flatten()),
        )


def _joined_slices(lattices: Sequence[_Lattice]) -> _RowSums:
    """Return the sum of all lattices' slices, for their blurred tables one below the other."""
    count = len(lattices[0].slice.starts)
    above = accumulate((len(lattice.splat.starts) for lattice in lattices[:-1]), initial=0)
    rows = [(lattice.slice.rows + offset).view(count, -1) for lattice, offset in zip(lattices, above, strict=True)]
    weights = [lattice.slice.weights.view(count, -1) for lattice in lattices]
    return _equal_sums(torch.cat(rows, dim=1), torch.cat(weights, dim=1))


def _build_lattice(features: Tensor) -> _Lattice:
    """Build the lattice around pixels."""
    dimensions, count = features.shape
    farthest = float(features.abs().max())
    if not farthest < _FARTHEST:
        raise ValueError(f"expected points within {_FARTHEST:g} deviations of 0, got {farthest:g}")
    coordinates = _grid_coordinates(features)
    cells = coordinates.floor()
    low = cells.amin(dim=1, keepdim=True) - 1
    # Room for the upper corners of the cells, and for neighbors one step outside on both sides.
    spans = (cells.amax(dim=1) - low[:, 0] + 3).long()
    if (size := float(spans.double().prod())) >= 2.0**62:
        raise ValueError(f"expected points that 64 bits can number, got spans of {spans.tolist()}")
    # A lattice point's code is its number in mixed radix, so a step along an axis adds that axis's radix.
    dtype = torch.int32 if size < 2.0**31 else torch.int64
    radix = torch.cat([spans.new_ones(1), spans[:-1].cumprod(0)]).to(dtype)
    lowest = ((cells - low).to(dtype) * radix[:, None]).sum(dim=0, dtype=dtype)
    fractions, steps = _sort_axes(coordinates - cells, radix)
    codes = torch.stack(list(accumulate(steps, add, initial=lowest)), dim=1).flatten()
    edges = [torch.ones_like(fractions[0]), *fractions, torch.zeros_like(fractions[0])]
    weights = torch.stack([high - low for high, low in pairwise(edges)], dim=1)
    ordered, order = codes.sort(stable=True)
    points, counts = torch.unique_consecutive(ordered, return_counts=True)
    counts = counts.int()
    index = torch.empty_like(order, dtype=torch.int32)
    index.scatter_(0, order, torch.repeat_interleave(counts, output_size=len(order)))
    order = order.int()
    splat = _RowSums(
        rows=order // (dimensions + 1),
        weights=weights.flatten().index_select(0, order),
        starts=counts.cumsum(0, dtype=torch.int32) - counts,
    )
    # What the blur makes of a single pixel is too high by this factor (Adams et al.).
    excess = 1 + 2.0**-dimensions
    return _Lattice(splat, _blurs(points, radix), _equal_sums(index.view(count, -1), weights / excess))


def _grid_coordinates(features: Tensor) -> Tensor:
    """Map (d, N) features to coordinates in which the lattice points are the integer grid, (d, N)."""
    size = len(features) + 1
    axes = torch.arange(1, size, device=features.device)[:, None]
    # The blur has a standard deviation of √(2/3) (d + 1) spacings; the features are scaled to match.
    scaled = features * (size * (2 / 3) ** 0.5 / (axes * (axes + 1)).sqrt())
    # Adams et al. embed the points in the plane of d + 1 coordinates whose sum is 0. All coordinates of a
    # lattice point are equal modulo d + 1 there: their differences from the first, over d + 1, are integers.
    # The last axis is returned first.
    total, others = torch.zeros_like(scaled[0]), []
    for axis in range(size - 1, 0, -1):
        others.append(total - axis * scaled[axis - 1])
        total = total + scaled[axis - 1]
    return (total - torch.stack(others)) / size


def _sort_axes(fractions: Tensor, radix: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each column of (d, N) fractions in [0, 1] from high to low, and each axis's radix with them; both (d, N)."""
    dimensions = len(fractions)
    # Fraction and axis in one integer: exchanges of neighbors are then far quicker than torch's sort of short columns.
    # Of equal fractions the first axis comes first.
    axes = torch.arange(dimensions - 1, -1, -1, dtype=torch.int32, device=fractions.device)
    keys = list(((fractions * 2**24).int() << 3) + axes[:, None])
    for last in range(dimensions - 1, 0, -1):
        for i in range(last):
            high, low = torch.maximum(keys[i], keys[i + 1]), torch.minimum(keys[i], keys[i + 1])
            keys[i], keys[i + 1] = high, low
    table = torch.stack(keys)
    steps = radix.flip(0).index_select(0, (table & 7).flatten()).view_as(table)
    return (table >> 3) * 2.0**-24, steps


def _blurs(points: Tensor, radix: Tensor) -> tuple[_RowSums, ...]:
    """Return for each direction the sums ½ before + itself + ½ after, over V sorted codes of lattice points."""
    count = len(points)
    # One step along each axis, or one along all of them; results depend on the order, which is that of Adams et al.
    steps = torch.cat([radix.sum(dim=0, keepdim=True), radix.flip(0)])[:, None]
    wanted = points + steps
    places = torch.searchsorted(points, wanted)
    found = points[places.clamp(max=count - 1)] == wanted
    itself = torch.arange(count, device=points.device).expand_as(places)
    # `count` stands for a neighbor that does not exist.
    after = places.where(found, count)
    before = itself.new_full((len(steps), count + 1), count).scatter_(1, after, itself)[:, :-1]
    near = torch.stack([before, itself, after], dim=2)
    weights = (near < count) * torch.tensor([0.5, 1.0, 0.5], device=points.device)
    return tuple(map(_equal_sums, near.clamp_(max=count - 1), weights))
