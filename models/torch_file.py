"""Files that torch.save wrote elsewhere, read without executing anything of theirs."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, Final

import torch


class _Inert:
    """Stands in for objects beside the tensors: takes whatever it is made of, does nothing, keeps nothing."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


# What training scripts leave beside the weights. None of it is imported, let alone called: torch's restricted unpickler
# is told that each of these names means _Inert.
_BESIDE: Final = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
)
_KINDS: Final = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a RIFF file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"%PDF", "a PDF"),
    (b"\x93NUMPY", "a NumPy array"),
)
# What torch's reader raises on bytes that are not what they seem to be.
_DAMAGE: Final = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, struct.error, OverflowError,
)  # fmt: skip


def read_torch_file(path: Path) -> Any:
    """Read what torch.save wrote: tensors in dictionaries and lists; a few foreign objects become inert ones.

    Args:
        path: of the file.

    Raises:
        ValueError: if it is no such file, damaged, or names anything that would have to be executed.
        OSError: if it cannot be read.
    """
    found = _not_by_torch(path)
    if found:
        raise ValueError(f"expected a file that torch.save wrote, got {found}: {path}")
    inert = torch.serialization.safe_globals([(_Inert, name) for name in _BESIDE])
    try:
        # torch warns of pickles that others wrote, before it refuses them.
        with inert, warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign:
            raise ValueError(
                f"expected tensors and plain values, got {foreign[1]}, which was not executed: {path}"
            ) from error
        raise ValueError(
            f"expected a file that torch.save wrote, got a damaged or foreign one: {path}"
        ) from error


def _not_by_torch(path: Path) -> str | None:
    """Say what a file is by its first bytes, or None if torch.save may have written it."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "an empty file"
    if start.startswith(b"PK"):
        return _other_archive(path)
    if start.startswith(b"\x80"):  # a pickle: torch.save's older format
        return None
    if start[5:9] == b"\0\0\0{":
        return "a safetensors file"
    for magic, name in _KINDS:
        if start.startswith(magic):
            return name
    return "text" if start.isascii() and b"\0" not in start else "a file of another kind"


def _other_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, *_DAMAGE):
        return "a damaged or truncated archive"
    return (
        None
        if any(name.endswith("/data.pkl") for name in names)
        else "a zip archive of other files"
    )
