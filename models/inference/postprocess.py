"""The rest of inference for one image: refinement, the decision, and statistics of each class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.bundle.bundle import Bundle
from models.data.classes import ClassInfo
from models.inference.forward import ForwardOutput
from models.inference.masks import Segmentation, SoftMaps, class_result, decide
from models.inference.multi_scale import argmax_classes, resize_images
from models.refine import RefinerContext, build_refiner
from models.refine.regions import superpixels


def postprocess(bundle: Bundle, output: ForwardOutput) -> Segmentation:
    """Refine, decide and describe one image.

    Thread-safe: nothing of the bundle changes, and of its networks only the image tower runs, which keeps no state.
    """
    if output.total is None:
        return _postprocess_cams(bundle, output)
    return _postprocess_probabilities(bundle, output, output.total)


def _one_minus_sum(scores: Tensor) -> Tensor:
    """Return the background's score beside probabilities, (C, H, W) → (H, W)."""
    return (1 - scores.sum(dim=0)).clamp(min=0)


def _power_background(threshold: float) -> Callable[[Tensor], Tensor]:
    """Return the background (1 - max)^p, whose score equals a class's at the threshold, in (0, 1)."""
    power = math.log(threshold) / math.log(1 - threshold)

    def background(scores: Tensor) -> Tensor:
        remaining: Tensor = (1 - scores.amax(dim=0)).clamp(min=0)
        return remaining**power

    return background


def _match_range(maps: Tensor, original: Tensor) -> Tensor:
    """Stretch each map, (C, H, W), to the minimum and maximum of the original; a flat one becomes the original."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    floor, top = original.amin(dim=(1, 2), keepdim=True), original.amax(dim=(1, 2), keepdim=True)
    flat = (high - low) <= 1e-5 * high.abs()
    stretched = floor + (maps - low) / (high - low).clamp(min=1e-12) * (top - floor)
    return torch.where(flat | (top <= floor), original, stretched)


def _identity(maps: Tensor, original: Tensor) -> Tensor:
    """Return the maps unchanged: probabilities keep their range."""
    del original
    return maps


def _postprocess_cams(bundle: Bundle, output: ForwardOutput) -> Segmentation:
    background = _power_background(bundle.info.inference.background_threshold)
    scores = _refine(bundle, output, background, _match_range)[0].half()
    stride = bundle.info.generator.output_stride
    grid = (output.working.shape[-2] // stride, output.working.shape[-1] // stride)
    coarse = F.interpolate(output.maps[None], size=grid, mode="area")[0]
    return _segmentation(bundle, output, _soft_maps(output, scores, output.classes), cams=coarse)


def _postprocess_probabilities(bundle: Bundle, output: ForwardOutput, total: Tensor) -> Segmentation:
    refined = _refine(bundle, output, _one_minus_sum, _identity).clamp(min=0)
    # Classes that win nowhere keep their share: dropping them must not raise the confidence of others.
    decided = torch.cat([_one_minus_sum(refined[0])[None, None], refined], dim=1) * total
    kept = argmax_classes(decided)
    classes = [output.classes[number] for number in kept.tolist()]
    maps = _soft_maps(output, decided[0, kept + 1].half(), classes, background=decided[0, 0])
    return _segmentation(bundle, output, maps, cams=None)


def _refine(
    bundle: Bundle,
    output: ForwardOutput,
    background: Callable[[Tensor], Tensor],
    rescale: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Run the image's refiner chain on its maps, → (1, n, H, W)."""
    features, regions = output.refiner_inputs.features, output.refiner_inputs.regions

    def affinity(_images: Tensor) -> Tensor:
        if features is None:
            raise RuntimeError("expected features for the affinity: see NEED_FEATURES, got none")
        return bundle.generator.affinity(features)

    proposals = superpixels if regions is None else lambda _image: regions
    generator = bundle.generator
    context = RefinerContext(
        affinity, background, proposals, rescale, generator.box_share, walk_from_boxes=generator.walk_from_boxes
    )
    refiner = build_refiner(output.source.options.refine, context)
    return refiner(output.working, output.maps[None])


def _soft_maps(
    output: ForwardOutput,
    scores: Tensor,
    classes: Sequence[ClassInfo],
    *,
    background: Tensor | None = None,
) -> SoftMaps:
    height, width = output.source.image.shape[:2]
    return SoftMaps(
        scores=scores.cpu().numpy(),
        indices=np.array([each.index for each in classes], dtype=np.int64),
        names=tuple(each.name for each in classes),
        size=(height, width),
        background=None if background is None else background.half().cpu().numpy(),
    )


def _segmentation(bundle: Bundle, output: ForwardOutput, maps: SoftMaps, *, cams: Tensor | None) -> Segmentation:
    """Decide the label map and describe each class in it."""
    decision = decide(maps, output.source.options)
    indices = maps.indices.tolist()
    regions = [decision.label_map == index for index in indices]
    alignment = _score_alignment(bundle, output.working, regions, maps.names, output.zero_shot)
    return Segmentation(
        label_map=decision.label_map,
        confidence=decision.confidence,
        scores=maps.scores,
        cams=None if cams is None else cams.half().cpu().numpy(),
        classes=tuple(
            class_result(index, name, decision, cosines, zero_shot=name in output.zero_shot)
            for index, name, cosines in zip(indices, maps.names, alignment, strict=True)
        ),
        ignored=decision.ignored,
        background=maps.background,
    )


def _score_alignment(
    bundle: Bundle,
    image: Tensor,
    regions: Sequence[NDArray[np.bool_]],
    names: Sequence[str],
    zero_shot: Mapping[str, Tensor],
) -> list[tuple[float | None, float | None]]:
    """Cosines of each class's region to class text and background prompt; CLIP sees other pixels as the mean color."""
    tower = bundle.image_tower
    filled = [number for number, region in enumerate(regions) if region.any()]
    scores: list[tuple[float | None, float | None]] = [(None, None)] * len(regions)
    if tower is None or not filled:
        return scores
    size = tower.input_size
    # Area averages of the mask keep thin parts visible at CLIP's small size.
    masks = torch.stack([_area(regions[number], size) for number in filled])
    normalized = tower.normalize(resize_images(image, size))
    embeddings = tower.embed_images(masks.to(image.device)[:, None] * normalized)
    texts, prompts = zip(*(_class_embeddings(bundle, names[number], zero_shot) for number in filled), strict=True)
    to_text = _cosines(embeddings, texts)
    # The text stands in for a missing prompt, so that all cosines are computed at once.
    to_prompt = _cosines(
        embeddings,
        [text if prompt is None else prompt for text, prompt in zip(texts, prompts, strict=True)],
    )
    for number, prompt, near, far in zip(filled, prompts, to_text, to_prompt, strict=True):
        scores[number] = near, None if prompt is None else far
    return scores


def _class_embeddings(bundle: Bundle, name: str, zero_shot: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """A class's text and background prompt, (D,) each; a prompt is None if none was learned."""
    if name in zero_shot:
        return zero_shot[name], None
    channel, prompts = bundle.info.classes.channel(name), bundle.prompts
    return bundle.class_text[channel], None if prompts is None else prompts[channel]


def _cosines(embeddings: Tensor, others: Sequence[Tensor]) -> list[float]:
    """Cosines of each embedding, (n, D), to the other, (D,), at the same position."""
    found: list[float] = (embeddings * torch.stack([*others])).sum(dim=-1).tolist()
    return found


def _area(region: NDArray[np.bool_], size: tuple[int, int]) -> Tensor:
    """Share of each cell of a grid of the given size that a region covers."""
    maps = torch.from_numpy(region.astype(np.float32))[None, None]
    return F.interpolate(maps, size=size, mode="area")[0, 0]
