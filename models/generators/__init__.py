"""Mask generators: images in, class activation maps out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class MaskGenerator(nn.Module, ABC):
    """Base class of CAM networks (S of the paper); takes images in [0, 1] and normalizes inside.

    Attributes:
        head: from features of a place to the evidence of the K classes.
        mean: of the input normalization, (1, 3, 1, 1).
        std: of the input normalization, (1, 3, 1, 1).
    """

    head: nn.Module
    mean: Tensor
    std: Tensor

    def normalize_by(self, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the input normalization, per RGB channel; a bundle keeps it beside the weights, not among them."""
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Return images in [0, 1], (B, 3, H, W), with the normalization of the network's training."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Map images in [0, 1], (B, 3, H, W), to non-negative CAMs (B, K, h, w) on a coarser grid."""
        return self.cams(self.features(images))

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Return the network's features before its head, one row an image."""

    @abstractmethod
    def cams(self, features: Tensor) -> Tensor:
        """Read the CAMs from features."""

    @abstractmethod
    def affinity(self, features: Tensor) -> Tensor:
        """Read the affinity of all places to each other from features, (B, h, w, h, w), not negative."""

    @abstractmethod
    def evidence(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return classification logits, (B, K) each, by name, which pre-training fits to the labels."""

    def let_learn(self, trainable: str) -> None:
        """Make the whole network ("all") or its head alone ("head") trainable, for stages (a) and (c)."""
        self.requires_grad_(trainable == "all")
        self.head.requires_grad_(True)

    def let_all_learn(self) -> None:
        """Make everything trainable, batch statistics too, for pre-training."""
        self.requires_grad_(True).train()
