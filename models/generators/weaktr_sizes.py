"""The numbers that make one WeakTr another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class WeakTrSizes:
    """Sizes of the transformer and of its attention fusion; by default the public one for VOC, on DeiT-S/16.

    Attributes:
        native_size: side of the images that the position embeddings are for, in pixels.
        patch: side of a patch in pixels; divides native_size.
        width: C, channels of a token; a multiple of 4.
        depth: number of blocks.
        heads: of each block's attention; a divisor of C.
        mlp_ratio: width inside the MLPs, relative to C.
        pooling: of attention outputs over tokens, "max" or "avg".
        reduction: by which the MLP between the heads narrows.
        feature_reduction: by which the MLP over a head's channels narrows.
        spare_tokens: class tokens, behind the others, of classes that are not asked for. They stay, because all tokens
            attend to them.

    Raises:
        ValueError: if sizes do not divide, or the pooling is unknown.
    """

    native_size: int = 224
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    pooling: str = "max"
    reduction: int = 8
    feature_reduction: int = 8
    spare_tokens: int = 0

    def __post_init__(self) -> None:
        if self.width % 4 or self.width % self.heads or self.native_size % self.patch:
            raise ValueError(
                "expected a width that 4 and the heads divide, and patches that divide the native size, "
                f"got {self.width} and {self.heads}, {self.patch} and {self.native_size}"
            )
        if self.pooling not in ("max", "avg"):
            raise ValueError(f"expected pooling 'max' or 'avg', got {self.pooling!r}")

    @classmethod
    def among(cls, values: Mapping[str, Any]) -> Self:
        """Pick the sizes out of values that hold them all, and maybe others."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    @property
    def native_grid(self) -> tuple[int, int]:
        """(h, w) of the position embeddings."""
        side = self.native_size // self.patch
        return side, side
