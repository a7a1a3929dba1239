"""Mask generators: images in, class activation maps out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class MaskGenerator(nn.Module, ABC):
    """S of the paper: what every CAM network is. It takes images in [0, 1] and normalizes inside.

    Attributes:
        head: what turns a place's features into the evidence of the K classes.
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
        """Return images in [0, 1], (B, 3, H, W), as the network was trained to see them."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Map images in [0, 1], (B, 3, H, W), to non-negative CAMs (B, K, h, w) on a coarser grid."""
        return self.cams(self.features(images))

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Return what the network knows of images before its head, one row an image."""

    @abstractmethod
    def cams(self, features: Tensor) -> Tensor:
        """Read the CAMs from features."""

    @abstractmethod
    def affinity(self, features: Tensor) -> Tensor:
        """Read from features how much a place has to do with others, (B, h, w, h, w), not negative; a walk's steps."""

    @abstractmethod
    def evidence(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return opinions on what images show, by name, logits (B, K) each; pre-training teaches them the labels."""

    def let_learn(self, trainable: str) -> None:
        """Let the whole network learn from masks ("all") or its head alone ("head"); stages (a) and (c)."""
        self.requires_grad_(trainable == "all")
        self.head.requires_grad_(True)

    def let_all_learn(self) -> None:
        """Let everything learn, batch statistics too, as pre-training does."""
        self.requires_grad_(True).train()
