"""Photo files and the files beside them: which of a folder are taken, how they are read, what may be overwritten.

One bad photo fails alone, and no command overwrites what is not ours. Free of torch.
"""

from __future__ import annotations

import errno
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from PIL import Image

from models.data.images import PHOTO_SUFFIXES, ImageError
from models.data.photos import is_hidden, stem_key
from models.messages import printable

SOFTWARE: Final = "semples"
"""What the text chunk "Software" of our PNGs and the generator of our pages begin with."""
_GENERATOR: Final = f'<meta name="generator" content="{SOFTWARE} '.encode()
_RECORD_KEYS: Final = {"image", "size", "model", "options", "classes"}
_SCORES: Final = {"scores.npy", "class_index.npy", "class_name.npy", "image_size.npy"}
_HEAD_BYTES: Final = 4096
_MAX_NAMED: Final = 5
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
                raise ValueError(f"expected distinct stems, got {other} and {photo}")
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


def is_of_one_file(error: OSError) -> bool:
    """Return whether the next file may be written although this one cannot."""
    return error.errno in _OF_ONE_FILE


def refuse_foreign(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Raise ValueError if one of some files exists and is not ours, by its provenance; not with ``overwrite``."""
    foreign = [] if overwrite else [path for path in paths if _exists(path) and not _is_ours(path)]
    if foreign:
        named = ", ".join(map(printable, foreign[:_MAX_NAMED]))
        more = f" and {len(foreign) - _MAX_NAMED} more" if len(foreign) > _MAX_NAMED else ""
        raise ValueError(f"expected to overwrite only what semples made (or --overwrite), got {named}{more}")


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:  # a name that is too long among them, of which the writing will tell
        return False
    return True


def _is_ours(path: Path) -> bool:
    """Return whether one of our commands wrote a file: a mask, an overlay, a record, scores or a page."""
    try:
        if path.suffix == ".png":
            with Image.open(path, formats=("PNG",)) as picture:
                return str(picture.info.get("Software", "")).startswith(f"{SOFTWARE} ")
        if path.suffix == ".json":
            content = json.loads(path.read_bytes())
            return isinstance(content, dict) and content.keys() >= _RECORD_KEYS
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as stored:
                return set(stored.namelist()) >= _SCORES
        with path.open("rb") as file:
            return _GENERATOR in file.read(_HEAD_BYTES)
    except (OSError, ValueError, SyntaxError, zipfile.BadZipFile, Image.DecompressionBombError):
        return False
