"""What a pseudo mask leaves on disk: one writer for a single photo and for a folder of them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # at run time they would bring torch, which a check of the input does not need
    from models.bundle_info import BundleInfo
    from models.predictor import MaskOptions, Segmentation


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON for people and programs, whole or not at all."""
    write_atomically(path, to_json(value).encode())


def to_json(value: Mapping[str, Any]) -> str:
    """Return JSON for people and programs."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def describe(
    segmentation: Segmentation, info: BundleInfo, options: MaskOptions, *, image: str
) -> dict[str, Any]:
    """Return what is worth knowing about a pseudo mask in JSON's types: classes, model, thresholds."""
    height, width = segmentation.label_map.shape
    return {
        "image": image,
        "size": {"width": width, "height": height},
        "model": {"name": info.name, "version": info.version},
        "options": asdict(options),
        "classes": [asdict(each) for each in segmentation.classes],
        "ignored": segmentation.ignored,
    }


def provenance(info: BundleInfo, options: MaskOptions) -> dict[str, str]:
    """Return the PNG text chunks that say where a mask comes from."""
    return {
        "Software": "semples",
        "Model": f"{info.name} {info.version}",
        "Options": json.dumps(asdict(options), sort_keys=True),
    }


def scores_npz(segmentation: Segmentation) -> bytes:
    """Encode a segmentation's soft maps as an npz that loads without pickle.

    ``cams`` (n, h', w') float16 at CAM resolution, ``scores`` (n, h, w) float16 after refinement,
    ``class_index`` (n,), ``class_name`` (n,) and ``image_size`` (height, width). Not compressed: soft
    maps hardly shrink, and deflating them takes longer than making them.
    """
    buffer = io.BytesIO()
    np.savez(
        buffer,
        cams=segmentation.cams,
        scores=segmentation.scores,
        class_index=np.array([each.index for each in segmentation.classes], dtype=np.int64),
        class_name=np.array([each.name for each in segmentation.classes], dtype=np.str_),
        image_size=np.array(segmentation.label_map.shape, dtype=np.int64),
    )
    return buffer.getvalue()
