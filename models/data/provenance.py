"""Which files our commands wrote, by what the files themselves say: nothing else is overwritten. Free of torch."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from PIL import Image

from models.io import hash_file
from models.messages import printable

SOFTWARE: Final = "semples"
"""What the text chunk "Software" of our PNGs, the metadata of our tensors and the generator of our pages begin with."""
CURVE_HEADER: Final = "threshold,mean_iou"
"""First line of the table that ``semples evaluate --curve`` writes."""
CONFIG_HEADER: Final = f"# Written by {SOFTWARE}"
"""First line of the configuration in a work directory."""

_GENERATOR: Final = f'<meta name="generator" content="{SOFTWARE} '.encode()
_FIRST_LINES: Final = tuple(f"{line}\n".encode() for line in (CURVE_HEADER, CONFIG_HEADER))
_RECORD_KEYS: Final = {"image", "size", "model", "options", "classes"}
_BUNDLE_KEYS: Final = {"format", "licence", "trained_on", "classes", "generator", "files"}
_SCORES: Final = {"scores.npy", "class_index.npy", "class_name.npy", "image_size.npy"}
_HEAD_BYTES: Final = 4096
_MAX_HEADER_BYTES: Final = 100_000_000  # safetensors' own limit
_MAX_NAMED: Final = 5


def refuse_foreign(paths: Iterable[Path], *, overwrite: bool, hashes: Collection[str] = ()) -> None:
    """Raise ValueError if one of some files exists and is not ours, by its provenance; not with ``overwrite``.

    Files of forms that cannot say who made them are ours if their SHA-256 is among ``hashes``.
    """
    foreign = [] if overwrite else [path for path in paths if _exists(path) and not _is_ours(path, hashes)]
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


def _is_ours(path: Path, hashes: Collection[str]) -> bool:
    """Return whether one of our commands wrote a file."""
    says_so = _BY_ENDING.get(path.suffix, _is_our_text)
    try:
        return says_so(path) or (bool(hashes) and hash_file(path) in hashes)
    except (OSError, ValueError, SyntaxError, zipfile.BadZipFile, Image.DecompressionBombError):
        return False


def _is_our_picture(path: Path) -> bool:
    with Image.open(path, formats=("PNG",)) as picture:
        return str(picture.info.get("Software", "")).startswith(f"{SOFTWARE} ")


def _is_our_record(path: Path) -> bool:
    content = json.loads(path.read_bytes())
    return isinstance(content, dict) and content.keys() >= _RECORD_KEYS


def _are_our_scores(path: Path) -> bool:
    with zipfile.ZipFile(path) as stored:
        return set(stored.namelist()) >= _SCORES


def _are_our_tensors(path: Path) -> bool:
    """Read the metadata of a safetensors file, which is its header's length, its header in JSON, and the tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length)) if length <= _MAX_HEADER_BYTES else {}
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return isinstance(metadata, dict) and metadata.get("software") == SOFTWARE


def _is_our_yaml(path: Path) -> bool:
    """Know a work directory's configuration by its first line, and a bundle's manifest by its keys."""
    if _is_our_text(path):
        return True
    import yaml  # noqa: PLC0415 (the client needs none of this, and does not require it)

    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError:
        return False
    return isinstance(content, dict) and content.keys() >= _BUNDLE_KEYS


def _is_our_text(path: Path) -> bool:
    """Know a page by its generator, and a table by its first line."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return _GENERATOR in head or head.startswith(_FIRST_LINES)


_BY_ENDING: Final[Mapping[str, Callable[[Path], bool]]] = {
    ".png": _is_our_picture,
    ".json": _is_our_record,
    ".npz": _are_our_scores,
    ".safetensors": _are_our_tensors,
    ".yaml": _is_our_yaml,
}
