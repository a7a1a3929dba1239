"""PASCAL VOC 2012 and MS COCO 2014: their archives, and their official photo lists with image-level labels.

``lists/NAME.txt.xz`` has a section "# SPLIT" for each list, with a line "GAP CHANNEL CHANNEL…" for each photo: GAP is
the photo's number minus that of the line before, channels count the classes from 0. ``python -m benchmarks.data_lists``
writes these files.
"""

from __future__ import annotations

import lzma
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

from models.data.classes import Sample

_T = TypeVar("_T")

_NAMED = 3  # missing photos in a message


@dataclass(frozen=True)
class Archive:
    """A published archive: file name, URL of its folder, and the MD5 that loaders of the data set publish."""

    name: str
    folder: str
    md5: str

    def hint(self, root: Path | None = None) -> str:
        """Say where to download it, and to unpack it in a folder, or again."""
        where = "again" if root is None else f"in {root}"
        return f"unpack {self.name} (from {self.folder}/{self.name}, md5 {self.md5}) {where}"


VOC_ARCHIVE = Archive(
    "VOCtrainval_11-May-2012.tar",
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
    "6cd6e144f989b92b3379bac3b3de84fd",
)
SBD_ARCHIVE = Archive(
    "benchmark.tgz",
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours",
    "82b4d87ceb2ed10f6038a1cba92111cb",
)
_COCO = "http://images.cocodataset.org"
COCO_PHOTOS = {
    "train": Archive("train2014.zip", f"{_COCO}/zips", "0da8c0bd3d6becc4dcb32757491aca88"),
    "val": Archive("val2014.zip", f"{_COCO}/zips", "a3d79f5ed8d289b7a7554ce06a5782b3"),
}
COCO_ANNOTATIONS = Archive("annotations_trainval2014.zip", f"{_COCO}/annotations", "0a379cfc70b0e71301e0f377548639bd")


@dataclass(frozen=True)
class Listed:
    """A photo of an official list: file name without ".jpg", and class channels, sorted, each once."""

    stem: str
    channels: tuple[int, ...]

    @property
    def file_name(self) -> str:
        """The file name."""
        return f"{self.stem}.jpg"


def official_list(name: str, split: str, stem: Callable[[int], str]) -> tuple[Listed, ...]:
    """Return the photos of a data set's split; ``stem`` maps a photo's number to its file name without suffix."""
    packed = files("models.data").joinpath("lists", f"{name}.txt.xz").read_bytes()
    sections = lzma.decompress(packed).decode("ascii").split("# ")[1:]
    splits = {title: lines for title, *lines in map(str.splitlines, sections)}
    if split not in splits:
        raise ValueError(f"expected one of {', '.join(splits)}, got {split!r}")
    rows = [[int(number) for number in line.split()] for line in splits[split]]
    numbers = accumulate(gap for gap, *_ in rows)
    return tuple(Listed(stem(number), tuple(row[1:])) for number, row in zip(numbers, rows, strict=True))


def evenly_spaced(items: Sequence[_T], count: int | None) -> list[_T]:
    """Return at most ``count`` items, evenly spaced over all of them; all if it is None."""
    if count is None or count >= len(items):
        return list(items)
    if count < 1:
        raise ValueError(f"expected at least one, got {count}")
    return [items[number * len(items) // count] for number in range(count)]


def listed_samples(folder: Path, listed: Sequence[Listed], archive: Archive) -> list[Sample]:
    """Pair listed photos with their files in a folder."""
    with os.scandir(folder) as entries:  # one call, not one for each of 100,000 files
        present = {entry.name for entry in entries if entry.is_file() and entry.stat().st_size > 0}
    missing = [photo.file_name for photo in listed if photo.file_name not in present]
    if missing:
        named = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
        raise ValueError(
            f"expected {len(listed)} listed photos in {folder}, got {len(listed) - len(missing)}: "
            f"missing or empty are {named} ({len(missing)} in all); {archive.hint()}"
        )
    return [Sample(folder / photo.file_name, photo.channels, folder) for photo in listed]
