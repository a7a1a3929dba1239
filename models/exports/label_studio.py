"""Label Studio's tasks with masks as predictions, and the labeling interface that shows them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from models.data.classes import BACKGROUND_INDEX, ClassList
from models.exports.brush import brush_rle
from models.exports.labels import Label, all_labels
from models.exports.source import MaskedPhoto

LOCAL_FILES = "/data/local-files/?d="
"""Where Label Studio serves files of its own machine, from the folder that it is configured to serve."""
_PER_FILE = 1000  # strokes are bulky, and the tool reads an imported file at once
_MASK, _IMAGE = "mask", "image"


def write_label_studio(
    photos: Iterable[MaskedPhoto], classes: ClassList, folder: Path, *, image_prefix: str
) -> str:
    """Write ``tasks_0001.json``, … of a thousand photos each, and ``interface.xml`` for the project's settings.

    Every class of a photo is one brush region of its prediction; ignored pixels are a region "ignored". A prediction's
    score is the confidence of its least sure class: sorted by it, the photos that need a look come first.

    Args:
        photos: in the order of the tasks.
        classes: of the label maps.
        folder: to write in.
        image_prefix: what an image's name is put behind to become its URL.

    Returns:
        A line on what was written and how to use it.

    Raises:
        ValueError: if a class is called background or ignored.
        OSError: if it cannot be written.
    """
    labels = [each for each in all_labels(classes) if each.index != BACKGROUND_INDEX]
    names = {each.index: each.name for each in labels}
    count = 0
    remaining = iter(photos)
    for files, first in enumerate(remaining, start=1):
        with (folder / f"tasks_{files:04}.json").open("w", encoding="utf-8") as file:
            for place, photo in enumerate(chain([first], islice(remaining, _PER_FILE - 1))):
                task = _task(photo, names, image_prefix)
                file.write(("[\n" if place == 0 else ",\n") + json.dumps(task, ensure_ascii=False))
                count += 1
            file.write("\n]\n")
    (folder / "interface.xml").write_text(_interface(labels), encoding="utf-8")
    return (
        f"{count} photos; in Label Studio paste interface.xml as the labeling interface's code, "
        "then import tasks_*.json"
    )


def _task(photo: MaskedPhoto, names: Mapping[int, str], image_prefix: str) -> dict[str, Any]:
    prediction: dict[str, Any] = {
        "model_version": photo.model,
        "result": [_region(photo, index, names[index]) for index in photo.regions],
    }
    if photo.confidence:
        prediction["score"] = min(photo.confidence.values())
    return {
        "data": {_IMAGE: image_prefix + quote(photo.name)},
        "predictions": [prediction],
    }


def _region(photo: MaskedPhoto, index: int, name: str) -> dict[str, Any]:
    height, width = photo.label_map.shape
    return {
        "id": f"class{index}",
        "type": "brushlabels",
        "from_name": _MASK,
        "to_name": _IMAGE,
        "image_rotation": 0,
        "original_width": width,
        "original_height": height,
        "value": {
            "format": "rle",
            "rle": brush_rle(photo.label_map == index),
            "brushlabels": [name],
        },
    }


def _interface(labels: Sequence[Label]) -> str:
    rows = [
        f"    <Label value={quoteattr(each.name)} background={quoteattr(each.hex)}/>"
        for each in labels
    ]
    lines = [
        "<View>",
        f'  <Image name="{_IMAGE}" value="${_IMAGE}" zoom="true" zoomControl="true"/>',
        f'  <BrushLabels name="{_MASK}" toName="{_IMAGE}">',
        *rows,
        "  </BrushLabels>",
        "</View>",
    ]
    return "\n".join(lines) + "\n"
