"""Mask generators: images in, class activation maps out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from models.clip import NormalizedModule


class MaskGenerator(NormalizedModule, ABC):
    """Base class of CAM networks (S of the paper); takes images in [0, 1] and normalizes inside."""

    head: nn.Module  # from a place's features to the evidence of the K classes
    # A random walk on the affinity stays in boxes around what reaches this share of a CAM's maximum; 0 lets it go far.
    box_share = 0.4

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
