"""Photos from the zips of batches in the blob store, read one at a time."""

from __future__ import annotations

import struct
import zlib
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import Final
from zipfile import BadZipFile, ZipFile, ZipInfo

from worker.storage import BlobStore

DAMAGED: Final = (
    BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,  # names that are not in the encoding that they claim
    RuntimeError,  # passwords, and unknown methods
    OverflowError,
)
"""Errors of reading a damaged zip; none of them is a blob store's own."""

_MAX_OPEN: Final = 8
_UTF8_FLAG: Final = 0x800
_CHUNK_BYTES: Final = 2**16


def with_utf8_names(archive: ZipFile) -> ZipFile:
    """Read the names in a zip that do not say their encoding as UTF-8 where they are that; others stay cp437.

    macOS writes UTF-8 without saying so.
    """
    for entry in archive.infolist():
        if not entry.flag_bits & _UTF8_FLAG:
            with suppress(UnicodeError):
                entry.filename = entry.filename.encode("cp437").decode()
                archive.NameToInfo[entry.filename] = entry
    return archive


def read_entry(archive: ZipFile, entry: str | ZipInfo) -> bytes:
    """Return an entry's content; raise one of DAMAGED if that fails.

    In chunks: ``ZipFile.read`` unpacks everything before it cuts the content to the size that the entry claims.
    """
    with archive.open(entry) as file:
        return b"".join(iter(partial(file.read, _CHUNK_BYTES), b""))


class Zips:
    """Zips that stay open between reads: listing the entries of 100,000 photos takes a second."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._open: dict[str, tuple[ZipFile, ExitStack]] = {}

    def read(self, key: str, name: str) -> bytes:
        """Return the photo at a path in the zip of a blob key.

        Raises:
            BlobMissingError: if the zip is no longer stored.
            BlobError: if it cannot be read.
            BadZipFile: or another of DAMAGED, if it is damaged.
        """
        try:
            return read_entry(self._zip(key), name)
        except BaseException:
            self.close(key)
            raise

    def close(self, key: str) -> None:
        """Close a zip, if it is open."""
        if found := self._open.pop(key, None):
            found[1].close()

    def close_others(self, keys: set[str]) -> None:
        """Close all zips but some."""
        for key in self._open.keys() - keys:
            self.close(key)

    def _zip(self, key: str) -> ZipFile:
        if key not in self._open:
            if len(self._open) >= _MAX_OPEN:
                self.close(next(iter(self._open)))
            with ExitStack() as stack:
                file = stack.enter_context(closing(self._blobs.open_file(key)))
                archive = stack.enter_context(with_utf8_names(ZipFile(file)))
                self._open[key] = archive, stack.pop_all()
        return self._open[key][0]
