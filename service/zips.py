"""A zip from outside, looked at before anything of it is used: what is in it, and that it does no harm."""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Final
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from models.data.images import PHOTO_SUFFIXES
from models.exports import list_line
from service.errors import ProblemError
from worker.batches.zips import DAMAGED

ENTRIES_PER_PHOTO: Final = 4
"""A photo, its XML file, and what macOS adds to each of them."""

_SIGNATURE: Final = b"PK\x01\x02"
_ENCRYPTED: Final = 0x1 | 0x40
_BOMB_BYTES: Final = 2**20
"""Less than this is no bomb, however well it was packed."""
_LONGEST: Final = 240
"""Bytes of a name without its folders, so that file systems can hold it with another ending."""
_ODD: Final = re.compile(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:")


@dataclass(frozen=True)
class ZipLimits:
    """What a zip may hold.

    Attributes:
        photos: most of them.
        photo_bytes: the largest one, unpacked.
        total_bytes: of all that is used, unpacked.
        directory_bytes: of the list of what is in the zip.
        ratio: most that packing may have saved on one entry.
    """

    photos: int
    photo_bytes: int
    total_bytes: int
    directory_bytes: int = 64 * 2**20
    ratio: int = 200


@dataclass(frozen=True)
class Contents:
    """What of a zip is used.

    Attributes:
        photos: by their path in the zip, in its order.
        others: files that may be labels.
        root: folder that all lies in, with a slash at its end; empty if there is none.
    """

    photos: Sequence[ZipInfo]
    others: Sequence[ZipInfo]
    root: str


def open_zip(file: BinaryIO, limits: ZipLimits) -> ZipFile:
    """Open a zip.

    Raises:
        ProblemError: if it is none, is cut off, or lists more than it may.
    """
    file.seek(0)
    if file.read(2) != b"PK":
        raise ProblemError("unsupported-archive", "expected a zip, got something else")
    try:
        return ZipFile(_Guarded(file, limits))
    except (OSError, *DAMAGED) as error:
        detail = f"the zip is damaged or incomplete: {error}"
        raise ProblemError("invalid-archive", detail) from error


def look_through(archive: ZipFile, limits: ZipLimits) -> Contents:
    """Return what of a zip is used, once it is known to do no harm.

    Folders, dot files and ``__MACOSX`` are passed over.

    Raises:
        ProblemError: it names the first entry that will not do.
    """
    used = []
    for entry in archive.infolist():
        _check_name(entry)
        if not (entry.is_dir() or _is_hidden(entry)):
            _check_content(entry, limits)
            if not 0 <= entry.header_offset < archive.start_dir:
                raise refused(entry.filename, "expected an entry that is in the zip")
            used.append(entry)
    if sum(entry.file_size for entry in used) > limits.total_bytes:
        detail = f"expected at most {limits.total_bytes} bytes once unpacked, got more"
        raise ProblemError("archive-too-large", detail)
    photos = [entry for entry in used if entry.filename.lower().endswith(PHOTO_SUFFIXES)]
    others = [entry for entry in used if not entry.filename.lower().endswith(PHOTO_SUFFIXES)]
    _check_photos(photos, limits)
    return Contents(photos, others, _common_folder(used))


def refused(entry: str, message: str, *, name: str = "invalid-archive") -> ProblemError:
    """Return the problem of an entry."""
    return ProblemError(name, f"{entry[:200]!r}: {message}", entry=entry[:1000])


def _check_name(entry: ZipInfo) -> None:
    name = entry.orig_filename
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or _ODD.search(name) or not path.parts:
        raise refused(name, "expected a path below the zip's root, with / between folders")
    if max(len(part.encode()) for part in path.parts) > _LONGEST:
        raise refused(name, f"expected names of at most {_LONGEST} bytes")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise refused(name, "expected a file or a folder, got a link or a device")


def _is_hidden(entry: ZipInfo) -> bool:
    parts = PurePosixPath(entry.filename).parts
    return parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts)


def _check_content(entry: ZipInfo, limits: ZipLimits) -> None:
    name = entry.filename
    if entry.flag_bits & _ENCRYPTED:
        raise refused(name, "expected an entry without a password")
    if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise refused(name, "expected an entry that is stored or deflated")
    if entry.file_size > max(_BOMB_BYTES, limits.ratio * entry.compress_size):
        raise refused(
            name, f"expected packing to save at most a factor of {limits.ratio}, got more"
        )


def _check_photos(photos: Sequence[ZipInfo], limits: ZipLimits) -> None:
    if not photos:
        endings = ", ".join(PHOTO_SUFFIXES)
        raise ProblemError("invalid-archive", f"expected photos ({endings}), got none")
    if len(photos) > limits.photos:
        detail = f"expected at most {limits.photos} photos, got {len(photos)}"
        raise ProblemError("archive-too-large", detail)
    stems: dict[str, str] = {}
    for entry in photos:
        name = entry.filename
        if entry.file_size > limits.photo_bytes:
            detail = f"expected a photo of at most {limits.photo_bytes} bytes"
            raise refused(name, detail, name="archive-too-large")
        stem = _listed(name)
        # Their masks would be one file.
        if other := stems.get(stem):
            raise refused(
                name, f"expected names that differ without folder and ending, see {other!r}"
            )
        stems[stem] = name


def _listed(name: str) -> str:
    """Return a photo's stem, once it is known that the archives' lists of photos can hold it, and its path."""
    path = PurePosixPath(name)
    try:
        list_line(path.stem)
        list_line(str(path.with_suffix("")))
    except ValueError as error:
        raise refused(name, str(error)) from error
    return path.stem


def _common_folder(entries: Sequence[ZipInfo]) -> str:
    """Return the folder that all lies in, as if somebody packed that and not what is in it."""
    first = {entry.filename.partition("/")[0] for entry in entries}
    inside = all("/" in entry.filename for entry in entries)
    return f"{first.pop()}/" if len(first) == 1 and inside else ""


class _Guarded(io.RawIOBase):
    """A file whose zip's directory is looked at before ``zipfile`` makes objects of it."""

    def __init__(self, file: BinaryIO, limits: ZipLimits) -> None:
        super().__init__()
        self._file = file
        self._limits = limits

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1, /) -> bytes:
        if size > self._limits.directory_bytes:
            raise ProblemError("archive-too-large", "expected a shorter list of entries")
        data = self._file.read(size)
        most = ENTRIES_PER_PHOTO * self._limits.photos + 100
        if data.count(_SIGNATURE) > most:
            detail = f"expected at most {most} entries, got more"
            raise ProblemError("archive-too-large", detail)
        return data
