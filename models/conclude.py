"""From refined scores to a segmentation: the label map, and what became of each class."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from models.alignment import measures_of, score_alignment
from models.bundle import Bundle
from models.pseudo_masks import SoftMaps, class_result, decide
from models.segmentation import MaskOptions, Segmentation


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
