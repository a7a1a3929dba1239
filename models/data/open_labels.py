"""Labels that a bundle was not trained on: which are taken, and as which classes. Free of torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Literal

from models.data.classes import IGNORE_INDEX, ClassInfo, ClassList, normalize

Vocabulary = Literal["closed", "open"]
"""Whether labels must be a bundle's classes, or may be any that its CLIP can read."""

# A token of CLIP's holds at least a byte, and its context 77 of them: no label is cut off.
MAX_BYTES = 64
_MARKS = frozenset(" '’.&/()+")
# What masks, and formats that hold them, call something else.
_TAKEN = frozenset({"background", "ignored"})


def open_name(label: str) -> str:
    """Return the name of a class that is known by a label alone: the label as class names are compared.

    Raises:
        ValueError: if the label is empty, longer than 64 bytes, has other characters than letters, digits, spaces and
            a few marks, or means background or ignored pixels.
    """
    size = len(label.encode(errors="replace"))
    name = normalize(label) if size <= MAX_BYTES else ""
    if not 0 < len(name.encode(errors="replace")) <= MAX_BYTES:
        raise ValueError(f"expected a label of 1 to {MAX_BYTES} bytes, got {label[:MAX_BYTES]!r}")
    if not all(map(_is_written, name)) or not any(map(str.isalnum, name)):
        raise ValueError(
            f"expected a label of letters, digits, spaces and {' '.join(sorted(_MARKS - {' '}))}, got {label!r}"
        )
    if name in _TAKEN:
        raise ValueError(
            f"expected no label to be called {name!r}: masks mean something else by it"
        )
    return name


def why_closed(kind: str) -> str:
    """Say why a bundle takes no labels but those of its classes.

    Args:
        kind: of its mask generator.
    """
    if kind != "zero_shot":
        return f"its mask generator ({kind}) is not on CLIP's own image tower"
    return "it holds no text tower of CLIP's, which 'semples export-bundle --open-vocabulary' takes along"


def with_open_labels(classes: ClassList, labels: Iterable[str]) -> ClassList:
    """Return the same classes and, after them, one for each label that none of them is called by.

    They are sorted by name, and take the free indices after the largest one, then those below. So equal sets of labels
    give equal lists.

    Args:
        classes: of a bundle.
        labels: known or not.

    Raises:
        ValueError: if a label will not do (see ``open_name``), or there are more than free indices.
    """
    names = sorted({open_name(label) for label in labels if not classes.knows(label)})
    if not names:
        return classes
    taken = {info.index for info in classes.classes}
    order = (*range(max(taken) + 1, IGNORE_INDEX), *range(1, max(taken)))
    free = [index for index in order if index not in taken]
    if len(names) > len(free):
        raise ValueError(
            f"expected at most {len(free)} labels beside the {len(classes)} classes, got {len(names)}"
        )
    opened = (ClassInfo(index, name) for index, name in zip(free, names, strict=False))
    return ClassList((*classes.classes, *opened))


def _is_written(character: str) -> bool:
    """Whether a character is a letter, a mark upon one, a digit, or one of those marks that names have."""
    return character in _MARKS or unicodedata.category(character)[0] in "LMN"
