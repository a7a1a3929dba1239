"""How alike places look to a mask generator."""

from __future__ import annotations

from collections.abc import Callable

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

    def affinity_of(self, number: int) -> Callable[[Tensor], Tensor]:
        """Return what tells the affinity of one image of the batch, (1, 3, H, W) → (1, h, w, h, w), at any size.

        Args:
            number: of the image, from 0.
        """

        def affinity(image: Tensor) -> Tensor:
            known = self._features.get(tuple(image.shape[-2:]))
            features = self._generator.features(image) if known is None else known[number, None]
            return self._generator.affinity(features)

        return affinity
