"""Segmenters on the mask generator's own features: quick to train, and nearly free beside its CAMs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from models.generators import MaskGenerator
from models.generators.cnn import CnnGenerator
from models.segmenters import Segmenter, pixel_loss

_DROPOUT = 0.1


class FeatureSegmenter(Segmenter):
    """A small decoder of the last map of a convolutional mask generator and, if it has one, its finer map.

    The generator is frozen and not a part of this module: its weights are stored once, with the generator.
    """

    def __init__(self, generator: CnnGenerator, *, classes: int, width: int) -> None:
        super().__init__(mean=generator.mean.flatten().tolist(), std=generator.std.flatten().tolist())
        # In a tuple, in which torch does not look for parts.
        self._generator = (generator,)
        # Features of different layers differ in scale; without parameters, only their statistics are stored.
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels, affine=False) for channels in generator.map_channels)
        self.inputs = nn.ModuleList(nn.Conv2d(channels, width, 1, bias=False) for channels in generator.map_channels)
        self.decoder = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout2d(_DROPOUT),
            nn.Conv2d(width, classes + 1, 1),
        )

    @property
    def backbone(self) -> nn.Module:
        """A module without parameters: nothing that was pre-trained learns."""
        return nn.Identity()

    @property
    def generator(self) -> CnnGenerator:
        """The mask generator whose features are decoded."""
        return self._generator[0]

    def on(self, generator: CnnGenerator) -> Self:
        """Return the same decoder on another copy of the same generator."""
        other = copy.copy(self)
        other._generator = (generator,)
        return other

    def decode(self, features: Tensor) -> Tensor:
        """Return probabilities, (B, K + 1, h, w), of the generator's features."""
        return self._logits(features).float().softmax(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities, (B, K + 1, h, w); see Segmenter."""
        return self.decode(self.generator.features(images))

    def loss(
        self, images: Tensor, label_maps: Tensor, *, noise_aware: bool = False, class_weights: Tensor | None = None
    ) -> Mapping[str, Tensor]:
        """Return the cross-entropy of the pixels that are not 255; see Segmenter."""
        logits = self._logits(self.generator.features(images).detach())
        logits = F.interpolate(logits, size=label_maps.shape[-2:], mode="bilinear", align_corners=False)
        return pixel_loss(logits, label_maps, noise_aware=noise_aware, class_weights=class_weights)

    def _logits(self, features: Tensor) -> Tensor:
        maps = self.generator.maps(features)
        size = maps[-1].shape[-2:]
        parts = zip(maps, self.norms, self.inputs, strict=True)
        mixed = [F.interpolate(convert(norm(each)), size=size, mode="bilinear") for each, norm, convert in parts]
        logits: Tensor = self.decoder(sum(mixed[1:], start=mixed[0]))
        return logits


def build_feature_segmenter(generator: MaskGenerator, *, classes: int, width: int) -> FeatureSegmenter:
    """Build a segmenter on a frozen mask generator, with random weights; ValueError unless it is convolutional."""
    if not isinstance(generator, CnnGenerator):
        raise ValueError(
            f"expected a convolutional mask generator for a segmenter on its features, got a {type(generator).__name__}"
        )
    return FeatureSegmenter(generator, classes=classes, width=width)
