"""Photos and the pseudo masks that ``semples make-pseudo-masks`` wrote for them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.classes import (
    BACKGROUND_INDEX,
    IGNORE_INDEX,
    ClassList,
    UnknownLabelError,
    read_class_list,
)
from models.data.label_maps import occurring, read_label_map
from models.data.mask_records import RESULTS, read_results
from models.images import PHOTO_SUFFIXES


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
