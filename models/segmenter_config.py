"""The segmenter's part of a configuration and of a bundle: which network, how it learns and segments. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Side = Annotated[int, Field(ge=32, le=2048, multiple_of=32)]
Positive = Annotated[float, Field(gt=0)]

# Architectures of segmentation-models-pytorch that stand on any timm backbone with maps of strides 4 to 32.
Decoder = Literal[
    "deeplabv3", "deeplabv3plus", "fpn", "linknet", "manet", "segformer", "unet", "unetplusplus", "upernet",
]  # fmt: skip


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class LightConfig(_Frozen):
    """A decoder on a timm backbone."""

    kind: Literal["light"] = "light"
    decoder: Decoder = "fpn"
    backbone: str = "resnet50"
    # timm's weights, those of CLIP's own trunk (which must be this backbone), or random ones.
    weights: Literal["pretrained", "clip", "none"] = "pretrained"


class Mask2FormerConfig(_Frozen):
    """Mask2Former of the transformers library; by default the paper's."""

    kind: Literal["mask2former"]
    # Hub name or folder of a Swin backbone or of a whole Mask2Former; null is random.
    weights: str | None = "microsoft/swin-large-patch4-window12-384-in22k"
    queries: Annotated[int, Field(ge=1)] = 50
    # Other fields of transformers' Mask2FormerConfig.
    architecture: dict[str, Any] = {}


SegmenterConfig = Annotated[LightConfig | Mask2FormerConfig, Field(discriminator="kind")]


class SegmenterStageConfig(_Frozen):
    """How the segmenter learns from pseudo masks. The paper: 80,000 iterations (VOC), gradients clipped at 0.01."""

    epochs: Annotated[int, Field(ge=0)] = 60
    iterations: Annotated[int, Field(ge=1)] | None = (
        None  # in place of epochs, rounded up to whole ones
    )
    batch_size: Annotated[int, Field(ge=1)] = 8  # of all processes together
    # Photos at a time, for devices that cannot hold a process's share of the batch; gradients add up.
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Positive = 1e-4
    backbone_rate: Annotated[float, Field(ge=0)] = 0.1  # share of the learning rate
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    schedule: Literal["cosine", "poly"] = "poly"
    max_gradient_norm: Positive | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    crop_size: Side = 512
    scale: tuple[Positive, Positive] = (
        0.5,
        2.0,
    )  # of the photo, relative to where it just fits the crop
    color_jitter: Annotated[float, Field(ge=0, le=1)] = 0.4
    noise_aware: bool = False

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"expected scale from small to large, got {list(self.scale)}")
        return self


class SegmentConfig(_Frozen):
    """From image to segmentation, without labels."""

    image_size: Annotated[int, Field(ge=32, le=2048)] = 512  # longer side of the working image
    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=4)], ...], Field(min_length=1)] = (1.0,)
    flip: bool = True
    window: Side | None = None  # scaled images that exceed it are seen through windows of this side
    refine: str = "none"
    min_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.0


class LightSpec(_Frozen):
    """How to build a light segmenter before its weights are loaded."""

    kind: Literal["light"]
    decoder: Decoder
    backbone: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Mask2FormerSpec(_Frozen):
    """How to build a Mask2Former before its weights are loaded."""

    kind: Literal["mask2former"]
    architecture: dict[str, Any]


SegmenterSpec = Annotated[LightSpec | Mask2FormerSpec, Field(discriminator="kind")]
