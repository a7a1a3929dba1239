"""COCO's instances as a label map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from models.data.classes import BACKGROUND_INDEX


def draw_instances(
    annotations: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Draw instances into a label map, (H, W), of their category ids.

    COCO does not say what lies in front: crowds are drawn first, then instances from large to small, so that what is
    on or before something larger stays to be seen. Crowds count as their category; no pixel is 255.

    Args:
        annotations: of one photo, with ``category_id`` and ``segmentation`` (polygons or run lengths).
        size: (height, width) of the photo.

    Raises:
        ValueError: if a segmentation is malformed.
    """
    label_map = np.full(size, BACKGROUND_INDEX, dtype=np.uint8, order="F")  # as masks are decoded
    drawn = [
        (not each.get("iscrowd"), lengths, each["category_id"])
        for each in annotations
        if (lengths := _run_lengths(each, size)) is not None
    ]
    for _, lengths, category in sorted(
        drawn, key=lambda item: (item[0], -int(coco_mask.area(item[1])))
    ):
        np.copyto(label_map, category, where=coco_mask.decode(lengths).view(bool))
    return np.ascontiguousarray(label_map)


def _run_lengths(annotation: Mapping[str, Any], size: tuple[int, int]) -> Any:
    """Return an annotation's mask in pycocotools' form; None if it has no area."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        if not all(isinstance(corners, list) for corners in segmentation):
            raise ValueError(f"expected polygons in annotation {annotation['id']}, got others")
        # Two corners have no area, and pycocotools would take them for a box.
        polygons = [corners for corners in segmentation if len(corners) >= 6]
        return coco_mask.merge(coco_mask.frPyObjects(polygons, *size)) if polygons else None
    if segmentation.get("size") != list(size) or "counts" not in segmentation:
        raise ValueError(
            f"expected run lengths of {size[1]} x {size[0]} pixels in annotation {annotation['id']}, got others"
        )
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, *size)
    return segmentation
