"""Image-level labels in all the forms that ``--labels`` accepts, and folders of labeled images."""

from __future__ import annotations

import codecs
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
    normalize,
    split_labels,
    with_open_labels,
)
from models.data.coco import read_instances
from models.data.images import PHOTO_SUFFIXES
from models.data.photos import LabelRow, MatchError, SameNameError, list_files, mask_names, match_rows, spelled
from models.data.voc import read_annotations

_DELIMITERS = ",;\t"
_FOLDER, _CSV = "folder", ".csv"
_PICKLED = """got a pickled NumPy file, which is not read: loading it could run any program. If you trust it, these \
three lines make a labels.csv of it, where names.txt has the class of each column, one a line:
import numpy; from pathlib import Path; names = Path("names.txt").read_text("utf-8").splitlines();
rows = numpy.load({name!r}, allow_pickle=True).item().items();
Path("labels.csv").write_text("image,labels\\n" + "".join( \
f"{{image}},{{';'.join(names[at] for at in row.nonzero()[0])}}\\n" for image, row in rows), "utf-8")"""
_BINARY: Final[Mapping[bytes, str]] = MappingProxyType(
    {
        b"\x93NUMPY": "got a NumPy array, which has no names of photos",
        b"\x80": "got a pickle, which is not read: loading it could run any program",
        b"PK\x03\x04": "got a zip, as .xlsx and .npz files are; save a spreadsheet as CSV",
        b"\xd0\xcf\x11\xe0": "got a spreadsheet; save it as CSV",
    }
)
"""What files that are not text begin with."""

_Rows: TypeAlias = dict[str, tuple[str, ...]]  # label names by image


@dataclass(frozen=True)
class _Form:
    """A form of labels; ``classes`` is None if the list is made of the labels' names, sorted, from 1."""

    help: str
    read: Callable[[Path, Sequence[str]], list[LabelRow]]
    classes: Callable[[Path], ClassList] | None = None


def read_labels(path: Path, classes: ClassList) -> list[LabelRow]:
    """Read rows of labels, in the form of the path's suffix in any case; others are read as ``labels.csv``.

    The numbers of a .txt file count ``classes`` from 0.
    """
    return _form(path).read(path, classes.names)


def classes_of(path: Path) -> ClassList:
    """Make a class list of labels: COCO's categories as they are, others sorted by name and numbered from 1."""
    form = _form(path)
    if form.classes is not None:
        return form.classes(path)
    labels = {label for row in form.read(path, ()) for label in row.labels}
    names = sorted({normalize(label): label for label in sorted(labels, reverse=True)}.values())
    return ClassList(tuple(ClassInfo(index, name) for index, name in enumerate(names, start=1)))


def classes_with_open_labels(labels: Path, classes: ClassList) -> ClassList:
    """Return a bundle's classes followed by one for each unknown label of a file; see ``with_open_labels``."""
    rows = read_labels(labels, classes)
    try:
        return with_open_labels(classes, {label for row in rows for label in row.labels})
    except ValueError as error:
        raise ValueError(f"{labels}: {error}") from error


def read_folder(images: Path, labels: Path, classes: ClassList) -> list[Sample]:
    """Pair the images of a folder, and its subfolders, with their labels in any form of ``read_labels``.

    Rows find their images as ``match_rows`` says.

    Raises:
        ValueError: if a label is unknown, an image is missing, the masks of two images would have one name, or nothing
            is labeled.
    """
    rows = read_labels(labels, classes)
    if not images.is_dir():
        raise ValueError(f"expected a folder of images, got no such folder: {images}")
    try:
        matched = match_rows(rows, list_files(images), root=images.resolve().name)
        names = mask_names([each.photo for each in matched if each.row.labels])
    except (MatchError, SameNameError) as error:
        raise ValueError(f"{labels}: {error} (photos in {images})") from error
    samples = []
    for each in matched:
        try:
            channels = tuple(sorted({classes.channel(label) for label in each.row.labels}))
        except UnknownLabelError as error:
            raise ValueError(f"{labels}: {each.row.image}: {error}") from error
        if len(channels) > MAX_LABELS:
            raise ValueError(f"{labels}: {each.row.image}: expected at most {MAX_LABELS} labels, got {len(channels)}")
        samples.append(Sample(images / each.photo, channels, images, names.get(each.photo), each.rule))
    if not labeled_samples(samples):
        raise ValueError(f"{labels}: expected at least one labeled image, got none")
    return samples


def read_label_rows(path: Path) -> _Rows:
    """Read ``labels.csv`` as spreadsheets write it: columns "image" and "labels", then rows; an image's are merged.

    Commas, semicolons or tabs are between cells, commas or semicolons between the labels of a cell.
    """
    return _merged(_csv_rows(path))


def label_rows_csv(rows: Mapping[str, Sequence[str]]) -> bytes:
    """Return the content of a ``labels.csv``."""
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "labels"])
    writer.writerows((image, ";".join(labels)) for image, labels in rows.items())
    return text.getvalue().encode()


def _csv_rows(path: Path) -> Iterator[tuple[str, Sequence[str]]]:
    text = _read_text(path)
    for delimiter in _DELIMITERS:
        rows = _filled_rows(text, delimiter, path)
        line, header = next(rows, (1, []))
        columns = [normalize(cell).removesuffix("s") for cell in header]
        width = max((at for at, column in enumerate(columns, start=1) if column), default=0)
        if {"image", "label"} <= set(columns):
            break
    else:
        got = text.strip().partition("\n")[0].strip()[:80]
        raise ValueError(f"{path}:{line}: expected the header 'image,labels', got {got!r}")
    image_at, labels_at = columns.index("image"), columns.index("label")
    for line, cells in rows:
        if len(cells) <= labels_at or any(cells[width:]) or not cells[image_at]:
            inner = "," if delimiter == ";" else ";"
            example = f"image{delimiter}label{inner}label"
            got = delimiter.join(cells)
            raise ValueError(f"{path}:{line}: expected {example!r}, all labels in one cell, got {got[:200]!r}")
        yield cells[image_at], split_labels(cells[labels_at].splitlines())


def _filled_rows(text: str, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line numbers and stripped cells; empty rows and Excel's "sep=;" are left out."""
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            is_hint = reader.line_num == 1 and cells[:1] and cells[0].lower().startswith("sep=")
            if any(cells) and not is_hint:
                yield reader.line_num, cells
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: expected CSV, got {error}") from error


def _merged(rows: Iterable[tuple[str, Iterable[str]]]) -> _Rows:
    """Merge the rows of an image, whose name's first spelling counts: some files have a row for each label."""
    names: dict[str, str] = {}
    labels: dict[str, dict[str, None]] = {}
    for name, found in rows:
        labels.setdefault(names.setdefault(spelled(name), name), {}).update(dict.fromkeys(found))
    return {name: tuple(found) for name, found in labels.items()}


def _number_rows(path: Path, names: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Read lines "photo number number …", where numbers count ``names`` from 0; the suffix ".jpg" may be missing."""
    for at, line in enumerate(_read_text(path).splitlines(), start=1):
        photo, *numbers = line.split() or [""]
        if not photo:
            continue
        if not all(number.isdecimal() and int(number) < len(names) for number in numbers):
            raise ValueError(
                f"{path}:{at}: expected 'photo number number', numbers below {len(names)}, got {line.strip()!r}"
            )
        image = photo if photo.lower().endswith(PHOTO_SUFFIXES) else f"{photo}.jpg"
        yield image, [names[int(number)] for number in numbers]


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith(b"\x93NUMPY") and b"'|O'" in data[:128]:  # its header says that it holds objects
        raise ValueError(f"{path}: expected text, {_PICKLED.format(name=path.name)}")
    for start, what in _BINARY.items():
        if data.startswith(start):
            raise ValueError(f"{path}: expected text, {what}")
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 (in Excel: save as 'CSV UTF-8'), got {error}") from error


def _to_rows(rows: _Rows) -> list[LabelRow]:
    return [LabelRow(image, labels) for image, labels in rows.items()]


def _no_classes(path: Path) -> ClassList:
    raise ValueError(f"expected --classes, which name the numbers in {path}, got none")


_FORMS: Final[Mapping[str, _Form]] = MappingProxyType(
    {
        _CSV: _Form(
            "CSV: a header 'image,labels', then 'photo.jpg,cat;bowl'",
            lambda path, _: _to_rows(read_label_rows(path)),
        ),
        ".txt": _Form(
            ".txt: lines 'photo 3 7', numbers of classes, from 0",
            lambda path, names: _to_rows(_merged(_number_rows(path, names))),
            _no_classes,
        ),
        ".json": _Form(
            ".json: COCO's instances",
            lambda path, _: _to_rows(read_instances(path).labels()),
            lambda path: read_instances(path).classes,
        ),
        _FOLDER: _Form("a folder: PASCAL VOC's XML files", lambda path, _: read_annotations(path)),
    }
)
FORMS_HELP: Final = "; ".join(form.help for form in _FORMS.values())


def _form(path: Path) -> _Form:
    suffix = path.suffix.lower()
    return _FORMS[_FOLDER if path.is_dir() else suffix if suffix in _FORMS else _CSV]
