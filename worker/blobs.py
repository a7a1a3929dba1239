"""A content-addressed store for uploads and results, on any file system that fsspec knows."""

from __future__ import annotations

import errno
import hashlib
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Literal

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

BlobKind = Literal["uploads", "results"]
KINDS: tuple[BlobKind, ...] = ("uploads", "results")

_KEY = re.compile(r"(uploads|results)/[0-9a-f]{2}/[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_INCOMING = "incoming"


class BlobError(Exception):
    """The store cannot be read or written."""


class BlobMissingError(BlobError):
    """No blob has this key, or its lifetime is over."""


class BlobStoreFullError(BlobError):
    """No room is left."""


class BlobStore:
    """Bytes under keys that are made from the bytes.

    The same bytes always get the same key, so writing twice does no harm, and a reader sees a whole
    blob or none. Nothing counts references: blobs live for a time after they were last written.
    """

    def __init__(self, filesystem: AbstractFileSystem, root: str) -> None:
        self._files = filesystem
        self._root = root.rstrip("/")

    @classmethod
    def open(cls, url: str) -> BlobStore:
        """Open the store at a directory or an fsspec URL (file://, memory://, s3://).

        Raises:
            BlobError: if the URL's protocol is unknown or needs a package that is not installed.
        """
        try:
            filesystem, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError, OSError) as error:
            raise BlobError(f"cannot open the blob store {url!r}: {error}") from error
        return cls(filesystem, root)

    def put(self, kind: BlobKind, data: bytes) -> str:
        """Store bytes and return their key; a blob that is there already gets a new lifetime.

        Raises:
            BlobStoreFullError: if there is no room; nothing is left behind.
            BlobError: if the store cannot be written.
        """
        key = blob_key(kind, data)
        try:
            self._write(f"{self._root}/{key}", data)
        except OSError as error:
            full = error.errno in _FULL
            reason = BlobStoreFullError if full else BlobError
            raise reason(f"cannot store a blob of {len(data)} bytes: {error.strerror}") from error
        return key

    def get(self, key: str) -> bytes:
        """Return a blob's bytes.

        Raises:
            BlobMissingError: if there is none.
            BlobError: if the store cannot be read.
        """
        try:
            content: bytes = self._files.cat_file(self._path(key))
        except FileNotFoundError as error:
            raise BlobMissingError(f"expected a blob {key!r}, found none") from error
        except OSError as error:
            raise BlobError(f"cannot read the blob {key!r}: {error.strerror}") from error
        return content

    def exists(self, key: str) -> bool:
        """Return whether there is such a blob."""
        return bool(self._files.exists(self._path(key)))

    def keys(self, kind: BlobKind) -> list[str]:
        """Return the keys of one kind, sorted."""
        found = self._files.find(f"{self._root}/{kind}")
        return sorted("/".join(path.split("/")[-3:]) for path in found)

    def sweep(self, *, now: datetime, lifetime: timedelta) -> int:
        """Delete what was last written longer than ``lifetime`` ago; return how many files.

        Files of writers that died half-way go too.
        """
        deleted = 0
        for folder in (*KINDS, _INCOMING):
            for path in self._files.find(f"{self._root}/{folder}"):
                deleted += self._delete_if_older(path, now - lifetime)
        return deleted

    def _delete_if_older(self, path: str, moment: datetime) -> bool:
        try:
            modified = self._files.modified(path)
            if modified.replace(tzinfo=modified.tzinfo or UTC) > moment:
                return False
            self._files.rm_file(path)
        except FileNotFoundError:  # another sweep was faster
            return False
        return True

    def _path(self, key: str) -> str:
        if not _KEY.fullmatch(key):
            raise BlobMissingError(f"expected a blob key, got {key[:80]!r}")
        return f"{self._root}/{key}"

    def _write(self, path: str, data: bytes) -> None:
        if not isinstance(self._files, LocalFileSystem):
            # Object stores and memory show an object when it is complete.
            self._files.pipe_file(path, data)
            return
        incoming = f"{self._root}/{_INCOMING}"
        temporary = f"{incoming}/{uuid.uuid4().hex}"
        self._files.makedirs(incoming, exist_ok=True)
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            with self._files.open(temporary, "wb") as file:
                file.write(data)
            self._files.mv(temporary, path)
        except OSError:
            if self._files.exists(temporary):
                self._files.rm_file(temporary)
            raise


def blob_key(kind: BlobKind, data: bytes) -> str:
    """Return the key of bytes: the kind, two digits to keep folders small, the SHA-256."""
    digest = hashlib.sha256(data).hexdigest()
    return f"{kind}/{digest[:2]}/{digest}"
