"""How alike places look to a mask generator."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from models.generators import MaskGenerator


def cosine_affinity(features: Tensor) -> Tensor:
    """Return the positive cosines between all places of a feature map, (B, C, h, w) → (B, h, w, h, w).

    The counterpart for convolutional networks of a transformer's patch affinity (as in WeakTr's fine CAM). Memory grows
    with (h w)² an image.
    """
    unit = F.normalize(features.flatten(2), dim=1)
    grid = features.shape[-2:]
    return (unit.transpose(1, 2) @ unit).relu().view(-1, *grid, *grid)


class RememberingGenerator:
    """A mask generator that keeps its features of a batch for the affinity, which would compute them again.

    One is made for each batch of images; it must not see others.

    Args:
        generator: the mask generator.
    """

    def __init__(self, generator: MaskGenerator) -> None:
        self._generator = generator
        self._features: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Return CAMs, (B, K, h, w); see MaskGenerator."""
        features = self._generator.features(images)
        self._features[tuple(images.shape[-2:])] = features
        return self._generator.cams(features)

    def affinity(self, images: Tensor) -> Tensor:
        """Return the affinity of images that came first in a batch of their size, or that are new, (B, h, w, h, w)."""
        known = self._features.get(tuple(images.shape[-2:]))
        features = self._generator.features(images) if known is None else known[: len(images)]
        return self._generator.affinity(features)
