"""The configuration of a run and the specifications in a bundle: frozen, checked, read from YAML. Free of torch.

A YAML file holds only what differs from the defaults. A ``…Spec`` says how to build a network before its weights are
loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.clip_vit_options import ClipVitOptions
from models.refine import parse_chain
from models.weaktr_sizes import WeakTrSizes

Channels = tuple[float, float, float]
_Stride = Literal[8, 16, 32]


class Frozen(BaseModel):
    """Base of configurations and manifests: frozen, unknown keys refused, defaults checked."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class CnnConfig(Frozen):
    """A timm backbone with a random 1×1 head."""

    kind: Literal["cnn"] = "cnn"
    backbone: str = "resnet50"
    pretrained: bool = True
    # Safetensors of this same generator, as `semples pretrain-generator` writes; in place of a random head.
    weights: Annotated[str, Field(min_length=1)] | None = None
    output_stride: _Stride = 16
    # The backbone's map that the head reads; one before the last has a smaller receptive field, for small images.
    level: Annotated[int, Field(ge=-4, le=-1)] = -1


class ZeroShotConfig(Frozen):
    """CLIP's image trunk with a head computed from the class texts; needs a CLIP with a timm trunk."""

    kind: Literal["zero_shot"]
    # The stride that most networks were trained at: dilated without training, features are much worse.
    output_stride: _Stride = 32

    @property
    def weights(self) -> None:
        """None: the weights come from CLIP."""


class _WeakTrKind(Frozen):
    kind: Literal["weaktr"]


class _WeakTr(WeakTrSizes, _WeakTrKind):
    """The sizes of a WeakTr."""


class WeakTrConfig(_WeakTr):
    """A vision transformer with class tokens whose attention refines its CAMs; only head and fusion learn."""

    # From 'semples import-checkpoint'; null is random, and the masks are then meaningless.
    weights: Annotated[str, Field(min_length=1)] | None = None


class _ClipVitKind(Frozen):
    kind: Literal["clip_vit"]


class _ClipVit(ClipVitOptions, _ClipVitKind):
    """How class maps are read out of a CLIP's ViT."""


class ClipVitConfig(_ClipVit):
    """CLIP's own image tower, if it is a ViT as OpenAI's; needs no training, and of it one vector a class learns."""

    @property
    def weights(self) -> None:
        """None: the weights come from CLIP."""


GeneratorConfig = Annotated[CnnConfig | ZeroShotConfig | WeakTrConfig | ClipVitConfig, Field(discriminator="kind")]


class CnnSpec(Frozen):
    """How to build a convolutional mask generator."""

    kind: Literal["cnn", "zero_shot"]
    backbone: str
    output_stride: _Stride
    mean: Channels
    std: Channels
    level: int = -1
    # The finer stage that the affinity also reads; see CnnGenerator.
    detail: Annotated[int, Field(ge=0)] | None = None


class WeakTrSpec(_WeakTr):
    """How to build a WeakTr."""

    mean: Channels
    std: Channels

    @property
    def output_stride(self) -> int:
        """Pixels of the image for each place of the grid."""
        return self.patch


class ClipVitSpec(_ClipVit):
    """How to build a mask generator on CLIP's ViT."""

    tower: dict[str, Any]  # open_clip's description of the image tower
    mean: Channels
    std: Channels

    @property
    def output_stride(self) -> int:
        """Pixels of the image for each place of the grid."""
        return int(self.tower["vision_cfg"]["patch_size"])


GeneratorSpec = Annotated[CnnSpec | WeakTrSpec | ClipVitSpec, Field(discriminator="kind")]


Side = Annotated[int, Field(ge=32, le=2048, multiple_of=32)]
_Positive = Annotated[float, Field(gt=0)]

# Architectures of segmentation-models-pytorch for any timm backbone with maps of strides 4 to 32.
Decoder = Literal[
    "deeplabv3", "deeplabv3plus", "fpn", "linknet", "manet", "segformer", "unet", "unetplusplus", "upernet",
]  # fmt: skip


class EncoderDecoderConfig(Frozen):
    """An encoder-decoder segmenter: a decoder on a timm backbone."""

    kind: Literal["light"] = "light"
    decoder: Decoder = "fpn"
    backbone: str = "resnet50"
    # timm's weights, those of CLIP's own trunk (which must be this backbone), or random ones.
    weights: Literal["pretrained", "clip", "none"] = "pretrained"


class _Mask2FormerConfig(Frozen):
    """Mask2Former of the transformers library; by default the paper's."""

    kind: Literal["mask2former"]
    # Hub name or folder of a Swin backbone or of a whole Mask2Former; null is random.
    weights: str | None = "microsoft/swin-large-patch4-window12-384-in22k"
    queries: Annotated[int, Field(ge=1)] = 50
    # Other fields of transformers' Mask2FormerConfig.
    architecture: dict[str, Any] = {}


class FeatureSegmenterConfig(Frozen):
    """A small decoder on the frozen features of stage (c)'s mask generator, which must be convolutional."""

    kind: Literal["features"]
    width: Annotated[int, Field(ge=8)] = 256


SegmenterConfig = Annotated[
    EncoderDecoderConfig | FeatureSegmenterConfig | _Mask2FormerConfig, Field(discriminator="kind")
]


class SegmenterStageConfig(Frozen):
    """How the segmenter learns from pseudo masks. The paper: 80,000 iterations (VOC), gradients clipped at 0.01."""

    epochs: Annotated[int, Field(ge=0)] = 60
    # In place of epochs, rounded up to whole ones.
    iterations: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 8  # of all processes together
    # Images at a time, if the device cannot hold a process's share of the batch; gradients add up.
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    learning_rate: _Positive = 1e-4
    backbone_rate: Annotated[float, Field(ge=0)] = 0.1  # share of the learning rate
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    schedule: Literal["cosine", "poly"] = "poly"
    max_gradient_norm: _Positive | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    crop_size: Side = 512
    scale: tuple[_Positive, _Positive] = (0.5, 2.0)  # relative to just fitting the crop
    color_jitter: Annotated[float, Field(ge=0, le=1)] = 0.4
    noise_aware: bool = False
    # A pixel of a class that all masks together show in n pixels counts as n to the power of minus this.
    class_balance: Annotated[float, Field(ge=0, le=1)] = 0.0
    # Classes that fewer masks show are ignored in training, and the segmenter does not claim to know them.
    min_masks: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"expected scale from small to large, got {list(self.scale)}")
        return self

    @model_validator(mode="after")
    def _weighs_or_clips(self) -> Self:
        if self.noise_aware and self.class_balance:
            raise ValueError("expected noise_aware or class_balance, got both: a rare class's loss would be clipped")
        return self


class SegmentConfig(Frozen):
    """From image to segmentation, without labels."""

    image_size: Annotated[int, Field(ge=32, le=2048)] = 512  # longer side of the working image
    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=4)], ...], Field(min_length=1)] = (1.0,)
    flip: bool = True
    window: Side | None = None  # side of sliding windows, for scaled images that exceed it
    refine: str = "none"
    min_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # A class that is nowhere this probable is not in the photo.
    min_peak: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # In pseudo masks: the weight of its probabilities among the given labels, beside the CAMs; only for classes that it
    # learned from at least so many masks.
    fusion_weight: Annotated[float, Field(ge=0, lt=1)] = 0.0
    fusion_min_masks: Annotated[int, Field(ge=1)] = 1


class BaseSegmenterSpec(Frozen):
    """What all segmenters of bundles have."""

    untaught: tuple[str, ...] = ()  # classes that too few masks showed: it does not know them
    masks: dict[str, Annotated[int, Field(ge=0)]] = {}  # how many masks showed each class


class EncoderDecoderSpec(BaseSegmenterSpec):
    """How to build an encoder-decoder segmenter."""

    kind: Literal["light"]
    decoder: Decoder
    backbone: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class FeatureSegmenterSpec(BaseSegmenterSpec):
    """How to build a segmenter on the mask generator's features."""

    kind: Literal["features"]
    width: int


class Mask2FormerSpec(BaseSegmenterSpec):
    """How to build a Mask2Former."""

    kind: Literal["mask2former"]
    architecture: dict[str, Any]


SegmenterSpec = Annotated[EncoderDecoderSpec | FeatureSegmenterSpec | Mask2FormerSpec, Field(discriminator="kind")]


Share = Annotated[float, Field(gt=0, lt=1)]


class ClipConfig(Frozen):
    """The frozen CLIP."""

    model: str = "ViT-B-32"
    pretrained: str | None = "openai"
    # CLIP's own mean and std; the released experiments feed it ImageNet's ("imagenet" reproduces them).
    normalization: Literal["clip", "imagenet"] = "clip"


class _PromptsConfig(Frozen):
    """The learnable background prompts."""

    tokens: Annotated[int, Field(ge=1, le=70)] = 30
    # The released experiments draw from [0, 1); CLIP's own token embeddings are near a normal of 0.02.
    initialization: Literal["uniform", "normal"] = "uniform"


class _StageConfig(Frozen):
    epochs: Annotated[int, Field(ge=0)] = 60  # 0 keeps the initial weights
    batch_size: Annotated[int, Field(ge=1)] = 64  # of all processes together
    learning_rate: _Positive
    weight_decay: Annotated[float, Field(ge=0)] = 0.03
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of the forward pass
    crop_size: Annotated[int, Field(ge=32)] = 224
    crop_min_area: Annotated[float, Field(gt=0, le=1)] = 0.08


class PretrainConfig(_StageConfig):
    """Before stage (a): the mask generator learns the image-level labels, as any CAM network does."""

    learning_rate: _Positive = 1e-4
    augmentation: Literal["strong", "light"] = "strong"


class GeneratorStageConfig(_StageConfig):
    """Stages (a) and (c): the mask generator learns."""

    learning_rate: _Positive = 6.4e-5
    epsilon: _Positive = 0.1
    # Images at a time, if the device cannot hold a process's share of the batch; gradients add up.
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    background_weight: Annotated[float, Field(ge=0)] = 2.4
    refinement_weight: Annotated[float, Field(ge=0)] = 0.05  # used by (c) only
    # In (c), a zero_shot generator (no other) starts from class texts less this share of the background prompts.
    prompt_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # How much nearer (difference of cosines) a prompt must be to its class's backgrounds than to its objects to count
    # with the whole prompt_share. With half of this it counts half; not at all if it is not nearer, or its class has no
    # photo. 0: every prompt counts whole.
    full_share_margin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mask: Literal["minmax", "sigmoid"] = "minmax"
    trainable: Literal["head", "all"] = "all"
    augmentation: Literal["strong", "light"] = "strong"
    # Crops of each image, if only the head learns; each epoch uses the next one. What the head reads of a crop is
    # computed once and kept on the disk. null: new crops in each epoch, and nothing is kept.
    views: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _keeps_what_the_head_reads(self) -> Self:
        if self.views is not None and self.mask == "sigmoid":
            raise ValueError("expected mask: minmax with views, got sigmoid")
        return self


class PromptStageConfig(_StageConfig):
    """Stage (b): the background prompts learn, on cached region embeddings."""

    batch_size: Annotated[int, Field(ge=1)] = 128
    learning_rate: _Positive = 0.025
    epsilon: _Positive = 1e-4
    text_weight: Annotated[float, Field(ge=0)] = 0.02
    # Crops of each image, embedded once; each epoch uses the next one.
    views: Annotated[int, Field(ge=1)] = 10


class InferenceConfig(Frozen):
    """From image to pseudo mask."""

    image_size: Annotated[int, Field(ge=32, le=2048)] = 448  # longer side of the working image
    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=4)], ...], Field(min_length=1)] = (1.0,)
    flip: bool = True
    # The share of the strongest other label's evidence that is taken from a label's own, at each place of an image.
    competition: Annotated[float, Field(ge=0, lt=1)] = 0.0
    refine: str = "pamr"
    # Folder or hub name of a SAM ("facebook/sam-vit-base") for region_vote's proposals; null for superpixels.
    sam: Annotated[str, Field(min_length=1)] | None = None
    background_threshold: Share = 0.4
    class_thresholds: dict[str, Share] = {}  # by class name, in place of background_threshold
    # How much higher the threshold is for a class whose map is small: see MaskOptions.
    threshold_slope: Annotated[float, Field(ge=0, le=1)] = 0.0
    min_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Config(Frozen):
    """One run of the method."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    seed: int = 0
    clip: ClipConfig = ClipConfig()
    generator: GeneratorConfig = CnnConfig()
    prompts: _PromptsConfig = _PromptsConfig()
    # With this section stages (a) and (c) start from the weights of `semples pretrain-generator`.
    pretrain_generator: PretrainConfig | None = None
    train_generator: GeneratorStageConfig = GeneratorStageConfig()
    learn_prompts: PromptStageConfig = PromptStageConfig()
    refine_generator: GeneratorStageConfig = GeneratorStageConfig()
    inference: InferenceConfig = InferenceConfig()
    segmenter: SegmenterConfig = EncoderDecoderConfig()
    train_segmenter: SegmenterStageConfig = SegmenterStageConfig()
    segment: SegmentConfig = SegmentConfig()
    # Names for CLIP where the data set's are not what a caption would say ("person": "player").
    clip_names: dict[str, str] = {}
    # Other names that requests may use for a class.
    synonyms: dict[str, tuple[str, ...]] = {}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        settings = self.train_segmenter
        if self.segmenter.kind == "mask2former" and (settings.noise_aware or settings.class_balance):
            raise ValueError("expected neither noise_aware nor class_balance for a mask2former, whose loss is of masks")
        if self.segmenter.kind == "features" and self.generator.kind not in ("cnn", "zero_shot"):
            raise ValueError(
                f"expected a convolutional mask generator for a segmenter on its features, got a {self.generator.kind}"
            )
        starts_from_texts = self.generator.kind == "zero_shot" and self.pretrain_generator is None
        stages = (self.train_generator, self.refine_generator)
        matching, refining = (stage.prompt_share or stage.full_share_margin for stage in stages)
        if matching or (refining and not starts_from_texts):
            raise ValueError(
                "expected prompt_share and full_share_margin in refine_generator alone, and for a zero_shot generator "
                "that is not pre-trained"
            )
        if self.refine_generator.full_share_margin and not self.refine_generator.prompt_share:
            raise ValueError("expected refine_generator.prompt_share with full_share_margin, got 0")
        return self

    @property
    def backbones(self) -> dict[str, str]:
        """Names of timm backbones, by their place in the configuration."""
        sections = {"generator": self.generator, "segmenter": self.segmenter}
        names = {f"{key}.backbone": getattr(each, "backbone", None) for key, each in sections.items()}
        return {place: name for place, name in names.items() if name is not None}


def load_config(name_or_path: str) -> Config:
    """Read a configuration: one of the project's own by name, or a YAML file.

    Raises:
        ValueError: if there is no such configuration, or a key or value in it is wrong (with its location).
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        shipped = files("models").joinpath("configs", f"{name_or_path}.yaml")
        if not shipped.is_file():
            known = ", ".join(_config_names())
            raise ValueError(f"expected a YAML file or one of {known}, got {name_or_path!r}")
        return parse_config(shipped.read_text(encoding="utf-8"), source=name_or_path)
    try:
        return parse_config(path.read_text(encoding="utf-8"), source=str(path))
    except OSError as error:
        raise ValueError(f"expected a readable YAML file, got {name_or_path!r} ({error})") from error


def parse_config(text: str, *, source: str) -> Config:
    """Parse YAML into a configuration; messages begin with ``source``.

    Raises:
        ValueError: if it is not YAML, or a key or value is wrong.
    """
    try:
        config = Config.model_validate(yaml.safe_load(text))
        place = "inference.refine"
        parse_chain(config.inference.refine)
        place = "segment.refine"
        parse_chain(config.segment.refine)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: expected YAML, got {error}") from error
    except ValidationError as error:
        raise ValueError(f"{source}: {_explain(error.errors()[0])}") from error
    except ValueError as error:
        raise ValueError(f"{source}: {place}: {error}") from error
    return config


def _explain(error: Mapping[str, Any]) -> str:
    """Where a value is wrong, and what was expected."""
    *parents, key = error["loc"] or ("the top level",)
    place = ".".join(map(str, [*parents, key]))
    if error["type"] == "union_tag_invalid":
        tags, got = error["ctx"]["expected_tags"], error["ctx"]["tag"]
        return f"{place}: expected kind one of {tags}, got {got!r}"
    if error["type"] == "union_tag_not_found":
        return f"{place}: expected a kind, as in 'kind: …', got none"
    if error["type"] != "extra_forbidden":
        return f"{place}: {error['msg']}"
    known: dict[str, Any] = Config(name="any").model_dump()
    for parent in parents:
        known = known.get(parent) or known
    near = get_close_matches(str(key), known, 1)
    return f"{place}: expected a known key{f', perhaps {near[0]}' if near else ''}, got {key!r}"


def training_free_config(name: str, model: str, pretrained: str | None, *, method: str) -> Config:
    """Return the configuration of a bundle on a CLIP's ViT that nobody trains, refined as the method's authors do.

    Raises:
        ValueError: if the name or the method is none.
    """
    content = {
        "name": name,
        "clip": {"model": model, "pretrained": pretrained},
        "generator": {"kind": "clip_vit", "method": method},
        "inference": {"image_size": 512, "refine": "pamr" if method == "dense" else "random_walk+dense_crf"},
    }
    return parse_config(yaml.safe_dump(content), source="new bundle")


def _config_names() -> tuple[str, ...]:
    """Return the names of the project's own configurations, sorted."""
    folder = files("models").joinpath("configs")
    return tuple(sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".yaml")))


def dump_config(config: Config) -> str:
    """Return a configuration as YAML, every value written out."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text
