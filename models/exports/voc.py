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
from models.data.mask_folder import MaskedImage
from models.exports import all_labels, label_map_txt, list_line

_UPRIGHT = 1
_QUALITY = 95


def write_voc(images: Iterable[MaskedImage], classes: ClassList, folder: Path) -> str:
    """Write ``JPEGImages``, ``SegmentationClass``, ``ImageSets`` and class lists; returns a line for the user.

    Masks keep their pixel values and their provenance; 255 is VOC's own "void". JPEGs are hard-linked, or copied where
    that is not possible. Readers of VOC expect ``.jpg`` and know no EXIF orientation: images of other formats or
    orientations are encoded anew, upright. ``train.txt`` and ``trainval.txt`` list all images.
    """
    label_map = label_map_txt(all_labels(classes))
    pictures, masks, lists = (folder / each for each in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"))
    for each in (pictures, masks, lists):
        each.mkdir(parents=True)
    lines, encoded = [], 0
    for image in images:
        lines.append(list_line(image.stem))
        (masks / f"{image.stem}.png").write_bytes(label_map_png(image.label_map, text=image.text))
        target = pictures / f"{image.stem}.jpg"
        if image.header.format == "JPEG" and image.header.exif_orientation == _UPRIGHT:
            _link(image.path, target)
        else:
            _encode(image.path, target)
            encoded += 1
    for name in ("train", "trainval"):
        (lists / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "labelmap.txt").write_text(label_map, encoding="utf-8")
    write_class_list(folder / "classes.txt", classes)
    return f"{len(lines)} photos, {encoded} of them encoded anew as upright JPEG"


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _encode(source: Path, target: Path) -> None:
    picture = Image.fromarray(read_image(source.read_bytes()).pixels)
    picture.save(target, format="JPEG", quality=_QUALITY, subsampling=0)
