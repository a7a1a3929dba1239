"""A content-addressed store for uploads, results and archives, on any file system that fsspec knows.

Keys are made from the bytes: the kind, two digits to keep folders small, the SHA-256. A file is written as a whole or
not at all, and lives for a time after it was last written.

S3, and what speaks like it, goes through s3fs with limits on every wait and no caches. Credentials, region and endpoint
come from where botocore takes them: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL and
so on, or AWS's files.
"""

from __future__ import annotations

import errno
import hashlib
import io
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, cast

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

from models.messages import one_line

BlobKind = Literal["uploads", "results", "archives"]
Pinned = Callable[[Sequence[str]], frozenset[str]]
"""Returns those of some keys that are still needed, however old."""

_PART_BYTES: Final = 8 * 2**20
"""Bytes in memory at once while a file is copied; S3 takes parts of five MiB or more."""

_KINDS: Final[tuple[BlobKind, ...]] = ("uploads", "results", "archives")
_KEY: Final = re.compile(r"(uploads|results|archives)/[0-9a-f]{2}/[0-9a-f]{64}")
_S3: Final = "s3://"
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
# MinIO's full disk and full bucket, Ceph's quota, and an answer without a code of its own.
_FULL_CODES: Final = (
    *("XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"),
    *("QuotaExceeded", "InsufficientStorage", "507"),
)
_INSUFFICIENT_STORAGE = 507
_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_QUERIED_AT_ONCE = 500  # keys
_INCOMING = "incoming"
_TRIAL, _TRIAL_BYTES = f"{_INCOMING}/trial", 4096


class BlobError(Exception):
    """The store cannot be read or written."""


class BlobMissingError(BlobError):
    """No blob has this key, or its lifetime is over."""


class BlobStoreFullError(BlobError):
    """No room is left."""


@dataclass(frozen=True)
class Patience:
    """Timeouts of S3, in seconds."""

    connect: float = 5.0  # for a connection
    read: float = 15.0  # for the next bytes of an answer
    call: float = 60.0  # for one call with all its attempts
    attempts: int = 3  # requests that one call may take


_PATIENCE: Final = Patience()


class BlobStore:
    """Bytes under keys that are made from the bytes; all methods are thread-safe.

    The same bytes always get the same key, so writing twice does no harm, and a reader sees a whole blob or none.
    ``errors`` are what the file system raises when it fails, ``options`` go to each of its calls.

    Methods raise BlobError if the store cannot be read or written, BlobMissingError if a blob to read is missing and
    BlobStoreFullError if there is no room, with nothing left behind.
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
        self._writer = _Writer(filesystem, f"{self._root}/{_INCOMING}", self._options)

    @classmethod
    def open(cls, url: str, *, patience: Patience = _PATIENCE) -> BlobStore:
        """Open the store at a directory or an fsspec URL (file://, memory://, s3://), without a request."""
        try:
            if not _URL.match(url):  # a path may hold anything, such as fsspec's "::"
                return cls(LocalFileSystem(), str(Path(url).absolute()))
            if url.startswith(_S3):
                options = {"timeout": patience.call}
                return cls(*_open_s3(url, patience), errors=_s3_errors(), options=options)
            return cls(*fsspec.core.url_to_fs(url))
        except (ValueError, ImportError, OSError) as error:
            raise BlobError(one_line(f"cannot open the blob store {url}: {error}")) from error

    def check(self) -> None:
        """Raise BlobError unless the store answers and can be listed."""
        self._list(_INCOMING)

    def try_to_write(self) -> None:
        """Write a file of one block, in place of the last such file."""
        with self._failing("write a probe file"):
            self._writer.write(f"{self._root}/{_TRIAL}", bytes(_TRIAL_BYTES))

    def put(self, kind: BlobKind, data: bytes) -> str:
        """Store bytes and return their key; an existing blob gets a new lifetime."""
        key = blob_key(kind, data)
        with self._failing(f"store a blob of {len(data)} bytes"):
            self._writer.write(f"{self._root}/{key}", data)
        return key

    def put_file(self, key: str, file: BinaryIO) -> None:
        """Store a file in parts, under the key of ``file_key``; otherwise as ``put``."""
        path = self._path(key)
        file.seek(0)
        with self._failing("store a file"):
            self._writer.copy(path, file)

    def open_file(self, key: str) -> _BlobFile:
        """Open a blob that is too large for memory; the caller closes it. Reading it raises BlobError."""
        path = self._path(key)
        failing = partial(self._failing, f"read the blob {key!r}", absent=BlobMissingError)
        with failing():
            return _BlobFile(self._files.open(path, "rb", block_size=_PART_BYTES), failing)

    def get(self, key: str) -> bytes:
        """Return a blob's bytes."""
        path = self._path(key)
        with self._failing(f"read the blob {key!r}", absent=BlobMissingError):
            return bytes(self._files.cat_file(path, **self._options))

    def exists(self, key: str) -> bool:
        """Return whether there is such a blob."""
        path = self._path(key)
        looking = self._failing(f"look for the blob {key!r}", absent=BlobMissingError)
        with suppress(BlobMissingError), looking:
            # Not the file system's own exists, which returns False for every error of a local disk.
            self._files.info(path, **self._options)
            return True
        return False

    def delete(self, key: str) -> None:
        """Delete a blob, if it exists."""
        path = self._path(key)
        deleting = self._failing(f"delete the blob {key!r}", absent=BlobMissingError)
        with suppress(BlobMissingError), deleting:
            self._files.rm_file(path, **self._options)

    def keys(self, kind: BlobKind) -> list[str]:
        """Return the keys of one kind, sorted."""
        return sorted(map(_key_in, self._list(kind)))

    def delete_older(self, *, now: datetime, lifetime: timedelta, pinned: Pinned = lambda _keys: frozenset()) -> int:
        """Delete files older than ``lifetime`` at ``now`` and not pinned, incomplete ones too; return how many."""
        deleted, moment = 0, now - lifetime
        for folder in (*_KINDS, _INCOMING):
            listed = self._list(folder)
            # S3 lists the times: only old files cost a request each.
            old = [path for path, info in listed.items() if _may_be_old(info, moment)]
            for start in range(0, len(old), _QUERIED_AT_ONCE):
                paths = {_key_in(path): path for path in old[start : start + _QUERIED_AT_ONCE]}
                for key in paths.keys() - pinned(list(paths)):
                    deleted += self._delete_if_older(paths[key], moment)
        return deleted

    def _list(self, folder: str) -> dict[str, dict[str, Any]]:
        with self._failing(f"list the blobs in {folder}"):
            found = self._files.find(f"{self._root}/{folder}", detail=True, **self._options)
        return dict(found)

    def _delete_if_older(self, path: str, moment: datetime) -> bool:
        """Check the time again: the file may have been written since it was listed."""
        try:
            with self._failing(f"delete {path}", absent=BlobMissingError):
                modified = self._files.modified(path)
                if modified.replace(tzinfo=modified.tzinfo or UTC) > moment:
                    return False
                self._files.rm_file(path, **self._options)
        except BlobMissingError:  # deleted meanwhile
            return False
        return True

    @contextmanager
    def _failing(self, doing: str, *, absent: type[BlobError] = BlobError) -> Iterator[None]:
        """Turn the file system's errors into a BlobError, missing files into ``absent``."""
        try:
            yield
        except self._errors as error:
            reason = BlobError
            if _is_full(error) or getattr(error, "errno", None) in _FULL_ERRNOS:
                reason = BlobStoreFullError
            elif isinstance(error, FileNotFoundError) and not _is_missing_bucket(error):
                reason = absent
            # Timeouts have no message.
            message = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise reason(f"cannot {doing}: {message}") from error

    def _path(self, key: str) -> str:
        if not _KEY.fullmatch(key):
            raise BlobMissingError(f"expected a blob key, got {key[:80]!r}")
        return f"{self._root}/{key}"


def _may_be_old(info: Mapping[str, Any], moment: datetime) -> bool:
    listed = info.get("LastModified")
    return listed is None or listed <= moment


def blob_key(kind: BlobKind, data: bytes) -> str:
    """Return the key of bytes."""
    return _digest_key(kind, hashlib.sha256(data).hexdigest())


def file_key(kind: BlobKind, file: BinaryIO) -> str:
    """Return the key of a file's bytes."""
    file.seek(0)
    return _digest_key(kind, hashlib.file_digest(file, "sha256").hexdigest())  # type: ignore[arg-type]


def _digest_key(kind: BlobKind, digest: str) -> str:
    return f"{kind}/{digest[:2]}/{digest}"


def _key_in(path: str) -> str:
    """Return the key that a file's path in the store ends with."""
    return "/".join(path.split("/")[-3:])


class _BlobFile(io.RawIOBase):
    """A blob that can be read at any position, as zip files need; its errors are BlobErrors."""

    def __init__(self, file: BinaryIO, failing: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self._file = file
        self._failing = failing

    def readable(self) -> bool:
        """Return True; see io.IOBase."""
        return True

    def seekable(self) -> bool:
        """Return True; see io.IOBase."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move; see io.IOBase."""
        with self._failing():
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position; see io.IOBase."""
        return self._file.tell()

    def readinto(self, buffer: Any, /) -> int:
        """Read; see io.RawIOBase."""
        with self._failing():
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close; see io.IOBase."""
        if not self.closed:
            self._file.close()
        super().close()


@dataclass(frozen=True)
class _Writer:
    """Writes files that are visible only when complete; on a disk by way of the folder ``incoming``."""

    files: AbstractFileSystem
    incoming: str
    options: Mapping[str, Any]

    def write(self, path: str, data: bytes) -> None:
        if not isinstance(self.files, LocalFileSystem):
            # Object stores and memory show an object when it is complete.
            self.files.pipe_file(path, data, **self.options)
            return
        with self._moved(path) as file:
            file.write(data)

    def copy(self, path: str, source: BinaryIO) -> None:
        """Write the rest of a file, in parts."""
        if isinstance(self.files, LocalFileSystem):
            with self._moved(path) as file:
                shutil.copyfileobj(source, file, _PART_BYTES)
            return
        upload = self.files.open(path, "wb", block_size=_PART_BYTES, autocommit=False)
        try:
            shutil.copyfileobj(source, upload, _PART_BYTES)
            upload.close()
        except BaseException:  # `with` would complete the file after a failure
            upload.discard()
            if isinstance(upload, AbstractBufferedFile):
                upload.closed = True  # or the garbage collector would complete it
            raise
        upload.commit()

    @contextmanager
    def _moved(self, path: str) -> Iterator[BinaryIO]:
        """Yield a file to write that is moved to its place at the end."""
        temporary = f"{self.incoming}/{uuid.uuid4().hex}"
        try:
            with self._new(temporary) as file:
                yield file
            self._move(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                self.files.rm_file(temporary)
            raise

    def _new(self, path: str) -> BinaryIO:
        """Open a file; make its folder if needed."""
        with suppress(FileNotFoundError):
            return cast("BinaryIO", self.files.open(path, "wb"))
        self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
        return cast("BinaryIO", self.files.open(path, "wb"))

    def _move(self, temporary: str, path: str) -> None:
        """Move a file to its place; make the folder if needed."""
        # The file system's own mv takes as long as all the rest.
        try:
            Path(temporary).replace(path)
        except FileNotFoundError:
            self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
            Path(temporary).replace(path)


def _open_s3(url: str, patience: Patience) -> tuple[AbstractFileSystem, str]:
    """Return a file system and the path in it; its calls still need ``timeout=patience.call``. No request is made."""
    root = url.removeprefix(_S3).rstrip("/")
    if not root or root.startswith("/"):
        raise ValueError(f"expected s3://bucket or s3://bucket/prefix, got {url!r}")
    try:
        # An extra, and slow to import.
        from aiobotocore.session import AioSession  # noqa: PLC0415
        from s3fs import S3FileSystem  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(f"expected the extra semples[s3] to be installed: {error}") from error
    session = AioSession()
    session.register("before-send.s3", _send_at_once)
    files = S3FileSystem(
        session=session,
        # Other hosts write too: a listing is soon out of date.
        use_listings_cache=False,
        # These settings are for this store alone.
        skip_instance_cache=True,
        # Read a blob by one request, not one for its size and more for its parts.
        max_concurrency=1,
        config_kwargs={
            "connect_timeout": patience.connect,
            "read_timeout": patience.read,
            "retries": {"total_max_attempts": patience.attempts, "mode": "standard"},
            "max_pool_connections": 50,
        },
    )
    # s3fs would repeat botocore's attempts five times, and again five times when reading.
    files.retries = 1
    return files, root


def _send_at_once(request: Any, **_: object) -> None:
    """Send a body with its head: aiohttp waits without a limit for S3's "100 Continue"."""
    request.headers.pop("Expect", None)


def _s3_errors() -> tuple[type[Exception], ...]:
    """Return what S3's calls can raise."""
    from aiohttp import ClientError as ConnectionBrokenError  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    from botocore.parsers import ResponseParserError  # noqa: PLC0415

    refused = (OSError, ClientError, BotoCoreError, ConnectionBrokenError)
    # RuntimeError: aiobotocore follows a redirection that names no region until Python stops it.
    return (*refused, ResponseParserError, ValueError, LookupError, RuntimeError)


def _is_full(error: BaseException) -> bool:
    """Whether S3 answered that no room is left."""
    code, status = _answer(error)
    return code in _FULL_CODES or status == _INSUFFICIENT_STORAGE


def _is_missing_bucket(error: BaseException) -> bool:
    """Whether S3 answered that the bucket, not a file, is missing."""
    return _answer(error)[0] == "NoSuchBucket"


def _answer(error: BaseException) -> tuple[str, int]:
    """Return S3's code and HTTP status, which are in the cause of s3fs's error."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            code = response.get("Error", {}).get("Code", "")
            return str(code), int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return "", 0
