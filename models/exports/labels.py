"""What a label map's indices are called and which color they have, for formats that name colors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX, ClassList, normalize
from models.pictures import voc_palette

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
