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

# Name → "module:factory"; a factory takes a RefinerContext and returns a Refiner. A new refiner is one file, one line
# here, which the command line, the service and the contract tests read, and one in the page's own list.
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
        ValueError: for an unknown or repeated name, and for ``"none"`` beside another name.
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
        """Refine scores of the foreground classes, (B, C, H, W) in [0, 1], along the edges of images, (B, 3, H, W).

        The result has the scores' shape, dtype and device; each item is independent of the batch.
        """
        ...


@dataclass(frozen=True)
class RefinerContext:
    """Other inputs of refiners, beside image and scores."""

    affinity: Callable[[Tensor], Tensor]  # images (B, 3, H, W) → affinity, (B, h, w, h, w)
    background: Callable[[Tensor], Tensor]  # scores (C, H, W) → the background's score, (H, W)
    proposals: Callable[[Tensor], Regions]  # image (3, H, W) → regions
    rescale: Callable[
        [Tensor, Tensor], Tensor
    ]  # (maps, originals) → maps in the originals' range; unchanged for probabilities
    box_share: float  # see MaskGenerator
    walk_from_boxes: bool = False


@dataclass(frozen=True)
class _Chain:
    """Refiners in sequence; without any, scores are returned unchanged."""

    refiners: tuple[Refiner, ...]

    def __call__(self, image: Tensor, scores: Tensor) -> Tensor:
        """Refine scores by each refiner in turn; shapes as in `Refiner`."""
        for refiner in self.refiners:
            scores = refiner(image, scores)
        return scores


def build_refiner(chain: str, context: RefinerContext) -> Refiner:
    """Build the refiner that a chain such as ``"pamr"``, ``"a+b"`` or ``"none"`` names."""
    return _Chain(tuple(_load(REFINERS[name])(context) for name in parse_chain(chain)))


def _load(path: str) -> Callable[[RefinerContext], Refiner]:
    module, _, factory = path.partition(":")
    return cast("Callable[[RefinerContext], Refiner]", getattr(import_module(module), factory))


def check_pair(image: Tensor, scores: Tensor) -> None:
    """Raise ValueError unless an image is (B, 3, H, W) and its scores (B, C, H, W), both floating point."""
    if image.dim() != 4 or image.shape[1] != 3:
        raise ValueError(f"expected an image of shape (B, 3, H, W), got {tuple(image.shape)}")
    batch, _, height, width = image.shape
    if scores.dim() != 4 or (len(scores), *scores.shape[2:]) != (batch, height, width):
        raise ValueError(
            f"expected scores of shape ({batch}, C, {height}, {width}), as the image's, got {tuple(scores.shape)}"
        )
    if not (image.is_floating_point() and scores.is_floating_point()):
        raise ValueError(f"expected floating point tensors, got {image.dtype} and {scores.dtype}")
