"""The last stage: a segmenter learns from photos and their pseudo masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from models.data.mask_crops import MaskBatch
from models.segmenters import Segmenter
from models.training.loop import Group


class SegmenterLosses(nn.Module):
    """A segmenter's losses as a module, which is what can be run in parallel.

    Args:
        segmenter: what learns.
        noise_aware: see Segmenter.loss.
    """

    def __init__(self, segmenter: Segmenter, *, noise_aware: bool) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.noise_aware = noise_aware

    def forward(self, images: Tensor, label_maps: Tensor) -> Mapping[str, Tensor]:
        """Return the loss terms of images (B, 3, H, W) in [0, 1] and label maps (B, H, W)."""
        return self.segmenter.loss(images, label_maps, noise_aware=self.noise_aware)


def losses_on(
    losses: nn.Module, device: torch.device
) -> Callable[[MaskBatch], Mapping[str, Tensor]]:
    """Return the losses of a batch that comes from the CPU."""

    def losses_of(batch: MaskBatch) -> Mapping[str, Tensor]:
        images, label_maps = (tensor.to(device, non_blocking=True) for tensor in batch)
        terms: Mapping[str, Tensor] = losses(images, label_maps)
        return terms

    return losses_of


def segmenter_groups(segmenter: Segmenter, *, backbone_rate: float) -> list[Group]:
    """Return what learns: the pre-trained backbone at a share of the rate, the rest at all of it."""
    backbone = list(segmenter.backbone.parameters())
    slow = {id(parameter) for parameter in backbone}
    rest = [each for each in segmenter.parameters() if id(each) not in slow]
    return [Group(rest), Group(backbone, backbone_rate)]
