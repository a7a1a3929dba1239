"""COCO's instance annotations: one JSON file for all photos of a split."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.data.classes import ClassInfo, ClassList


@dataclass(frozen=True)
class Instances:
    """What an annotation file says.

    Attributes:
        classes: its categories by id, which is their index in label maps.
        sizes: (height, width) in pixels by photo.
        annotations: by photo, each with ``category_id`` and ``segmentation``; those of crowds have ``iscrowd`` 1.
    """

    classes: ClassList
    sizes: Mapping[str, tuple[int, int]]
    annotations: Mapping[str, Sequence[Mapping[str, Any]]]

    def labels(self) -> dict[str, tuple[str, ...]]:
        """Return each photo's class names, each once, crowds with them, in the order of the classes."""
        names = {info.index: info.name for info in self.classes.classes}
        return {
            image: tuple(names[index] for index in sorted(self.indices(image)))
            for image in self.sizes
        }

    def indices(self, image: str) -> set[int]:
        """Return the class indices of a photo."""
        return {annotation["category_id"] for annotation in self.annotations[image]}


def read_instances(path: Path) -> Instances:
    """Read an annotation file; it takes about six times its size in memory.

    Raises:
        ValueError: if it is not one of instances.
        OSError: if it cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # JSON's and UTF-8's
        raise ValueError(f"expected JSON in {path}, got {error}") from error
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
        got = sorted(content)[:5] if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"expected COCO's instances (images, annotations, categories) in {path}, got {got}"
        )
    try:
        return _instances(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"expected COCO's instances in {path}, got {reason}") from error


def _instances(content: Mapping[str, Any]) -> Instances:
    names = {each["id"]: str(each["file_name"]) for each in content["images"]}
    sizes = {
        names[each["id"]]: (int(each["height"]), int(each["width"])) for each in content["images"]
    }
    if len(sizes) != len(content["images"]):
        raise ValueError("a photo twice")
    classes = ClassList(
        tuple(ClassInfo(each["id"], each["name"]) for each in content["categories"])
    )
    known = {info.index for info in classes.classes}
    annotations: dict[str, list[Mapping[str, Any]]] = {name: [] for name in sizes}
    for each in content["annotations"]:
        if each["category_id"] not in known or not isinstance(each["segmentation"], list | dict):
            raise ValueError(f"annotation {each['id']} without a known category or a segmentation")
        annotations[names[each["image_id"]]].append(each)
    return Instances(classes, sizes, annotations)
