"""COCO annotation files, with run lengths and with polygons that COCO's rasterizer turns into the same pixels."""

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
from scipy import ndimage

from models.data.classes import IGNORE_INDEX, ClassInfo, ClassList
from models.data.mask_files import software_version
from models.data.mask_folder import MaskedImage

RLE_FILE, POLYGON_FILE = "annotations_rle.json", "annotations_polygons.json"


def write_coco(images: Iterable[MaskedImage], classes: ClassList, folder: Path) -> str:
    """Write the same annotations with run lengths and with polygons; returns a line for the user.

    One annotation a class and image, not a crowd; category ids are the label maps' indices, ``score`` is the class's
    mean confidence. Both files decode to the same pixels. Ignored pixels belong to no category: they are each image's
    ``ignored``, run lengths too, so that a loss can leave them out.
    """
    count = number = 0
    with (
        (folder / RLE_FILE).open("w", encoding="utf-8") as by_rle,
        (folder / POLYGON_FILE).open("w", encoding="utf-8") as by_polygons,
        # A file, not a list: the ignored regions of a large folder are large as well.
        tempfile.TemporaryFile("w+", encoding="utf-8") as records,
    ):
        for file in (by_rle, by_polygons):
            head = json.dumps(_head(classes.classes), ensure_ascii=False)[:-1]
            file.write(head + ',\n"annotations": [')
        for number, image in enumerate(images, start=1):
            _append(records, _image(image, number), first=number == 1)
            for annotation, polygons in _annotations(image, number):
                count += 1
                annotation["id"] = count
                _append(by_rle, annotation, first=count == 1)
                _append(by_polygons, annotation | {"segmentation": polygons}, first=count == 1)
        for file in (by_rle, by_polygons):
            file.write('\n],\n"images": [')
            records.seek(0)
            shutil.copyfileobj(records, file)
            file.write("\n]}\n")
    return f"{number} photos, {count} annotations in {RLE_FILE} and again in {POLYGON_FILE}"


def coco_document(image: MaskedImage, classes: Sequence[ClassInfo], *, polygons: bool) -> dict[str, Any]:
    """Return the content of one image's annotation file, with polygons or run lengths; ``classes`` may be none."""
    annotations = []
    for number, (annotation, outlines) in enumerate(_annotations(image, 1), start=1):
        shape = {"segmentation": outlines} if polygons else {}
        annotations.append(annotation | shape | {"id": number})
    return {**_head(classes), "annotations": annotations, "images": [_image(image, 1)]}


def _run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a mask, (H, W), as COCO's compressed run lengths in JSON's types."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def _image(image: MaskedImage, image_id: int) -> dict[str, Any]:
    height, width = image.label_map.shape
    record = {"id": image_id, "file_name": image.name, "width": width, "height": height}
    ignored = image.label_map == IGNORE_INDEX
    return record | ({"ignored": _run_lengths(ignored)} if ignored.any() else {})


def _annotations(image: MaskedImage, image_id: int) -> Iterator[tuple[dict[str, Any], list[list[int]]]]:
    for index in image.regions:
        if index == IGNORE_INDEX:
            continue
        mask = image.label_map == index
        rle = _run_lengths(mask)
        annotation = {
            "image_id": image_id,
            "category_id": index,
            "segmentation": rle,
            "area": int(mask.sum()),
            "bbox": coco_mask.toBbox(rle).tolist(),
            "iscrowd": 0,
        }
        if index in image.confidence:
            annotation["score"] = image.confidence[index]
        yield annotation, outline(mask)


def _head(classes: Sequence[ClassInfo]) -> dict[str, Any]:
    return {
        "info": {"description": f"pseudo masks by semples {software_version()}"},
        "licenses": [],
        "categories": [{"id": each.index, "name": each.name, "supercategory": ""} for each in classes],
    }


def _append(file: TextIO, record: Mapping[str, Any], *, first: bool) -> None:
    file.write(("\n" if first else ",\n") + json.dumps(record, ensure_ascii=False))


def outline(mask: NDArray[np.bool_]) -> list[list[int]]:
    """Outline a mask, (H, W), along its pixels' edges: clockwise polygons x0, y0, x1, y1, … in pixels.

    COCO's polygons have no holes. A part with holes is therefore cut through one of them, and its pieces again, until
    none has a hole; the pieces share the cut as an edge and do not overlap. A hole is background that cannot leave in
    steps to the four sides, so no outline touches itself: all polygons are simple, with right angles only. Corners are
    whole numbers, and such edges never cross a pixel's center, by which pycocotools decides.
    """
    polygons = []
    waiting = [(mask, 0, 0)]
    while waiting:
        piece, left, top = waiting.pop()
        parts, _ = ndimage.label(piece)
        for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
            part, x, y = parts[rows, columns] == number, left + columns.start, top + rows.start
            cut = _column_through_hole(part)
            if cut is None:
                polygons.append(_walk(part, x, y))
            else:
                waiting += [(part[:, cut:], x + cut, y), (part[:, :cut], x, y)]
    return polygons


def _column_through_hole(part: NDArray[np.bool_]) -> int | None:
    """Return a column at which a cut opens a hole of a connected part; None if it has none."""
    outside, count = ndimage.label(~np.pad(part, 1))
    if count == 1:
        return None
    # The first label is what surrounds the part: it has the top left corner. Its padding is one column.
    columns = [each[1] for each in ndimage.find_objects(outside)[1:]]
    middles: list[int] = [(each.start + each.stop) // 2 - 1 for each in columns]
    # The most central hole: halves of similar size keep the number of cuts that a pixel takes part in small.
    return min(middles, key=lambda middle: abs(2 * middle - part.shape[1]))


def _walk(part: NDArray[np.bool_], left: int, top: int) -> list[int]:
    """Return the one outline of a connected part without holes."""
    inside = np.pad(part, 1).astype(np.uint8)
    around = inside[1:, 1:] + inside[1:, :-1] + inside[:-1, 1:] + inside[:-1, :-1]
    y, x = np.nonzero(around % 2)
    by_column = np.lexsort((y, x))
    partner = np.empty_like(by_column)
    partner[by_column[0::2]], partner[by_column[1::2]] = by_column[1::2], by_column[0::2]
    in_column, xs, ys = partner.tolist(), (x + left).tolist(), (y + top).tolist()
    corner, polygon = 0, []
    for _ in range(len(xs) // 2):
        beside = corner ^ 1  # nonzero() goes row by row, so pairs in a row are 0 and 1, 2 and 3, …
        polygon += [xs[corner], ys[corner], xs[beside], ys[beside]]
        corner = in_column[beside]
    return polygon
