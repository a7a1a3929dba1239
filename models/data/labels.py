"""Image-level labels in all the forms that ``--labels`` accepts, and folders of labeled images."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

from models.data.classes import (
    MAX_LABELS,
    ClassInfo,
    ClassList,
    Sample,
    UnknownLabelError,
    labeled_samples,
    with_open_labels,
)
from models.data.coco import read_instances
from models.data.voc import read_annotations

_SEPARATOR = ";"
_COLUMNS = ["image", "labels"]
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FOLDER, _CSV = "folder", ".csv"

_Rows: TypeAlias = dict[str, tuple[str, ...]]  # label names by image


@dataclass(frozen=True)
class _Form:
    """A form of labels; ``classes`` is None if the list is made of the labels' names, sorted, from 1."""

    help: str
    read: Callable[[Path, Sequence[str]], _Rows]
    classes: Callable[[Path], ClassList] | None = None


def read_labels(path: Path, classes: ClassList) -> _Rows:
    """Read label names by image, in the form of the path's suffix; others are read as ``labels.csv``.

    The numbers of a .txt file count ``classes`` from 0.
    """
    return _form(path).read(path, classes.names)


def classes_of(path: Path) -> ClassList:
    """Make a class list of labels: COCO's categories as they are, others sorted by name and numbered from 1."""
    form = _form(path)
    if form.classes is not None:
        return form.classes(path)
    rows = form.read(path, ())
    names = sorted({label for row in rows.values() for label in row})
    return ClassList(tuple(ClassInfo(index, name) for index, name in enumerate(names, start=1)))


def classes_with_open_labels(labels: Path, classes: ClassList) -> ClassList:
    """Return a bundle's classes followed by one for each unknown label of a file; see ``with_open_labels``."""
    rows = read_labels(labels, classes)
    try:
        return with_open_labels(classes, {label for names in rows.values() for label in names})
    except ValueError as error:
        raise ValueError(f"{labels}: {error}") from error


def read_folder(images: Path, labels: Path, classes: ClassList) -> list[Sample]:
    """Pair the images of a folder, and its subfolders, with their labels in any form of ``read_labels``.

    Raises:
        ValueError: if a label is unknown, an image is missing, two images share a stem (their masks would overwrite
            each other), or nothing is labeled.
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
            raise ValueError(f"{labels}: expected distinct stems, got {stems[path.stem]!r} and {name!r}")
        try:
            channels = tuple(sorted({classes.channel(label) for label in names}))
        except UnknownLabelError as error:
            raise ValueError(f"{labels}: {name}: {error}") from error
        if len(channels) > MAX_LABELS:
            raise ValueError(f"{labels}: {name}: expected at most {MAX_LABELS} labels, got {len(channels)}")
        samples.append(Sample(path, channels, images))
    if not labeled_samples(samples):
        raise ValueError(f"{labels}: expected at least one labeled image, got none")
    return samples


def read_label_rows(path: Path) -> _Rows:
    """Read ``labels.csv``: the header "image,labels", then a row for each image with labels separated by semicolons."""
    rows: _Rows = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(_decoded(file, path))
        if reader.fieldnames is None or list(reader.fieldnames)[:2] != _COLUMNS:
            raise ValueError(f"{path}:1: expected the header 'image,labels', got {reader.fieldnames}")
        for row in _csv_rows(reader, path):
            name, labels = (row["image"] or "").strip(), row["labels"]
            if not name or labels is None or None in row:
                got = ",".join([name, labels or "", *(row.get(None) or ())])  # type: ignore[call-overload]
                raise ValueError(
                    f"{path}:{reader.line_num}: expected 'image,label;label', labels apart by semicolons, got {got!r}"
                )
            if name in rows:
                raise ValueError(f"{path}:{reader.line_num}: expected each image once, got {name!r} again")
            rows[name] = tuple(label.strip() for label in labels.split(_SEPARATOR) if label.strip())
    return rows


def label_rows_csv(rows: Mapping[str, Sequence[str]]) -> bytes:
    """Return the content of a ``labels.csv``."""
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows((image, _SEPARATOR.join(labels)) for image, labels in rows.items())
    return text.getvalue().encode()


def _read_numbers(path: Path, names: Sequence[str]) -> _Rows:
    """Read lines "photo number number …", where numbers count ``names`` from 0; the suffix ".jpg" may be missing."""
    rows: _Rows = {}
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
            image = photo if photo.lower().endswith(_SUFFIXES) else f"{photo}.jpg"
            if image in rows:
                raise ValueError(f"{path}:{at}: expected each image once, got {image!r} again")
            rows[image] = tuple(names[int(number)] for number in numbers)
    return rows


def _csv_rows(reader: csv.DictReader[str], path: Path) -> Iterator[dict[str, str | None]]:
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: expected CSV, got {error}") from error


def _decoded(lines: Iterable[str], path: Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, got {error}") from error


def _no_classes(path: Path) -> ClassList:
    raise ValueError(f"expected --classes, which name the numbers in {path}, got none")


_FORMS: Final[Mapping[str, _Form]] = MappingProxyType(
    {
        _CSV: _Form(
            "CSV: a header 'image,labels', then 'photo.jpg,cat;bowl'",
            lambda path, _: read_label_rows(path),
        ),
        ".txt": _Form(".txt: lines 'photo 3 7', numbers of classes, from 0", _read_numbers, _no_classes),
        ".json": _Form(
            ".json: COCO's instances",
            lambda path, _: read_instances(path).labels(),
            lambda path: read_instances(path).classes,
        ),
        _FOLDER: _Form("a folder: PASCAL VOC's XML files", lambda path, _: read_annotations(path)),
    }
)
FORMS_HELP: Final = "; ".join(form.help for form in _FORMS.values())


def _form(path: Path) -> _Form:
    return _FORMS[_FOLDER if path.is_dir() else path.suffix if path.suffix in _FORMS else _CSV]
