"""The official photo lists of data sets with their image-level labels, shipped in a compact form.

``lists/NAME.txt.xz`` has a section "# SPLIT" for each list; in it a line a photo, "GAP CHANNEL CHANNEL…": GAP is the
photo's number minus that of the line before it, channels count the classes from 0. ``python -m benchmarks.data_lists``
makes them.
"""

from __future__ import annotations

import lzma
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from models.data.archives import Archive
from models.data.sample import Sample

Item = TypeVar("Item")

_NAMED = 3  # missing photos that a message names


@dataclass(frozen=True)
class Listed:
    """A photo of an official list.

    Attributes:
        stem: its file's name without ".jpg".
        channels: class channels, sorted, each once.
    """

    stem: str
    channels: tuple[int, ...]

    @property
    def file_name(self) -> str:
        """Its file's name."""
        return f"{self.stem}.jpg"


def official_list(name: str, split: str, stem: Callable[[int], str]) -> tuple[Listed, ...]:
    """Return the photos of a data set's split, by number.

    Args:
        name: of the shipped file.
        split: one of its sections.
        stem: a photo's number → its file's name without ending.

    Raises:
        ValueError: if there is no such split.
    """
    splits = _splits(name)
    if split not in splits:
        raise ValueError(f"expected one of {', '.join(splits)}, got {split!r}")
    rows = splits[split]
    numbers = accumulate(gap for gap, *_ in rows)
    return tuple(
        Listed(stem(number), tuple(row[1:])) for number, row in zip(numbers, rows, strict=True)
    )


def _splits(name: str) -> Mapping[str, list[list[int]]]:
    packed = files("models.data").joinpath("lists", f"{name}.txt.xz").read_bytes()
    splits = {}
    for section in lzma.decompress(packed).decode("ascii").split("# ")[1:]:
        split, *lines = section.splitlines()
        splits[split] = [[int(number) for number in line.split()] for line in lines]
    return MappingProxyType(splits)


def pack_lists(splits: Mapping[str, Sequence[tuple[int, Sequence[int]]]]) -> bytes:
    """Return the content of a list file: for each split the photos' numbers, ascending, with their channels."""
    text = ""
    for split, photos in splits.items():
        text += f"# {split}\n"
        before = 0
        for number, channels in photos:
            text += " ".join(map(str, (number - before, *channels))) + "\n"
            before = number
    return lzma.compress(text.encode("ascii"), preset=9 | lzma.PRESET_EXTREME)


def spread(items: Sequence[Item], count: int | None) -> list[Item]:
    """Return at most so many items, evenly spread over all of them; all if count is None.

    Raises:
        ValueError: if the count is not positive.
    """
    if count is None or count >= len(items):
        return list(items)
    if count < 1:
        raise ValueError(f"expected at least one, got {count}")
    return [items[number * len(items) // count] for number in range(count)]


def listed_samples(folder: Path, listed: Sequence[Listed], archive: Archive) -> list[Sample]:
    """Pair listed photos with their files.

    Args:
        folder: of the files.
        listed: the photos.
        archive: what the files come from.

    Raises:
        ValueError: if a file is missing or empty; it names the first ones and says how many.
        OSError: if the folder cannot be read.
    """
    with os.scandir(folder) as entries:  # one look at the folder, not one at each of 100,000 files
        there = {entry.name for entry in entries if entry.is_file() and entry.stat().st_size > 0}
    missing = [photo.file_name for photo in listed if photo.file_name not in there]
    if missing:
        named = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
        raise ValueError(
            f"expected {len(listed)} listed photos in {folder}, got {len(listed) - len(missing)}: "
            f"missing or empty are {named} ({len(missing)} in all); {archive.hint()}"
        )
    return [Sample(folder / photo.file_name, photo.channels, folder) for photo in listed]
