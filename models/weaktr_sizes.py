"""The sizes of a WeakTr, shared by configurations, bundles and the network. Free of torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_Count = Annotated[int, Field(ge=1)]


class WeakTrSizes(BaseModel):
    """Sizes of the transformer and of its attention fusion; by default the public one for VOC, on DeiT-S/16.

    Attributes:
        native_size: side of the images that the position embeddings are for, in pixels.
        patch: side of a patch in pixels; divides native_size.
        width: C, channels of a token; a multiple of 4 and of the heads.
        depth: number of blocks.
        heads: of each block's attention.
        mlp_ratio: width inside the MLPs, relative to C.
        pooling: of attention outputs over tokens; the public one for COCO has "avg" and a reduction of 4.
        reduction: by which the MLP between the heads narrows.
        feature_reduction: by which the MLP over a head's channels narrows.
        spare_tokens: class tokens behind the others, of classes that 'semples import-checkpoint' left out. They stay,
            because all tokens attend to them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    native_size: _Count = 224
    patch: _Count = 16
    width: _Count = 384
    depth: _Count = 12
    heads: _Count = 6
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    pooling: Literal["max", "avg"] = "max"
    reduction: _Count = 8
    feature_reduction: _Count = 8
    spare_tokens: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if self.width % 4 or self.width % self.heads or self.native_size % self.patch:
            raise ValueError(
                "expected a width that 4 and the heads divide, and patches that divide the native size, "
                f"got {self.width} and {self.heads}, {self.patch} and {self.native_size}"
            )
        return self

    @property
    def native_grid(self) -> tuple[int, int]:
        """(h, w) of the position embeddings."""
        side = self.native_size // self.patch
        return side, side
