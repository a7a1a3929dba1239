"""How well a mask fits its class by the method's own yardstick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import Bundle
from models.cam import resize_images
from models.clip import FrozenImageTower
from models.segmentation import NO_ALIGNMENT, Alignment


@dataclass(frozen=True)
class Measures:
    """What a class's region is compared with.

    Attributes:
        text: embedding of the class text, (D,), L2-normalized.
        prompt: embedding of the learned background prompt, likewise; None if none was learned.
    """

    text: Tensor
    prompt: Tensor | None


def measures_of(bundle: Bundle, name: str, opened: Mapping[str, Tensor]) -> Measures:
    """Return the measures of a class by name, of the bundle's or of those that it was not trained on."""
    if name in opened:
        return Measures(opened[name], None)
    channel, prompts = bundle.info.classes.channel(name), bundle.prompts
    return Measures(bundle.class_text[channel], None if prompts is None else prompts[channel])


def score_alignment(
    tower: FrozenImageTower | None,
    image: Tensor,
    regions: Sequence[NDArray[np.bool_]],
    measures: Sequence[Measures],
) -> list[Alignment]:
    """Score each class's mask: CLIP sees the masked image, its other pixels the mean color.

    Args:
        tower: CLIP's; None scores nothing.
        image: in [0, 1], (1, 3, H, W).
        regions: the classes' pixels, of any size.
        measures: of each class.

    Returns:
        One alignment a class.
    """
    filled = [number for number, region in enumerate(regions) if region.any()]
    scored = [NO_ALIGNMENT] * len(regions)
    if tower is None or not filled:
        return scored
    size = tower.input_size
    # Area averages of the mask keep thin parts visible at CLIP's small size.
    masks = torch.stack([_area(regions[number], size) for number in filled])
    seen = tower.normalize(resize_images(image, size))
    foreground = tower.embed_images(masks.to(image.device)[:, None] * seen)
    chosen = [measures[number] for number in filled]
    to_class = _cosines(foreground, [each.text for each in chosen])
    # Where no prompt was learned anything stands in for it, so that all are asked for at once.
    to_background = _cosines(foreground, [_or(each.prompt, each.text) for each in chosen])
    for number, each, near, far in zip(filled, chosen, to_class, to_background, strict=True):
        scored[number] = Alignment(near, None if each.prompt is None else far)
    return scored


def _cosines(embeddings: Tensor, others: Sequence[Tensor]) -> list[float]:
    """Cosines of each embedding, (n, D), and the other, (D,), that it is beside."""
    found: list[float] = (embeddings * torch.stack([*others])).sum(dim=-1).tolist()
    return found


def _or(prompt: Tensor | None, text: Tensor) -> Tensor:
    return text if prompt is None else prompt


def _area(region: NDArray[np.bool_], size: tuple[int, int]) -> Tensor:
    """Share of each cell of a grid of the given size that a region covers."""
    maps = torch.from_numpy(region.astype(np.float32))[None, None]
    return torch.nn.functional.interpolate(maps, size=size, mode="area")[0, 0]
