"""How alike places look to a mask generator."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


def cosine_affinity(features: Tensor) -> Tensor:
    """Return the positive cosines between all places of a feature map, (B, C, h, w) → (B, h, w, h, w).

    The counterpart for convolutional networks of a transformer's patch affinity (as in WeakTr's fine CAM). Memory grows
    with (h w)² an image.
    """
    unit = F.normalize(features.flatten(2), dim=1)
    grid = features.shape[-2:]
    return (unit.transpose(1, 2) @ unit).relu().view(-1, *grid, *grid)


class TwoSteps(Protocol):
    """What there is of a mask generator here: its features of images, and the CAMs read from them."""

    def features(self, images: Tensor) -> Tensor:
        """Return what the network knows of images before its head; see MaskGenerator."""
        ...

    def cams(self, features: Tensor) -> Tensor:
        """Read the CAMs from features; see MaskGenerator."""
        ...


class RememberingGenerator:
    """A mask generator that keeps its features of a batch, which an affinity would compute again.

    One is made for each batch of images; it must not see others.

    Args:
        generator: the mask generator.
        size: (H, W) of the images whose features are kept; other scales' are not.
    """

    def __init__(self, generator: TwoSteps, *, size: tuple[int, int]) -> None:
        self._generator, self._size = generator, size
        self._features: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Return CAMs, (B, K, h, w); see MaskGenerator."""
        features = self._generator.features(images)
        if images.shape[-2:] == self._size:
            self._features = features
        return self._generator.cams(features)

    def features(self, images: Tensor) -> Tensor:
        """Return the features of the batch at the size that is kept: as they were, if it was seen.

        Args:
            images: the batch, (B, 3, H, W); what was seen may have had more images after them, such as mirrored ones.
        """
        if self._features is None:
            return self._generator.features(images)
        return self._features[: len(images)]
