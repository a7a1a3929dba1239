"""``semples prepare coco``: MS COCO 2014, with ground truth drawn from the instance annotations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.classes import Sample
from models.data.coco import (
    COCO_CLASSES,
    COCO_SPLITS,
    Instances,
    coco_instances,
    coco_photos,
    read_coco,
    read_instances,
)
from models.data.official import COCO_ANNOTATIONS, COCO_PHOTOS
from models.prepare import (
    Prepared,
    Watch,
    check_archives,
    check_photos,
    draw_instances,
    missing_maps,
    picture_size,
    write_labels,
    write_maps,
)

_SUSPECTS = {
    "COCO_train2014_000000167126": " (older copies of train2014.zip hold it damaged: put 000000167126.jpg of "
    "train2017.zip in its place)"
}


def prepare_coco(
    root: Path, output: Path, *, photos: int | None, thorough: bool, overwrite: bool, watch: Watch
) -> Prepared:
    """Check a download in ``root`` and write labels, classes and the ground truth that ``output`` lacks.

    At most ``photos`` of each list are taken; ``thorough`` decodes all photos, and checks archives in ``root``.
    """
    if missing := _missing(root):  # all at once, as downloads take hours
        raise ValueError("; ".join(missing))
    splits = {split: read_coco(root, split, photos=photos) for split in COCO_SPLITS}
    lines: list[str] = []
    notes: list[str] = []
    if thorough:
        archives = (*COCO_PHOTOS.values(), COCO_ANNOTATIONS)
        lines.append(check_archives(root, archives, watch=watch))
    lines += write_labels(output, splits, COCO_CLASSES, overwrite=overwrite)
    for split, samples in splits.items():
        truth, path = output / "ground_truth" / split, coco_instances(root, split)
        lines += _finish(path, samples, truth, notes.append, thorough=thorough, watch=watch)
    return Prepared(coco_photos(root, "train"), tuple(lines), tuple(notes))


def _missing(root: Path) -> list[str]:
    """Missing files, with what to download."""
    missing = []
    for split in COCO_SPLITS:
        try:
            coco_photos(root, split)
        except ValueError as error:
            missing.append(str(error))
    lacking = [path for split in COCO_SPLITS if not (path := coco_instances(root, split)).is_file()]
    if lacking:
        missing.append(f"expected {lacking[0]}, got no such file; {COCO_ANNOTATIONS.hint(root)}")
    return missing


def _finish(
    path: Path,
    samples: Sequence[Sample],
    truth: Path,
    note: Callable[[str], None],
    *,
    thorough: bool,
    watch: Watch,
) -> tuple[str, str]:
    """Check a split's photos and draw its label maps; returns lines for the user."""
    stems = [sample.stem for sample in samples]
    check = partial(check_photos, samples, thorough=thorough, watch=watch, suspects=_SUSPECTS)
    if not missing_maps(truth, stems):  # without reading half a gigabyte of JSON
        checked = check(lambda stem: picture_size(truth / f"{stem}.png"))
        return checked, f"{truth}: all {len(stems)} label maps kept"
    with watch(f"read {path.name}", 1) as advance:
        instances = read_instances(path)
        advance()
    _compare(instances, samples, path, note)

    def draw(stem: str) -> NDArray[np.uint8]:
        image = f"{stem}.jpg"
        return draw_instances(instances.annotations[image], instances.sizes[image])

    checked = check(lambda stem: instances.sizes[f"{stem}.jpg"])
    return checked, write_maps(truth, stems, draw, watch=watch)


def _compare(found: Instances, samples: Sequence[Sample], path: Path, note: Callable[[str], None]) -> None:
    """Check categories and photos of the annotations; note labels that differ from the official list's."""
    if set(found.classes.classes) != set(COCO_CLASSES.classes):
        raise ValueError(
            f"expected COCO's {len(COCO_CLASSES)} categories in {path}, got {len(found.classes)}: "
            f"{', '.join(found.classes.names[:3])}, …"
        )
    unknown = [each.path.name for each in samples if each.path.name not in found.sizes]
    if unknown:
        raise ValueError(f"expected the listed photos in {path}, got no {unknown[0]} ({len(unknown)} in all)")
    classes = COCO_CLASSES.classes
    other = [
        each.path.name
        for each in samples
        if found.indices(each.path.name) != {classes[channel].index for channel in each.channels}
    ]
    if other:
        note(
            f"{path} and the official list differ in the labels of {len(other)} photos, {other[0]} is one; "
            "the label files follow the list"
        )
