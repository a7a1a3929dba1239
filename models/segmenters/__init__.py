"""Segmenters: networks that segment images without labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.clip import NormalizedModule
from models.data.classes import IGNORE_INDEX
from models.losses import masked_mean, noise_aware_mean


class Segmenter(NormalizedModule, ABC):
    """Base class of segmentation networks; takes images in [0, 1] and normalizes inside.

    Sides of images are multiples of 32. Channel 0 of all outputs is the background, channel k + 1 is class k.
    """

    def __init__(self, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.set_normalization(mean=mean, std=std)

    @property
    @abstractmethod
    def backbone(self) -> nn.Module:
        """The pre-trained part, with its own learning rate."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities (B, K + 1, h, w) on a coarser grid, which sum to 1 over the channels."""

    @abstractmethod
    def loss(
        self, images: Tensor, label_maps: Tensor, *, noise_aware: bool = False, class_weights: Tensor | None = None
    ) -> Mapping[str, Tensor]:
        """Return the loss terms by name, whose sum training minimizes; label maps hold channels, (B, H, W), and 255.

        ``noise_aware`` clips the loss of unusually hard pixels, since pseudo masks are partly wrong. ``class_weights``,
        (K + 1,), multiply the losses of each channel's pixels.
        """


def pixel_loss(
    logits: Tensor, label_maps: Tensor, *, noise_aware: bool, class_weights: Tensor | None
) -> dict[str, Tensor]:
    """Return the mean cross-entropy of logits, (B, K + 1, H, W), over label maps' pixels, (B, H, W), that are not 255.

    ``noise_aware`` clips the loss of unusually hard pixels; see ``noise_aware_mean``. ``class_weights``, (K + 1,),
    multiply the losses; their own mean is not divided out, so a batch of rare classes counts more.
    """
    pixels = F.cross_entropy(logits.float(), label_maps, class_weights, ignore_index=IGNORE_INDEX, reduction="none")
    mean = noise_aware_mean if noise_aware else masked_mean
    return {"cross_entropy": mean(pixels, label_maps != IGNORE_INDEX)}
