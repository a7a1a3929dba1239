"""A content-addressed store for uploads and results, on any file system that fsspec knows."""

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

# What blobs are called: by their content. Wire layer.

BlobKind = Literal["uploads", "results", "archives"]
KINDS: Final[tuple[BlobKind, ...]] = ("uploads", "results", "archives")

KEY: Final = re.compile(r"(uploads|results|archives)/[0-9a-f]{2}/[0-9a-f]{64}")


def blob_key(kind: BlobKind, data: bytes) -> str:
    """Return the key of bytes: the kind, two digits to keep folders small, the SHA-256."""
    return _digest_key(kind, hashlib.sha256(data).hexdigest())


def file_key(kind: BlobKind, file: BinaryIO) -> str:
    """Return the key of all of a file's bytes."""
    file.seek(0)
    return _digest_key(kind, hashlib.file_digest(file, "sha256").hexdigest())  # type: ignore[arg-type]


def _digest_key(kind: BlobKind, digest: str) -> str:
    return f"{kind}/{digest[:2]}/{digest}"


def key_in(path: str) -> str:
    """Return the key that a file's path in the store ends with."""
    return "/".join(path.split("/")[-3:])


# Files of the blob store: written as a whole or not at all, and read in parts. Wire layer.

PART_BYTES: Final = 8 * 2**20
"""That are in memory at once while a file is copied; S3 takes no smaller parts than five."""


@dataclass(frozen=True)
class Writer:
    """Writes files that nobody sees before they are complete.

    Attributes:
        files: where.
        incoming: folder for what is on its way, on a disk.
        options: for each call of the file system.
    """

    files: AbstractFileSystem
    incoming: str
    options: Mapping[str, Any]

    def write(self, path: str, data: bytes) -> None:
        """Write bytes."""
        if not isinstance(self.files, LocalFileSystem):
            # Object stores and memory show an object when it is complete.
            self.files.pipe_file(path, data, **self.options)
            return
        with self._moved(path) as file:
            file.write(data)

    def copy(self, path: str, source: BinaryIO) -> None:
        """Write what is left of a file, a part at a time."""
        if isinstance(self.files, LocalFileSystem):
            with self._moved(path) as file:
                shutil.copyfileobj(source, file, PART_BYTES)
            return
        upload = self.files.open(path, "wb", block_size=PART_BYTES, autocommit=False)
        try:
            shutil.copyfileobj(source, upload, PART_BYTES)
            upload.close()
        except BaseException:  # not `with`, which would keep what came before a failure
            upload.discard()
            if isinstance(upload, AbstractBufferedFile):
                upload.closed = True  # or it would be completed when it is collected
            raise
        upload.commit()

    @contextmanager
    def _moved(self, path: str) -> Iterator[BinaryIO]:
        """Give a file to write that takes its place once it is written."""
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
        """Open a file; its folder is made if this is the first."""
        with suppress(FileNotFoundError):
            return cast("BinaryIO", self.files.open(path, "wb"))
        self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
        return cast("BinaryIO", self.files.open(path, "wb"))

    def _move(self, temporary: str, path: str) -> None:
        """Put a file in its place; its folder is made if it is the first there."""
        # Not the file system's own mv, which takes as long as all the rest.
        try:
            Path(temporary).replace(path)
        except FileNotFoundError:
            self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
            Path(temporary).replace(path)


class BlobFile(io.RawIOBase):
    """A blob that is read here and there, as zip files are.

    Args:
        file: of the file system.
        failing: turns what that raises into a BlobError.
    """

    def __init__(self, file: BinaryIO, failing: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self._file = file
        self._failing = failing

    def readable(self) -> bool:
        """Say yes; see io.IOBase."""
        return True

    def seekable(self) -> bool:
        """Say yes; see io.IOBase."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go somewhere; see io.IOBase."""
        with self._failing():
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Say where; see io.IOBase."""
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


# S3, and whatever speaks like it, through s3fs: nothing waits for ever, nothing is remembered.
#
# Credentials, region and endpoint come from where botocore always takes them: AWS_ACCESS_KEY_ID,
# AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL and so on, or AWS's files.

SCHEME: Final = "s3://"

# MinIO's full disk and full bucket, Ceph's quota; 507 is what a code-less answer is called.
_FULL_CODES: Final = frozenset(
    {
        "XMinioStorageFull",
        "XMinioAdminBucketQuotaExceeded",
        "QuotaExceeded",
        "InsufficientStorage",
        "507",
    }
)
_INSUFFICIENT_STORAGE = 507


@dataclass(frozen=True)
class Patience:
    """How long S3 is waited for, in seconds.

    Attributes:
        connect: for a connection.
        read: for the next bytes of an answer.
        call: for one call with all its attempts, however slowly its bytes come.
        attempts: requests that one call may take.
    """

    connect: float = 5.0
    read: float = 15.0
    call: float = 60.0
    attempts: int = 3


PATIENCE: Final = Patience()


def open_s3(url: str, patience: Patience) -> tuple[AbstractFileSystem, str]:
    """Return a file system and the path in it; S3 is not asked yet.

    Safe in threads: all requests run in one event loop, in a thread of fsspec's.

    Args:
        url: s3://bucket or s3://bucket/prefix.
        patience: every call of the file system still needs ``timeout=patience.call``.

    Raises:
        ValueError: if the URL names no bucket.
        ImportError: if the extra is not installed.
    """
    root = url.removeprefix(SCHEME).rstrip("/")
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
        # Other hosts write too: whatever a listing said a moment ago may be wrong now.
        use_listings_cache=False,
        # Its settings are for this store alone.
        skip_instance_cache=True,
        # Reading a blob is one request, not one for its size and more for its parts.
        max_concurrency=1,
        config_kwargs={
            "connect_timeout": patience.connect,
            "read_timeout": patience.read,
            "retries": {"total_max_attempts": patience.attempts, "mode": "standard"},
            "max_pool_connections": 50,
        },
    )
    # s3fs would repeat botocore's attempts five times, and that five times when reading.
    files.retries = 1
    return files, root


def _send_at_once(request: Any, **_: object) -> None:
    """Send a body with its head: for S3's leave to go on, aiohttp would wait without a limit."""
    request.headers.pop("Expect", None)


def s3_errors() -> tuple[type[Exception], ...]:
    """Return what S3's calls can raise, from no connection to an answer that makes no sense."""
    from aiohttp import ClientError as ConnectionBrokenError  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    from botocore.parsers import ResponseParserError  # noqa: PLC0415

    refused = (OSError, ClientError, BotoCoreError, ConnectionBrokenError)
    # RuntimeError: aiobotocore follows a redirection that names no region until Python stops it.
    return (*refused, ResponseParserError, ValueError, LookupError, RuntimeError)


def is_full(error: BaseException) -> bool:
    """Return whether S3 answered that there is no room left."""
    code, status = _answer(error)
    return code in _FULL_CODES or status == _INSUFFICIENT_STORAGE


def is_missing_bucket(error: BaseException) -> bool:
    """Return whether S3 answered that there is no such bucket, which is no missing file."""
    return _answer(error)[0] == "NoSuchBucket"


def _answer(error: BaseException) -> tuple[str, int]:
    """S3's code and HTTP status; s3fs raises Python's own errors, whose causes have them."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            code = response.get("Error", {}).get("Code", "")
            return str(code), int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return "", 0


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
