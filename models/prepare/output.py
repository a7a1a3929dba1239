"""What ``semples prepare`` writes: ``labels.csv``, ``labels_SPLIT.csv``, ``classes.txt`` and ``ground_truth/SPLIT``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.classes import ClassList, write_class_list
from models.data.labels import label_rows_csv
from models.data.sample import Sample
from models.json_files import write_atomically
from models.pictures import label_map_png
from models.prepare.checks import Watch


@dataclass(frozen=True)
class Prepared:
    """What became of a download.

    Attributes:
        images: the folder of the training photos, as ``--images`` takes it.
        lines: what was checked and written.
        notes: what the user should know, but need not mend.
    """

    images: Path
    lines: tuple[str, ...]
    notes: tuple[str, ...]


def write_labels(
    output: Path, splits: Mapping[str, Sequence[Sample]], classes: ClassList
) -> list[str]:
    """Write the class list and a label file for each split, ``labels.csv`` for the first; returns what was written.

    Raises:
        OSError: if it cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_class_list(output / "classes.txt", classes)
    lines = [f"{output / 'classes.txt'}: {len(classes)} classes"]
    for number, (split, samples) in enumerate(splits.items()):
        path = output / (f"labels_{split}.csv" if number else "labels.csv")
        rows = {
            sample.path.name: [classes.names[channel] for channel in sample.channels]
            for sample in samples
        }
        write_atomically(path, label_rows_csv(rows))
        lines.append(f"{path}: {len(rows)} photos of {split}")
    return lines


def missing_maps(folder: Path, stems: Sequence[str]) -> list[str]:
    """Return the stems whose label maps are not in a folder yet."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [stem for stem in stems if f"{stem}.png" not in there]


def write_maps(
    folder: Path,
    stems: Sequence[str],
    make: Callable[[str], NDArray[np.uint8]],
    *,
    watch: Watch,
) -> str:
    """Make the label maps ``STEM.png`` that are not in the folder yet; returns what was written.

    Each file is written whole or not at all: what an interrupted call left is kept.

    Args:
        folder: for the files.
        stems: of all label maps.
        make: a stem → its label map, (H, W).
        watch: shows how far it is.

    Raises:
        ValueError: as ``make`` does.
        OSError: if a file cannot be read or written.
    """
    rest = missing_maps(folder, stems)
    if not rest:
        return f"{folder}: all {len(stems)} label maps kept"
    with watch(f"label maps of {folder.name}", len(rest)) as advance:
        for stem in rest:
            write_atomically(folder / f"{stem}.png", label_map_png(make(stem)))
            advance()
    return f"{folder}: {len(rest)} label maps written, {len(stems) - len(rest)} kept"
