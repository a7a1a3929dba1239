"""Class lists and label names; free of torch, so that the service can use them too."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

BACKGROUND_INDEX = 0
IGNORE_INDEX = 255
MAX_LABELS = 32


class UnknownLabelError(ValueError):
    """A label that no class or synonym is called by.

    Attributes:
        label: the label as given.
        nearest: known names most like it, best first, at most three.
    """

    def __init__(self, label: str, nearest: tuple[str, ...]) -> None:
        hint = f"; nearest known: {', '.join(nearest)}" if nearest else ""
        super().__init__(f"expected a known label, got {label[:80]!r}{hint}")
        self.label = label
        self.nearest = nearest


@dataclass(frozen=True)
class ClassInfo:
    """One foreground class: its index in label maps, its name and other names people use."""

    index: int
    name: str
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassList:
    """Foreground classes in channel order.

    Channel k of a model is ``classes[k]``; its index in label maps is ``classes[k].index``, which need not be k + 1
    (COCO's category ids have gaps).

    Raises:
        ValueError: if there is no class, an index is outside 1…254, or an index or a name occurs twice.
    """

    classes: tuple[ClassInfo, ...]

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError("expected at least one class, got none")
        for info in self.classes:
            if not BACKGROUND_INDEX < info.index < IGNORE_INDEX:
                raise ValueError(
                    f"expected a class index from 1 to 254, got {info.index} for {info.name!r}"
                )
        indices = [info.index for info in self.classes]
        if len(set(indices)) != len(indices):
            raise ValueError("expected distinct class indices, got a repeated one")
        if len(self._channels) != sum(1 + len(info.synonyms) for info in self.classes):
            raise ValueError("expected distinct class names and synonyms, got a repeated one")

    @cached_property
    def _channels(self) -> Mapping[str, int]:
        return {
            normalize(name): channel
            for channel, info in enumerate(self.classes)
            for name in (info.name, *info.synonyms)
        }

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in channel order."""
        return tuple(info.name for info in self.classes)

    def channel(self, label: str) -> int:
        """Return the channel of a class by its name or a synonym, whatever its case.

        Raises:
            UnknownLabelError: if nothing is called so.
        """
        key = normalize(label)
        if key not in self._channels:
            raise UnknownLabelError(label, self._nearest(key))
        return self._channels[key]

    def knows(self, label: str) -> bool:
        """Return whether a class is called so, by its name or a synonym."""
        return normalize(label) in self._channels

    def resolve(self, labels: Sequence[str]) -> tuple[ClassInfo, ...]:
        """Return the classes that labels name, each once, in channel order.

        Raises:
            UnknownLabelError: if a label is not known.
            ValueError: if there are no labels, or more than 32.
        """
        if not labels:
            raise ValueError("expected at least one label, got none")
        if len(labels) > MAX_LABELS:
            raise ValueError(f"expected at most {MAX_LABELS} labels, got {len(labels)}")
        return tuple(
            self.classes[channel] for channel in sorted({self.channel(label) for label in labels})
        )

    def with_synonyms(self, synonyms: Mapping[str, Sequence[str]]) -> ClassList:
        """Return the same classes with other names that people may use, by class name.

        Raises:
            ValueError: if a class is unknown, or a synonym is taken already.
        """
        added = {self.channel(name): tuple(others) for name, others in synonyms.items()}
        return ClassList(
            tuple(
                replace(info, synonyms=info.synonyms + added.get(channel, ()))
                for channel, info in enumerate(self.classes)
            )
        )

    def _nearest(self, key: str) -> tuple[str, ...]:
        # difflib is quadratic in the length of its input, and the label comes from outside.
        known = difflib.get_close_matches(key[:80], list(self._channels), n=6, cutoff=0.4)
        channels = dict.fromkeys(self._channels[name] for name in known)
        return tuple(self.classes[channel].name for channel in channels)[:3]


def normalize(label: str) -> str:
    """Return a label's comparison key: lower case, single spaces, underscores and hyphens as spaces."""
    return " ".join(label.lower().replace("_", " ").replace("-", " ").split())


def read_class_list(path: Path) -> ClassList:
    """Read ``classes.txt``: a line "index name" for each class; index 0 and blank lines are skipped.

    Raises:
        ValueError: if a line has another form, or the list breaks a rule of ClassList.
        OSError: if the file cannot be read.
    """
    classes = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, got {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        index, _, name = line.strip().partition(" ")
        if not index.isdecimal() or not name.strip():
            raise ValueError(f"{path}:{number}: expected 'index name', got {line!r}")
        if int(index) != BACKGROUND_INDEX:
            classes.append(ClassInfo(int(index), name.strip()))
    return ClassList(tuple(classes))


def write_class_list(path: Path, classes: ClassList) -> None:
    """Write ``classes.txt`` with the background first, as VOC-style tools expect."""
    lines = [
        f"{BACKGROUND_INDEX} background",
        *(f"{info.index} {info.name}" for info in classes.classes),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# Labels that a bundle was not trained on: which are taken, and as which classes. Free of torch.

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


# One training image with its image-level labels.


@dataclass(frozen=True)
class Sample:
    """An image file and the channels of the classes it shows.

    Attributes:
        path: the image.
        channels: class channels, sorted, each once; empty if nothing is labeled.
        folder: of all images, which may hold this one in a folder of its own; None if that does not matter.
    """

    path: Path
    channels: tuple[int, ...]
    folder: Path | None = None

    @property
    def name(self) -> str:
        """The image's file name, with the folders that it lies in below the folder of all images."""
        return (
            self.path.name if self.folder is None else self.path.relative_to(self.folder).as_posix()
        )

    @property
    def stem(self) -> str:
        """The name that this sample's masks carry."""
        return self.path.stem
