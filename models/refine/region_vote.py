"""Region vote: inside a region all pixels are of one mind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.refine import Surroundings
from models.refine.checks import check_pair
from models.refine.regions import Regions


@dataclass(frozen=True)
class RegionVote:
    """`vote` with the proposals of each image, as a `models.refine.Refiner`.

    Attributes:
        proposals: image (3, H, W) in [0, 1] → regions.
    """

    proposals: Callable[[Tensor], Regions]

    def __call__(self, image: Tensor, scores: Tensor) -> Tensor:
        """Refine (B, C, H, W) scores by (B, 3, H, W) images in [0, 1]."""
        check_pair(image, scores)
        refined = torch.empty_like(scores)
        if not scores.numel():
            return refined
        for item, (photo, maps) in enumerate(zip(image, scores, strict=True)):
            refined[item] = vote(maps.float(), self.proposals(photo))
        return refined


def build(surroundings: Surroundings) -> RegionVote:
    """Build the refiner on the surroundings' proposals."""
    return RegionVote(surroundings.proposals)


@torch.no_grad()
def vote(scores: Tensor, regions: Regions) -> Tensor:
    """Give each pixel the mean scores of the most confident region over it.

    A region's confidence is its best class's mean. Pixels without a region keep their scores. SemPLeS decides a label
    for each region here, with the background among the candidates, and stretches each class over the regions before; we
    keep soft scores, so that the background can enter last, and measured no gain from stretching.

    Args:
        scores: (C, H, W) float32.
        regions: of the image.

    Returns:
        (C, H, W), within the range of the scores.
    """
    table = scores.flatten(1).t().contiguous()
    if not len(regions.offsets):
        return scores.clone()
    means = functional.embedding_bag(regions.pixels, table, regions.offsets, mode="mean")
    # The more confident paints over the less; ties go to the later region.
    rank = means.amax(dim=1).argsort(stable=True).argsort()
    top = torch.full_like(regions.pixels, -1).resize_(len(table)).fill_(-1)
    top.scatter_reduce_(0, regions.pixels, rank[regions.numbers()], reduce="amax")
    by_rank = torch.empty_like(means).index_copy_(0, rank, means)
    voted = torch.where(top[:, None] >= 0, by_rank[top.clamp(min=0)], table)
    return voted.t().view_as(scores)
