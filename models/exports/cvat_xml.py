"""CVAT's own annotation file, "CVAT for images 1.1": a photo's regions as masks."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX
from models.exports.source import MaskedPhoto
from models.pictures import voc_palette


def cvat_xml(photo: MaskedPhoto, names: Mapping[int, str]) -> bytes:
    """Return a photo's annotations, to be uploaded to a task as "CVAT 1.1".

    One mask a class, and one for ignored pixels; background is none.

    Args:
        photo: its name is that of the image in the task.
        names: of label map indices, 255 among them.
    """
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(_below(root, "meta", "task"), "labels")
    for index, name in names.items():
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        ElementTree.SubElement(label, "color").text = "#" + voc_palette()[index].tobytes().hex()
        ElementTree.SubElement(label, "attributes")
    height, width = photo.label_map.shape
    size = {"width": str(width), "height": str(height)}
    image = ElementTree.SubElement(root, "image", {"id": "0", "name": photo.name, **size})
    for index in photo.regions:
        described = {"label": names[index], "source": "auto", "occluded": "0", "z_order": "0"}
        described |= _mask(photo.label_map == index)
        ElementTree.SubElement(image, "mask", described)
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content


def with_ignored(names: Mapping[int, str]) -> dict[int, str]:
    """Return names of label map indices with one for ignored pixels, without which they would turn into background."""
    kept = {index: name for index, name in names.items() if index != BACKGROUND_INDEX}
    return kept | {IGNORE_INDEX: "ignored"}


def _below(root: ElementTree.Element, *names: str) -> ElementTree.Element:
    for name in names:
        root = ElementTree.SubElement(root, name)
    return root


def _mask(mask: NDArray[np.bool_]) -> dict[str, str]:
    """Return a mask's box and, row by row in it, the lengths of its runs; the first one is of zeros and may be 0."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    inside = mask[top:bottom, left:right].ravel()
    changes = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts = [0, *([0] if inside[0] else []), *changes.tolist()]
    lengths = np.diff(starts, append=inside.size).tolist()
    place = {"left": left, "top": top, "width": right - left, "height": bottom - top}
    return {
        "rle": ", ".join(map(str, lengths)),
        **{key: str(value) for key, value in place.items()},
    }
