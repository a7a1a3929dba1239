"""From what the networks said of a photo to its segmentation: refinement, decision, statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.bundle.bundle import Bundle
from models.clip import FrozenImageTower
from models.inference.forward import ForwardOutput, soft_maps
from models.inference.masks import (
    NO_ALIGNMENT,
    Alignment,
    MaskOptions,
    Segmentation,
    SoftMaps,
    class_result,
    decide,
)
from models.inference.multi_scale import argmax_classes, resize_images
from models.refine import RefinerContext, build_refiner
from models.refine.regions import superpixels

# How well a mask fits its class by the method's own yardstick.


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


# From refined scores to a segmentation: the label map, and what became of each class.


def conclude(
    bundle: Bundle,
    working: Tensor,
    maps: SoftMaps,
    options: MaskOptions,
    *,
    cams: Tensor | None,
    opened: Mapping[str, Tensor] = MappingProxyType({}),
) -> Segmentation:
    """Decide the label map and describe each class in it.

    Args:
        bundle: scores alignment, if it can.
        working: the image at working size, (1, 3, H, W) in [0, 1].
        maps: refined scores of the classes.
        options: how to decide.
        cams: before refinement, (n, h', w'); None from a segmenter.
        opened: class text embeddings of the classes that the bundle was not trained on, by name.
    """
    decision = decide(maps, options)
    measures = [measures_of(bundle, name, opened) for name in maps.names]
    regions = [decision.label_map == index for index in maps.indices.tolist()]
    alignment = score_alignment(bundle.image_tower, working, regions, measures)
    return Segmentation(
        label_map=decision.label_map,
        confidence=decision.confidence,
        scores=maps.scores,
        cams=None if cams is None else cams.half().cpu().numpy(),
        classes=tuple(
            class_result(index, name, decision, score, zero_shot=name in opened)
            for index, name, score in zip(maps.indices.tolist(), maps.names, alignment, strict=True)
        ),
        ignored=decision.ignored,
        background=maps.background,
    )


# The background's score, where a refiner needs one beside the classes'.


def one_minus_sum(scores: Tensor) -> Tensor:
    """What probabilities, (C, H, W), leave of 1, (H, W)."""
    return (1 - scores.sum(dim=0)).clamp(min=0)


def power_background(threshold: float) -> Callable[[Tensor], Tensor]:
    """Return the background (1 - max)^p that stands even with a class whose score is the threshold.

    Args:
        threshold: in (0, 1).
    """
    power = math.log(threshold) / math.log(1 - threshold)

    def background(scores: Tensor) -> Tensor:
        remaining: Tensor = (1 - scores.amax(dim=0)).clamp(min=0)
        return remaining**power

    return background


# What becomes of maps that a refiner flattened.


def match_range(maps: Tensor, original: Tensor) -> Tensor:
    """Stretch each map, (C, H, W), to the minimum and maximum of the original; a flat one becomes the original.

    For CAMs, whose range says nothing: they were stretched to [0, 1] themselves.
    """
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    floor, top = original.amin(dim=(1, 2), keepdim=True), original.amax(dim=(1, 2), keepdim=True)
    flat = (high - low) <= 1e-5 * high.abs()
    stretched = floor + (maps - low) / (high - low).clamp(min=1e-12) * (top - floor)
    return torch.where(flat | (top <= floor), original, stretched)


def identity(maps: Tensor, original: Tensor) -> Tensor:
    """Return the maps: probabilities mean what they say."""
    del original
    return maps


def finish(bundle: Bundle, activated: ForwardOutput) -> Segmentation:
    """Finish one photo; see ``Predictor.finish``.

    Nothing of the bundle is changed, and of its networks only the image tower runs, which keeps no state.

    Args:
        bundle: that activated it.
        activated: what its networks said.
    """
    if activated.together is None:
        return _finish_cams(bundle, activated)
    return _finish_probabilities(bundle, activated, activated.together)


def _finish_cams(bundle: Bundle, activated: ForwardOutput) -> Segmentation:
    cams, image = activated.maps[None], activated.working
    background = power_background(bundle.info.inference.background_threshold)
    scores = _refine(bundle, activated, background, match_range)[0].half()
    stride = bundle.info.generator.output_stride
    grid = (image.shape[-2] // stride, image.shape[-1] // stride)
    coarse = F.interpolate(cams, size=grid, mode="area")[0]
    maps = soft_maps(scores, activated.classes, activated.photo.image)
    options, opened = activated.photo.options, activated.opened
    return conclude(bundle, image, maps, options, cams=coarse, opened=opened)


def _finish_probabilities(
    bundle: Bundle, activated: ForwardOutput, together: Tensor
) -> Segmentation:
    refined = _refine(bundle, activated, one_minus_sum, identity).clamp(min=0)
    # What the classes that win nowhere had stays theirs: nobody's confidence grows by dropping them.
    decided = torch.cat([one_minus_sum(refined[0])[None, None], refined], dim=1) * together
    kept = argmax_classes(decided)
    classes = tuple(activated.classes[number] for number in kept.tolist())
    scores, background = decided[0, kept + 1].half(), decided[0, 0]
    maps = soft_maps(scores, classes, activated.photo.image, background=background)
    return conclude(bundle, activated.working, maps, activated.photo.options, cams=None)


def _refine(
    bundle: Bundle,
    activated: ForwardOutput,
    background: Callable[[Tensor], Tensor],
    rescale: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Run the photo's refiner chain on its maps, → (1, n, H, W)."""
    features, regions = activated.hints.features, activated.hints.regions

    def affinity(_images: Tensor) -> Tensor:
        if features is None:
            raise RuntimeError("expected features for the affinity: see NEED_FEATURES, got none")
        return bundle.generator.affinity(features)

    context = RefinerContext(
        affinity,
        background,
        superpixels if regions is None else lambda _image: regions,
        rescale,
    )
    refiner = build_refiner(activated.photo.options.refine, context)
    return refiner(activated.working, activated.maps[None])
