"""CAMs of labels that a bundle was not trained on: CLIP's texts give the generator's head more rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from models.bundle.bundle import Bundle
from models.data.classes import why_closed
from models.generators import AddedClass

_CACHE_SIZE = 1024  # labels; each takes a few KB


@dataclass(frozen=True)
class _ZeroShotClass(AddedClass):
    """A label as CLIP reads it."""

    text: Tensor  # embedding of its class text, (D,), L2-normalized


class OpenVocabulary:
    """Zero-shot classes of a bundle, each computed alone and once: its CAM does not depend on other labels."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._cached = lru_cache(maxsize=_CACHE_SIZE)(self._compute)

    def zero_shot_class(self, name: str) -> _ZeroShotClass:
        """Return the class of a name from ``open_name``; ValueError if the bundle has no text tower."""
        return self._cached(name)

    def _compute(self, name: str) -> _ZeroShotClass:
        text_tower, image_tower = self._bundle.text_tower, self._bundle.image_tower
        if text_tower is None or image_tower is None:
            info = self._bundle.info
            raise ValueError(
                f"expected a bundle with an open vocabulary for {name!r}, got {info.name!r}: {why_closed(info.kind)}"
            )
        with torch.autocast(self._bundle.class_text.device.type, enabled=False):
            text = text_tower.embed_classes([name])
            row = self._bundle.generator.head_rows([name], text, image_tower, text_tower)[0]
            return _ZeroShotClass(name, row, text[0])
