"""Configurations to modules: the only place that knows both."""

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

from models.clip import FrozenClip, FrozenImageTower, build_image_tower
from models.clip_vit_options import ClipVitOptions
from models.config import (
    Channels,
    ClipVitConfig,
    ClipVitSpec,
    CnnConfig,
    CnnSpec,
    Config,
    EncoderDecoderConfig,
    EncoderDecoderSpec,
    FeatureSegmenterConfig,
    FeatureSegmenterSpec,
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
from models.generators.clip_vit import BackgroundTexts, ClipVitGenerator
from models.generators.cnn import (
    CnnGenerator,
    classifier_backbone,
    cnn_generator,
    detail_stage,
    trunk_name,
    zero_shot_generator,
)
from models.generators.weaktr import WeakTrGenerator
from models.losses import MasksOf, soft_masks
from models.prompts import BackgroundPrompts
from models.segmenters import Segmenter
from models.segmenters.encoder_decoder import build_encoder_decoder
from models.segmenters.mask2former import Mask2FormerSegmenter, build_mask2former
from models.segmenters.on_features import build_feature_segmenter
from models.tensors import load_weights, read_tensors

_Config = TypeVar("_Config")
_Spec = TypeVar("_Spec")


@dataclass(frozen=True)
class _Start:
    """What a mask generator starts from; ``pretrained`` is false if a file's weights follow at once."""

    clip: FrozenClip
    class_text: Tensor
    seed: int
    pretrained: bool
    names: Sequence[Sequence[str]] = ()  # of each class, as CLIP reads it first


@dataclass(frozen=True)
class _GeneratorKind(Generic[_Config, _Spec]):
    """A kind of mask generator: how its configuration becomes a network, a specification in a bundle, and a network
    again.
    """

    create: Callable[[_Config, _Start], MaskGenerator]  # with initial weights
    describe: Callable[[_Config, FrozenClip, Mapping[str, Channels]], _Spec]
    rebuild: Callable[[_Spec, int], MaskGenerator]  # from a specification and K


def _create_cnn(settings: CnnConfig, start: _Start) -> CnnGenerator:
    return cnn_generator(
        settings.backbone,
        classes=len(start.class_text),
        pretrained=settings.pretrained and start.pretrained,
        output_stride=settings.output_stride,
        generator=torch.Generator().manual_seed(start.seed),
        level=settings.level,
    )


def _describe_cnn(settings: CnnConfig, _clip: FrozenClip, normalization: Mapping[str, Channels]) -> CnnSpec:
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


def _create_zero_shot(settings: ZeroShotConfig, start: _Start) -> CnnGenerator:
    return zero_shot_generator(start.clip, start.class_text, output_stride=settings.output_stride)


def _describe_zero_shot(settings: ZeroShotConfig, clip: FrozenClip, normalization: Mapping[str, Channels]) -> CnnSpec:
    name = trunk_name(clip)
    detail = detail_stage(classifier_backbone(name, output_stride=settings.output_stride))
    return CnnSpec(**settings.model_dump(), backbone=name, detail=detail, **normalization)


def _rebuild_zero_shot(spec: CnnSpec, classes: int) -> CnnGenerator:
    backbone = classifier_backbone(spec.backbone, output_stride=spec.output_stride)
    head = torch.zeros(classes, int(backbone.num_features))  # type: ignore[arg-type]
    return CnnGenerator(backbone, head, mean=spec.mean, std=spec.std, detail=spec.detail)


def _create_weaktr(settings: WeakTrConfig, start: _Start) -> WeakTrGenerator:
    generator = WeakTrGenerator(settings, classes=len(start.class_text))
    if start.pretrained:
        generator.draw_weights()
    return generator


def _describe_weaktr(settings: WeakTrConfig, _clip: FrozenClip, normalization: Mapping[str, Channels]) -> WeakTrSpec:
    return WeakTrSpec(**settings.model_dump(exclude={"weights"}), **normalization)


def _rebuild_weaktr(spec: WeakTrSpec, classes: int) -> WeakTrGenerator:
    return WeakTrGenerator(spec, classes=classes, mean=spec.mean, std=spec.std)


def _create_clip_vit(settings: ClipVitConfig, start: _Start) -> ClipVitGenerator:
    clip, classes = start.clip, len(start.class_text)
    if not start.pretrained:
        return _bare_clip_vit(settings, clip, classes=classes, width=start.class_text.shape[1])
    if len(start.names) != classes:
        raise ValueError(f"expected the names of {classes} classes for a clip_vit generator, got {len(start.names)}")
    nouns = settings.background_texts
    stuff = clip.embed_texts([settings.caption(noun) for noun in nouns])
    return ClipVitGenerator(
        clip,
        clip.embed_texts([settings.caption(names[0]) for names in start.names]),
        background=BackgroundTexts.of(nouns, stuff, start.names),
        logit_scale=clip.logit_scale,
        options=settings,
    )


def _bare_clip_vit(options: ClipVitOptions, tower: FrozenImageTower, *, classes: int, width: int) -> ClipVitGenerator:
    """A generator whose texts come with the weights."""
    count = len(options.background_texts)
    background = BackgroundTexts(torch.zeros(count, width), torch.zeros(classes, count, dtype=torch.bool))
    return ClipVitGenerator(tower, torch.zeros(classes, width), background=background, logit_scale=1, options=options)


def _describe_clip_vit(settings: ClipVitConfig, clip: FrozenClip, normalization: Mapping[str, Channels]) -> ClipVitSpec:
    return ClipVitSpec(**settings.model_dump(), tower=clip.vision_config, **normalization)


def _rebuild_clip_vit(spec: ClipVitSpec, classes: int) -> ClipVitGenerator:
    tower = build_image_tower(spec.tower, mean=spec.mean, std=spec.std)
    return _bare_clip_vit(spec, tower, classes=classes, width=int(spec.tower["embed_dim"]))


# By the ``kind`` of the configuration and of the manifest.
GENERATOR_KINDS: Final[Mapping[str, _GeneratorKind[Any, Any]]] = MappingProxyType(
    {
        "cnn": _GeneratorKind(_create_cnn, _describe_cnn, _rebuild_cnn),
        "zero_shot": _GeneratorKind(_create_zero_shot, _describe_zero_shot, _rebuild_zero_shot),
        "weaktr": _GeneratorKind(_create_weaktr, _describe_weaktr, _rebuild_weaktr),
        "clip_vit": _GeneratorKind(_create_clip_vit, _describe_clip_vit, _rebuild_clip_vit),
    }
)


def class_captions(config: Config, classes: ClassList) -> tuple[str, ...]:
    """Return CLIP's names of the classes, in channel order; ValueError if clip_names mentions something else."""
    unknown = set(config.clip_names) - set(classes.names)
    if unknown:
        raise ValueError(f"expected clip_names of known classes, got {sorted(unknown)}")
    return tuple(config.clip_names.get(name, name) for name in classes.names)


def build_generator(
    config: Config,
    clip: FrozenClip,
    class_text: Tensor,
    *,
    device: torch.device,
    classes: ClassList | None = None,
) -> MaskGenerator:
    """Build the mask generator with its initial weights, the same for stages (a) and (c).

    One that competes with background texts needs the ``classes``, to know which texts are classes.
    It stays in evaluation mode when it learns: batches are small, and the statistics of its pre-training are better.

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
        names = () if classes is None else _names_of(config, classes)
        start = _Start(clip, class_text, seed=config.seed, pretrained=True, names=names)
        built = GENERATOR_KINDS[config.generator.kind].create(config.generator, start)
    return built.to(device).eval()


def load_generator(
    config: Config, clip: FrozenClip, class_text: Tensor, path: Path, *, device: torch.device
) -> MaskGenerator:
    """Build the mask generator with the weights of a file; ValueError if it does not hold this generator."""
    with torch.random.fork_rng(devices=[]):
        start = _Start(clip, class_text, seed=config.seed, pretrained=False)
        built = GENERATOR_KINDS[config.generator.kind].create(config.generator, start)
    load_weights(built, read_tensors(path), source=str(path))
    return built.to(device).eval()


def _names_of(config: Config, classes: ClassList) -> list[tuple[str, ...]]:
    """All names of each class, CLIP's first."""
    named = classes.with_synonyms(config.synonyms).classes
    captions = class_captions(config, classes)
    return [(caption, each.name, *each.synonyms) for caption, each in zip(captions, named, strict=True)]


def build_masks(
    generator: MaskGenerator,
    clip: FrozenClip,
    *,
    mask: str,
    epsilon: float,
    cams_of: Callable[..., Tensor] | None = None,
) -> MasksOf:
    """Return the function from a batch to soft masks of its present classes at CLIP's input size.

    ``cams_of`` stands for the generator's own, for mask "minmax"; what follows images and present pairs is passed on.
    """
    size, read = clip.input_size, cams_of or generator.cams_of
    if mask == "minmax":
        return lambda images, present, *keys: soft_masks(
            read(images, present, *keys).float(), size=size, epsilon=epsilon
        )
    if not isinstance(generator, CnnGenerator):
        raise ValueError(f"expected mask 'minmax' for a {type(generator).__name__}, got {mask!r}")

    def sigmoid(images: Tensor, present: Tensor) -> Tensor:
        logits = generator.logits(images).float()[present[:, 0], present[:, 1]]
        masks = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=True)
        return masks[:, 0].sigmoid()

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


def build_segmenter(
    config: Config,
    *,
    classes: int,
    device: torch.device,
    read_clip: Callable[[], FrozenClip],
    read_generator: Callable[[], MaskGenerator],
) -> Segmenter:
    """Build the segmenter as training starts it.

    ``read_clip`` is called if its backbone is CLIP's trunk, ``read_generator`` if it is a decoder of features.

    Raises:
        ValueError: if it cannot be built, CLIP's trunk is another network, or an encoder's weights cannot be fetched.
        OSError: if a Mask2Former's weights cannot be fetched.
    """
    settings = config.segmenter
    # What is not pre-trained is drawn from the global state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if isinstance(settings, FeatureSegmenterConfig):
            return build_feature_segmenter(read_generator(), classes=classes, width=settings.width).to(device)
        if isinstance(settings, EncoderDecoderConfig):
            return _build_encoder_decoder(settings, read_clip, classes=classes).to(device)
        architecture = {**settings.architecture, "num_queries": settings.queries}
        return build_mask2former(architecture, classes=classes, weights=settings.weights).to(device)


def _build_encoder_decoder(
    settings: EncoderDecoderConfig, read_clip: Callable[[], FrozenClip], *, classes: int
) -> Segmenter:
    if settings.weights != "clip":
        pretrained = settings.weights == "pretrained"
        return build_encoder_decoder(settings.decoder, settings.backbone, classes=classes, pretrained=pretrained)
    clip_model = read_clip()
    if trunk_name(clip_model) != settings.backbone:
        raise ValueError(f"expected the backbone of CLIP's trunk, {trunk_name(clip_model)}, got {settings.backbone!r}")
    return build_encoder_decoder(
        settings.decoder,
        settings.backbone,
        classes=classes,
        trunk=clip_model.visual.trunk,
        normalization=(clip_model.mean.flatten().tolist(), clip_model.std.flatten().tolist()),
    )


def segmenter_spec(
    config: Config, segmenter: Segmenter, *, untaught: tuple[str, ...], masks: Mapping[str, int]
) -> SegmenterSpec:
    """Return the specification of a configuration's segmenter for a bundle."""
    known, settings = {"untaught": untaught, "masks": dict(masks)}, config.segmenter
    if isinstance(segmenter, Mask2FormerSegmenter):
        return Mask2FormerSpec(kind="mask2former", architecture=segmenter.architecture, **known)
    if isinstance(settings, FeatureSegmenterConfig):
        return FeatureSegmenterSpec(kind="features", width=settings.width, **known)
    if not isinstance(settings, EncoderDecoderConfig):
        raise ValueError(f"expected a mask2former, got {type(segmenter).__name__}")
    return EncoderDecoderSpec(
        kind="light",
        decoder=settings.decoder,
        backbone=settings.backbone,
        mean=segmenter.mean.flatten().tolist(),
        std=segmenter.std.flatten().tolist(),
        **known,
    )


def build_mask_transform(config: SegmenterStageConfig) -> MaskTransform:
    """Return the augmentation of images with their pseudo masks."""
    return mask_augmentation(config.crop_size, scale=config.scale, color_jitter=config.color_jitter)


def require_backbone(name: str, *, place: str) -> None:
    """Check before training that timm has the network that a place of the configuration names.

    The tag of its weights is optional. Names with a colon ("hf-hub:…") are not timm's own and are not checked.

    Raises:
        ValueError: if timm has none; the message has the nearest names.
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
    near = " or ".join(get_close_matches(name, known, 3))
    hint = f", perhaps {near}" if near else ""
    raise ValueError(f"{place}: expected a backbone that timm knows{hint}, got {name!r}")
