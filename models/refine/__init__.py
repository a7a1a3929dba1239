"""Refiners: an image and coarse scores in, scores that follow the image's edges out.

Importing this package imports no torch; `build_refiner` imports the refiners of a chain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol, cast

if TYPE_CHECKING:
    from torch import Tensor

    from models.refine.regions import Regions

NO_REFINER: Final = "none"

# Name → "module:factory"; a factory takes a RefinerContext and returns a Refiner. A new refiner is one file and one
# line here: the command line, the service and the contract tests read this table.
REFINERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "pamr": "models.refine.pamr:build",
        "dense_crf": "models.refine.dense_crf:build",
        "dense_crf_coco": "models.refine.dense_crf:build_coco",
        "random_walk": "models.refine.random_walk:build",
        "region_vote": "models.refine.regions:build",
    }
)

# Refiners that need the mask generator's features (an affinity), and those that need region proposals.
NEED_FEATURES: Final = frozenset({"random_walk"})
NEED_REGIONS: Final = frozenset({"region_vote"})


def parse_chain(chain: str) -> tuple[str, ...]:
    """Split ``"a+b"`` into the names of the refiners to run, first to last; empty for ``"none"``.

    Raises:
        ValueError: for an unknown or empty name, for ``"none"`` beside another name, and for a
            repeated name (so a request cannot ask for a thousand passes).
    """
    if chain == NO_REFINER:
        return ()
    names = tuple(chain.split("+"))
    known = ", ".join((NO_REFINER, *REFINERS))
    for name in names:
        if name not in REFINERS:
            raise ValueError(f"expected one of {known}, or a chain joined by '+', got {chain!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"expected each refiner at most once, got {chain!r}")
    return names


class Refiner(Protocol):
    """A deterministic function of an image and its scores."""

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
class RefinerContext:
    """Other inputs of refiners, beside image and scores.

    Attributes:
        affinity: images (B, 3, H, W) → the mask generator's affinity of places of a coarse grid, (B, h, w, h, w),
            not negative.
        background: scores (C, H, W) → the background's score, (H, W).
        proposals: image (3, H, W) → regions that probably belong together.
        rescale: flattened maps and the original ones, (C, H, W) both → maps: CAMs get their range back, probabilities
            do not.
    """

    affinity: Callable[[Tensor], Tensor]
    background: Callable[[Tensor], Tensor]
    proposals: Callable[[Tensor], Regions]
    rescale: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Chain:
    """Refiners in sequence; without any, scores are returned unchanged."""

    refiners: tuple[Refiner, ...]

    def __call__(self, image: Tensor, scores: Tensor) -> Tensor:
        """Refine scores by each refiner in turn; shapes as in `Refiner`."""
        for refiner in self.refiners:
            scores = refiner(image, scores)
        return scores


def build_refiner(chain: str, context: RefinerContext) -> Refiner:
    """Build the refiner that a chain such as ``"pamr"``, ``"a+b"`` or ``"none"`` names.

    Raises:
        ValueError: as `parse_chain`.
    """
    return Chain(tuple(_load(REFINERS[name])(context) for name in parse_chain(chain)))


def _load(path: str) -> Callable[[RefinerContext], Refiner]:
    module, _, factory = path.partition(":")
    return cast("Callable[[RefinerContext], Refiner]", getattr(import_module(module), factory))


def check_pair(image: Tensor, scores: Tensor) -> None:
    """Check that scores belong to an image.

    Raises:
        ValueError: unless the image is (B, 3, H, W) and the scores (B, C, H, W), both floating point.
    """
    if image.dim() != 4 or image.shape[1] != 3:
        raise ValueError(f"expected an image of shape (B, 3, H, W), got {tuple(image.shape)}")
    batch, _, height, width = image.shape
    if scores.dim() != 4 or (len(scores), *scores.shape[2:]) != (batch, height, width):
        raise ValueError(
            f"expected scores of shape ({batch}, C, {height}, {width}), as the image's, "
            f"got {tuple(scores.shape)}"
        )
    if not (image.is_floating_point() and scores.is_floating_point()):
        raise ValueError(f"expected floating point tensors, got {image.dtype} and {scores.dtype}")
