"""From refined scores to a segmentation: the label map, and what became of each class."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.alignment import Alignment, score_alignment
from models.bundle import Bundle
from models.data.classes import IGNORE_INDEX
from models.pseudo_masks import SoftMaps, decide
from models.segmentation import ClassResult, MaskOptions, Segmentation


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
    label_map, confidence = decision.label_map, decision.confidence
    known = bundle.info.classes
    channels = torch.tensor([known.channel(name) for name in maps.names], dtype=torch.int64)
    alignment = score_alignment(bundle, working, label_map, channels)
    return Segmentation(
        label_map=label_map,
        confidence=confidence,
        scores=maps.scores,
        cams=None if cams is None else cams.half().cpu().numpy(),
        classes=tuple(
            _class_result(index, name, label_map, confidence, score)
            for index, name, score in zip(maps.indices.tolist(), maps.names, alignment, strict=True)
        ),
        ignored=float((label_map == IGNORE_INDEX).mean()),
    )


def _class_result(
    index: int,
    name: str,
    label_map: NDArray[np.uint8],
    confidence: NDArray[np.float16],
    alignment: Alignment,
) -> ClassResult:
    region = label_map == index
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    found = rows.size > 0
    return ClassResult(
        index=index,
        name=name,
        area=float(region.mean()),
        confidence=float(confidence[region].mean(dtype=np.float64)) if found else None,
        alignment_class=alignment.to_class,
        alignment_background=alignment.to_background,
        box=(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        if found
        else None,
    )
