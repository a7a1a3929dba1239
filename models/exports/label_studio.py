"""Label Studio tasks with masks as predictions, and the labeling interface for them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from models.data.classes import BACKGROUND_INDEX, ClassList
from models.data.mask_folder import MaskedImage
from models.exports import Label, all_labels
from models.exports.coco import outline

LOCAL_FILES = "/data/local-files/?d="
"""URL prefix under which Label Studio serves files of its own machine."""
_PER_FILE = 1000  # run lengths are long, and the tool reads an imported file at once
_MASK, _IMAGE = "mask", "image"
_CHANNELS = 4  # RGBA; the tool shows the last one, writers fill all alike
_WIDTHS = (3, 4, 8, 16)
_LONGEST = 1 << _WIDTHS[-1]


def write_label_studio(images: Iterable[MaskedImage], classes: ClassList, folder: Path, *, image_prefix: str) -> str:
    """Write ``tasks_0001.json``, … of a thousand images each, and ``interface.xml``; returns a line for the user.

    Every class of an image is one brush region of its prediction; ignored pixels are a region "ignored". A prediction's
    score is the lowest confidence of its classes, to sort by. An image's URL is ``image_prefix`` and its name.
    """
    labels = [each for each in all_labels(classes) if each.index != BACKGROUND_INDEX]
    names = {each.index: each.name for each in labels}
    count = 0
    remaining = iter(images)
    for files, first in enumerate(remaining, start=1):
        with (folder / f"tasks_{files:04}.json").open("w", encoding="utf-8") as file:
            for place, image in enumerate(chain([first], islice(remaining, _PER_FILE - 1))):
                task = label_studio_task(image, names, url=image_prefix + quote(image.name))
                file.write(("[\n" if place == 0 else ",\n") + json.dumps(task, ensure_ascii=False))
                count += 1
            file.write("\n]\n")
    (folder / "interface.xml").write_text(_interface(labels), encoding="utf-8")
    return (
        f"{count} photos; in Label Studio paste interface.xml as the labeling interface's code, "
        "then import tasks_*.json"
    )


def label_studio_task(image: MaskedImage, names: Mapping[int, str], *, url: str) -> dict[str, Any]:
    """Return an image's task with its prediction; names are ``with_ignored``."""
    prediction: dict[str, Any] = {
        "model_version": image.model,
        "result": [brush_region(image.label_map, index, names[index], Tags(_MASK, _IMAGE)) for index in image.regions],
    }
    if image.confidence:
        prediction["score"] = min(image.confidence.values())
    return {"data": {_IMAGE: url}, "predictions": [prediction]}


@dataclass(frozen=True)
class Tags:
    """Names of a labeling interface's tags: that of the labels and that of the image."""

    control: str
    image: str


def brush_region(label_map: NDArray[np.uint8], index: int, label: str, tags: Tags) -> dict[str, Any]:
    """Return the pixels of an index as a brush region."""
    value = {"format": "rle", "rle": _brush_rle(label_map == index), "brushlabels": [label]}
    return _region(label_map, f"class{index}", tags, "brushlabels", value)


def polygon_regions(label_map: NDArray[np.uint8], index: int, label: str, tags: Tags) -> list[dict[str, Any]]:
    """Return the pixels of an index as polygons along their edges, in percent of the image."""
    height, width = label_map.shape
    regions = []
    for number, outlined in enumerate(outline(label_map == index)):
        xs, ys = outlined[0::2], outlined[1::2]
        points = [[100 * x / width, 100 * y / height] for x, y in zip(xs, ys, strict=True)]
        value = {"points": points, "closed": True, "polygonlabels": [label]}
        name = f"class{index}-{number}"
        regions.append(_region(label_map, name, tags, "polygonlabels", value))
    return regions


def _region(
    label_map: NDArray[np.uint8], identity: str, tags: Tags, kind: str, value: Mapping[str, Any]
) -> dict[str, Any]:
    height, width = label_map.shape
    return {
        "id": identity,
        "type": kind,
        "from_name": tags.control,
        "to_name": tags.image,
        "image_rotation": 0,
        "original_width": width,
        "original_height": height,
        "value": value,
    }


def _brush_rle(mask: NDArray[np.bool_]) -> list[int]:
    """Encode a mask, (H, W), as the bytes of a ``brushlabels`` region's ``rle``."""
    values = mask.ravel()
    starts = np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1))
    lengths = np.diff(starts, append=values.size) * _CHANNELS
    bits = [f"{values.size * _CHANNELS:032b}", f"{8 - 1:05b}"]
    bits += [f"{width - 1:04b}" for width in _WIDTHS]
    for length, value in zip(lengths.tolist(), values[starts].tolist(), strict=True):
        whole, rest = divmod(length, _LONGEST)
        bits += [_run(_LONGEST, value)] * whole
        if rest:
            bits.append(_run(rest, value))
    packed = "".join(bits)
    packed += "0" * (-len(packed) % 8)
    return list(int(packed, 2).to_bytes(len(packed) // 8, "big"))


def _run(length: int, value: bool) -> str:
    kind = next(each for each, width in enumerate(_WIDTHS) if length <= 1 << width)
    return f"1{kind:02b}{length - 1:0{_WIDTHS[kind]}b}{255 * value:08b}"


def _interface(labels: Sequence[Label]) -> str:
    rows = [f"    <Label value={quoteattr(each.name)} background={quoteattr(each.hex)}/>" for each in labels]
    lines = [
        "<View>",
        f'  <Image name="{_IMAGE}" value="${_IMAGE}" zoom="true" zoomControl="true"/>',
        f'  <BrushLabels name="{_MASK}" toName="{_IMAGE}">',
        *rows,
        "  </BrushLabels>",
        "</View>",
    ]
    return "\n".join(lines) + "\n"
