"""MS COCO 2014 in its original layout, and COCO's instance annotations; category ids are indices in label maps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX, ClassInfo, ClassList, Sample
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
    """The content of an instance annotation file: category names by id, and by photo (height, width) and annotations.

    Each annotation has ``category_id``, crowds have ``iscrowd`` 1; ``segmentation`` and a photo's size may be missing.
    """

    names: Mapping[int, str]
    sizes: Mapping[str, tuple[int, int]]
    annotations: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def classes(self) -> ClassList:
        """The categories, with their ids as indices, or numbered from 1 if an id is none (0) or a name has two."""
        names = dict.fromkeys(self.names.values())
        fit = len(names) == len(self.names) and all(BACKGROUND_INDEX < each < IGNORE_INDEX for each in self.names)
        pairs = self.names.items() if fit else enumerate(names, start=1)
        return ClassList(tuple(ClassInfo(index, name) for index, name in pairs))

    def labels(self) -> dict[str, tuple[str, ...]]:
        """Return each photo's class names, each once, crowds included, in the order of the categories."""
        order = list(dict.fromkeys(self.names.values()))
        return {
            image: tuple(sorted({self.names[index] for index in self.indices(image)}, key=order.index))
            for image in self.annotations
        }

    def indices(self, image: str) -> set[int]:
        """Return the category ids of a photo."""
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
    images = {each["id"]: str(each["file_name"]) for each in content["images"]}
    sizes = {
        images[each["id"]]: (int(each["height"]), int(each["width"]))
        for each in content["images"]
        if each.get("height") and each.get("width")
    }
    names = {each["id"]: str(each["name"]) for each in content["categories"]}
    annotations: dict[str, list[Mapping[str, Any]]] = {name: [] for name in images.values()}
    if len(annotations) != len(content["images"]):
        raise ValueError("a photo twice")
    for each in content["annotations"]:
        if each["category_id"] not in names:
            raise ValueError(f"annotation {each.get('id')} without a known category")
        annotations[images[each["image_id"]]].append(each)
    return Instances(names, sizes, annotations)
