"""A finished job's mask in the formats of annotation tools; the library's exporters write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from models.data.classes import ClassInfo
from models.data.mask_folder import MaskedPhoto
from models.exports.coco import coco_document
from models.exports.cvat import cvat_xml, with_ignored
from models.exports.label_studio import label_studio_task

Format = Literal["coco.json", "polygons.json", "label-studio.json", "cvat.xml"]
Names = Mapping[int, str]


def annotated(form: Format, photo: MaskedPhoto, names: Names) -> bytes:
    """Return a mask in a tool's format.

    Args:
        form: which.
        photo: the mask.
        names: of the job's classes, by index; which may be none.
    """
    return _WRITERS[form](photo, names)


def _coco(photo: MaskedPhoto, names: Names) -> bytes:
    return _json(coco_document(photo, _classes(names), polygons=False))


def _polygons(photo: MaskedPhoto, names: Names) -> bytes:
    return _json(coco_document(photo, _classes(names), polygons=True))


def _label_studio(photo: MaskedPhoto, names: Names) -> bytes:
    return _json([label_studio_task(photo, with_ignored(names), image=photo.name)])


def _cvat(photo: MaskedPhoto, names: Names) -> bytes:
    return cvat_xml(photo, with_ignored(names))


def _classes(names: Names) -> list[ClassInfo]:
    return [ClassInfo(index, name) for index, name in names.items()]


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


_WRITERS: Final[Mapping[Format, Callable[[MaskedPhoto, Names], bytes]]] = {
    "coco.json": _coco,
    "polygons.json": _polygons,
    "label-studio.json": _label_studio,
    "cvat.xml": _cvat,
}
