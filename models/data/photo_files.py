"""Photo files: which of a folder are taken, and how they are read. One bad photo fails alone. Free of torch."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from models.data.images import PHOTO_SUFFIXES, ImageError
from models.data.photos import SameNameError, is_hidden, stem_key
from models.messages import printable

# About one file; others, such as a full disk, are about all of them.
_OF_ONE_FILE: Final = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EILSEQ, errno.EINVAL, errno.ELOOP)


def find_photos(paths: Sequence[Path]) -> list[Path]:
    """Return the photos of files and folders, each once; a folder's hidden files are left out, as a zip's are.

    Raises:
        ValueError: if there is none, or two share a stem, which names their results.
    """
    photos: dict[str, Path] = {}
    for path in paths:
        for photo in sorted(filter(_is_photo, path.iterdir())) if path.is_dir() else [path]:
            other = photos.setdefault(stem_key(photo.name), photo)
            if other != photo:
                raise SameNameError(str(photo), str(other), photo.stem)
    if not photos:
        raise ValueError("expected at least one photo, got none")
    return list(photos.values())


def _is_photo(path: Path) -> bool:
    return not is_hidden(Path(path.name)) and path.suffix.lower() in PHOTO_SUFFIXES and not path.is_dir()


def read_photo(path: Path, name: str | None = None) -> bytes:
    """Return a photo's bytes; ``name`` is what our files will call it, by default its file name.

    Raises:
        ImageError: if the name is not UTF-8, as our files are, or it is no file that can be read.
    """
    name = path.name if name is None else name
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ImageError("unreadable", f"expected a file name in UTF-8, got {printable(name)}") from error
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait without end
            raise ImageError("unreadable", "expected a file, got something else")
        return path.read_bytes()
    except OSError as error:
        raise ImageError("unreadable", f"cannot read the file: {error.strerror}") from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the photo in an ImageError, for commands about a single one: a ValueError."""
    try:
        yield
    except ImageError as error:
        raise ValueError(f"{printable(path)}: {error}") from error


def is_of_one_file(error: OSError) -> bool:
    """Return whether the next file may be written although this one cannot."""
    return error.errno in _OF_ONE_FILE
