"""PASCAL VOC's segmentation folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from models.data.classes import ClassList, write_class_list
from models.data.images import read_image
from models.data.mask_files import label_map_png
from models.data.mask_folder import MaskedPhoto
from models.exports import all_labels, label_map_txt, list_line

_UPRIGHT = 1
_QUALITY = 95


def write_voc(photos: Iterable[MaskedPhoto], classes: ClassList, folder: Path) -> str:
    """Write ``JPEGImages``, ``SegmentationClass``, ``ImageSets/Segmentation``, ``labelmap.txt`` and ``classes.txt``.

    Masks keep their pixel values and their provenance; 255 is VOC's own "void". JPEGs are hard-linked, or copied where
    that is not possible. Readers of VOC expect ``.jpg`` and know no EXIF orientation: photos of other formats and those
    that lie on their side are encoded anew, upright. ``train.txt`` and ``trainval.txt`` list all photos.

    Returns:
        A line on what was written.

    Raises:
        ValueError: if a class or a photo has a name that the format cannot hold.
        OSError: if it cannot be written.
    """
    label_map = label_map_txt(all_labels(classes))
    images, masks, lists = (
        folder / each for each in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
    )
    for each in (images, masks, lists):
        each.mkdir(parents=True)
    lines, encoded = [], 0
    for photo in photos:
        lines.append(list_line(photo.stem))
        (masks / f"{photo.stem}.png").write_bytes(label_map_png(photo.label_map, text=photo.text))
        place = images / f"{photo.stem}.jpg"
        if photo.header.format == "JPEG" and photo.header.exif_orientation == _UPRIGHT:
            _link(photo.path, place)
        else:
            _encode(photo.path, place)
            encoded += 1
    for name in ("train", "trainval"):
        (lists / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "labelmap.txt").write_text(label_map, encoding="utf-8")
    write_class_list(folder / "classes.txt", classes)
    return f"{len(lines)} photos, {encoded} of them encoded anew as upright JPEG"


def _link(source: Path, place: Path) -> None:
    try:
        os.link(source.resolve(), place)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, place)


def _encode(source: Path, place: Path) -> None:
    picture = Image.fromarray(read_image(source.read_bytes()).pixels)
    picture.save(place, format="JPEG", quality=_QUALITY, subsampling=0)
