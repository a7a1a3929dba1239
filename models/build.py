"""Configuration to modules: with ``generator_kinds``, which it asks, the only place that knows both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from models.clip import FrozenClip, load_clip
from models.config import (
    Channels,
    ClipConfig,
    CnnConfig,
    CnnSpec,
    Config,
    EncoderDecoderConfig,
    EncoderDecoderSpec,
    GeneratorStageConfig,
    Mask2FormerSpec,
    PretrainConfig,
    SegmenterSpec,
    SegmenterStageConfig,
    WeakTrConfig,
    WeakTrSpec,
    ZeroShotConfig,
)
from models.data.classes import ClassList
from models.data.loaders import (
    MaskTransform,
    Transform,
    light_augmentation,
    mask_augmentation,
    strong_augmentation,
)
from models.generators import MaskGenerator
from models.generators.cnn import (
    CnnGenerator,
    classifier_backbone,
    cnn_generator,
    trunk_name,
    zero_shot_generator,
)
from models.generators.vit import WeakTrSizes
from models.generators.weaktr import WeakTrGenerator
from models.losses import MasksOf, soft_masks
from models.prompts import BackgroundPrompts
from models.segmenters import Segmenter
from models.segmenters.encoder_decoder import build_encoder_decoder
from models.segmenters.mask2former import Mask2FormerSegmenter, build_mask2former
from models.tensors import load_weights, read_tensors

# The kinds of mask generators: from a configuration to a network, to a bundle's words for it, and back.

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
) -> MaskGenerator:
    """Build the mask generator with its initial weights, the same for stages (a) and (c).

    It stays in evaluation mode when it learns: batches are small, and the statistics of its pre-training are the better
    ones.

    Raises:
        ValueError: if the backbone is unknown, the weights do not fit, or CLIP does not fit a zero-shot generator.
        OSError: if the weights cannot be read.
    """
    weights = config.generator.weights
    if weights is not None:
        return load_generator(config, clip, class_text, Path(weights), device=device)
    # What is not pre-trained is drawn from the global state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        built = _shape_generator(config, clip, class_text, pretrained=True)
    return built.to(device).eval()


def load_generator(
    config: Config, clip: FrozenClip, class_text: Tensor, path: Path, *, device: torch.device
) -> MaskGenerator:
    """Build the mask generator and give it the weights of a file, whatever it would start from.

    Raises:
        ValueError: if the file does not hold this generator.
        OSError: if it cannot be read.
    """
    with torch.random.fork_rng(devices=[]):
        built = _shape_generator(config, clip, class_text, pretrained=False)
    load_weights(built, read_tensors(path), source=str(path))
    return built.to(device).eval()


def _shape_generator(
    config: Config, clip: FrozenClip, class_text: Tensor, *, pretrained: bool
) -> MaskGenerator:
    start = Start(clip, class_text, seed=config.seed, pretrained=pretrained)
    return KINDS[config.generator.kind].shape(config.generator, start)


def build_masks(
    generator: MaskGenerator, clip: FrozenClip, *, mask: str, epsilon: float
) -> MasksOf:
    """Return what turns a batch into soft masks of its present classes at CLIP's input size.

    Raises:
        ValueError: if the generator has no logits, which "sigmoid" needs.
    """
    size = clip.input_size
    if mask == "minmax":
        return lambda images, present: soft_masks(
            generator(images).float(), present, size=size, epsilon=epsilon
        )
    if not isinstance(generator, CnnGenerator):
        raise ValueError(f"expected mask 'minmax' for a {type(generator).__name__}, got {mask!r}")

    def sigmoid(images: Tensor, present: Tensor) -> Tensor:
        chosen = generator.logits(images).float()[present[:, 0], present[:, 1]]
        return F.interpolate(chosen[:, None], size=size, mode="bilinear", align_corners=True)[
            :, 0
        ].sigmoid()

    return sigmoid


def build_transform(config: GeneratorStageConfig | PretrainConfig) -> Transform:
    """Return the augmentation of a stage in which the mask generator learns."""
    augment = {"strong": strong_augmentation, "light": light_augmentation}[config.augmentation]
    return augment(config.crop_size, min_area=config.crop_min_area)


def build_prompts(config: Config, clip: FrozenClip, classes: Sequence[str]) -> BackgroundPrompts:
    """Return fresh background prompts for the classes, on CLIP's device."""
    return BackgroundPrompts(
        len(classes),
        config.prompts.tokens,
        clip.prompt_width,
        initialization=config.prompts.initialization,
        generator=torch.Generator().manual_seed(config.seed),
    ).to(clip.mean.device)


def build_segmenter(config: Config, *, classes: int, device: torch.device) -> Segmenter:
    """Build the segmenter as training starts it.

    Raises:
        ValueError: if it cannot be built, is to start from a CLIP whose trunk is another network, or a light one's
            weights cannot be fetched.
        OSError: if a Mask2Former's cannot.
    """
    settings = config.segmenter
    # What is not pre-trained is drawn from the global state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if isinstance(settings, EncoderDecoderConfig):
            return _build_light(settings, config.clip, classes=classes).to(device)
        architecture = {**settings.architecture, "num_queries": settings.queries}
        return build_mask2former(architecture, classes=classes, weights=settings.weights).to(device)


def _build_light(settings: EncoderDecoderConfig, clip: ClipConfig, *, classes: int) -> Segmenter:
    if settings.weights != "clip":
        pretrained = settings.weights == "pretrained"
        return build_encoder_decoder(
            settings.decoder, settings.backbone, classes=classes, pretrained=pretrained
        )
    clip_model = build_clip(clip, device=torch.device("cpu"))
    if trunk_name(clip_model) != settings.backbone:
        raise ValueError(
            f"expected the backbone of CLIP's trunk, {trunk_name(clip_model)}, got {settings.backbone!r}"
        )
    return build_encoder_decoder(
        settings.decoder,
        settings.backbone,
        classes=classes,
        trunk=clip_model.visual.trunk,
        normalization=(clip_model.mean.flatten().tolist(), clip_model.std.flatten().tolist()),
    )


def segmenter_spec(config: Config, segmenter: Segmenter) -> SegmenterSpec:
    """Return what a bundle needs to build a configuration's segmenter again."""
    if isinstance(segmenter, Mask2FormerSegmenter):
        return Mask2FormerSpec(kind="mask2former", architecture=segmenter.architecture)
    settings = config.segmenter
    if not isinstance(settings, EncoderDecoderConfig):
        raise ValueError(f"expected a mask2former, got {type(segmenter).__name__}")
    return EncoderDecoderSpec(
        kind="light",
        decoder=settings.decoder,
        backbone=settings.backbone,
        mean=segmenter.mean.flatten().tolist(),
        std=segmenter.std.flatten().tolist(),
    )


def build_mask_transform(config: SegmenterStageConfig) -> MaskTransform:
    """Return the augmentation of photos with their pseudo masks."""
    return mask_augmentation(config.crop_size, scale=config.scale, color_jitter=config.color_jitter)


# Names of backbones, looked up before hours of training rather than after them.

_NEAREST = 3


def require_backbone(name: str, *, place: str) -> None:
    """Check that timm has a network of a name, with or without the tag of its weights.

    Names with a colon ("hf-hub:…") lead elsewhere and are taken as they are.

    Args:
        name: as a configuration has it.
        place: where it has it.

    Raises:
        ValueError: if it has none; the message has the nearest names.
    """
    if ":" in name:
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = timm.list_models()
    elif tag and name not in timm.list_pretrained():
        known = [each for each in timm.list_pretrained() if each.startswith(f"{architecture}.")]
    else:
        return
    near = " or ".join(get_close_matches(name, known, _NEAREST))
    hint = f", perhaps {near}" if near else ""
    raise ValueError(f"{place}: expected a backbone that timm knows{hint}, got {name!r}")
