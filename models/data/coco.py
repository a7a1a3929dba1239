"""MS COCO 2014 in its original layout, and COCO's instance annotations; category ids are indices in label maps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from models.data.classes import ClassInfo, ClassList, Sample
from models.data.official import COCO_PHOTOS, Listed, evenly_spaced, listed_samples, official_list

_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, , stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, , backpack, umbrella, "
    ", , handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, "
    "skateboard, surfboard, tennis racket, bottle, , wine glass, cup, fork, knife, spoon, bowl, banana, apple, "
    "sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, , "
    "dining table, , , toilet, , tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, "
    "refrigerator, , book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
# The 80 categories with their official ids, from 1 to 90; an empty name stands for an unused id.
COCO_CLASSES = ClassList(
    tuple(ClassInfo(index, name) for index, name in enumerate(_NAMES.split(", "), start=1) if name)
)
COCO_SPLITS = ("train", "val")


def coco_photos(root: Path, split: str) -> Path:
    """Return the folder of a split's photos."""
    folder = root / f"{split}2014"
    if not folder.is_dir():
        raise ValueError(f"expected {folder.name} in {root}, got none; {COCO_PHOTOS[split].hint(root)}")
    return folder


def coco_instances(root: Path, split: str) -> Path:
    """Return the path of a split's instance annotations."""
    return root / "annotations" / f"instances_{split}2014.json"


@cache
def _coco_list(split: str) -> tuple[Listed, ...]:
    """Return the list "train" (82,081 photos) or "val" (40,137): all photos that have an annotation."""
    return official_list("coco2014", split, lambda number: f"COCO_{split}2014_{number:012d}")


def read_coco(root: Path, split: str, *, photos: int | None = None) -> list[Sample]:
    """Return the photos of a split, at most ``photos``, with their labels as channels of ``COCO_CLASSES``."""
    listed = evenly_spaced(_coco_list(split), photos)
    return listed_samples(coco_photos(root, split), listed, COCO_PHOTOS[split])


@dataclass(frozen=True)
class Instances:
    """The content of an instance annotation file: its categories, and by photo (height, width) and annotations.

    Each annotation has ``category_id`` and ``segmentation``, crowds with ``iscrowd`` 1.
    """

    classes: ClassList
    sizes: Mapping[str, tuple[int, int]]
    annotations: Mapping[str, Sequence[Mapping[str, Any]]]

    def labels(self) -> dict[str, tuple[str, ...]]:
        """Return each photo's class names, each once, crowds included, by index."""
        names = {info.index: info.name for info in self.classes.classes}
        return {image: tuple(names[index] for index in sorted(self.indices(image))) for image in self.sizes}

    def indices(self, image: str) -> set[int]:
        """Return the class indices of a photo."""
        return {annotation["category_id"] for annotation in self.annotations[image]}


def read_instances(path: Path) -> Instances:
    """Read an instance annotation file, which takes about six times its size in memory."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # JSON's and UTF-8's
        raise ValueError(f"expected JSON in {path}, got {error}") from error
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
        got = sorted(content)[:5] if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"expected COCO's instances (images, annotations, categories) in {path}, got {got}")
    try:
        return _instances(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"expected COCO's instances in {path}, got {reason}") from error


def _instances(content: Mapping[str, Any]) -> Instances:
    names = {each["id"]: str(each["file_name"]) for each in content["images"]}
    sizes = {names[each["id"]]: (int(each["height"]), int(each["width"])) for each in content["images"]}
    if len(sizes) != len(content["images"]):
        raise ValueError("a photo twice")
    classes = ClassList(tuple(ClassInfo(each["id"], each["name"]) for each in content["categories"]))
    known = {info.index for info in classes.classes}
    annotations: dict[str, list[Mapping[str, Any]]] = {name: [] for name in sizes}
    for each in content["annotations"]:
        if each["category_id"] not in known or not isinstance(each["segmentation"], list | dict):
            raise ValueError(f"annotation {each['id']} without a known category or a segmentation")
        annotations[names[each["image_id"]]].append(each)
    return Instances(classes, sizes, annotations)
