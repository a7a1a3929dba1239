"""CVAT's "Segmentation mask 1.1": a zip of colored masks, to be uploaded as a task's annotations."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX, ClassList
from models.data.mask_files import voc_palette
from models.data.mask_folder import MaskedPhoto
from models.exports import Label, all_labels, label_map_txt, list_line


def write_cvat(photos: Iterable[MaskedPhoto], classes: ClassList, folder: Path) -> str:
    """Write ``annotations.zip``, and ``labels.json`` for the raw label editor of the task or project.

    Every class of a photo is one object. Ignored pixels are an object labeled "ignored": left out they would turn into
    background unseen. Background is no object, as CVAT wants it.

    Returns:
        A line on what was written and how to use it.

    Raises:
        ValueError: if a class or a photo has a name that the format cannot hold.
        OSError: if it cannot be written.
    """
    labels = all_labels(classes)
    label_map = label_map_txt(labels)
    lines = []
    with ZipFile(folder / "annotations.zip", "w") as archive:
        for photo in photos:
            # CVAT finds a photo by its path in the task, without the ending.
            place = str(PurePosixPath(photo.name).with_suffix(""))
            lines.append(list_line(place))
            for name, indices in (
                ("SegmentationClass", photo.label_map),
                ("SegmentationObject", _objects(photo)),
            ):
                _add(archive, f"{name}/{place}.png", _colored(indices), method=ZIP_STORED)
        lists = "ImageSets/Segmentation/default.txt"
        _add(archive, lists, "".join(lines).encode(), method=ZIP_DEFLATED)
        _add(archive, "labelmap.txt", label_map.encode(), method=ZIP_DEFLATED)
    (folder / "labels.json").write_text(_raw_labels(labels), encoding="utf-8")
    return (
        f"{len(lines)} photos; in CVAT make a task of the same photos (and folders) with labels.json as its raw "
        "labels, then upload annotations.zip as 'Segmentation mask 1.1'"
    )


def _objects(photo: MaskedPhoto) -> NDArray[np.uint8]:
    """Number the regions from 1; background stays 0."""
    numbers = np.zeros(256, dtype=np.uint8)
    numbers[photo.regions] = np.arange(1, len(photo.regions) + 1)
    return numbers[photo.label_map]


def _colored(indices: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(voc_palette()[indices]).save(buffer, format="PNG")
    return buffer.getvalue()


def _raw_labels(labels: Sequence[Label]) -> str:
    rows = [
        {"name": each.name, "color": each.hex, "attributes": []}
        for each in labels
        if each.index != BACKGROUND_INDEX
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def _add(archive: ZipFile, name: str, data: bytes, *, method: int) -> None:
    # Without the clock: the same masks give the same zip. Without the mode, unzipped files could not be opened.
    entry = ZipInfo(name)
    entry.compress_type = method
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)


# CVAT's own annotation file, "CVAT for images 1.1": a photo's regions as masks.


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
