"""Files of the blob store: written as a whole or not at all, and read in parts. Wire layer."""

from __future__ import annotations

import io
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

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
