"""The last stage: a segmenter learns from photos and their pseudo masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from models.data.classes import IGNORE_INDEX
from models.data.mask_crops import MaskBatch
from models.segmenters import Segmenter
from models.training.loop import Group


def segmenter_losses(
    segmenter: Segmenter, *, noise_aware: bool, device: torch.device
) -> Callable[[MaskBatch], Mapping[str, Tensor]]:
    """Return the losses of a batch that comes from the CPU; see Segmenter.loss."""

    def losses_of(batch: MaskBatch) -> Mapping[str, Tensor]:
        images, label_maps = (tensor.to(device, non_blocking=True) for tensor in batch)
        return segmenter.loss(images, label_maps, noise_aware=noise_aware)

    return losses_of


def labeled_pixels(label_maps: Tensor) -> Tensor:
    """Return which pixels are not ignored: what the losses are means over."""
    return label_maps != IGNORE_INDEX


def segmenter_groups(segmenter: Segmenter, *, backbone_rate: float) -> list[Group]:
    """Return what learns: the pre-trained backbone at a share of the rate, the rest at all of it."""
    backbone = list(segmenter.backbone.parameters())
    slow = {id(parameter) for parameter in backbone}
    rest = [each for each in segmenter.parameters() if id(each) not in slow]
    return [Group(rest), Group(backbone, backbone_rate)]
