"""``semples prepare voc``: PASCAL VOC 2012, with SBD or without."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX, Sample
from models.data.mask_files import read_label_map
from models.data.official import SBD_ARCHIVE, VOC_ARCHIVE
from models.data.voc import (
    VOC_CLASSES,
    VOC_SPLITS,
    VocFolder,
    find_voc,
    read_annotation,
    read_voc,
    voc_list,
)
from models.io import hash_file
from models.prepare import (
    Prepared,
    Watch,
    check_archives,
    check_photos,
    picture_size,
    write_labels,
    write_maps,
)

_INDICES = [BACKGROUND_INDEX, *(info.index for info in VOC_CLASSES.classes), IGNORE_INDEX]
# A photo of known content, to detect re-encoded downloads: SHA-256 of its file, and of its label map's pixels.
_KNOWN = "2007_000129"
_KNOWN_PHOTO = "657b36fed1ea84a44fde2ad641d52726947e9ff23652836273730f7b1ee0d7d8"
_KNOWN_MAP = "cfcbdf78655f98db73f03031aa11efe37a24dd8d03e96d016af2b9bbd8bf517c"


def prepare_voc(
    root: Path, output: Path, *, photos: int | None, thorough: bool, overwrite: bool, watch: Watch
) -> Prepared:
    """Check a download and write labels, classes and the ground truth that ``output`` lacks.

    ``root`` is the folder that the archives were unpacked in, or ``VOC2012`` itself. At most ``photos`` of each list
    are taken; ``thorough`` decodes all photos, and checks archives in ``root``.
    """
    folder = find_voc(root)
    for split in ("train", "val"):
        _check_list_file(folder, split)
    splits = {split: read_voc(root, split, photos=photos) for split in VOC_SPLITS}
    photos_once = {sample.stem: sample for each in splits.values() for sample in each}
    lines = []
    if thorough:
        lines.append(check_archives(root, (VOC_ARCHIVE, SBD_ARCHIVE), watch=watch))
    lines.append(
        check_photos(
            sorted(photos_once.values(), key=lambda each: each.stem),
            lambda stem: _size_in_xml(folder, stem),
            thorough=thorough,
            watch=watch,
        )
    )
    lines += write_labels(output, splits, VOC_CLASSES, overwrite=overwrite)
    notes = _known_pair(folder)
    for split, samples in splits.items():
        if split == "train_aug" and folder.additional is None:
            notes.append(
                "no masks of SBD: ground_truth/train_aug is left out, ground_truth/train (VOC's own 1,464 photos) is "
                f"there; training needs neither. To have it, {SBD_ARCHIVE.hint(root)}"
            )
            continue
        lines.append(_write_truth(folder, split, samples, output, watch=watch))
    return Prepared(folder.photos, tuple(lines), tuple(notes))


def _read_ground_truth(path: Path, *, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read a label map of VOC (.png) or SBD (.mat), (H, W): 0 background, 1 to 20 classes, 255 void."""
    label_map = _read_mat(path) if path.suffix == ".mat" else read_label_map(path)
    if label_map.shape != size:
        got = " x ".join(map(str, label_map.shape[::-1]))
        raise ValueError(f"expected a label map of the photo's {size[1]} x {size[0]} pixels in {path}, got {got}")
    unknown = np.setdiff1d(np.flatnonzero(np.bincount(label_map.ravel())), _INDICES)
    if len(unknown):
        raise ValueError(f"expected indices from 0 to 20 and 255 in {path}, got {unknown[0]}")
    return label_map


def _read_mat(path: Path) -> NDArray[np.uint8]:
    try:
        found = loadmat(path, variable_names=("GTcls",))["GTcls"]["Segmentation"][0, 0]
        return np.asarray(found, dtype=np.uint8)
    except (
        IndexError, KeyError, MatReadError, NotImplementedError, OSError, TypeError, ValueError, zlib.error,
    ) as error:  # fmt: skip
        raise ValueError(f"expected SBD's GTcls.Segmentation in {path}, got {error!r}") from error


def _check_list_file(folder: VocFolder, split: str) -> None:
    path = folder.list_file(split)
    expected = {photo.stem for photo in voc_list(split)}
    if not path.is_file():
        raise ValueError(f"expected VOC's own list {path}, got no such file; {VOC_ARCHIVE.hint()}")
    found = set(path.read_text(encoding="ascii", errors="replace").split())
    if found != expected:
        raise ValueError(
            f"expected the {len(expected)} photos of VOC 2012 in {path}, got {len(found)}, "
            f"{len(found & expected)} of them the same"
        )


def _size_in_xml(folder: VocFolder, stem: str) -> tuple[int, int]:
    path = folder.annotation(stem)
    size = read_annotation(path).size
    if size is None:
        raise ValueError(f"expected the photo's size in {path}, got none")
    return size


def _write_truth(folder: VocFolder, split: str, samples: Sequence[Sample], output: Path, *, watch: Watch) -> str:
    stems = [sample.stem for sample in samples]
    sources = {stem: found for stem in stems if (found := folder.label_map(stem))}
    if len(sources) < len(stems):
        lacking = [stem for stem in stems if stem not in sources]
        archive = SBD_ARCHIVE if split == "train_aug" else VOC_ARCHIVE
        raise ValueError(
            f"expected a label map of each photo of {split}, got none of {lacking[0]} "
            f"({len(lacking)} in all); {archive.hint()}"
        )

    def make(stem: str) -> NDArray[np.uint8]:
        return _read_ground_truth(sources[stem], size=picture_size(folder.photos / f"{stem}.jpg"))

    return write_maps(output / "ground_truth" / split, stems, make, watch=watch)


def _known_pair(folder: VocFolder) -> list[str]:
    """Notes if the photo of known content, or its label map, differs."""
    photo, truth = folder.photos / f"{_KNOWN}.jpg", folder.label_map(_KNOWN)
    notes = []
    if photo.is_file() and hash_file(photo) != _KNOWN_PHOTO:
        notes.append(f"{photo} is not the original file: were the photos encoded anew?")
    if photo.is_file() and truth is not None:
        pixels = _read_ground_truth(truth, size=picture_size(photo))
        if hashlib.sha256(pixels.tobytes()).hexdigest() != _KNOWN_MAP:
            notes.append(f"{truth} has other pixels than the original: were the masks changed?")
    return notes
