"""Configuration to modules: the only place that knows both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.clip import FrozenClip, load_clip
from models.config import ClipConfig, CnnConfig, Config, GeneratorStageConfig
from models.data.classes import ClassList
from models.data.transforms import Transform, light_augmentation, strong_augmentation
from models.generators.cnn import CnnGenerator, cnn_generator
from models.generators.zero_shot import zero_shot_generator
from models.prompts import BackgroundPrompts
from models.regions import soft_masks
from models.tensors import read_tensors
from models.training.generator import MasksOf


def build_clip(config: ClipConfig, *, device: torch.device) -> FrozenClip:
    """Load the frozen CLIP of a configuration.

    Raises:
        ValueError: if open_clip cannot load it, or it does not fit the method.
    """
    return load_clip(config.model, config.pretrained, normalization=config.normalization).to(device)


def class_captions(config: Config, classes: ClassList) -> tuple[str, ...]:
    """Return the names by which CLIP is asked for the classes, in channel order.

    Raises:
        ValueError: if clip_names mentions something that is not a class.
    """
    unknown = set(config.clip_names) - set(classes.names)
    if unknown:
        raise ValueError(f"expected clip_names of known classes, got {sorted(unknown)}")
    return tuple(config.clip_names.get(name, name) for name in classes.names)


def build_generator(
    config: Config, clip: FrozenClip, class_text: Tensor, *, device: torch.device
) -> CnnGenerator:
    """Build the mask generator with its initial weights, the same for stages (a) and (c).

    It stays in evaluation mode when it learns: batches are small, and the statistics of its pre-training are the better
    ones.

    Raises:
        ValueError: if the backbone is unknown, or CLIP does not fit a zero-shot generator.
    """
    settings = config.generator
    if isinstance(settings, CnnConfig):
        # timm draws what is not pre-trained from the global state.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            built = cnn_generator(
                settings.backbone,
                classes=class_text.shape[0],
                pretrained=settings.pretrained,
                output_stride=settings.output_stride,
                affinity_steps=settings.affinity_steps,
                generator=torch.Generator().manual_seed(config.seed),
            )
    else:
        built = zero_shot_generator(
            clip,
            class_text,
            output_stride=settings.output_stride,
            affinity_steps=settings.affinity_steps,
        )
    return built.to(device).eval()


def load_generator(
    config: Config, clip: FrozenClip, class_text: Tensor, path: Path, *, device: torch.device
) -> CnnGenerator:
    """Build the mask generator and give it trained weights.

    Raises:
        ValueError: if the file does not hold this generator.
        OSError: if it cannot be read.
    """
    generator = build_generator(config, clip, class_text, device=device)
    try:
        generator.load_state_dict(read_tensors(path, device=device))
    except RuntimeError as error:
        raise ValueError(
            f"expected weights of this configuration's generator in {path} ({error})"
        ) from error
    return generator


def build_masks(generator: CnnGenerator, clip: FrozenClip, *, mask: str, epsilon: float) -> MasksOf:
    """Return what turns a batch into soft masks of its present classes at CLIP's input size."""
    size = clip.input_size

    def minmax(images: Tensor, present: Tensor) -> Tensor:
        return soft_masks(generator(images), present, size=size, epsilon=epsilon)

    def sigmoid(images: Tensor, present: Tensor) -> Tensor:
        chosen = generator.logits(images)[present[:, 0], present[:, 1]]
        return F.interpolate(chosen[:, None], size=size, mode="bilinear", align_corners=True)[
            :, 0
        ].sigmoid()

    return {"minmax": minmax, "sigmoid": sigmoid}[mask]


def build_transform(config: GeneratorStageConfig) -> Transform:
    """Return the augmentation of stage (a) or (c)."""
    augment = {"strong": strong_augmentation, "light": light_augmentation}[config.augmentation]
    return augment(config.crop_size, min_area=config.crop_min_area)


def freeze_for(generator: CnnGenerator, *, trainable: str) -> None:
    """Let the whole generator learn ("all") or its head alone ("head")."""
    generator.requires_grad_(trainable == "all")
    generator.head.requires_grad_(True)


def build_prompts(config: Config, clip: FrozenClip, classes: Sequence[str]) -> BackgroundPrompts:
    """Return fresh background prompts for the classes, on CLIP's device."""
    return BackgroundPrompts(
        len(classes),
        config.prompts.tokens,
        clip.prompt_width,
        initialization=config.prompts.initialization,
        generator=torch.Generator().manual_seed(config.seed),
    ).to(clip.mean.device)
