"""From refined scores to a segmentation: the label map, and what became of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from models.alignment import score_alignment
from models.bundle import Bundle
from models.pseudo_masks import SoftMaps, class_result, decide
from models.segmentation import MaskOptions, Segmentation


def conclude(
    bundle: Bundle, working: Tensor, maps: SoftMaps, options: MaskOptions, *, cams: Tensor | None
) -> Segmentation:
    """Decide the label map and describe each class in it.

    Args:
        bundle: scores alignment, if it can.
        working: the image at working size, (1, 3, H, W) in [0, 1].
        maps: refined scores of the classes.
        options: how to decide.
        cams: before refinement, (n, h', w'); None from a segmenter.
    """
    decision = decide(maps, options)
    known = bundle.info.classes
    channels = torch.tensor([known.channel(name) for name in maps.names], dtype=torch.int64)
    alignment = score_alignment(bundle, working, decision.label_map, channels)
    return Segmentation(
        label_map=decision.label_map,
        confidence=decision.confidence,
        scores=maps.scores,
        cams=None if cams is None else cams.half().cpu().numpy(),
        classes=tuple(
            class_result(index, name, decision, score)
            for index, name, score in zip(maps.indices.tolist(), maps.names, alignment, strict=True)
        ),
        ignored=decision.ignored,
        background=maps.background,
    )
