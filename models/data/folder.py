"""A data set that is a folder of images and a ``labels.csv``."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from models.data.classes import MAX_LABELS, ClassInfo, ClassList, UnknownLabelError
from models.data.sample import Sample

_SEPARATOR = ";"
_COLUMNS = ["image", "labels"]


def read_label_rows(path: Path) -> dict[str, tuple[str, ...]]:
    """Read ``labels.csv``: a header "image,labels", then a row an image with its labels separated by semicolons.

    Returns:
        Label names by image file name, in the file's order; an image without labels has none.

    Raises:
        ValueError: if the header, a row or a repeated image is wrong, with its line.
        OSError: if the file cannot be read.
    """
    rows: dict[str, tuple[str, ...]] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(_decoded(file, path))
        if reader.fieldnames is None or list(reader.fieldnames)[:2] != _COLUMNS:
            raise ValueError(
                f"{path}:1: expected the header 'image,labels', got {reader.fieldnames}"
            )
        for row in _rows(reader, path):
            name, labels = (row["image"] or "").strip(), row["labels"]
            if not name or labels is None or None in row:
                raise ValueError(
                    f"{path}:{reader.line_num}: expected 'image,label;label', got {row}"
                )
            if name in rows:
                raise ValueError(
                    f"{path}:{reader.line_num}: expected each image once, got {name!r} again"
                )
            rows[name] = tuple(label.strip() for label in labels.split(_SEPARATOR) if label.strip())
    return rows


def _rows(reader: csv.DictReader[str], path: Path) -> Iterator[dict[str, str | None]]:
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: expected CSV, got {error}") from error


def _decoded(lines: Iterable[str], path: Path) -> Iterator[str]:
    """Pass lines on; what is not UTF-8 is said with the file's name."""
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, got {error}") from error


def read_folder(images: Path, labels: Path, classes: ClassList) -> list[Sample]:
    """Pair the images of a folder with their labels.

    Raises:
        ValueError: if a label is not a class, an image is missing, two images share a stem (their masks would overwrite
            each other), or nothing is labeled.
        OSError: if the label file cannot be read.
    """
    samples = []
    stems: dict[str, str] = {}
    for name, names in read_label_rows(labels).items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{labels}: expected an image below {images}, got {name!r}")
        path = images / name
        if not path.is_file():
            raise ValueError(f"{labels}: expected an image {name!r} in {images}, got none")
        if stems.setdefault(path.stem, name) != name:
            raise ValueError(
                f"{labels}: expected distinct stems, got {stems[path.stem]!r} and {name!r}"
            )
        try:
            channels = tuple(sorted({classes.channel(label) for label in names}))
        except UnknownLabelError as error:
            raise ValueError(f"{labels}: {name}: {error}") from error
        if len(channels) > MAX_LABELS:
            raise ValueError(
                f"{labels}: {name}: expected at most {MAX_LABELS} labels, got {len(channels)}"
            )
        samples.append(Sample(path, channels, images))
    if not any(sample.channels for sample in samples):
        raise ValueError(f"{labels}: expected at least one labeled image, got none")
    return samples


def classes_of(labels: Path) -> ClassList:
    """Make a class list of the labels that occur, sorted by name and numbered from 1.

    Raises:
        ValueError: if the file is malformed, or names none or more than 254 classes.
        OSError: if it cannot be read.
    """
    names = sorted({label for row in read_label_rows(labels).values() for label in row})
    return ClassList(tuple(ClassInfo(index, name) for index, name in enumerate(names, start=1)))
