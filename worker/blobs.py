"""A content-addressed store for uploads and results, on any file system that fsspec knows."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, BinaryIO

import fsspec
from fsspec import AbstractFileSystem

from worker.blob_files import PART_BYTES, BlobFile, Writer
from worker.blob_keys import KEY, KINDS, BlobKind, blob_key, key_in
from worker.s3 import PATIENCE, SCHEME, Patience, is_full, is_missing_bucket, open_s3, s3_errors

Spare = Callable[[Sequence[str]], frozenset[str]]
"""Says which of some keys are still needed, however old."""

_CHUNK = 500  # keys that are asked about at once
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_INCOMING = "incoming"
_TRIAL, _BLOCK = f"{_INCOMING}/trial", 4096


class BlobError(Exception):
    """The store cannot be read or written."""


class BlobMissingError(BlobError):
    """No blob has this key, or its lifetime is over."""


class BlobStoreFullError(BlobError):
    """No room is left."""


class BlobStore:
    """Bytes under keys that are made from the bytes.

    The same bytes always get the same key, so writing twice does no harm, and a reader sees a whole
    blob or none. Blobs live for a time after they were last written; a sweep can be told what to spare.
    All methods may be called from any thread.

    Args:
        filesystem: where the blobs are.
        root: path of the store in it.
        errors: what the file system raises when it fails; all of it becomes BlobError.
        options: for each call of the file system, such as a timeout.
    """

    def __init__(
        self,
        filesystem: AbstractFileSystem,
        root: str,
        *,
        errors: tuple[type[Exception], ...] = (OSError,),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._files = filesystem
        self._root = root.rstrip("/")
        self._errors = errors
        self._options = dict(options or {})
        self._writer = Writer(filesystem, f"{self._root}/{_INCOMING}", self._options)

    @classmethod
    def open(cls, url: str, *, patience: Patience = PATIENCE) -> BlobStore:
        """Open the store at a directory or an fsspec URL (file://, memory://, s3://).

        Whether it can be reached is not known before ``check``.

        Args:
            url: where it is.
            patience: with S3.

        Raises:
            BlobError: if the URL's protocol is unknown or needs a package that is not installed.
        """
        try:
            if url.startswith(SCHEME):
                options = {"timeout": patience.call}
                return cls(*open_s3(url, patience), errors=s3_errors(), options=options)
            return cls(*fsspec.core.url_to_fs(url))
        except (ValueError, ImportError, OSError) as error:
            raise BlobError(f"cannot open the blob store {url!r}: {error}") from error

    def check(self) -> None:
        """See whether the store answers, and lets itself be listed.

        Raises:
            BlobError: if not.
        """
        self._list(_INCOMING)

    def try_to_write(self) -> None:
        """See whether the store takes a file, a block long; each replaces the one before, and a sweep the last.

        Raises:
            BlobStoreFullError: if there is no room.
            BlobError: if the store cannot be written.
        """
        with self._failing("write a file to see whether it can be done"):
            self._writer.write(f"{self._root}/{_TRIAL}", bytes(_BLOCK))

    def put(self, kind: BlobKind, data: bytes) -> str:
        """Store bytes and return their key; a blob that is there already gets a new lifetime.

        Raises:
            BlobStoreFullError: if there is no room; nothing is left behind.
            BlobError: if the store cannot be written.
        """
        key = blob_key(kind, data)
        with self._failing(f"store a blob of {len(data)} bytes"):
            self._writer.write(f"{self._root}/{key}", data)
        return key

    def put_file(self, key: str, file: BinaryIO) -> None:
        """Store a file, a part at a time, under its key; see ``file_key``. Otherwise as ``put``."""
        path = self._path(key)
        file.seek(0)
        with self._failing("store a file"):
            self._writer.copy(path, file)

    def open_file(self, key: str) -> BlobFile:
        """Open a blob that is too large for memory; the caller closes it.

        Reading and seeking raise BlobError.

        Raises:
            BlobMissingError: if there is none.
            BlobError: if the store cannot be read.
        """
        path = self._path(key)
        failing = partial(self._failing, f"read the blob {key!r}", absent=BlobMissingError)
        with failing():
            return BlobFile(self._files.open(path, "rb", block_size=PART_BYTES), failing)

    def get(self, key: str) -> bytes:
        """Return a blob's bytes.

        Raises:
            BlobMissingError: if there is none.
            BlobError: if the store cannot be read.
        """
        path = self._path(key)
        with self._failing(f"read the blob {key!r}", absent=BlobMissingError):
            return bytes(self._files.cat_file(path, **self._options))

    def exists(self, key: str) -> bool:
        """Return whether there is such a blob.

        Raises:
            BlobError: if the store does not say.
        """
        path = self._path(key)
        looking = self._failing(f"look for the blob {key!r}", absent=BlobMissingError)
        with suppress(BlobMissingError), looking:
            # Not the file system's own exists: of a directory, that takes every error for a no.
            self._files.info(path, **self._options)
            return True
        return False

    def delete(self, key: str) -> None:
        """Delete a blob; one that is not there is deleted already.

        Raises:
            BlobError: if the store does not let it be deleted.
        """
        path = self._path(key)
        deleting = self._failing(f"delete the blob {key!r}", absent=BlobMissingError)
        with suppress(BlobMissingError), deleting:
            self._files.rm_file(path, **self._options)

    def keys(self, kind: BlobKind) -> list[str]:
        """Return the keys of one kind, sorted.

        Raises:
            BlobError: if the store cannot be listed.
        """
        return sorted(map(key_in, self._list(kind)))

    def sweep(
        self, *, now: datetime, lifetime: timedelta, spare: Spare = lambda _keys: frozenset()
    ) -> int:
        """Delete what was last written longer than ``lifetime`` ago; return how many files.

        Files of writers that died half-way go too.

        Args:
            now: this moment.
            lifetime: of a blob.
            spare: asked about what is old.

        Raises:
            BlobError: if the store cannot be listed, or does not let a file be deleted.
        """
        deleted, moment = 0, now - lifetime
        for folder in (*KINDS, _INCOMING):
            listed = self._list(folder)
            # S3 lists the times: only the old cost a request each.
            old = [path for path, info in listed.items() if _may_be_old(info, moment)]
            for start in range(0, len(old), _CHUNK):
                paths = {key_in(path): path for path in old[start : start + _CHUNK]}
                for key in paths.keys() - spare(list(paths)):
                    deleted += self._delete_if_older(paths[key], moment)
        return deleted

    def _list(self, folder: str) -> dict[str, dict[str, Any]]:
        with self._failing(f"list the blobs in {folder}"):
            found = self._files.find(f"{self._root}/{folder}", detail=True, **self._options)
        return dict(found)

    def _delete_if_older(self, path: str, moment: datetime) -> bool:
        """Look once more: it may have been written again since it was listed."""
        try:
            with self._failing(f"delete {path}", absent=BlobMissingError):
                modified = self._files.modified(path)
                if modified.replace(tzinfo=modified.tzinfo or UTC) > moment:
                    return False
                self._files.rm_file(path, **self._options)
        except BlobMissingError:  # another sweep was faster
            return False
        return True

    @contextmanager
    def _failing(self, doing: str, *, absent: type[BlobError] = BlobError) -> Iterator[None]:
        """Turn whatever the file system raises into a BlobError, missing files into ``absent``."""
        try:
            yield
        except self._errors as error:
            reason = BlobError
            if is_full(error) or getattr(error, "errno", None) in _FULL:
                reason = BlobStoreFullError
            elif isinstance(error, FileNotFoundError) and not is_missing_bucket(error):
                reason = absent
            # Timeouts have no words of their own.
            said = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise reason(f"cannot {doing}: {said}") from error

    def _path(self, key: str) -> str:
        if not KEY.fullmatch(key):
            raise BlobMissingError(f"expected a blob key, got {key[:80]!r}")
        return f"{self._root}/{key}"


def _may_be_old(info: Mapping[str, Any], moment: datetime) -> bool:
    listed = info.get("LastModified")
    return listed is None or listed <= moment
