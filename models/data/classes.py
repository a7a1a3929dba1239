"""Class lists, label names, open-vocabulary labels, and images with their labels. Free of torch."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from models.data.photos import MatchRule

BACKGROUND_INDEX = 0
IGNORE_INDEX = 255
MAX_LABELS = 32  # of an image
ON_CLIP = ("zero_shot", "clip_vit")  # kinds of mask generators on CLIP's own image tower

Vocabulary = Literal["closed", "open"]
"""Whether labels must be a bundle's classes, or may be any text that its CLIP can embed."""

# A CLIP token holds at least one byte, and the context has 77 tokens: no label of this length is truncated.
_MAX_BYTES = 64
_PUNCTUATION = frozenset(" '’.&/()+")
_RESERVED = frozenset({"background", "ignored"})  # in masks and annotation formats


class UnknownLabelError(ValueError):
    """A label is neither a class name nor a synonym; ``nearest`` are at most three similar class names."""

    def __init__(self, label: str, nearest: tuple[str, ...]) -> None:
        hint = f"; nearest known: {', '.join(nearest)}" if nearest else ""
        super().__init__(f"expected a known label, got {label[:80]!r}{hint}")
        self.label = label
        self.nearest = nearest


@dataclass(frozen=True)
class ClassInfo:
    """One foreground class: its index in label maps, its name and its synonyms."""

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
                raise ValueError(f"expected a class index from 1 to 254, got {info.index} for {info.name!r}")
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

    @property
    def names_by_index(self) -> dict[int, str]:
        """Names by index in label maps, the background first."""
        return {BACKGROUND_INDEX: "background"} | {info.index: info.name for info in self.classes}

    @cached_property
    def _by_form(self) -> Mapping[str, set[int]]:
        """Channels of the singular, joined forms of all names and synonyms."""
        found: dict[str, set[int]] = {}
        for name, channel in self._channels.items():
            for form in _joined_forms(name):
                found.setdefault(form, set()).add(channel)
        return found

    def channel(self, label: str) -> int:
        """Return the channel of a class by its name or a synonym; see ``knows``.

        Raises:
            UnknownLabelError: if there is no such class.
        """
        channel = self._find(label)
        if channel is None:
            raise UnknownLabelError(label, self._nearest(normalize(label)))
        return channel

    def knows(self, label: str) -> bool:
        """Return whether a label is a class name or a synonym.

        Case, underscores and hyphens do not matter; nor do spaces and a regular plural, if only one class fits.
        """
        return self._find(label) is not None

    def _find(self, label: str) -> int | None:
        key = normalize(label)
        if key in self._channels:
            return self._channels[key]
        fits = set().union(*(self._by_form.get(form, ()) for form in _joined_forms(key)))
        return fits.pop() if len(fits) == 1 else None

    def resolve(self, labels: Sequence[str]) -> tuple[ClassInfo, ...]:
        """Return the classes of labels, each once, in channel order.

        Raises:
            UnknownLabelError: if a label is unknown.
            ValueError: if there are no labels, or more than 32.
        """
        if not labels:
            raise ValueError("expected at least one label, got none")
        if len(labels) > MAX_LABELS:
            raise ValueError(f"expected at most {MAX_LABELS} labels, got {len(labels)}")
        return tuple(self.classes[channel] for channel in sorted({self.channel(label) for label in labels}))

    def with_synonyms(self, synonyms: Mapping[str, Sequence[str]]) -> ClassList:
        """Return the same classes with additional synonyms, by class name."""
        added = {self.channel(name): tuple(others) for name, others in synonyms.items()}
        return ClassList(
            tuple(
                replace(info, synonyms=info.synonyms + added.get(channel, ()))
                for channel, info in enumerate(self.classes)
            )
        )

    def _nearest(self, key: str) -> tuple[str, ...]:
        # difflib is quadratic in the length of its input, and labels are user input.
        known = difflib.get_close_matches(key[:80], list(self._channels), n=6, cutoff=0.4)
        channels = dict.fromkeys(self._channels[name] for name in known)
        return tuple(self.classes[channel].name for channel in channels)[:3]


def split_labels(texts: Iterable[str]) -> tuple[str, ...]:
    """Split labels at commas and semicolons; empty ones are dropped."""
    parts = (part.strip() for text in texts for part in re.split("[,;]", text))
    return tuple(filter(None, parts))


def normalize(label: str) -> str:
    """Return a label's comparison key: composed, lower case, single spaces, underscores and hyphens as spaces."""
    return " ".join(unicodedata.normalize("NFC", label).lower().replace("_", " ").replace("-", " ").split())


def _joined_forms(key: str) -> set[str]:
    """Return a normalized label without spaces, and what it may be the regular plural of."""
    word = key.replace(" ", "")
    forms = {word}
    if word.endswith("s") and not word.endswith(("ss", "us")):
        forms.add(word[:-1])
    if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
        forms.add(word[:-2])
    if word.endswith("ies"):
        forms.add(f"{word[:-3]}y")
    return forms


def read_class_list(path: Path) -> ClassList:
    """Read ``classes.txt``: a line "index name" for each class; index 0 and blank lines are skipped."""
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
    path.write_bytes(class_list_txt(classes))


def class_list_txt(classes: ClassList) -> bytes:
    """Return the content of ``classes.txt``."""
    return "".join(f"{index} {name}\n" for index, name in classes.names_by_index.items()).encode()


def _open_name(label: str) -> str:
    """Return the class name of a label that is not in a class list: the label, normalized."""
    size = len(label.encode(errors="replace"))
    name = normalize(label) if size <= _MAX_BYTES else ""
    if not 0 < len(name.encode(errors="replace")) <= _MAX_BYTES:
        raise ValueError(f"expected a label of 1 to {_MAX_BYTES} bytes, got {label[:_MAX_BYTES]!r}")
    if not all(map(_is_allowed, name)) or not any(map(str.isalnum, name)):
        allowed = " ".join(sorted(_PUNCTUATION - {" "}))
        raise ValueError(f"expected a label of letters, digits, spaces and {allowed}, got {label!r}")
    if name in _RESERVED:
        raise ValueError(f"expected no label to be called {name!r}: the name is reserved")
    return name


def why_closed(generator_kind: str) -> str:
    """Say why a bundle has no open vocabulary, by the kind of its mask generator."""
    if generator_kind not in ON_CLIP:
        return f"its mask generator ({generator_kind}) is not on CLIP's own image tower"
    return "it holds no text tower of CLIP's, which 'semples export-bundle --open-vocabulary' includes"


def with_open_labels(classes: ClassList, labels: Iterable[str]) -> ClassList:
    """Return the same classes, followed by one for each unknown label.

    New classes are sorted by name and get the free indices after the largest one, then those below, so equal sets of
    labels give equal lists.
    """
    names = sorted({_open_name(label) for label in labels if not classes.knows(label)})
    if not names:
        return classes
    taken = {info.index for info in classes.classes}
    order = (*range(max(taken) + 1, IGNORE_INDEX), *range(1, max(taken)))
    free = [index for index in order if index not in taken]
    if len(names) > len(free):
        raise ValueError(f"expected at most {len(free)} labels beside the {len(classes)} classes, got {len(names)}")
    added = (ClassInfo(index, name) for index, name in zip(free, names, strict=False))
    return ClassList((*classes.classes, *added))


@dataclass(frozen=True)
class Sample:
    """An image file and its image-level labels: class channels, sorted, each once.

    Image names are relative to ``folder``; None for names without folders. ``mask_name`` is the name of its masks,
    without ending, where it is not the image's. ``rule`` found the image of a row of labels. Neither of the last two
    decides anything that is made of the image: they are no part of what a continued training compares.
    """

    path: Path
    channels: tuple[int, ...]
    folder: Path | None = None
    mask_name: str | None = field(default=None, repr=False, compare=False)
    rule: MatchRule | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The image's file name, with its folders below ``folder``."""
        return self.path.name if self.folder is None else self.path.relative_to(self.folder).as_posix()

    @property
    def stem(self) -> str:
        """The name of the image's masks, without ending."""
        return self.path.stem if self.mask_name is None else self.mask_name


def labeled_samples(samples: Iterable[Sample]) -> list[Sample]:
    """Return the samples with at least one label."""
    return [sample for sample in samples if sample.channels]


def _is_allowed(character: str) -> bool:
    """Whether a character may stand in an open label: a letter, combining mark, digit, or some punctuation."""
    return character in _PUNCTUATION or unicodedata.category(character)[0] in "LMN"
