"""A disk with little room, and what a blob store has left on it."""

import errno
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileOpener, LocalFileSystem


class FullDisk(LocalFileSystem):  # type: ignore[misc]
    """A disk with room for ten more bytes."""

    cachable = False

    def __init__(self, error: int = errno.ENOSPC) -> None:
        super().__init__()
        self.error = error

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return FullFile(path, mode, fs=self)


class FullFile(LocalFileOpener):  # type: ignore[misc]
    """A file on it."""

    def write(self, data: bytes) -> int:
        self.f.write(data[:10])
        raise OSError(self.fs.error, "no")


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
