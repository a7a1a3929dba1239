"""Region vote: all pixels of a region get its mean scores. Regions are superpixels or SAM's masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from skimage.segmentation import felzenszwalb
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import to_pil_image

from models.refine import RefinerContext, check_pair


@dataclass(frozen=True)
class Regions:
    """R sets of pixels of an image that probably belong together, none empty; they may overlap and leave gaps."""

    pixels: Tensor  # indices in the flattened image, region by region, (P,)
    offsets: Tensor  # start of each region, (R,)

    def numbers(self) -> Tensor:
        """Return the region's number of each of the P entries, (P,)."""
        ends = torch.cat([self.offsets[1:], self.offsets.new_tensor([len(self.pixels)])])
        regions = torch.arange(len(self.offsets), device=self.pixels.device)
        return regions.repeat_interleave(ends - self.offsets)


def _partition(labels: Tensor) -> Regions:
    """Return the regions of a map, (H, W), of region numbers."""
    ordered, pixels = labels.flatten().sort(stable=True)
    first = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    return Regions(pixels, first.nonzero().flatten())


def _from_masks(masks: Tensor) -> Regions:
    """Return the regions that masks, (R, H, W) bool, cover; empty ones are left out."""
    filled = masks.flatten(1)[masks.flatten(1).any(dim=1)]
    region, pixels = filled.nonzero(as_tuple=True)
    return Regions(pixels, torch.searchsorted(region, torch.arange(len(filled), device=region.device)))


def superpixels(image: Tensor, *, scale: float = 200, blur: float = 0.8, min_pixels: int = 150) -> Regions:
    """Cut an image, (3, H, W) in [0, 1], into superpixels by color on the CPU (Felzenszwalb and Huttenlocher, 2004)."""
    pixels = image.permute(1, 2, 0).float().cpu().numpy().astype(np.float64)
    labels = felzenszwalb(pixels, scale=scale, sigma=blur, min_size=min_pixels)
    return _partition(torch.from_numpy(labels).to(image.device))


@dataclass(frozen=True)
class _RegionVote:
    """``_vote`` with the proposals of each image, (3, H, W) in [0, 1], as a refiner."""

    proposals: Callable[[Tensor], Regions]
    background: Callable[[Tensor], Tensor]  # see RefinerContext

    def __call__(self, image: Tensor, scores: Tensor) -> Tensor:
        """Refine (B, C, H, W) scores by (B, 3, H, W) images in [0, 1]."""
        check_pair(image, scores)
        refined = torch.empty_like(scores)
        if not scores.numel():
            return refined
        for item, (photo, maps) in enumerate(zip(image, scores, strict=True)):
            refined[item] = _vote(maps.float(), self.proposals(photo), self.background)
        return refined


def build(context: RefinerContext) -> _RegionVote:
    """Build the refiner on the context's proposals."""
    return _RegionVote(context.proposals, context.background)


@torch.no_grad()
def _vote(scores: Tensor, regions: Regions, background: Callable[[Tensor], Tensor]) -> Tensor:
    """Give each pixel of (C, H, W) scores the mean scores of the most confident region over it.

    A region is as confident as its best class or its background: one that is surely background covers an unsure object.
    """
    table = scores.flatten(1).t().contiguous()
    if not len(regions.offsets):
        return scores.clone()
    means = functional.embedding_bag(regions.pixels, table, regions.offsets, mode="mean")
    # More confident regions overwrite less confident ones; ties go to the later region.
    beside = background(means.t()[:, :, None])[:, 0]
    rank = torch.maximum(means.amax(dim=1), beside).argsort(stable=True).argsort()
    top = torch.full_like(regions.pixels, -1).resize_(len(table)).fill_(-1)
    top.scatter_reduce_(0, regions.pixels, rank[regions.numbers()], reduce="amax")
    by_rank = torch.empty_like(means).index_copy_(0, rank, means)
    voted = torch.where(top[:, None] >= 0, by_rank[top.clamp(min=0)], table)
    return voted.t().view_as(scores)


@dataclass(frozen=True)
class _SamProposals:
    """SAM's masks at each point of a grid (Kirillov et al., *Segment Anything*, ICCV 2023), by transformers."""

    find_masks: Callable[..., Mapping[str, Any]]  # transformers' mask-generation pipeline
    points_per_side: int = 32
    points_at_once: int = 32  # each takes about 12 MB
    min_quality: float = 0.88  # least IoU that SAM predicts
    min_stability: float = 0.95  # least IoU of a mask cut at logits 1 and -1
    max_overlap: float = 0.7  # of boxes; else the mask of lower quality is dropped

    def __call__(self, image: Tensor) -> Regions:
        """Propose regions of an image, (3, H, W) in [0, 1]; maybe none."""
        # Its post-processing needs single precision.
        with torch.autocast(image.device.type, enabled=False):
            found = self.find_masks(
                to_pil_image((image.float() * 255).round().byte().cpu()),
                points_per_crop=self.points_per_side,  # transformers' name: per side of a crop
                points_per_batch=self.points_at_once,
                pred_iou_thresh=self.min_quality,
                stability_score_thresh=self.min_stability,
                crops_nms_thresh=self.max_overlap,
            )["masks"]
        nothing = torch.zeros(0, *image.shape[1:], dtype=torch.bool)
        return _from_masks((torch.stack(found) if found else nothing).to(image.device))


def load_sam(name: str, *, device: torch.device) -> _SamProposals:
    """Load a SAM from a folder or by a hub name such as ``facebook/sam-vit-base``; safetensors only.

    Raises:
        ValueError: if transformers is not installed, or the weights are missing or not SAM's.
    """
    try:
        library: Any = import_module("transformers")  # seconds to import, and only SAM needs it
    except ImportError as error:
        raise ValueError("expected the package transformers for SAM, got none") from error
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415 (comes with transformers)

    try:
        processor = library.SamImageProcessor.from_pretrained(name)
        model, report = library.SamModel.from_pretrained(
            name,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, with the missing ones
            output_loading_info=True,
        )
    except (
        AttributeError,
        KeyError,
        OSError,
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
        TypeError,
        ValueError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"expected a SAM in {name!r}, a folder or hub name ({reason})") from error
    # The library fills what it does not find with random numbers.
    random = len(report["missing_keys"]) + len(report["mismatched_keys"])
    if random:
        raise ValueError(
            f"expected a SAM in {name!r}, got weights without {random} of its {len(model.state_dict())} tensors"
        )
    return _SamProposals(library.pipeline("mask-generation", model=model, image_processor=processor, device=device))
