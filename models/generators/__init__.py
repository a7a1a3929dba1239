"""Mask generators: images in, class activation maps out."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class MaskGenerator(Protocol):
    """S of the paper. An ``nn.Module`` that fits may have any inside."""

    def __call__(self, images: Tensor) -> Tensor:
        """Map images in [0, 1], (B, 3, H, W), to non-negative CAMs (B, K, h, w) on a coarser grid."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Return what the network knows of images before its head, one row an image."""
        ...

    def cams(self, features: Tensor) -> Tensor:
        """Read the CAMs from features."""
        ...

    def affinity(self, features: Tensor) -> Tensor:
        """Read from features how much a place has to do with others, (B, h, w, h, w), not negative; a walk's steps."""
        ...
