"""Pseudo masks as a product: a folder of them in the formats of training libraries and annotation tools.

A mask is semantic: one region a class and photo. All formats are in the upright frame, as the masks are. Free of torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX, ClassList, normalize
from models.data.mask_files import voc_palette

# What a label map's indices are called and which color they have, for formats that name colors.

BACKGROUND, IGNORED = "background", "ignored"
_SEPARATORS = ":,#"


@dataclass(frozen=True)
class Label:
    """An index of label maps, its name and its VOC color (red, green, blue)."""

    index: int
    name: str
    color: tuple[int, int, int]

    @property
    def hex(self) -> str:
        """The color as web pages write it."""
        return "#" + bytes(self.color).hex()


def all_labels(classes: ClassList) -> tuple[Label, ...]:
    """Return background, the classes and "ignored" (VOC's 255), in this order.

    Raises:
        ValueError: if a class is itself called background or ignored.
    """
    for name in classes.names:
        if normalize(name) in (BACKGROUND, IGNORED):
            raise ValueError(f"expected no class to be called {name!r}: the format needs the name")
    colors = voc_palette().tolist()
    named = [
        (BACKGROUND_INDEX, BACKGROUND),
        *((each.index, each.name) for each in classes.classes),
        (IGNORE_INDEX, IGNORED),
    ]
    return tuple(Label(index, name, tuple(colors[index])) for index, name in named)


def label_map_txt(labels: Sequence[Label]) -> str:
    """Return ``labelmap.txt``, in which CVAT and its relatives look colors up: a line "name:r,g,b:parts:actions" each.

    Raises:
        ValueError: if a name has a character that separates fields.
    """
    for label in labels:
        if any(each in label.name for each in _SEPARATORS):
            raise ValueError(
                f"expected class names without {' '.join(_SEPARATORS)}, got {label.name!r}"
            )
    lines = [f"{each.name}:{','.join(map(str, each.color))}::" for each in labels]
    return "\n".join(["# label:color_rgb:parts:actions", *lines]) + "\n"


def list_line(stem: str) -> str:
    """Return a photo's line in an ``ImageSets`` file.

    Raises:
        ValueError: if it could not be read back: readers strip lines and pass over those that begin with #.
    """
    if stem.splitlines() != [stem.strip()] or stem.startswith("#"):
        raise ValueError(
            "expected file names of one line that neither begin with # nor have spaces at the ends, "
            f"got {stem!r}"
        )
    return f"{stem}\n"


# The folder of an export: there as a whole or not at all.


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to write in; it takes its name once everything is written, and is removed if that fails.

    Args:
        path: the name to come: nothing yet, or an empty folder.

    Raises:
        ValueError: if something is there, or the remains of an export that was killed.
        OSError: if it cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"expected a new or empty folder for the export, got {path}")
    partial = path.with_name(path.name + ".partial")
    if partial.exists():
        raise ValueError(
            f"expected no export under way or cut off; if none is running, remove {partial}"
        )
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            path.rmdir()
        partial.rename(path)
    except BaseException:  # Ctrl-C as well
        shutil.rmtree(partial)
        raise
