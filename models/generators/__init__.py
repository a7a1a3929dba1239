"""Mask generators: images in, class activation maps out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor, nn

from models.clip import FrozenImageTower, FrozenTextTower, NormalizedModule


@dataclass(frozen=True)
class AddedClass:
    """A class that a generator was not made with: its name, and its row of the head, (C,)."""

    name: str
    row: Tensor


class MaskGenerator(NormalizedModule, ABC):
    """Base class of CAM networks (S of the paper); takes images in [0, 1] and normalizes inside."""

    head: nn.Module  # from a place's features to the evidence of the K classes
    # A random walk on the affinity stays in boxes around what reaches this share of a CAM's maximum; 0 lets it go far.
    box_share = 0.4
    # Whether it starts inside the boxes and may leave them (CLIP-ES), rather than ends inside them.
    walk_from_boxes = False

    def forward(self, images: Tensor) -> Tensor:
        """Map images in [0, 1], (B, 3, H, W), to non-negative CAMs (B, K, h, w) on a coarser grid."""
        return self.cams(self.features(images))

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Return the network's features before its head, one row an image."""

    @abstractmethod
    def cams(self, features: Tensor) -> Tensor:
        """Read the CAMs from features."""

    def cams_of(self, images: Tensor, present: Tensor) -> Tensor:
        """Map images in [0, 1], (B, 3, H, W), to the CAMs of some classes alone; see ``chosen_cams``."""
        return self(images)[present[:, 0], present[:, 1]]  # type: ignore[no-any-return]

    def chosen_cams(self, features: Tensor, present: Tensor, *, added: Sequence[AddedClass] = ()) -> Tensor:
        """Read the CAMs of some classes alone, (N, h, w), from features.

        ``present`` are (image, class) index pairs, (N, 2), all of an image's classes; ``added`` classes follow the K.

        Raises:
            ValueError: if classes are added to a generator that is not on CLIP's image tower.
        """
        if added:
            self._refuse_names()
        return self.cams(features)[present[:, 0], present[:, 1]]

    def head_rows(
        self, names: Sequence[str], class_text: Tensor, image: FrozenImageTower, text: FrozenTextTower
    ) -> Tensor:
        """Return rows of the head, (n, C), for names whose class texts have embeddings (n, D), by CLIP's towers.

        Raises:
            ValueError: if the generator is not on CLIP's image tower.
        """
        del names, class_text, image, text
        self._refuse_names()

    def use_prompts(self, prompts: Tensor) -> None:
        """Take the learned background prompts' embeddings, (K, D); most generators have no use for them."""

    def pack_features(self, features: Tensor) -> Tensor:
        """Return what ``chosen_cams`` needs of features, to keep it, one row an image."""
        return features

    def unpack_features(self, packed: Tensor) -> Tensor:
        """Return features that ``chosen_cams`` takes, from ``pack_features``."""
        return packed

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

    def _refuse_names(self) -> NoReturn:
        raise ValueError(f"expected a mask generator on CLIP's image tower for other labels, got {type(self).__name__}")
