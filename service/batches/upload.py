"""A zip from outside, looked at before anything of it is used: what is in it, and that it does no harm."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import shutil
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, Literal
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import anyio
from anyio.to_thread import run_sync
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.data.classes import ClassList, UnknownLabelError, read_class_list
from models.data.images import PHOTO_SUFFIXES
from models.data.labels import read_labels
from models.exports import list_line
from service.api.errors import ProblemError, response, to_problem
from service.middleware.auth import route_path
from service.middleware.rate_limit import client_of
from worker.batches.records import BatchItem
from worker.batches.zips import DAMAGED, read_entry

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


# The disk on which zips lie while they come in and go out: who has a place there, and what is left of the dead.

log = logging.getLogger(__name__)

PREFIX: Final = "semples-"
"""Of folders that are made there."""
LEFT_SECONDS: Final = 24 * 3600
"""A folder that nobody has touched for so long was left by an API that died."""
CLEAN_SECONDS: Final = 3600
STALL_SECONDS: Final = 60.0
"""After which a client that takes nothing of an archive loses its place."""

Zip = Literal["posted", "archive"]
_ARCHIVE: Final = re.compile(r"/batches/[^/]+/archive\.zip")


class SpoolPlaces:
    """ASGI middleware with so many places for zips that are posted, and as many for archives; 503 to all others.

    A request has its place before a byte of its body is read, and until its answer is sent: so long there may be a zip
    of it on the disk, however slow the client is. One client has no more than half of the places.

    Args:
        app: what is protected.
        most: places of each kind.
        stall: seconds that the client of an archive may take nothing.
    """

    def __init__(self, app: ASGIApp, *, most: int, stall: float = STALL_SECONDS) -> None:
        self.app = app
        self._most = most
        self._stall = stall
        self._taken: Counter[tuple[Zip, str]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; see ASGI."""
        kind = _zip_of(scope)
        if kind is None:
            await self.app(scope, receive, send)
            return
        place = kind, client_of(scope)
        taken = sum(count for (each, _), count in self._taken.items() if each == kind)
        if taken >= self._most or self._taken[place] >= max(1, self._most // 2):
            busy = "zips are being received" if kind == "posted" else "archives are on their way"
            mine = self._taken[place]
            refusal = ProblemError("too-many-zips", f"{taken} {busy} already, {mine} of them yours")
            await response(to_problem(refusal))(scope, receive, send)
            return
        self._taken[place] += 1
        try:
            await self._pass_on(scope, receive, send)
        finally:
            self._taken[place] -= 1
            self._taken += Counter()  # forget who has none

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        stalled = False

        async def send_in_time(message: Message) -> None:
            nonlocal stalled
            try:
                with anyio.fail_after(self._stall):
                    await send(message)
            except TimeoutError:
                stalled = True
                raise

        try:
            await self.app(scope, receive, send_in_time)
        except (TimeoutError, ClientDisconnect):  # what becomes of the first on its way out
            if not stalled:
                raise
            log.warning("%s: nothing of it was taken for %g s", scope["path"], self._stall)


def _zip_of(scope: Scope) -> Zip | None:
    if scope["type"] != "http":
        return None
    path = route_path(scope)
    if scope["method"] == "POST" and path == "/batches":
        return "posted"
    return "archive" if scope["method"] == "GET" and _ARCHIVE.fullmatch(path) else None


def use_spool(folder: str) -> None:
    """Have all temporary files of this process in a folder, which is made; the system's own may be in memory.

    Raises:
        OSError: if it cannot be made.
    """
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = folder


async def keep_clean(folder: str) -> None:
    """Delete now and again what APIs left in a folder that died; another one may do the same there."""
    while folder:
        await run_sync(clean, Path(folder))
        await asyncio.sleep(CLEAN_SECONDS)


def clean(spool: Path) -> None:
    """Delete the folders there that nobody has touched for long."""
    for left in spool.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if left.lstat().st_mtime < time.time() - LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


# What a zip's photos show: from the labels in it, read by the library's own readers.

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
