"""Photos and the pseudo masks that ``semples make-pseudo-masks`` wrote for them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.data.classes import (
    BACKGROUND_INDEX,
    IGNORE_INDEX,
    ClassList,
    UnknownLabelError,
    read_class_list,
)
from models.data.images import PHOTO_SUFFIXES, ImageError, ImageHeader, check_image
from models.data.mask_files import occurring, read_label_map
from models.io import first_difference, read_json, to_json, write_json

# The files in which a folder of pseudo masks says what was made of each photo.

RESULTS, SETTINGS, SUMMARY = "results.jsonl", "settings.json", "summary.json"
_FIELDS = {"stem", "image", "model", "classes"}


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Read what was made of each photo, by stem, in the order of making; of a photo made twice, the later record.

    As ``iter_results``, with all records in memory.
    """
    return dict(iter_results(path))


def iter_results(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read stems and what was made of their photos, line by line; a photo made twice comes twice, the later one counts.

    Lines that a kill or a power loss left unreadable are passed over: those photos are as good as not made. A file that
    is not there has no record.

    Raises:
        OSError: if it cannot be read.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and record.keys() >= _FIELDS:
                yield record.pop("stem"), record


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note in a folder what its masks are made with, or check that it is the same as before.

    Args:
        folder: for masks.
        settings: ``model`` (name and version), ``options`` and ``scores``.

    Raises:
        ValueError: if the folder holds masks of another model or other options.
        OSError: if it cannot be read or written.
    """
    path = folder / SETTINGS
    if not path.exists():
        write_json(path, settings)
        return
    # Compared as JSON has them: a tuple comes back as a list.
    difference = first_difference(read_settings(folder), json.loads(to_json(settings)))
    if difference:
        raise ValueError(
            f"expected {folder} to be new or made with the same model and options, got {difference}"
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """Read with which model and options a folder's masks were made.

    Raises:
        ValueError: if that is not what its file says.
        OSError: if it cannot be read.
    """
    settings = read_json(folder / SETTINGS)
    if not settings.keys() >= {"model", "options"} or "version" not in settings["model"]:
        raise ValueError(
            f"expected the settings of make-pseudo-masks in {folder / SETTINGS}, got others"
        )
    return settings


def drop_cut_line(path: Path) -> None:
    """Take away a last line that a kill cut off, so that what is appended starts a line of its own."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


@dataclass(frozen=True)
class MaskSample:
    """A photo, its pseudo mask, and what the mask's values mean.

    Attributes:
        image: the photo.
        mask: its label map.
        channels: class channel of each index that may occur in the label map.
        distrusted: indices whose pixels are to be ignored.
    """

    image: Path
    mask: Path
    channels: Mapping[int, int]
    distrusted: frozenset[int] = frozenset()

    def digest(self) -> str:
        """Return what tells this photo's mask from any other: names, content, and what is distrusted in it."""
        content = hashlib.sha256(self.mask.read_bytes()).hexdigest()
        return (
            f"{self.image.name} {content} {sorted(self.channels.items())} {sorted(self.distrusted)}"
        )

    def read_mask(self) -> NDArray[np.uint8]:
        """Read the mask as channel numbers: 0 background, k + 1 for class k, 255 ignored; (H, W).

        Raises:
            ValueError: if it is no label map, or an index in it is not known.
        """
        indices = read_label_map(self.mask)
        known = {BACKGROUND_INDEX: 0, IGNORE_INDEX: IGNORE_INDEX}
        known |= {index: channel + 1 for index, channel in self.channels.items()}
        unknown = set(occurring(indices)) - set(known)
        if unknown:
            raise ValueError(f"expected indices of classes in {self.mask}, got {sorted(unknown)}")
        table = np.zeros(256, dtype=np.uint8)
        for index, number in known.items():
            table[index] = IGNORE_INDEX if index in self.distrusted else number
        found: NDArray[np.uint8] = table[indices]
        return found


def read_mask_folder(
    images: Path, masks: Path, classes: ClassList, *, min_alignment: float | None = None
) -> list[MaskSample]:
    """Pair every ``masks/STEM.png`` with the photo of that stem.

    Args:
        images: folder of photos, with or without folders in it.
        masks: what ``make-pseudo-masks`` wrote: ``masks/``, ``classes.txt`` and ``results.jsonl``.
        classes: of the run; matched by name, since indices may differ.
        min_alignment: a class of a photo whose mask is less aligned (cosine to its class text minus cosine to its
            learned background) is ignored there; None trusts all.

    Raises:
        ValueError: if there are no masks, a class or a photo is missing, or alignment is asked for and was not scored.
        OSError: if a file cannot be read.
    """
    files = sorted((masks / "masks").glob("*.png"))
    if not files:
        raise ValueError(f"expected the output of make-pseudo-masks in {masks}, got no masks/*.png")
    try:
        channels = {
            info.index: classes.channel(info.name)
            for info in read_class_list(masks / "classes.txt").classes
        }
    except UnknownLabelError as error:
        raise ValueError(f"{masks / 'classes.txt'}: {error}") from error
    photos = _photos(
        images.resolve(), stems={file.stem for file in files}, masks=(masks / "masks").resolve()
    )
    lost = [file.name for file in files if file.stem not in photos]
    if lost:
        raise ValueError(f"expected a photo in {images} for each mask, got none for {lost[0]}")
    records = {} if min_alignment is None else read_results(masks / RESULTS)
    return [
        MaskSample(
            photos[file.stem],
            file,
            channels,
            frozenset() if min_alignment is None else _distrusted(file, records, min_alignment),
        )
        for file in files
    ]


def _photos(folder: Path, *, stems: set[str], masks: Path) -> dict[str, Path]:
    photos: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.stem not in stems or path.suffix.lower() not in PHOTO_SUFFIXES:
            continue
        if path.parent == masks:  # the masks themselves, where they are in the photos' folder
            continue
        if photos.setdefault(path.stem, path) != path:
            raise ValueError(f"expected one photo a stem, got {photos[path.stem]} and {path}")
    return photos


def _distrusted(
    mask: Path, records: Mapping[str, dict[str, Any]], min_alignment: float
) -> frozenset[int]:
    if mask.stem not in records:
        raise ValueError(f"expected a result of {mask.name} in results.jsonl, got none")
    shown = [each for each in records[mask.stem]["classes"] if each["box"] is not None]
    for each in shown:
        if each["alignment_class"] is None or each["alignment_background"] is None:
            raise ValueError(
                f"expected masks with alignment scores, got none for {each['name']!r} in {mask.name}"
            )
    return frozenset(
        each["index"] for each in shown
        if each["alignment_class"] - each["alignment_background"] < min_alignment
    )  # fmt: skip


# What a folder of pseudo masks comes to, class by class.

_SUMMARY_FIELDS = ("area", "confidence", "alignment_class", "alignment_background")


def summarize(
    records: Iterable[Mapping[str, Any]],
    *,
    images: int,
    unlabeled: int,
    failed: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """Return the summary of a folder in JSON's types; no more than one record is held at a time.

    Args:
        records: of the masks, one a photo.
        images: photos in all.
        unlabeled: those of them without a label.
        failed: (image, reason) of those that no mask could be made of.
    """
    masks = 0
    by_class: dict[str, _ClassTotals] = {}
    for record in records:
        masks += 1
        for each in record["classes"]:
            by_class.setdefault(each["name"], _ClassTotals()).add(each, record["image"])
    return {
        "images": images,
        "masks": masks,
        "unlabeled": unlabeled,
        "failed": [{"image": name, "reason": reason} for name, reason in failed],
        "classes": {name: by_class[name].to_json() for name in sorted(by_class)},
    }


@dataclass
class _ClassTotals:
    images: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)

    def add(self, found: Mapping[str, Any], image: str) -> None:
        """Count one photo's result; what it cannot tell is no part of a mean."""
        self.images += 1
        for name in _SUMMARY_FIELDS:
            if found[name] is not None:
                self.sums[name] = self.sums.get(name, 0.0) + found[name]
                self.counts[name] = self.counts.get(name, 0) + 1
        if found["box"] is None:
            self.empty.append(image)

    def to_json(self) -> dict[str, Any]:
        means = {
            f"mean_{name}": self.sums[name] / self.counts[name] if name in self.counts else None
            for name in _SUMMARY_FIELDS
        }
        return {"images": self.images, **means, "empty": self.empty}


# A folder of pseudo masks as it is read for an export: checked first, then one photo at a time.


@dataclass(frozen=True)
class MaskedPhoto:
    """A photo and its label map.

    Attributes:
        path: the photo.
        name: its file name, with the folders that it lies in below the photos' folder.
        header: its format, its size in the upright frame, its EXIF orientation.
        label_map: (H, W) uint8, upright.
        text: the mask's PNG text chunks, its provenance.
        model: name and version of what made the mask.
        confidence: in (0, 1], by class index; classes without a pixel have none.
    """

    path: Path
    name: str
    header: ImageHeader
    label_map: NDArray[np.uint8]
    text: Mapping[str, str]
    model: str
    confidence: Mapping[int, float]

    @property
    def stem(self) -> str:
        """The name that its mask carries."""
        return self.path.stem

    @property
    def regions(self) -> list[int]:
        """What occurs in the label map beside background: class indices ascending, then 255."""
        return [index for index in occurring(self.label_map) if index != BACKGROUND_INDEX]


@dataclass(frozen=True)
class _Record:
    image: str
    model: str
    confidence: Mapping[int, float]


@dataclass(frozen=True)
class MaskFolder:
    """What ``semples make-pseudo-masks`` wrote, beside the photos that it wrote it for.

    Attributes:
        folder: with ``masks/``, ``classes.txt``, ``results.jsonl`` and ``summary.json``.
        images: folder of the photos.
        classes: of the label maps.
    """

    folder: Path
    images: Path
    classes: ClassList
    _records: Mapping[str, _Record]

    def __len__(self) -> int:
        return len(self._records)

    def photos(self) -> Iterator[MaskedPhoto]:
        """Read the photos' headers and masks one by one, by file name.

        Raises:
            ValueError: if a photo cannot be read, its mask cannot, they differ in size, or the mask holds an index that
                is not a class.
            OSError: if a photo cannot be opened.
        """
        known = {BACKGROUND_INDEX, IGNORE_INDEX, *(each.index for each in self.classes.classes)}
        for stem, record in self._records.items():
            photo, mask = self.images / record.image, self.folder / "masks" / f"{stem}.png"
            try:
                header = check_image(photo.read_bytes())
            except ImageError as error:
                raise ValueError(f"{photo}: {error}") from error
            label_map, text = _read_mask(mask)
            if label_map.shape != (header.height, header.width):
                raise ValueError(
                    f"expected a mask of the photo's {header.width} x {header.height} pixels, got "
                    f"{label_map.shape[1]} x {label_map.shape[0]} in {mask}"
                )
            unknown = set(occurring(label_map)) - known
            if unknown:
                raise ValueError(f"expected indices of classes.txt, got {min(unknown)} in {mask}")
            yield MaskedPhoto(
                photo, record.image, header, label_map, text, record.model, record.confidence
            )


def open_mask_folder(folder: Path, images: Path) -> MaskFolder:
    """Check that a folder's masks, its records and the photos belong together, by name; no pixel is read yet.

    Raises:
        ValueError: if no run has finished in the folder, it has no mask, a mask or a photo is missing, or
            something else lies among the masks.
        OSError: if it cannot be read.
    """
    if not (folder / SUMMARY).is_file():
        raise ValueError(
            f"expected a folder that 'semples make-pseudo-masks' has finished, got no {SUMMARY} in {folder}"
        )
    records = {
        stem: record
        for stem, content in sorted(read_results(folder / RESULTS).items())
        if (record := _record(stem, content)) is not None
    }
    if not records:
        raise ValueError(f"expected at least one mask, got none in {folder / RESULTS}")
    found = {path.name for path in (folder / "masks").iterdir()}
    expected = {f"{stem}.png" for stem in records}
    _refuse(found - expected, f"expected only masks that {RESULTS} lists in {folder / 'masks'}")
    _refuse(
        expected - found, f"expected in {folder / 'masks'} every mask that {RESULTS} lists", "no "
    )
    missing = {each.image for each in records.values() if not (images / each.image).is_file()}
    _refuse(missing, f"expected in {images} every photo that has a mask", "no ")
    return MaskFolder(folder, images, read_class_list(folder / "classes.txt"), records)


def _refuse(names: set[str], expectation: str, negation: str = "") -> None:
    if names:
        raise ValueError(f"{expectation}, got {negation}{min(names)} ({len(names)} in all)")


def _record(stem: str, content: Mapping[str, Any]) -> _Record | None:
    """What exports want of a record; None if it is none, so that its mask is refused as not listed."""
    try:
        image = PurePosixPath(content["image"])
        model = f"{content['model']['name']} {content['model']['version']}"
        confidence = {each["index"]: each["confidence"] for each in content["classes"]}
    except (KeyError, TypeError):
        return None
    # A folder that somebody sent must not make us read elsewhere.
    if image.stem != stem or image.is_absolute() or ".." in image.parts:
        raise ValueError(f"expected {RESULTS} to name photos below their folder, got {image}")
    known = {index: value for index, value in confidence.items() if value is not None}
    return _Record(str(image), model, known)


def _read_mask(path: Path) -> tuple[NDArray[np.uint8], dict[str, str]]:
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.mode != "P":
                raise ValueError(f"expected a palette PNG in {path}, got mode {picture.mode}")
            text = {
                str(key): value for key, value in picture.info.items() if isinstance(value, str)
            }
            label_map: NDArray[np.uint8] = np.array(picture)
            return label_map, text
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected a label map in {path}, got {error}") from error
