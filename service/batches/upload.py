"""Uploaded zips: validation of their entries, none of which is unpacked before, and the labels in them."""

from __future__ import annotations

import re
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, cast
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from models.data.classes import ClassList, UnknownLabelError, read_class_list
from models.data.images import PHOTO_SUFFIXES
from models.data.labels import read_labels
from models.data.photos import (
    LabelRow,
    MatchError,
    MatchRule,
    SameNameError,
    count_rules,
    is_hidden,
    mask_names,
    match_rows,
)
from models.exports import list_line
from service.api.errors import ProblemError
from service.batches.slots import TEMP_PREFIX
from worker.batches.records import BatchItem
from worker.batches.zips import DAMAGED, read_entry, with_utf8_names

MAX_LABEL_BYTES: Final = 64 * 2**20
"""Of one file: COCO's takes six times that in memory."""
MAX_XML_BYTES: Final = 512 * 2**20
"""Of all XML files together."""

_ENTRIES_PER_PHOTO: Final = 4  # a photo, its XML file, and what macOS adds to each
_DIRECTORY_SIGNATURE: Final = b"PK\x01\x02"
_ENCRYPTED: Final = 0x1 | 0x40
_BOMB_BYTES: Final = 2**20  # a smaller entry is no bomb, however well it was packed
_MAX_NAME_BYTES: Final = 240  # of a part of a path, and of a mask: so that file systems can hold it with another ending
_FORBIDDEN: Final = re.compile(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:")
_LABELS, _CLASSES = ("labels.csv", "labels.tsv", "image_labels.txt"), "classes.txt"
_NO_LABELS: Final = (".npy", ".npz", ".pkl", ".pickle", ".xlsx")  # which ``read_labels`` refuses with advice


@dataclass(frozen=True)
class ZipLimits:
    """What a zip may hold.

    Attributes:
        photos: number of photos.
        photo_bytes: of one photo, unpacked.
        total_bytes: of all that is used, unpacked.
        directory_bytes: of the zip's list of entries.
        ratio: most that packing may have saved on one entry.
    """

    photos: int
    photo_bytes: int
    total_bytes: int
    directory_bytes: int = 64 * 2**20
    ratio: int = 200


@dataclass(frozen=True)
class _ArchiveListing:
    """The entries of a zip that are used."""

    photos: Sequence[ZipInfo]
    others: Sequence[ZipInfo]
    root: str


def open_zip(file: BinaryIO, limits: ZipLimits) -> ZipFile:
    """Open a zip.

    Raises:
        ProblemError: if it is not a zip, is cut off, or has too many entries.
    """
    file.seek(0)
    if file.read(2) != b"PK":
        raise ProblemError("unsupported-archive", "expected a zip, got something else")
    try:
        return with_utf8_names(ZipFile(cast("BinaryIO", _BoundedDirectory(file, limits))))
    except (OSError, *DAMAGED) as error:
        detail = f"the zip is damaged or incomplete: {error}"
        raise ProblemError("invalid-archive", detail) from error


def validate_entries(archive: ZipFile, limits: ZipLimits) -> _ArchiveListing:
    """Return the entries that are used; folders, dot files and ``__MACOSX`` are ignored.

    Raises:
        ProblemError: if an entry is unsafe or too large; it names the first such.
    """
    used = []
    for entry in archive.infolist():
        _check_name(entry)
        if not (entry.is_dir() or is_hidden(PurePosixPath(entry.filename))):
            _check_content(entry, limits)
            if not 0 <= entry.header_offset < archive.start_dir:
                raise _entry_error(entry.filename, "expected an entry that is in the zip")
            used.append(entry)
    if sum(entry.file_size for entry in used) > limits.total_bytes:
        detail = f"expected at most {limits.total_bytes} bytes once unpacked, got more"
        raise ProblemError("archive-too-large", detail)
    photos = [entry for entry in used if entry.filename.lower().endswith(PHOTO_SUFFIXES)]
    others = [entry for entry in used if not entry.filename.lower().endswith(PHOTO_SUFFIXES)]
    _check_photos(photos, limits)
    return _ArchiveListing(photos, others, _common_folder(used))


def read_items(
    archive: ZipFile, listing: _ArchiveListing, classes: ClassList
) -> tuple[list[BatchItem], dict[MatchRule, int]]:
    """Return a zip's photos with their labels, none for those without, and how many rows each rule matched.

    Raises:
        ProblemError: if there are no labels or two kinds of them, they are malformed, or are of other photos.
    """
    source = _label_files(listing)
    with tempfile.TemporaryDirectory(prefix=f"{TEMP_PREFIX}labels-") as name:
        folder = Path(name)
        try:
            path = _unpack_labels(archive, source, folder)
            class_file = _unpack_classes(archive, listing, folder)
        except DAMAGED as error:
            raise ProblemError("invalid-archive", f"the labels are damaged: {error}") from error
        try:
            rows = read_labels(path, read_class_list(class_file) if class_file else classes)
        except (ValueError, RecursionError) as error:
            # Without the path of the temporary directory.
            detail = str(error).replace(f"{folder}/labels/", "")
            detail = detail.replace(f"{folder}/labels", "the zip").replace(f"{folder}/", "")
            raise ProblemError("invalid-labels", _to_valid_utf8(detail[:1000])) from error
    return _match_labels(listing, [_to_valid_row(row) for row in rows], classes)


def _to_valid_utf8(text: str) -> str:
    """Replace lone surrogates, which JSON can spell and UTF-8 cannot hold."""
    return text.encode(errors="replace").decode()


def _to_valid_row(row: LabelRow) -> LabelRow:
    return replace(row, image=_to_valid_utf8(row.image), labels=tuple(map(_to_valid_utf8, row.labels)))


def _match_labels(
    listing: _ArchiveListing, rows: Sequence[LabelRow], classes: ClassList
) -> tuple[list[BatchItem], dict[MatchRule, int]]:
    photos = {entry.filename.removeprefix(listing.root): entry.filename for entry in listing.photos}
    try:
        matched = match_rows(rows, photos, root=listing.root.rstrip("/"))
    except MatchError as error:
        raise ProblemError("invalid-labels", str(error), **error.members) from error
    labels = {
        photos[each.photo]: _resolve_labels(each.row.image, each.row.labels, classes)
        for each in matched
        if each.row.labels
    }
    if not labels:
        raise ProblemError("invalid-labels", "expected at least one labeled photo, got none")
    items = [BatchItem(image=photo, labels=labels.get(photo, ())) for photo in photos.values()]
    return items, count_rules(each.rule for each in matched)


def _entry_error(entry: str, message: str, *, name: str = "invalid-archive") -> ProblemError:
    return ProblemError(name, f"{entry[:200]!r}: {message}", entry=entry[:1000])


def _check_name(entry: ZipInfo) -> None:
    name, path = entry.filename, PurePosixPath(entry.filename)
    # The original name too, which ``zipfile`` cuts at a zero.
    forbidden = any(map(_FORBIDDEN.search, (name, entry.orig_filename)))
    if path.is_absolute() or ".." in path.parts or forbidden or not path.parts:
        message = "expected a path below the zip's root, with / between folders"
        raise _entry_error(name, message)
    if max(len(part.encode()) for part in path.parts) > _MAX_NAME_BYTES:
        raise _entry_error(name, f"expected names of at most {_MAX_NAME_BYTES} bytes")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _entry_error(name, "expected a file or a folder, got a link or a device")


def _check_content(entry: ZipInfo, limits: ZipLimits) -> None:
    name = entry.filename
    if entry.flag_bits & _ENCRYPTED:
        raise _entry_error(name, "expected an entry without a password")
    if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise _entry_error(name, "expected an entry that is stored or deflated")
    if entry.file_size > max(_BOMB_BYTES, limits.ratio * entry.compress_size):
        message = f"expected packing to save at most a factor of {limits.ratio}, got more"
        raise _entry_error(name, message)


def _check_photos(photos: Sequence[ZipInfo], limits: ZipLimits) -> None:
    if not photos:
        endings = ", ".join(PHOTO_SUFFIXES)
        raise ProblemError("invalid-archive", f"expected photos ({endings}), got none")
    if len(photos) > limits.photos:
        detail = f"expected at most {limits.photos} photos, got {len(photos)}"
        raise ProblemError("archive-too-large", detail)
    for entry in photos:
        name = entry.filename
        if entry.file_size > limits.photo_bytes:
            message = f"expected a photo of at most {limits.photo_bytes} bytes"
            raise _entry_error(name, message, name="archive-too-large")
    try:
        names = mask_names([entry.filename for entry in photos])
    except SameNameError as error:
        raise _entry_error(error.photo, str(error)) from error
    for photo, name in names.items():
        _check_mask_name(photo, name)


def _check_mask_name(photo: str, name: str) -> None:
    if (length := len(name.encode())) > _MAX_NAME_BYTES:
        got = f"got {length} for {name[:40]}….png"
        raise _entry_error(photo, f"expected names of masks, with folders, of at most {_MAX_NAME_BYTES} bytes, {got}")
    try:  # the exports' lists of photos must be able to hold both
        list_line(name)
        list_line(str(PurePosixPath(photo).with_suffix("")))
    except ValueError as error:
        raise _entry_error(photo, str(error)) from error


def _common_folder(entries: Sequence[ZipInfo]) -> str:
    """Return the folder that holds all entries, if it was packed itself and not only its content."""
    first = {entry.filename.partition("/")[0] for entry in entries}
    inside = all("/" in entry.filename for entry in entries)
    return f"{first.pop()}/" if len(first) == 1 and inside else ""


def _label_files(listing: _ArchiveListing) -> list[ZipInfo]:
    """Return the one file, or the XML files, with the labels."""
    at_root = [(entry.filename.removeprefix(listing.root).lower(), entry) for entry in listing.others]
    at_root = [(name, entry) for name, entry in at_root if "/" not in name]
    found = [[entry] for name, entry in at_root if name in _LABELS or name.endswith(".json")]
    if xml := [entry for entry in listing.others if _ends(entry, ".xml")]:
        found.append(xml)
    found = found or [[entry] for name, entry in at_root if name.endswith(_NO_LABELS)]
    if len(found) != 1:
        names = ", ".join(repr(source[0].filename) for source in found) or "none"
        raise ProblemError(
            "invalid-labels",
            f"expected {', '.join(_LABELS)} or COCO's .json at the zip's root, or PASCAL VOC's .xml "
            f"files: one of these, got {names}",
        )
    [source] = found
    for entry in source:
        if entry.file_size > MAX_LABEL_BYTES:
            message = f"expected labels of at most {MAX_LABEL_BYTES} bytes"
            raise _entry_error(entry.filename, message)
    if sum(entry.file_size for entry in source) > MAX_XML_BYTES:
        detail = f"expected XML files of at most {MAX_XML_BYTES} bytes together"
        raise ProblemError("archive-too-large", detail)
    return source


def _ends(entry: ZipInfo, ending: str) -> bool:
    return entry.filename.lower().endswith(ending)


def _unpack_labels(archive: ZipFile, source: Sequence[ZipInfo], folder: Path) -> Path:
    """Unpack the labels; return the file, or the folder of XML files."""
    target = folder / "labels"
    target.mkdir()
    is_xml = _ends(source[0], ".xml")
    path = target
    for number, entry in enumerate(source):
        name = PurePosixPath(entry.filename).name
        # Two XML files may have the same name.
        path = target / (f"{number}/{name}" if is_xml else name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(read_entry(archive, entry))
    return target if is_xml else path


def _unpack_classes(archive: ZipFile, listing: _ArchiveListing, folder: Path) -> Path | None:
    """Unpack the list of classes that ``image_labels.txt`` numbers, if there is one."""
    for entry in listing.others:
        is_it = entry.filename.removeprefix(listing.root).lower() == _CLASSES
        if is_it and entry.file_size < MAX_LABEL_BYTES:
            path = folder / _CLASSES
            path.write_bytes(read_entry(archive, entry))
            return path
    return None


def _resolve_labels(image: str, names: Sequence[str], classes: ClassList) -> tuple[str, ...]:
    detail = f"{image[:200]!r}: "
    try:
        return tuple(each.name for each in classes.resolve(names))
    except UnknownLabelError as error:
        raise ProblemError(
            "unknown-label",
            f"{detail}{error}",
            image=image[:1000],
            label=error.label[:80],
            nearest=list(error.nearest),
        ) from error
    except ValueError as error:
        raise ProblemError("invalid-labels", f"{detail}{error}", image=image[:1000]) from error


class _BoundedDirectory:
    """A zip file whose directory is checked before ``zipfile`` makes objects of it."""

    def __init__(self, file: BinaryIO, limits: ZipLimits) -> None:
        self._file = file
        self._limits = limits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1, /) -> bytes:
        if size > self._limits.directory_bytes:
            raise ProblemError("archive-too-large", "expected a shorter list of entries")
        data = self._file.read(size)
        most = _ENTRIES_PER_PHOTO * self._limits.photos + 100
        if data.count(_DIRECTORY_SIGNATURE) > most:
            detail = f"expected at most {most} entries, got more"
            raise ProblemError("archive-too-large", detail)
        return data
