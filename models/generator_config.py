"""The mask generator's part of a configuration and of a bundle: which network, from which weights. Free of torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Channels = tuple[float, float, float]
Stride = Literal[8, 16, 32]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class CnnConfig(_Frozen):
    """A timm backbone with a random 1×1 head."""

    kind: Literal["cnn"] = "cnn"
    backbone: str = "resnet50"
    pretrained: bool = True
    # Safetensors of this same generator, such as `semples pretrain-generator` leaves; in place of a random head.
    weights: Annotated[str, Field(min_length=1)] | None = None
    output_stride: Stride = 16
    # Which of the backbone's maps the head reads; one before the last sees less around a place, as small images need.
    level: Annotated[int, Field(ge=-4, le=-1)] = -1


class ZeroShotConfig(_Frozen):
    """CLIP's image trunk with a head written by the class texts; needs a CLIP with a timm trunk."""

    kind: Literal["zero_shot"]
    output_stride: Stride = 16

    @property
    def weights(self) -> None:
        """It starts from CLIP, never from a file."""


class _WeakTr(_Frozen):
    """What makes one WeakTr another; by default the public one for VOC, on DeiT-S/16."""

    kind: Literal["weaktr"]
    native_size: Count = 224  # side of the crops that the position embeddings are for
    patch: Count = 16
    width: Count = 384
    depth: Count = 12
    heads: Count = 6
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    # The public one for COCO has "avg" and a reduction of 4.
    pooling: Literal["max", "avg"] = "max"
    reduction: Count = 8
    feature_reduction: Count = 8
    spare_tokens: Annotated[int, Field(ge=0)] = (
        0  # of classes that 'semples import-checkpoint' left out
    )

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if self.width % 4 or self.width % self.heads or self.native_size % self.patch:
            raise ValueError(
                "expected a width that 4 and the heads divide, and patches that divide the native size, "
                f"got {self.width} and {self.heads}, {self.patch} and {self.native_size}"
            )
        return self


class WeakTrConfig(_WeakTr):
    """A vision transformer with class tokens whose attention makes its CAMs finer; of it head and fusion learn."""

    # File that 'semples import-checkpoint' wrote; null is random, and then its masks mean nothing.
    weights: Annotated[str, Field(min_length=1)] | None = None


GeneratorConfig = Annotated[CnnConfig | ZeroShotConfig | WeakTrConfig, Field(discriminator="kind")]


class CnnSpec(_Frozen):
    """How to build a convolutional mask generator before its weights are loaded."""

    kind: Literal["cnn", "zero_shot"]
    backbone: str
    output_stride: Stride
    mean: Channels
    std: Channels
    level: int = -1


class WeakTrSpec(_WeakTr):
    """How to build a WeakTr before its weights are loaded."""

    mean: Channels
    std: Channels

    @property
    def output_stride(self) -> int:
        """Pixels of the image a place of the grid."""
        return self.patch


GeneratorSpec = Annotated[CnnSpec | WeakTrSpec, Field(discriminator="kind")]
