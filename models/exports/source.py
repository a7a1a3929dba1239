"""A folder of pseudo masks as it is read for an export: checked first, then one photo at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX, ClassList, read_class_list
from models.images import ImageError, ImageHeader, check_image

RESULTS, SUMMARY = "results.jsonl", "summary.json"


@dataclass(frozen=True)
class MaskedPhoto:
    """A photo and its label map.

    Attributes:
        path: the photo.
        header: its format, its size in the upright frame, its EXIF orientation.
        label_map: (H, W) uint8, upright.
        text: the mask's PNG text chunks, its provenance.
        model: name and version of what made the mask.
        confidence: in (0, 1], by class index; classes without a pixel have none.
    """

    path: Path
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
        places: the photos' paths by file name.
        classes: of the label maps.
    """

    folder: Path
    places: Mapping[str, Path]
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
            photo, mask = self.places[record.image], self.folder / "masks" / f"{stem}.png"
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
            yield MaskedPhoto(photo, header, label_map, text, record.model, record.confidence)


def occurring(label_map: NDArray[np.uint8]) -> list[int]:
    """Return the indices that a label map, (H, W), holds, ascending."""
    # numpy's unique() sorts all pixels, which takes ten times as long.
    found: list[int] = np.flatnonzero(np.bincount(label_map.ravel(), minlength=256)).tolist()
    return found


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
    records = dict(sorted(_read_records(folder / RESULTS).items()))
    if not records:
        raise ValueError(f"expected at least one mask, got none in {folder / RESULTS}")
    found = {path.name for path in (folder / "masks").iterdir()}
    expected = {f"{stem}.png" for stem in records}
    _refuse(found - expected, f"expected only masks that {RESULTS} lists in {folder / 'masks'}")
    _refuse(
        expected - found, f"expected in {folder / 'masks'} every mask that {RESULTS} lists", "no "
    )
    names = {each.image for each in records.values()}
    places = _find_photos(images, names)
    _refuse(names - set(places), f"expected in {images} every photo that has a mask", "no ")
    return MaskFolder(folder, places, read_class_list(folder / "classes.txt"), records)


def _find_photos(folder: Path, names: set[str]) -> dict[str, Path]:
    """Return where photos are, by name: in the folder, or else in a folder below it."""
    flat = {name: folder / name for name in names if (folder / name).is_file()}
    below: dict[str, Path] = {}
    if len(flat) < len(names):
        for path in folder.rglob("*"):
            if (
                path.name in names
                and path.name not in flat
                and below.setdefault(path.name, path) != path
            ):
                raise ValueError(f"expected one photo a name, got {below[path.name]} and {path}")
    return flat | below


def _refuse(names: set[str], expectation: str, negation: str = "") -> None:
    if names:
        raise ValueError(f"{expectation}, got {negation}{min(names)} ({len(names)} in all)")


def _read_records(path: Path) -> dict[str, _Record]:
    """Read what was made of each photo, by stem; of a photo made twice, the later one."""
    records = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                content = json.loads(line)
                records[content["stem"]] = _record(content)
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a kill: a later line has it, or its mask is refused as not listed
    return records


def _record(content: Mapping[str, Any]) -> _Record:
    if f"{content['stem']}{Path(content['image']).suffix}" != content["image"]:
        raise ValueError("expected a photo's name")  # its mask and its exports carry the stem
    confidence = {each["index"]: each["confidence"] for each in content["classes"]}
    return _Record(
        content["image"],
        f"{content['model']['name']} {content['model']['version']}",
        {index: value for index, value in confidence.items() if value is not None},
    )


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
