"""Photos out of batches' zips, one at a time, wherever the zips are. Wire layer."""

from __future__ import annotations

import struct
import zlib
from functools import partial
from typing import Final
from zipfile import BadZipFile, ZipFile, ZipInfo

from worker.storage import BlobFile, BlobStore

MAX_OPEN: Final = 8
_PART_BYTES: Final = 2**16
DAMAGED: Final = (
    BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,  # of names that are not in the encoding that they claim
    RuntimeError,  # of passwords, and of methods that are not known
    OverflowError,
)
"""What a damaged zip raises when it is read; a blob's own errors are no such."""


def read_entry(archive: ZipFile, entry: str | ZipInfo) -> bytes:
    """Return what an entry holds, no more than it says: ``ZipFile.read`` unpacks all that there is before it cuts.

    Raises:
        BadZipFile: and what else DAMAGED lists, if it is damaged.
    """
    with archive.open(entry) as file:
        return b"".join(iter(partial(file.read, _PART_BYTES), b""))


class Zips:
    """Zips that stay open while they are used: the list of what is in one of 100,000 photos takes a second to read.

    Args:
        blobs: where they are.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._open: dict[str, ZipFile] = {}

    def read(self, key: str, name: str) -> bytes:
        """Return a photo.

        Args:
            key: of the zip's blob.
            name: path in it.

        Raises:
            BlobMissingError: if there is no such zip any more.
            BlobError: if it cannot be read.
            BadZipFile: and what else DAMAGED lists, if it is damaged.
        """
        try:
            return read_entry(self._opened(key), name)
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

    def _opened(self, key: str) -> ZipFile:
        if key not in self._open:
            if len(self._open) >= MAX_OPEN:
                self.close(next(iter(self._open)))
            self._open[key] = _Zip(self._blobs.open_file(key))
        return self._open[key]


class _Zip(ZipFile):
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
