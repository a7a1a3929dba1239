"""What a zip's photos show: from the labels in it, read by the library's own readers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final
from zipfile import ZipFile, ZipInfo

from models.data.classes import ClassList, UnknownLabelError, read_class_list
from models.data.labels import read_labels
from service.errors import ProblemError
from service.spool import PREFIX
from service.zips import Contents, refused
from worker.batches.records import BatchItem
from worker.batches.zips import DAMAGED, read_entry

CSV, NUMBERS, CLASSES = "labels.csv", "image_labels.txt", "classes.txt"
MOST_BYTES: Final = 64 * 2**20
"""Of one file: COCO's takes six times that in memory."""
MOST_XML_BYTES: Final = 512 * 2**20
"""Of all XML files together."""
FIRST: Final = 10
"""So many of what is missing are named."""


def read_items(archive: ZipFile, contents: Contents, classes: ClassList) -> list[BatchItem]:
    """Return a zip's photos with their labels; those that nobody has labeled have none.

    Args:
        archive: open.
        contents: what of it is used.
        classes: of the model.

    Raises:
        ProblemError: if there are no labels or two kinds of them, they are malformed, or are about other photos.
    """
    source = _source(contents)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}labels-") as folder:
        place = Path(folder)
        try:
            path = _unpack(archive, source, place)
            numbered = _unpack_classes(archive, contents, place)
        except DAMAGED as error:
            raise ProblemError("invalid-archive", f"the labels are damaged: {error}") from error
        try:
            counted = read_class_list(numbered) if numbered else classes
            rows = read_labels(path, counted)
        except (ValueError, RecursionError) as error:
            # Where it was unpacked is nobody's business.
            detail = str(error)
            for known, said in (
                (f"{place}/labels/", ""),
                (f"{place}/labels", "the zip"),
                (f"{place}/", ""),
            ):
                detail = detail.replace(known, said)
            raise ProblemError("invalid-labels", _whole(detail[:1000])) from error
    clean = {_whole(image): tuple(map(_whole, said)) for image, said in rows.items()}
    return _paired(contents, clean, classes)


def _source(contents: Contents) -> list[ZipInfo]:
    """Return the files that the labels are in: one, or XML files.

    Raises:
        ProblemError: if there is no such file, or more than one kind, or they are too large.
    """
    at_root = {entry.filename.removeprefix(contents.root): entry for entry in contents.others}
    found = [[at_root[name]] for name in (CSV, NUMBERS) if name in at_root]
    found += [
        [entry] for name, entry in at_root.items() if "/" not in name and _ends(entry, ".json")
    ]
    if xml := [entry for entry in contents.others if _ends(entry, ".xml")]:
        found.append(xml)
    expected = (
        f"expected {CSV}, {NUMBERS} or COCO's .json at the zip's root, or PASCAL VOC's .xml files"
    )
    if len(found) != 1:
        names = ", ".join(repr(source[0].filename) for source in found) or "none"
        raise ProblemError("invalid-labels", f"{expected}: one of these, got {names}")
    [source] = found
    for entry in source:
        if entry.file_size > MOST_BYTES:
            raise refused(entry.filename, f"expected labels of at most {MOST_BYTES} bytes")
    if sum(entry.file_size for entry in source) > MOST_XML_BYTES:
        detail = f"expected XML files of at most {MOST_XML_BYTES} bytes together"
        raise ProblemError("archive-too-large", detail)
    return source


def _ends(entry: ZipInfo, ending: str) -> bool:
    return entry.filename.lower().endswith(ending)


def _unpack(archive: ZipFile, source: Sequence[ZipInfo], folder: Path) -> Path:
    """Write the files of labels, and return what the library's reader wants: the file, or the folder of XML files."""
    place = folder / "labels"
    place.mkdir()
    is_xml = _ends(source[0], ".xml")
    for number, entry in enumerate(source):
        name = PurePosixPath(entry.filename).name
        # XML files say themselves which photo they are about; two may have the same name.
        target = place / (f"{number} {name}" if is_xml else name)
        target.write_bytes(read_entry(archive, entry))
    return place if is_xml else target


def _unpack_classes(archive: ZipFile, contents: Contents, folder: Path) -> Path | None:
    """Write the file that says what numbers count, if there is one."""
    for entry in contents.others:
        if entry.filename.removeprefix(contents.root) == CLASSES and entry.file_size < MOST_BYTES:
            path = folder / CLASSES
            path.write_bytes(read_entry(archive, entry))
            return path
    return None


def _whole(text: str) -> str:
    """Return text without what JSON can spell and UTF-8 cannot hold."""
    return text.encode(errors="replace").decode()


def _paired(
    contents: Contents, rows: Mapping[str, Sequence[str]], classes: ClassList
) -> list[BatchItem]:
    photos = [entry.filename for entry in contents.photos]
    by_path = {each: name for name in photos for each in (name.removeprefix(contents.root), name)}
    by_name = {PurePosixPath(name).name: name for name in photos}  # no two share a stem
    labels: dict[str, tuple[str, ...]] = {}
    missing = []
    for image, said in rows.items():
        photo = by_path.get(image) or by_name.get(image)
        if photo is None:
            missing.append(image)
        elif photo in labels:
            detail = f"{image[:200]!r}: expected labels of a photo once, got them again"
            raise ProblemError("invalid-labels", detail, image=image[:1000])
        elif said:
            labels[photo] = _resolved(image, said, classes)
    if missing:
        first = ", ".join(map(repr, missing[:FIRST]))
        raise ProblemError(
            "invalid-labels",
            f"expected a photo for all labels, got none for {len(missing)}: {first}"[:2000],
            missing=[each[:200] for each in missing[:FIRST]],
            missing_total=len(missing),
        )
    if not labels:
        raise ProblemError("invalid-labels", "expected at least one labeled photo, got none")
    return [BatchItem(image=photo, labels=labels.get(photo, ())) for photo in photos]


def _resolved(image: str, said: Sequence[str], classes: ClassList) -> tuple[str, ...]:
    try:
        return tuple(each.name for each in classes.resolve(said))
    except UnknownLabelError as error:
        raise ProblemError(
            "unknown-label",
            f"{image[:200]!r}: {error}",
            image=image[:1000],
            label=error.label[:80],
            nearest=list(error.nearest),
        ) from error
    except ValueError as error:
        raise ProblemError(
            "invalid-labels", f"{image[:200]!r}: {error}", image=image[:1000]
        ) from error
