"""Refiners: an image and coarse scores in, scores that follow the image's edges out.

Importing this package imports no torch; `build_refiner` imports the refiners that it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from models.refine.names import NO_REFINER, REFINERS, parse_chain

if TYPE_CHECKING:
    from torch import Tensor

    from models.refine.regions import Regions

__all__ = [
    "NO_REFINER",
    "REFINERS",
    "Chain",
    "Refiner",
    "Surroundings",
    "build_refiner",
    "parse_chain",
]


class Refiner(Protocol):
    """What every refiner is: a deterministic function of an image and its scores."""

    def __call__(self, image: Tensor, scores: Tensor) -> Tensor:
        """Refine the scores along the image's edges.

        Args:
            image: (B, 3, H, W) in [0, 1].
            scores: of the foreground classes, (B, C, H, W) in [0, 1], floating point, on the image's device.

        Returns:
            (B, C, H, W), of the scores' dtype and device; each item independent of the batch.

        Raises:
            ValueError: if the shapes do not fit together.
        """
        ...


@dataclass(frozen=True)
class Surroundings:
    """What some refiners need beside image and scores.

    Attributes:
        affinity: images (B, 3, H, W) → how alike the places of a coarse grid are to the mask generator,
            (B, h, w, h, w), not negative.
        background: scores (C, H, W) → the background's score, (H, W).
        proposals: image (3, H, W) → regions that probably belong together.
        rescale: maps that a refiner flattened and what they were, (C, H, W) both → maps: CAMs get their range back,
            probabilities must not.
    """

    affinity: Callable[[Tensor], Tensor]
    background: Callable[[Tensor], Tensor]
    proposals: Callable[[Tensor], Regions]
    rescale: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Chain:
    """Refiners run one after the other; without any, the scores come back as they are."""

    refiners: tuple[Refiner, ...]

    def __call__(self, image: Tensor, scores: Tensor) -> Tensor:
        """Feed each refiner the scores of the one before it; shapes as in `Refiner`."""
        for refiner in self.refiners:
            scores = refiner(image, scores)
        return scores


def build_refiner(chain: str, surroundings: Surroundings) -> Refiner:
    """Build the refiner that a chain such as ``"pamr"``, ``"a+b"`` or ``"none"`` names.

    Raises:
        ValueError: as `parse_chain`.
    """
    return Chain(tuple(_load(REFINERS[name])(surroundings) for name in parse_chain(chain)))


def _load(path: str) -> Callable[[Surroundings], Refiner]:
    module, _, factory = path.partition(":")
    return cast("Callable[[Surroundings], Refiner]", getattr(import_module(module), factory))
