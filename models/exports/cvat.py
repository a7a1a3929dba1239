"""CVAT's "Segmentation mask 1.1": a zip of colored masks, to be uploaded as a task's annotations."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.data.classes import BACKGROUND_INDEX, ClassList
from models.exports.labels import Label, all_labels, label_map_txt, list_line
from models.exports.source import MaskedPhoto
from models.pictures import voc_palette


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
