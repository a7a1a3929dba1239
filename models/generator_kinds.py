"""The kinds of mask generators: from a configuration to a network, to a bundle's words for it, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor

from models.clip import FrozenClip
from models.generator_config import (
    Channels,
    CnnConfig,
    CnnSpec,
    WeakTrConfig,
    WeakTrSpec,
    ZeroShotConfig,
)
from models.generators import MaskGenerator
from models.generators.cnn import CnnGenerator, cnn_generator
from models.generators.weaktr import WeakTrGenerator
from models.generators.weaktr_sizes import WeakTrSizes
from models.generators.zero_shot import classifier_backbone, trunk_name, zero_shot_generator

ConfigT = TypeVar("ConfigT")
SpecT = TypeVar("SpecT")


@dataclass(frozen=True)
class Start:
    """What a mask generator may start from.

    Attributes:
        clip: the frozen CLIP.
        class_text: class text embeddings, (K, D), L2-normalized.
        seed: of what is drawn from a source of its own; torch's global one is seeded with it, too.
        pretrained: whether the weights will be learned from; otherwise a file's take their place at once.
    """

    clip: FrozenClip
    class_text: Tensor
    seed: int
    pretrained: bool


@dataclass(frozen=True)
class Kind(Generic[ConfigT, SpecT]):
    """All that the rest must know of a kind of mask generator.

    Attributes:
        shape: its section of the configuration and what there is to start from → the network.
        describe: that section, CLIP and the network's "mean" and "std" → what a bundle's manifest says.
        rebuild: that, and K → the network before its weights are loaded.
    """

    shape: Callable[[ConfigT, Start], MaskGenerator]
    describe: Callable[[ConfigT, FrozenClip, Mapping[str, Channels]], SpecT]
    rebuild: Callable[[SpecT, int], MaskGenerator]


def _shape_cnn(settings: CnnConfig, start: Start) -> CnnGenerator:
    return cnn_generator(
        settings.backbone,
        classes=len(start.class_text),
        pretrained=settings.pretrained and start.pretrained,
        output_stride=settings.output_stride,
        generator=torch.Generator().manual_seed(start.seed),
        level=settings.level,
    )


def _describe_cnn(
    settings: CnnConfig, _clip: FrozenClip, normalization: Mapping[str, Channels]
) -> CnnSpec:
    fields = settings.model_dump(include={"kind", "backbone", "output_stride", "level"})
    return CnnSpec(**fields, **normalization)


def _rebuild_cnn(spec: CnnSpec, classes: int) -> CnnGenerator:
    return cnn_generator(
        spec.backbone,
        classes=classes,
        pretrained=False,
        output_stride=spec.output_stride,
        generator=torch.Generator(),
        level=spec.level,
    )


def _shape_zero_shot(settings: ZeroShotConfig, start: Start) -> CnnGenerator:
    return zero_shot_generator(start.clip, start.class_text, output_stride=settings.output_stride)


def _describe_zero_shot(
    settings: ZeroShotConfig, clip: FrozenClip, normalization: Mapping[str, Channels]
) -> CnnSpec:
    return CnnSpec(**settings.model_dump(), backbone=trunk_name(clip), **normalization)


def _rebuild_zero_shot(spec: CnnSpec, classes: int) -> CnnGenerator:
    backbone = classifier_backbone(spec.backbone, output_stride=spec.output_stride)
    head = torch.zeros(classes, int(backbone.num_features))  # type: ignore[arg-type]
    return CnnGenerator(backbone, head, mean=spec.mean, std=spec.std)


def _shape_weaktr(settings: WeakTrConfig, start: Start) -> WeakTrGenerator:
    sizes = WeakTrSizes.among(settings.model_dump())
    generator = WeakTrGenerator(sizes, classes=len(start.class_text))
    if start.pretrained:
        generator.draw_weights()
    return generator


def _describe_weaktr(
    settings: WeakTrConfig, _clip: FrozenClip, normalization: Mapping[str, Channels]
) -> WeakTrSpec:
    return WeakTrSpec(**settings.model_dump(exclude={"weights"}), **normalization)


def _rebuild_weaktr(spec: WeakTrSpec, classes: int) -> WeakTrGenerator:
    sizes = WeakTrSizes.among(spec.model_dump())
    return WeakTrGenerator(sizes, classes=classes, mean=spec.mean, std=spec.std)


# By the ``kind`` of the configuration and of the manifest.
KINDS: Final[Mapping[str, Kind[Any, Any]]] = MappingProxyType(
    {
        "cnn": Kind(_shape_cnn, _describe_cnn, _rebuild_cnn),
        "zero_shot": Kind(_shape_zero_shot, _describe_zero_shot, _rebuild_zero_shot),
        "weaktr": Kind(_shape_weaktr, _describe_weaktr, _rebuild_weaktr),
    }
)
