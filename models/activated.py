"""What networks say of a photo, before any refinement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from models.data.classes import ClassInfo
from models.photos import Labeled, Unlabeled
from models.refine import parse_chain
from models.refine.names import NEED_FEATURES, NEED_REGIONS
from models.refine.regions import Regions


@dataclass(frozen=True)
class Hints:
    """What networks have to say to the refiners of one photo; None where none of them asks.

    Attributes:
        features: the mask generator's, one row; see ``MaskGenerator``.
        regions: the proposals of a network; also None where the bundle has none.
    """

    features: Tensor | None
    regions: Regions | None


@dataclass(frozen=True)
class Activated:
    """A photo that the networks are done with.

    Attributes:
        photo: what it was and what to do.
        working: the photo at working size, (1, 3, H, W) in [0, 1].
        classes: that may be in its label map, n, in channel order.
        maps: their CAMs in [0, 1], or what they have of ``together``, (n, H, W).
        together: a segmenter's probability of the classes and the background, (H, W); None beside CAMs.
        hints: for the refiners.
        opened: class text embeddings, (D,), of those classes that the bundle was not trained on, by name.
    """

    photo: Labeled | Unlabeled
    working: Tensor
    classes: tuple[ClassInfo, ...]
    maps: Tensor
    together: Tensor | None
    hints: Hints
    opened: Mapping[str, Tensor] = field(default_factory=dict)


def hints_for(
    batch: Sequence[Labeled | Unlabeled],
    working: Tensor,
    *,
    features: Callable[[Tensor], Tensor],
    propose: Callable[[Tensor], Regions] | None,
) -> list[Hints]:
    """Ask the networks what the refiners of a batch's photos will need.

    Args:
        batch: the photos.
        working: at working size, (B, 3, H, W).
        features: the mask generator's, a row an image.
        propose: a network's regions of an image, (3, H, W); None if there is no such network.
    """
    chains = [set(parse_chain(each.options.refine)) for each in batch]
    rows = features(working).float() if any(chain & NEED_FEATURES for chain in chains) else None
    return [
        Hints(
            features=rows[number, None] if rows is not None and chain & NEED_FEATURES else None,
            regions=propose(working[number]) if propose and chain & NEED_REGIONS else None,
        )
        for number, chain in enumerate(chains)
    ]
