"""Photos from the zips of batches in the blob store, read one at a time."""

from __future__ import annotations

import struct
import zlib
from functools import partial
from typing import Final
from zipfile import BadZipFile, ZipFile, ZipInfo

from worker.storage import BlobFile, BlobStore

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
_CHUNK_BYTES: Final = 2**16


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
        self._open: dict[str, ZipFile] = {}

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
        if archive := self._open.pop(key, None):
            archive.close()

    def close_others(self, keys: set[str]) -> None:
        """Close all zips but some."""
        for key in self._open.keys() - keys:
            self.close(key)

    def _zip(self, key: str) -> ZipFile:
        if key not in self._open:
            if len(self._open) >= _MAX_OPEN:
                self.close(next(iter(self._open)))
            self._open[key] = _BlobZip(self._blobs.open_file(key))
        return self._open[key]


class _BlobZip(ZipFile):
    """A zip that closes its file, too."""

    def __init__(self, file: BlobFile) -> None:
        self._source = file
        try:
            super().__init__(file)
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        super().close()
        self._source.close()
