"""Image-level labels from whichever file they are in."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Final

from models.data.classes import (
    MAX_LABELS,
    ClassInfo,
    ClassList,
    Sample,
    UnknownLabelError,
    with_open_labels,
)
from models.data.coco import read_instances
from models.data.voc import read_annotations

_SEPARATOR = ";"
_COLUMNS = ["image", "labels"]
_PHOTOS = (".jpg", ".jpeg", ".png", ".webp")


Rows = dict[str, tuple[str, ...]]
"""Label names by photo; a photo without labels has none."""


@dataclass(frozen=True)
class Form:
    """A form that labels come in.

    Attributes:
        words: for the help of ``--labels``.
        read: path and the names of classes, in the order of channels → rows.
        classes: path → the class list that goes without saying; None takes the labels' names, sorted, from 1.
    """

    words: str
    read: Callable[[Path, Sequence[str]], Rows]
    classes: Callable[[Path], ClassList] | None = None


def read_labels(path: Path, classes: ClassList) -> Rows:
    """Read labels in whichever of ``FORMS`` the path's name promises.

    Args:
        path: of the file or folder.
        classes: what the numbers of a .txt file count, from 0.

    Returns:
        Label names by photo; a photo without labels has none.

    Raises:
        ValueError: if the content is not what the path promises.
        OSError: if it cannot be read.
    """
    return _form(path).read(path, classes.names)


def classes_of(path: Path) -> ClassList:
    """Make a class list of labels: COCO's categories as they are, others sorted by name and numbered from 1.

    Raises:
        ValueError: if the content is malformed, or names none or more than 254 classes, or only numbers them.
        OSError: if it cannot be read.
    """
    form = _form(path)
    if form.classes is not None:
        return form.classes(path)
    rows = form.read(path, ())
    names = sorted({label for row in rows.values() for label in row})
    return ClassList(tuple(ClassInfo(index, name) for index, name in enumerate(names, start=1)))


def _form(path: Path) -> Form:
    """Return the form of a path: a folder's, its suffix's, or else that of labels.csv."""
    return FORMS[FOLDER if path.is_dir() else path.suffix if path.suffix in FORMS else CSV]


def read_numbers(path: Path, names: Sequence[str]) -> Rows:
    """Read lines "photo number number …", as lists of image-level labels have them; a photo without ending is a .jpg.

    Args:
        path: of the file.
        names: what the numbers count, from 0.

    Raises:
        ValueError: if a line has another form, a number is too large, or a photo occurs twice.
        OSError: if it cannot be read.
    """
    rows: Rows = {}
    with path.open(encoding="utf-8-sig") as file:
        for at, line in enumerate(_decoded(file, path), start=1):
            photo, *numbers = line.split() or [""]
            if not photo:
                continue
            known = [number.isdecimal() and int(number) < len(names) for number in numbers]
            if not all(known):
                raise ValueError(
                    f"{path}:{at}: expected 'photo number number', numbers below {len(names)}, got {line.strip()!r}"
                )
            image = photo if photo.lower().endswith(_PHOTOS) else f"{photo}.jpg"
            if image in rows:
                raise ValueError(f"{path}:{at}: expected each image once, got {image!r} again")
            rows[image] = tuple(names[int(number)] for number in numbers)
    return rows


def read_label_rows(path: Path) -> Rows:
    """Read ``labels.csv``: a header "image,labels", then a row an image with its labels separated by semicolons.

    Returns:
        Label names by image file name, in the file's order; an image without labels has none.

    Raises:
        ValueError: if the header, a row or a repeated image is wrong, with its line.
        OSError: if the file cannot be read.
    """
    rows: Rows = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(_decoded(file, path))
        if reader.fieldnames is None or list(reader.fieldnames)[:2] != _COLUMNS:
            raise ValueError(
                f"{path}:1: expected the header 'image,labels', got {reader.fieldnames}"
            )
        for row in _rows(reader, path):
            name, labels = (row["image"] or "").strip(), row["labels"]
            if not name or labels is None or None in row:
                got = ",".join([name, labels or "", *(row.get(None) or ())])  # type: ignore[call-overload]
                raise ValueError(
                    f"{path}:{reader.line_num}: expected 'image,label;label', labels apart by semicolons, got {got!r}"
                )
            if name in rows:
                raise ValueError(
                    f"{path}:{reader.line_num}: expected each image once, got {name!r} again"
                )
            rows[name] = tuple(label.strip() for label in labels.split(_SEPARATOR) if label.strip())
    return rows


def split_labels(said: Iterable[str]) -> tuple[str, ...]:
    """Return a photo's labels as people write them: commas or semicolons between them; empty ones do not count."""
    parts = (part.strip() for each in said for part in re.split("[,;]", each))
    return tuple(filter(None, parts))


def _no_classes(path: Path) -> ClassList:
    raise ValueError(f"expected --classes, which name the numbers in {path}, got none")


FOLDER: Final = "folder"
CSV: Final = ".csv"
# By suffix. What has none of these is read as labels.csv is.
FORMS: Final[Mapping[str, Form]] = MappingProxyType(
    {
        CSV: Form(
            "CSV: a header 'image,labels', then 'photo.jpg,cat;bowl'",
            lambda path, _: read_label_rows(path),
        ),
        ".txt": Form(
            ".txt: lines 'photo 3 7', numbers of classes, from 0",
            read_numbers,
            _no_classes,
        ),
        ".json": Form(
            ".json: COCO's instances",
            lambda path, _: read_instances(path).labels(),
            lambda path: read_instances(path).classes,
        ),
        FOLDER: Form(
            "a folder: PASCAL VOC's XML files",
            lambda path, _: read_annotations(path),
        ),
    }
)


def label_rows_csv(rows: Mapping[str, Sequence[str]]) -> bytes:
    """Return the content of a ``labels.csv``."""
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows((image, _SEPARATOR.join(labels)) for image, labels in rows.items())
    return text.getvalue().encode()


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


# A data set that is a folder of images and the labels of each.


def classes_with_open_labels(labels: Path, classes: ClassList) -> ClassList:
    """Return classes with one for each label of a file that none of them is called by; see ``with_open_labels``.

    Args:
        labels: anything that ``read_labels`` takes.
        classes: of a bundle.

    Raises:
        ValueError: if a label will not do, or they are too many.
        OSError: if the labels cannot be read.
    """
    rows = read_labels(labels, classes)
    try:
        return with_open_labels(classes, {label for names in rows.values() for label in names})
    except ValueError as error:
        raise ValueError(f"{labels}: {error}") from error


def read_folder(images: Path, labels: Path, classes: ClassList) -> list[Sample]:
    """Pair the images of a folder with their labels.

    Args:
        images: the folder; images in folders below are called "folder/image.jpg".
        labels: anything that ``read_labels`` takes.
        classes: what may be labeled.

    Raises:
        ValueError: if a label is not a class, an image is missing, two images share a stem (their masks would overwrite
            each other), or nothing is labeled.
        OSError: if the labels cannot be read.
    """
    samples = []
    stems: dict[str, str] = {}
    for name, names in read_labels(labels, classes).items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{labels}: expected an image below {images}, got {name!r}")
        path = images / name
        if not path.is_file():
            got = "none" if images.is_dir() else "no such folder"
            raise ValueError(f"{labels}: expected an image {name!r} in {images}, got {got}")
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
