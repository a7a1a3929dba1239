"""CVAT's annotations: "Segmentation mask 1.1", a zip of colored masks, and "CVAT for images 1.1", XML."""

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

from models.data.classes import BACKGROUND_INDEX, ClassList
from models.data.mask_files import voc_palette
from models.data.mask_folder import MaskedImage
from models.exports import Label, all_labels, label_map_txt, list_line


def write_cvat(images: Iterable[MaskedImage], classes: ClassList, folder: Path) -> str:
    """Write ``annotations.zip``, and ``labels.json`` for CVAT's raw label editor; returns a line for the user.

    Every class of an image is one object. Ignored pixels are an object labeled "ignored": left out, they would become
    background. Background is no object, as CVAT requires.
    """
    labels = all_labels(classes)
    label_map = label_map_txt(labels)
    lines = []
    with ZipFile(folder / "annotations.zip", "w") as archive:
        for image in images:
            # CVAT finds an image by its path in the task, without the suffix.
            name = str(PurePosixPath(image.name).with_suffix(""))
            lines.append(list_line(name))
            for folder_name, indices in (
                ("SegmentationClass", image.label_map),
                ("SegmentationObject", _objects(image)),
            ):
                _add(archive, f"{folder_name}/{name}.png", _colored(indices), method=ZIP_STORED)
        lists = "ImageSets/Segmentation/default.txt"
        _add(archive, lists, "".join(lines).encode(), method=ZIP_DEFLATED)
        _add(archive, "labelmap.txt", label_map.encode(), method=ZIP_DEFLATED)
    (folder / "labels.json").write_text(_raw_labels(labels), encoding="utf-8")
    return (
        f"{len(lines)} photos; in CVAT make a task of the same photos (and folders) with labels.json as its raw "
        "labels, then upload annotations.zip as 'Segmentation mask 1.1'"
    )


def _objects(image: MaskedImage) -> NDArray[np.uint8]:
    """Number the regions from 1; background stays 0."""
    numbers = np.zeros(256, dtype=np.uint8)
    numbers[image.regions] = np.arange(1, len(image.regions) + 1)
    return numbers[image.label_map]


def _colored(indices: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(voc_palette()[indices]).save(buffer, format="PNG")
    return buffer.getvalue()


def _raw_labels(labels: Sequence[Label]) -> str:
    rows = [
        {"name": each.name, "color": each.hex, "attributes": []} for each in labels if each.index != BACKGROUND_INDEX
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def _add(archive: ZipFile, name: str, data: bytes, *, method: int) -> None:
    # Without a time, equal masks give equal zips; without a mode, unzipped files could not be opened.
    entry = ZipInfo(name)
    entry.compress_type = method
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)


def cvat_xml(image: MaskedImage, names: Mapping[int, str]) -> bytes:
    """Return an image's annotations, to be uploaded to a task as "CVAT 1.1"; names are ``with_ignored``.

    One mask a class, and one for ignored pixels; background is none.
    """
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    labels = ElementTree.SubElement(task, "labels")
    for index, name in names.items():
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        ElementTree.SubElement(label, "color").text = "#" + voc_palette()[index].tobytes().hex()
        ElementTree.SubElement(label, "attributes")
    height, width = image.label_map.shape
    size = {"width": str(width), "height": str(height)}
    element = ElementTree.SubElement(root, "image", {"id": "0", "name": image.name, **size})
    for index in image.regions:
        described = {"label": names[index], "source": "auto", "occluded": "0", "z_order": "0"}
        described |= _mask(image.label_map == index)
        ElementTree.SubElement(element, "mask", described)
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content


def _mask(mask: NDArray[np.bool_]) -> dict[str, str]:
    """Return a mask's box and the run lengths inside it, row by row; the first run is of zeros and may be 0."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    inside = mask[top:bottom, left:right].ravel()
    changes = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts = [0, *([0] if inside[0] else []), *changes.tolist()]
    lengths = np.diff(starts, append=inside.size).tolist()
    box = {"left": left, "top": top, "width": right - left, "height": bottom - top}
    return {
        "rle": ", ".join(map(str, lengths)),
        **{key: str(value) for key, value in box.items()},
    }
