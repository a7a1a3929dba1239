"""COCO's annotation files, once with run lengths and once with polygons."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from models.data.classes import IGNORE_INDEX, ClassInfo, ClassList
from models.exports.polygons import outline
from models.exports.source import MaskedPhoto
from models.files import software_version

RLE_FILE, POLYGON_FILE = "annotations_rle.json", "annotations_polygons.json"


def write_coco(photos: Iterable[MaskedPhoto], classes: ClassList, folder: Path) -> str:
    """Write the same annotations twice, for loaders that take run lengths and for those that take polygons.

    One annotation a class and photo, not a crowd; category ids are the label maps' indices, ``score`` is the class's
    mean confidence. Both files decode to the same pixels. Ignored pixels belong to no category, so that nothing learns
    them as one: they are each image's ``ignored``, run lengths too, for those who want to leave them out of a loss.

    Returns:
        A line on what was written.

    Raises:
        OSError: if it cannot be written.
    """
    count = images = 0
    with (
        (folder / RLE_FILE).open("w", encoding="utf-8") as by_rle,
        (folder / POLYGON_FILE).open("w", encoding="utf-8") as by_polygons,
        # A file, not a list: the ignored regions of a large folder are large as well.
        tempfile.TemporaryFile("w+", encoding="utf-8") as spool,
    ):
        for file in (by_rle, by_polygons):
            head = json.dumps(_head(classes.classes), ensure_ascii=False)[:-1]
            file.write(head + ',\n"annotations": [')
        for images, photo in enumerate(photos, start=1):
            _append(spool, _image(photo, images), first=images == 1)
            for annotation, polygons in _annotations(photo, images):
                count += 1
                annotation["id"] = count
                _append(by_rle, annotation, first=count == 1)
                _append(by_polygons, annotation | {"segmentation": polygons}, first=count == 1)
        for file in (by_rle, by_polygons):
            file.write('\n],\n"images": [')
            spool.seek(0)
            shutil.copyfileobj(spool, file)
            file.write("\n]}\n")
    return f"{images} photos, {count} annotations in {RLE_FILE} and again in {POLYGON_FILE}"


def coco_document(
    photo: MaskedPhoto, classes: Sequence[ClassInfo], *, polygons: bool
) -> dict[str, Any]:
    """Return one photo's annotations as a file of its own, as ``write_coco`` writes them.

    Args:
        photo: the only one.
        classes: the categories, which may be none.
        polygons: whether regions are polygons; run lengths otherwise.
    """
    annotations = []
    for number, (annotation, outlines) in enumerate(_annotations(photo, 1), start=1):
        shape = {"segmentation": outlines} if polygons else {}
        annotations.append(annotation | shape | {"id": number})
    return {**_head(classes), "annotations": annotations, "images": [_image(photo, 1)]}


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a mask, (H, W), as COCO's compressed run lengths, fit for JSON."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def _image(photo: MaskedPhoto, identity: int) -> dict[str, Any]:
    height, width = photo.label_map.shape
    image = {"id": identity, "file_name": photo.name, "width": width, "height": height}
    ignored = photo.label_map == IGNORE_INDEX
    return image | ({"ignored": run_lengths(ignored)} if ignored.any() else {})


def _annotations(
    photo: MaskedPhoto, image: int
) -> Iterator[tuple[dict[str, Any], list[list[int]]]]:
    for index in photo.regions:
        if index == IGNORE_INDEX:
            continue
        mask = photo.label_map == index
        rle = run_lengths(mask)
        annotation = {
            "image_id": image,
            "category_id": index,
            "segmentation": rle,
            "area": int(mask.sum()),
            "bbox": coco_mask.toBbox(rle).tolist(),
            "iscrowd": 0,
        }
        if index in photo.confidence:
            annotation["score"] = photo.confidence[index]
        yield annotation, outline(mask)


def _head(classes: Sequence[ClassInfo]) -> dict[str, Any]:
    return {
        "info": {"description": f"pseudo masks by semples {software_version()}"},
        "licenses": [],
        "categories": [
            {"id": each.index, "name": each.name, "supercategory": ""} for each in classes
        ],
    }


def _append(file: TextIO, record: Mapping[str, Any], *, first: bool) -> None:
    file.write(("\n" if first else ",\n") + json.dumps(record, ensure_ascii=False))
