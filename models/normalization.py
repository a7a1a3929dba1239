"""The input normalization of image networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class NormalizedModule(nn.Module):
    """A network with a mean and std per RGB channel, (1, 3, 1, 1), which bundles keep beside the weights."""

    mean: Tensor
    std: Tensor

    def set_normalization(self, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the input normalization, per RGB channel."""
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize images in [0, 1], (B, 3, H, W), as in the network's training; 0 is the mean color."""
        return (images - self.mean) / self.std
