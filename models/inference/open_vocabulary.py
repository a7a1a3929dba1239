"""CAMs of labels that a bundle was not trained on: its generator with more rows, which CLIP's texts write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from models.bundle.bundle import Bundle
from models.data.classes import why_closed
from models.generators import MaskGenerator
from models.generators.cnn import text_initialized_head

# So many labels are remembered; each takes a few KB.
REMEMBERED = 1024


class ClosedVocabularyError(ValueError):
    """A bundle without a text tower was given a label that it was not trained on."""


@dataclass(frozen=True)
class OpenClass:
    """What CLIP makes of a label.

    Attributes:
        text: embedding of its class text, (D,), L2-normalized.
        row: weights of the head, (C,).
    """

    text: Tensor
    row: Tensor


class OpenVocabulary:
    """Makes open classes of labels, each alone and once: its CAM does not depend on which others are asked for.

    Args:
        bundle: with or without a text tower.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._remembered = lru_cache(maxsize=REMEMBERED)(self._make)

    def open_class(self, name: str) -> OpenClass:
        """Return the open class of a name; see ``models.data.classes.open_name``.

        Raises:
            ClosedVocabularyError: if the bundle has no text tower.
        """
        return self._remembered(name)

    def _make(self, name: str) -> OpenClass:
        text_tower, image_tower = self._bundle.text_tower, self._bundle.image_tower
        if text_tower is None or image_tower is None:
            info = self._bundle.info
            raise ClosedVocabularyError(
                f"expected a bundle with an open vocabulary for {name!r}, got {info.name!r}: {why_closed(info.kind)}"
            )
        with torch.autocast(self._bundle.class_text.device.type, enabled=False):
            text = text_tower.embed_classes([name])
            return OpenClass(text[0], text_initialized_head(image_tower, text)[0])


class WidenedGenerator:
    """A convolutional mask generator with channels of open classes after its own, which stay as they are.

    Args:
        generator: its features are (B, C, h, w).
        classes: one or more.
    """

    def __init__(self, generator: MaskGenerator, classes: Sequence[OpenClass]) -> None:
        self._generator = generator
        self._rows = torch.stack([each.row for each in classes])[:, :, None, None]

    def __call__(self, images: Tensor) -> Tensor:
        """Return CAMs, (B, K + n, h, w); see MaskGenerator."""
        return self.cams(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Return the generator's features."""
        return self._generator.features(images)

    def cams(self, features: Tensor) -> Tensor:
        """Read the CAMs from features, (B, K + n, h, w)."""
        opened = F.conv2d(features, self._rows).relu()
        return torch.cat([self._generator.cams(features), opened], dim=1)

    def affinity(self, features: Tensor) -> Tensor:
        """Read the generator's affinity from features."""
        return self._generator.affinity(features)
