"""Exports of a mask folder to training libraries and annotation tools: labels and destinations of all formats.

A mask is semantic: one region a class and image. All formats are in the upright frame, as the masks are. Free of torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX, ClassList, normalize
from models.data.mask_files import voc_palette

_IGNORED = "ignored"
_SEPARATORS = ":,#"


@dataclass(frozen=True)
class Label:
    """An index of label maps, its name and its VOC color (red, green, blue)."""

    index: int
    name: str
    color: tuple[int, int, int]

    @property
    def hex(self) -> str:
        """The color as #rrggbb."""
        return "#" + bytes(self.color).hex()


def all_labels(classes: ClassList) -> tuple[Label, ...]:
    """Return background, the classes and "ignored" (VOC's 255), in this order."""
    for name in classes.names:
        if normalize(name) in ("background", _IGNORED):
            raise ValueError(f"expected no class to be called {name!r}: the format needs the name")
    colors = voc_palette().tolist()
    named = classes.names_by_index | {IGNORE_INDEX: _IGNORED}
    return tuple(Label(index, name, tuple(colors[index])) for index, name in named.items())


def with_ignored(names: Mapping[int, str]) -> dict[int, str]:
    """Return names of label map indices with one for ignored pixels, which tools would otherwise make background."""
    kept = {index: name for index, name in names.items() if index != BACKGROUND_INDEX}
    return kept | {IGNORE_INDEX: _IGNORED}


def label_map_txt(labels: Sequence[Label]) -> str:
    """Return ``labelmap.txt`` of CVAT and related tools: a line "name:r,g,b:parts:actions" for each label."""
    for label in labels:
        if any(each in label.name for each in _SEPARATORS):
            raise ValueError(f"expected class names without {' '.join(_SEPARATORS)}, got {label.name!r}")
    lines = [f"{each.name}:{','.join(map(str, each.color))}::" for each in labels]
    return "\n".join(["# label:color_rgb:parts:actions", *lines]) + "\n"


def list_line(stem: str) -> str:
    """Return an image's line in an ``ImageSets`` file. Readers strip lines and skip those that begin with #."""
    if stem.splitlines() != [stem.strip()] or stem.startswith("#"):
        raise ValueError(
            f"expected file names of one line that neither begin with # nor have spaces at the ends, got {stem!r}"
        )
    return f"{stem}\n"


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a folder to write in; it is renamed to ``path`` once everything is written, and removed if that fails.

    With ``overwrite`` the files go into a folder that is not empty, too, in place of those of the same names.
    """
    filled = path.is_dir() and any(path.iterdir())
    if (path.exists() and not path.is_dir()) or (filled and not overwrite):
        raise ValueError(f"expected a new or empty folder for the export (or --overwrite), got {path}")
    partial = path.with_name(path.name + ".partial")
    if partial.exists():
        raise ValueError(f"expected no export under way or cut off; if none is running, remove {partial}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if filled:
            shutil.copytree(partial, path, copy_function=_replace, dirs_exist_ok=True)
            shutil.rmtree(partial)
            return
        if path.exists():
            path.rmdir()
        partial.rename(path)
    except BaseException:  # Ctrl-C as well
        shutil.rmtree(partial)
        raise


def _replace(source: str, target: str) -> None:
    Path(source).replace(target)
