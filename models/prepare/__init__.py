"""Checks of downloaded data sets, and the files that ``semples prepare`` writes.

These are ``labels.csv``, ``labels_SPLIT.csv``, ``classes.txt`` and ``ground_truth/SPLIT/STEM.png``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from models.data.classes import BACKGROUND_INDEX, ClassList, Sample, class_list_txt
from models.data.images import ImageError, check_image
from models.data.labels import label_rows_csv
from models.data.mask_files import label_map_png, software_version
from models.data.official import Archive, evenly_spaced
from models.data.provenance import SOFTWARE, refuse_foreign
from models.io import write_atomically, write_json

# Shows a progress bar with a title and a number of steps; gives a function that is called after each step.
Watch: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[], object]]]

_RECORD: Final = "prepared.json"
_SAMPLE = 100  # photos of a data set that are decoded


@dataclass(frozen=True)
class Prepared:
    """Folder of the training photos, lines on what was checked and written, and warnings."""

    images: Path
    lines: tuple[str, ...]
    notes: tuple[str, ...]


def check_photos(
    samples: Sequence[Sample],
    size_of: Callable[[str], tuple[int, int]],
    *,
    thorough: bool,
    watch: Watch,
    suspects: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Decode photos, and compare their (height, width) with their annotations'; returns a line for the user.

    A hundred photos are checked unless ``thorough``, and always those of ``suspects``: stem → advice if it is damaged.
    """
    chosen = set(evenly_spaced(samples, None if thorough else _SAMPLE))
    chosen |= {sample for sample in samples if sample.stem in suspects}
    wrong = []
    with watch("read photos", len(chosen)) as advance:
        for sample in sorted(chosen, key=lambda each: each.stem):
            try:
                header = check_image(sample.path.read_bytes())
                found, expected = (header.height, header.width), size_of(sample.stem)
                if found != expected:
                    wrong.append(
                        f"{found[1]} x {found[0]} pixels instead of {expected[1]} x {expected[0]} in {sample.path}"
                    )
            except ImageError as error:
                wrong.append(f"{sample.path}: {error}{suspects.get(sample.stem, '')}")
            advance()
    if wrong:
        raise ValueError(
            f"expected whole photos of the size that their annotations say, got {wrong[0]} "
            f"({len(wrong)} of {len(chosen)} such)"
        )
    return f"{samples[0].path.parent}: {len(samples)} photos, {len(chosen)} of them read whole"


def picture_size(path: Path) -> tuple[int, int]:
    """Return an image's (height, width) from its header."""
    with Image.open(path) as picture:
        return picture.height, picture.width


def check_archives(root: Path, archives: Iterable[Archive], *, watch: Watch) -> str:
    """Compare the archives in a folder with their published MD5; returns a line for the user.

    torchvision's check_integrity would make this command, which needs no torch, import it.
    """
    found = [each for each in archives if (root / each.name).is_file()]
    with watch("read archives", len(found)) as advance:
        for archive in found:
            with (root / archive.name).open("rb") as file:
                md5 = hashlib.file_digest(file, "md5").hexdigest()
            if md5 != archive.md5:
                raise ValueError(
                    f"expected the MD5 {archive.md5} of {root / archive.name}, got {md5}; download it again"
                )
            advance()
    return f"{root}: {len(found)} archives, with the published MD5"


def write_labels(
    output: Path, splits: Mapping[str, Sequence[Sample]], classes: ClassList, *, overwrite: bool
) -> list[str]:
    """Write the class list and a label file for each split, ``labels.csv`` for the first; returns what to print.

    ``prepared.json`` keeps their hashes, by which a later call knows them as ours.

    Raises:
        ValueError: without ``overwrite``, if there are such files that are not ours, or were changed since.
    """
    contents = {output / "classes.txt": class_list_txt(classes)}
    lines = [f"{output / 'classes.txt'}: {len(classes)} classes"]
    for number, (split, samples) in enumerate(splits.items()):
        path = output / (f"labels_{split}.csv" if number else "labels.csv")
        rows = {sample.path.name: [classes.names[channel] for channel in sample.channels] for sample in samples}
        contents[path] = label_rows_csv(rows)
        lines.append(f"{path}: {len(rows)} photos of {split}")
    hashes = [hashlib.sha256(content).hexdigest() for content in contents.values()]
    refuse_foreign(contents, overwrite=overwrite, hashes=[*hashes, *_recorded(output / _RECORD, overwrite=overwrite)])
    for path, content in contents.items():
        write_atomically(path, content)
    write_json(output / _RECORD, {"software": f"{SOFTWARE} {software_version()}", "sha256": hashes})
    return lines


def _recorded(path: Path, *, overwrite: bool) -> list[str]:
    """Return the hashes of files that an earlier call wrote; ValueError if the record is somebody else's."""
    try:
        record = json.loads(path.read_bytes())
        if record["software"].startswith(SOFTWARE):
            return [str(each) for each in record["sha256"]]
    except FileNotFoundError:
        return []
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    refuse_foreign([path], overwrite=overwrite)
    return []


def missing_maps(folder: Path, stems: Sequence[str]) -> list[str]:
    """Return the stems without a label map in a folder."""
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [stem for stem in stems if f"{stem}.png" not in present]


def write_maps(
    folder: Path,
    stems: Sequence[str],
    make: Callable[[str], NDArray[np.uint8]],
    *,
    watch: Watch,
) -> str:
    """Make the label maps ``STEM.png`` that a folder lacks, each atomically; returns a line for the user."""
    rest = missing_maps(folder, stems)
    if not rest:
        return f"{folder}: all {len(stems)} label maps kept"
    with watch(f"label maps of {folder.name}", len(rest)) as advance:
        for stem in rest:
            write_atomically(folder / f"{stem}.png", label_map_png(make(stem)))
            advance()
    return f"{folder}: {len(rest)} label maps written, {len(stems) - len(rest)} kept"


def draw_instances(annotations: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw COCO's instances of a photo into a label map, (H, W), of category ids.

    COCO has no depth order: crowds are drawn first, then instances from large to small, so that small ones stay
    visible. Crowds count as their category; no pixel is 255. Segmentations are polygons or run lengths.
    """
    label_map = np.full(size, BACKGROUND_INDEX, dtype=np.uint8, order="F")  # pycocotools' order
    drawn = [
        (not each.get("iscrowd"), lengths, each["category_id"])
        for each in annotations
        if (lengths := _run_lengths(each, size)) is not None
    ]
    for _, lengths, category in sorted(drawn, key=lambda item: (item[0], -int(coco_mask.area(item[1])))):
        np.copyto(label_map, category, where=coco_mask.decode(lengths).view(bool))
    return np.ascontiguousarray(label_map)


def _run_lengths(annotation: Mapping[str, Any], size: tuple[int, int]) -> Any:
    """An annotation's mask in pycocotools' form; None if it has no area."""
    segmentation = annotation.get("segmentation")
    if not isinstance(segmentation, list | dict):
        raise ValueError(f"expected outlines in annotation {annotation.get('id')}, got none")
    if isinstance(segmentation, list):
        if not all(isinstance(corners, list) for corners in segmentation):
            raise ValueError(f"expected polygons in annotation {annotation['id']}, got others")
        # pycocotools would read two corners, which have no area, as a box.
        polygons = [corners for corners in segmentation if len(corners) >= 6]
        return coco_mask.merge(coco_mask.frPyObjects(polygons, *size)) if polygons else None
    if segmentation.get("size") != list(size) or "counts" not in segmentation:
        raise ValueError(
            f"expected run lengths of {size[1]} x {size[0]} pixels in annotation {annotation['id']}, got others"
        )
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, *size)
    return segmentation
