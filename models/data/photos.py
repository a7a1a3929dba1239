"""Names of photos: which files of a folder or a zip may be photos, and which photo a row of labels means."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path, PurePath
from typing import Any, Final, Literal, TypeAlias, get_args
from urllib.parse import unquote

from models.data.images import PHOTO_SUFFIXES

MatchRule = Literal["path", "spelling", "case", "ending", "tail", "file"]
"""How a row found its photo, the surest first.

* ``path``: the same path, below the folder of all photos or with it.
* ``spelling``: but for Unicode's composition, separators, ``./`` and blanks.
* ``case``: but for upper and lower case.
* ``ending``: but for a missing or another ending of photos.
* ``tail``: the longest common end of both paths, as in a path of another machine, a URL or a bare file name.
* ``file``: by the name of the XML file that the row is from.
"""

_Fits: TypeAlias = dict[str, tuple[MatchRule, Sequence[str]]]

_MAX_NAMED: Final = 10  # names in an error
_MAX_HINTS: Final = 3  # of them with the nearest photos: difflib takes 50 ms for each in 10,000 photos
_MAX_COMPARED: Final = 10_000
_UPLOAD_PREFIX: Final = re.compile("^[0-9a-f]{8}-")  # which Label Studio puts before the names of uploaded files


@dataclass(frozen=True)
class LabelRow:
    """A row of labels: a photo as the label file names it, and its label names.

    ``file`` is the stem of the row's own XML file, which counts where ``image`` finds no photo.
    """

    image: str
    labels: tuple[str, ...]
    file: str = ""


@dataclass(frozen=True)
class MatchedRow:
    """A row of labels, the photo that it means, and the rule that found it."""

    photo: str
    row: LabelRow
    rule: MatchRule


class MatchError(ValueError):
    """Rows of labels that mean no photo, several, or one that another row means.

    ``members`` are for programs: ``missing`` (the first ten), ``missing_total`` and ``nearest`` (photos by row), or
    ``image`` and ``candidates``.
    """

    def __init__(self, message: str, **members: Any) -> None:
        super().__init__(message)
        self.members = members


def is_hidden(path: PurePath) -> bool:
    """Return whether a path below a folder or in a zip is none of a user's: dot files (``._a.jpg``), ``__MACOSX``."""
    return path.parts[:1] == ("__MACOSX",) or any(part.startswith(".") for part in path.parts)


def list_files(folder: Path) -> list[str]:
    """Return the files of a folder and its subfolders, links followed, as sorted relative paths; no hidden ones."""
    found: list[str] = []
    seen: set[Path] = set()  # a link may lead back
    for name, folders, files in os.walk(folder, followlinks=True):
        parent = Path(name)
        seen.add(parent.resolve())
        below = parent.relative_to(folder)
        found += [(below / each).as_posix() for each in files if not is_hidden(below / each)]
        folders[:] = [each for each in folders if not is_hidden(below / each) and (parent / each).resolve() not in seen]
    return sorted(found)


def visible_files(folder: Path, suffix: str) -> list[Path]:
    """Return a folder's own files with a suffix, sorted, without hidden ones."""
    return sorted(path for path in folder.glob(f"*{suffix}") if not is_hidden(PurePath(path.name)))


class SameNameError(ValueError):
    """Two photos whose results would be one file, on a file system that may not tell letter cases apart."""

    def __init__(self, photo: str, other: str, name: str) -> None:
        super().__init__(
            f"expected photos whose results have different names, got {other!r} and {photo!r}: both are {name}.png"
        )
        self.photo = photo


def mask_names(photos: Collection[str]) -> dict[str, str]:
    """Return the name of each photo's mask, without ending, from the photos' relative paths.

    It is the photo's own; where photos of several folders share one, ``path_name`` tells them apart.

    Raises:
        SameNameError: if that is not enough.
    """
    sharing = Counter(map(stem_key, photos))
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for photo in photos:
        names[photo] = path_name(photo) if sharing[stem_key(photo)] > 1 else PurePath(photo).stem
        key = _folded(names[photo])
        if key in owners:
            raise SameNameError(photo, owners[key], names[photo])
        owners[key] = photo
    return names


def path_name(photo: str) -> str:
    """Return a name, without ending, that tells a photo's folders too: ``cats__1`` for ``cats/1.jpg``."""
    return "__".join(PurePath(photo).with_suffix("").parts)


def stem_key(photo: str) -> str:
    """Return a photo's name without folders and ending, equal for names that are one file on some file system."""
    return _folded(PurePath(photo).stem)


def spelled(name: str) -> str:
    """Return a path in one spelling: composed Unicode, ``/`` between folders, no ``.``, no blanks around names."""
    parts = (part.strip() for part in unicodedata.normalize("NFC", name).replace("\\", "/").split("/"))
    return "/".join(part for part in parts if part not in ("", "."))


def count_rules(rules: Iterable[MatchRule | None]) -> dict[MatchRule, int]:
    """Return how many rows each rule found a photo for, the surest rule first."""
    counts = Counter(rules)
    return {rule: counts[rule] for rule in get_args(MatchRule) if counts[rule]}


def describe_rules(counts: Mapping[MatchRule, int]) -> str:
    """Return a line for people on how rows found their photos; empty if all did so by path."""
    if not counts.keys() - {"path"}:
        return ""
    return f"labels found their photos by {', '.join(f'{rule} ({count})' for rule, count in counts.items())}"


def match_rows(rows: Sequence[LabelRow], photos: Collection[str], *, root: str = "") -> list[MatchedRow]:
    """Find the photo that each row means, by the surest rule by which any photo fits.

    Args:
        rows: of a label file.
        photos: paths below the folder of all photos, with ``/``.
        root: name of that folder, which rows may begin with.

    Raises:
        MatchError: if several photos fit a row, none does, or two rows mean one photo.
    """
    fits = _find([row.image for row in rows], photos, root)
    unsure = {row.file for row in rows if row.file and len(fits.get(row.image, ("", ()))[1]) != 1}
    by_file = {stem: found for stem, (_, found) in _find(unsure, photos, root).items()}
    matched: dict[str, MatchedRow] = {}
    missing: list[str] = []
    for row in rows:
        rule, found = fits.get(row.image, ("path", ()))
        if len(found) != 1 and row.file in by_file:
            rule, found = "file", by_file[row.file]
        if not found:
            missing.append(row.image)
            continue
        [photo, *others] = found
        if others:
            raise _ambiguous(row.image, found)
        if photo in matched:
            raise _twice(row.image, matched[photo].row.image)
        matched[photo] = MatchedRow(photo, row, rule)
    if missing:
        raise _unmatched(missing, photos)
    return list(matched.values())


def _find(names: Iterable[str], photos: Collection[str], root: str) -> _Fits:
    """Return, for each name that any photo fits, the first such rule and the photos that fit by it."""
    fits: _Fits = {}
    of_rows, of_photos = {name: name for name in names}, {photo: photo for photo in photos}
    levels = []
    for rule, simplify in _STEPS.items():
        of_rows = {name: simplify(key) for name, key in of_rows.items() if name not in fits}
        if not of_rows:  # the keys of 100,000 photos take a second
            return fits
        of_photos = {photo: simplify(key) for photo, key in of_photos.items()}
        levels.append((of_rows, of_photos))
        root = simplify(root)
        index = _index((key, photo) for photo, key in of_photos.items())
        for name, key in of_rows.items():
            if found := index.get(key) or (root and index.get(key.removeprefix(f"{root}/"))):
                fits[name] = rule, found
    attempts = [*levels[-2:], ({name: _without_address(name) for name in of_rows}, of_photos)]
    for rows, keys in attempts:
        left = {name: key for name, key in rows.items() if name not in fits}
        fits |= {name: ("tail", found) for name, found in _longest_tails(left, keys)}
    return fits


def _longest_tails(of_rows: Mapping[str, str], of_photos: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Yield names of rows with the photos that have most last parts of the path in common, of those that have any."""
    index = _index((_last(key), photo) for photo, key in of_photos.items())
    for name, key in of_rows.items():
        common = {photo: _common_tail(key, of_photos[photo]) for photo in index.get(_last(key), ())}
        if common:
            most = max(common.values())
            yield name, [photo for photo, length in common.items() if length == most]


def _index(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    index: defaultdict[str, list[str]] = defaultdict(list)
    for key, photo in pairs:
        index[key].append(photo)
    return dict(index)


def _common_tail(path: str, other: str) -> int:
    """Return how many last parts two paths have in common."""
    pairs = zip(reversed(path.split("/")), reversed(other.split("/")), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _without_ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if dot + ending in PHOTO_SUFFIXES else name


def _without_address(name: str) -> str:
    """Return the path in a URL, or in what Label Studio makes of the names of files, simplified."""
    path = unquote(name).partition("?d=")[2] or unquote(name.partition("?")[0])
    folder, slash, last = _without_ending(_folded(spelled(path))).rpartition("/")
    return folder + slash + _UPLOAD_PREFIX.sub("", last)


_STEPS: Final[dict[MatchRule, Callable[[str], str]]] = {
    "path": str,
    "spelling": spelled,
    "case": _folded,
    "ending": _without_ending,
}
"""What each rule does with the paths that the rule before has simplified."""


def _ambiguous(image: str, found: Sequence[str]) -> MatchError:
    first = [each[:200] for each in found[:_MAX_NAMED]]
    message = f"{image[:200]!r}: expected one photo that fits, got {len(found)}: {', '.join(map(repr, first))}"
    return MatchError(message[:2000], image=image[:1000], candidates=first)


def _twice(image: str, other: str) -> MatchError:
    message = f"{image[:200]!r}: expected labels of a photo once, got them in the row of {other[:200]!r} too"
    return MatchError(message, image=image[:1000])


def _unmatched(missing: Sequence[str], photos: Iterable[str]) -> MatchError:
    first = [each[:200] for each in missing[:_MAX_NAMED]]
    known = {stem_key(photo)[:80]: photo for photo in photos if photo.lower().endswith(PHOTO_SUFFIXES)}
    compared = list(islice(known, _MAX_COMPARED))
    nearest = {
        image: [known[key] for key in difflib.get_close_matches(stem_key(spelled(image))[:80], compared, cutoff=0.4)]
        for image in first[:_MAX_HINTS]
    }
    named = ", ".join(
        repr(image) + (f" (nearest: {', '.join(map(repr, found))})" if (found := nearest.get(image)) else "")
        for image in first
    )
    return MatchError(
        f"expected a photo for all labels, got none for {len(missing)}: {named}"[:2000],
        missing=first,
        missing_total=len(missing),
        nearest={image: found for image, found in nearest.items() if found},
    )
