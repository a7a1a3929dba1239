"""MS COCO 2014 in its original layout; label maps hold category ids, which run from 1 to 90 with gaps."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from models.data.archives import COCO_PHOTOS
from models.data.classes import ClassInfo, ClassList
from models.data.official import Listed, listed_samples, official_list, spread
from models.data.sample import Sample

_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, , stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, , backpack, umbrella, "
    ", , handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, "
    "skateboard, surfboard, tennis racket, bottle, , wine glass, cup, fork, knife, spoon, bowl, banana, apple, "
    "sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, , "
    "dining table, , , toilet, , tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, "
    "refrigerator, , book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
# The 80 categories with their official ids: an empty name stands for an id without a category.
COCO_CLASSES = ClassList(
    tuple(ClassInfo(index, name) for index, name in enumerate(_NAMES.split(", "), start=1) if name)
)
COCO_SPLITS = ("train", "val")


def coco_photos(root: Path, split: str) -> Path:
    """Return the folder of a split's photos.

    Raises:
        ValueError: if it is not there; it says what to download.
    """
    folder = root / f"{split}2014"
    if not folder.is_dir():
        raise ValueError(
            f"expected {folder.name} in {root}, got none; {COCO_PHOTOS[split].hint(root)}"
        )
    return folder


def coco_instances(root: Path, split: str) -> Path:
    """Return where a split's instance annotations are."""
    return root / "annotations" / f"instances_{split}2014.json"


@cache
def coco_list(split: str) -> tuple[Listed, ...]:
    """Return the list "train" (82,081 photos) or "val" (40,137): all photos that have an annotation.

    Raises:
        ValueError: if there is no such split.
    """
    return official_list("coco2014", split, lambda number: f"COCO_{split}2014_{number:012d}")


def read_coco(root: Path, split: str, *, photos: int | None = None) -> list[Sample]:
    """Return the photos of a split with their image-level labels, as channels of ``COCO_CLASSES``.

    Args:
        root: folder that the archives were unpacked in.
        split: as ``coco_list`` takes it.
        photos: take so many only, spread over the list.

    Raises:
        ValueError: if there is no such split, or something is missing in the download.
        OSError: if it cannot be read.
    """
    listed = spread(coco_list(split), photos)
    return listed_samples(coco_photos(root, split), listed, COCO_PHOTOS[split])
