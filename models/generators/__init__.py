"""Mask generators: images in, class activation maps out."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class MaskGenerator(Protocol):
    """S of the paper. An ``nn.Module`` that fits may have any inside."""

    def __call__(self, images: Tensor) -> Tensor:
        """Map images in [0, 1], (B, 3, H, W), to non-negative CAMs (B, K, h, w) on a coarser grid."""
        ...
