"""The folder of masks that ``semples make-pseudo-masks`` and ``semples submit`` write: its one writer and its readers.

``masks/STEM.png`` and, if asked for, ``scores/STEM.npz`` of each image; ``classes.txt``; ``settings.json``, what all
masks are made with; ``results.jsonl``, one record an image; ``summary.json``, written last. Free of torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.data.classes import (
    BACKGROUND_INDEX,
    IGNORE_INDEX,
    ClassList,
    Sample,
    UnknownLabelError,
    read_class_list,
    write_class_list,
)
from models.data.images import PHOTO_SUFFIXES, ImageError, ImageHeader, check_image
from models.data.mask_files import occurring, read_label_map, read_mask
from models.data.photos import MatchRule, count_rules, is_hidden, path_name, visible_files
from models.data.provenance import refuse_foreign
from models.inference.masks import MaskOptions
from models.io import first_difference, hash_file, read_json, to_json, write_atomically, write_json

RESULTS, SETTINGS, SUMMARY = "results.jsonl", "settings.json", "summary.json"
CLASSES, THRESHOLDS = "classes.txt", "thresholds.json"
_RECORD_KEYS = {"stem", "image", "model", "classes"}
_AVERAGED = ("area", "confidence", "alignment_class", "alignment_background")


@dataclass(frozen=True)
class Outcome:
    """Counts of a finished folder."""

    made: int  # masks written by this call
    kept: int  # masks that an earlier call had written
    empty: int  # masks, of both, in which no class has a pixel
    unlabeled: int  # images without labels, which get no mask
    others: int  # masks of images that are not among the samples now
    failed: tuple[tuple[str, str], ...]  # (image, reason); the next call tries them again
    matched: Mapping[MatchRule, int] = field(default_factory=dict)  # rows of labels by the rule that found their image


class MaskFolderWriter:
    """Writes a mask folder, or continues one; after a kill at any moment the next call continues.

    ``settings`` are those of ``mask_settings`` and must equal an earlier call's. ``total`` counts the labeled samples,
    ``todo`` holds those without a mask; ``kept`` and ``made`` count masks of an earlier call and of this one.
    ``failed`` maps a stem to (image, reason). Only names and file positions are kept in memory.

    Raises:
        ValueError: if the settings differ, or the folder's masks would overwrite the images or, without ``overwrite``,
            files that are not ours.
    """

    def __init__(
        self,
        folder: Path,
        samples: Sequence[Sample],
        classes: ClassList,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> None:
        masks = (folder / "masks").resolve()
        if any(sample.path.parent.resolve() == masks for sample in samples):
            raise ValueError(f"expected an output folder that keeps the images, got theirs: {folder}")
        begins = _begins(folder, settings, overwrite=overwrite)
        self._folder = folder
        self._samples = samples
        self._names = classes.names
        self._settings = settings
        self.failed: dict[str, tuple[str, str]] = {}
        self._results = folder / RESULTS
        if not begins:
            _truncate_partial_line(self._results)
        labeled = [sample for sample in samples if sample.channels]
        self._positions, renamed = ({}, []) if begins else self._known_records(labeled)
        self.total = len(labeled)
        done = {each.stem for each, record in self._read(labeled) if self._is_done(each, record)}
        self.todo = [sample for sample in labeled if sample.stem not in done]
        self.kept, self.made = len(done), 0
        self._refuse_foreign(renamed, overwrite=overwrite)
        for path in renamed:
            path.unlink(missing_ok=True)
        if begins:
            write_json(folder / SETTINGS, settings)
        (folder / SUMMARY).unlink(missing_ok=True)  # it says that the folder is complete
        write_class_list(folder / CLASSES, classes)
        self._file = self._results.open("wb" if begins else "ab")

    def _known_records(self, samples: Sequence[Sample]) -> tuple[dict[str, int], list[Path]]:
        """Return the records' positions by stem, and the files of samples whose masks now have other names."""
        stems = {sample.name: sample.stem for sample in samples}
        taken = {*stems.values()}
        found: dict[str, int] = {}
        renamed: list[Path] = []
        for position, stem, record in _records(self._results):
            if stems.get(record["image"], stem) == stem or stem in taken:
                found[stem] = position
            else:
                renamed += [_mask_path(self._folder, stem), scores_path(self._folder, stem)]
        return found, renamed

    def _refuse_foreign(self, renamed: Sequence[Path], *, overwrite: bool) -> None:
        ends = [_mask_path] + ([scores_path] if self._settings["scores"] else [])
        written = (path(self._folder, each.stem) for each in self.todo for path in ends)
        refuse_foreign((*renamed, *written), overwrite=overwrite)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, sample: Sample, record: Mapping[str, Any]) -> None:
        """Write the record of a sample whose files are written."""
        self._positions[sample.stem] = self._file.tell()
        self._file.write(json.dumps({"stem": sample.stem, **record}).encode() + b"\n")
        self._file.flush()
        self.made += 1

    def fail(self, sample: Sample, reason: str) -> None:
        """Note why a sample has no mask."""
        self.failed[sample.stem] = (sample.name, reason)

    def finish(self) -> Outcome:
        """Write the summary, which says that the folder is complete."""
        masked = [each for each in self._samples if each.channels and each.stem not in self.failed]
        empty, unlabeled = 0, sum(not each.channels for each in self._samples)
        totals: dict[str, _ClassTotals] = {}
        for _, record in self._read(masked):
            empty += all(each["box"] is None for each in record["classes"])
            for each in record["classes"]:
                totals.setdefault(each["name"], _ClassTotals()).add(each, record["image"])
        matched = count_rules(each.rule for each in self._samples)
        failures = tuple(self.failed.values())
        summary = {
            "images": len(self._samples),
            "masks": self.kept + self.made,
            "unlabeled": unlabeled,
            "matched": matched,
            "failed": [{"image": name, "reason": reason} for name, reason in failures],
            "classes": {name: totals[name].to_json() for name in sorted(totals)},
        }
        write_json(self._folder / SUMMARY, {**self._settings, **summary})
        others = self._positions.keys() - {sample.stem for sample in masked}
        left = sum(_mask_path(self._folder, stem).is_file() for stem in others)
        return Outcome(self.made, self.kept, empty, unlabeled, left, failures, matched)

    def _read(self, samples: Iterable[Sample]) -> Iterator[tuple[Sample, dict[str, Any]]]:
        """Yield the last record of each sample that has one, one at a time."""
        found = [sample for sample in samples if sample.stem in self._positions]
        if not found:
            return
        with self._results.open("rb") as file:
            for sample in found:
                file.seek(self._positions[sample.stem])
                yield sample, json.loads(file.readline().decode(errors="replace"))

    def _is_done(self, sample: Sample, record: Mapping[str, Any]) -> bool:
        """Whether the record and its files are of this image, with the labels that it has now."""
        labels = [self._names[channel] for channel in sample.channels]
        return (
            record["image"] == sample.name
            and [each["name"] for each in record["classes"]] == labels
            and _mask_path(self._folder, sample.stem).is_file()
            and (not self._settings["scores"] or scores_path(self._folder, sample.stem).is_file())
        )


def mask_settings(
    model: Mapping[str, str], options: MaskOptions, *, scores: bool, zero_shot: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the content of ``settings.json``; zero-shot labels come in the order of their indices."""
    settings = {"model": dict(model), "options": vars(options), "scores": scores}
    return settings | ({"zero_shot": list(zero_shot)} if zero_shot else {})


def _mask_path(folder: Path, stem: str) -> Path:
    return folder / "masks" / f"{stem}.png"


def scores_path(folder: Path, stem: str) -> Path:
    """Return where an image's soft scores are."""
    return folder / "scores" / f"{stem}.npz"


def write_mask(folder: Path, stem: str, mask: bytes, scores: bytes | None) -> None:
    """Write an image's files, the mask last, each whole or not at all."""
    if scores is not None:
        write_atomically(scores_path(folder, stem), scores)
    write_atomically(_mask_path(folder, stem), mask)


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Read ``results.jsonl``: records by stem, in order; of a stem or an image made twice, the later one.

    Lines that a kill or a power loss left unreadable are skipped. A missing file has no record.
    """
    found: dict[str, dict[str, Any]] = {}
    latest: dict[str, str] = {}  # stem by image: a mask may have had another name
    for _, stem, record in _records(path):
        found[stem], latest[record["image"]] = record, stem
    return {stem: record for stem, record in found.items() if latest[record["image"]] == stem}


def _records(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield each readable line's position in bytes, stem and record."""
    if not path.exists():
        return
    following = 0
    with path.open("rb") as lines:
        for line in lines:
            position, following = following, following + len(line)
            try:
                record = json.loads(line.decode(errors="replace"))
            except ValueError:
                continue
            if isinstance(record, dict) and record.keys() >= _RECORD_KEYS:
                yield position, record.pop("stem"), record


def _truncate_partial_line(path: Path) -> None:
    """Cut off a last line that a kill left incomplete."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def read_settings(folder: Path) -> dict[str, Any]:
    """Read ``settings.json``; ValueError if it holds something else."""
    settings = read_json(folder / SETTINGS)
    if not settings.keys() >= {"model", "options"} or "version" not in settings["model"]:
        raise ValueError(f"expected the settings of make-pseudo-masks in {folder / SETTINGS}, got others")
    return settings


def _begins(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Return whether a folder's masks are made from the first one on; False if it is continued.

    Raises:
        ValueError: without ``overwrite``, if it has other settings, or files of our names and no settings of ours.
    """
    if not (folder / SETTINGS).exists():
        refuse_foreign((folder / name for name in (CLASSES, RESULTS, SUMMARY)), overwrite=overwrite)
        return True
    try:
        # Compared as JSON has them: a tuple comes back as a list.
        difference = first_difference(read_settings(folder), json.loads(to_json(settings)))
    except ValueError:  # somebody else's
        refuse_foreign([folder / SETTINGS], overwrite=overwrite)
        return True
    if difference and not overwrite:
        raise ValueError(f"expected {folder} to be new or made with the same model and options, got {difference}")
    return difference is not None


@dataclass
class _ClassTotals:
    images: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)

    def add(self, result: Mapping[str, Any], image: str) -> None:
        """Count one image's result; unknown values are left out of the means."""
        self.images += 1
        for name in _AVERAGED:
            if result[name] is not None:
                self.sums[name] = self.sums.get(name, 0.0) + result[name]
                self.counts[name] = self.counts.get(name, 0) + 1
        if result["box"] is None:
            self.empty.append(image)

    def to_json(self) -> dict[str, Any]:
        means = {
            f"mean_{name}": self.sums[name] / self.counts[name] if name in self.counts else None for name in _AVERAGED
        }
        return {"images": self.images, **means, "empty": self.empty}


@dataclass(frozen=True)
class MaskSample:
    """An image and its pseudo mask, for training."""

    image: Path
    mask: Path
    channels: Mapping[int, int]  # class channel of each index that may occur in the mask
    distrusted: frozenset[int] = frozenset()  # indices whose pixels are ignored

    def digest(self) -> str:
        """Return a line that differs wherever names, the mask's content, channels or distrusted indices do."""
        return f"{self.image.name} {hash_file(self.mask)} {sorted(self.channels.items())} {sorted(self.distrusted)}"

    def read_mask(self) -> NDArray[np.uint8]:
        """Read the mask as channel numbers: 0 background, k + 1 for class k, 255 ignored; (H, W)."""
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
    """Pair every mask with the image of its record below ``images``, or else of its name, for training.

    Classes are matched by name, since indices may differ. With ``min_alignment``, a class of an image whose mask is
    less aligned (cosine to its class text minus cosine to its learned background) is ignored there.

    Raises:
        ValueError: if there are no masks, a class or an image is missing, or alignment is needed and was not scored.
    """
    files = visible_files(masks / "masks", ".png")
    if not files:
        raise ValueError(f"expected the output of make-pseudo-masks in {masks}, got no masks/*.png")
    try:
        channels = {info.index: classes.channel(info.name) for info in read_class_list(masks / CLASSES).classes}
    except UnknownLabelError as error:
        raise ValueError(f"{masks / CLASSES}: {error}") from error
    records = read_results(masks / RESULTS)
    found = _recorded_images(images.resolve(), records)
    others = {file.stem for file in files} - found.keys()
    found |= _find_images(images.resolve(), others, files[0].parent.resolve()) if others else {}
    lost = [file.name for file in files if file.stem not in found]
    if lost:
        raise ValueError(f"expected a photo in {images} for each mask, got none for {lost[0]}")
    return [MaskSample(found[file.stem], file, channels, _distrusted(file, records, min_alignment)) for file in files]


def _recorded_images(folder: Path, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    """Return the images of records that are in a folder, by stem."""
    names = {stem: PurePosixPath(record["image"]) for stem, record in records.items()}
    return {stem: folder / name for stem, name in names.items() if _is_below(name) and (folder / name).is_file()}


def _is_below(image: PurePosixPath) -> bool:
    """Whether a record names an image below a folder: one from elsewhere must not make us read other files."""
    return bool(image.name) and not image.is_absolute() and ".." not in image.parts


def _find_images(folder: Path, stems: set[str], masks: Path) -> dict[str, Path]:
    """Return the images anywhere below a folder by the name of their masks, which may be in the folder, too."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in PHOTO_SUFFIXES or path.parent == masks:
            continue
        name = path_name(path.relative_to(folder).as_posix())
        name = name if name in stems else path.stem
        if name in stems and found.setdefault(name, path) != path:
            raise ValueError(f"expected one photo for the mask {name}.png, got {found[name]} and {path}")
    return found


def _distrusted(mask: Path, records: Mapping[str, dict[str, Any]], min_alignment: float | None) -> frozenset[int]:
    if min_alignment is None:
        return frozenset()
    if mask.stem not in records:
        raise ValueError(f"expected a result of {mask.name} in results.jsonl, got none")
    shown = [each for each in records[mask.stem]["classes"] if each["box"] is not None]
    for each in shown:
        if each["alignment_class"] is None or each["alignment_background"] is None:
            raise ValueError(f"expected masks with alignment scores, got none for {each['name']!r} in {mask.name}")
    gaps = {each["index"]: each["alignment_class"] - each["alignment_background"] for each in shown}
    return frozenset(index for index, gap in gaps.items() if gap < min_alignment)


@dataclass(frozen=True)
class MaskedImage:
    """An image and its label map, for exports."""

    path: Path
    name: str  # with the folders below that of all images
    stem: str  # the name of its mask, without ending
    header: ImageHeader  # format, upright size, EXIF orientation
    label_map: NDArray[np.uint8]  # (H, W), upright
    text: Mapping[str, str]  # the mask's PNG text chunks
    model: str  # name and version
    confidence: Mapping[int, float]  # in (0, 1], by class index; none without a pixel

    @property
    def regions(self) -> list[int]:
        """Indices in the label map beside background: classes ascending, then 255."""
        return [index for index in occurring(self.label_map) if index != BACKGROUND_INDEX]


@dataclass(frozen=True)
class _Record:
    image: str
    model: str
    confidence: Mapping[int, float]


@dataclass(frozen=True)
class MaskFolder:
    """A finished mask folder and the folder of its images, for exports."""

    folder: Path
    images: Path
    classes: ClassList
    _records: Mapping[str, _Record]

    def __len__(self) -> int:
        return len(self._records)

    def masked_images(self) -> Iterator[MaskedImage]:
        """Read the images' headers and masks one by one, by file name.

        Raises:
            ValueError: if an image or its mask cannot be read, they differ in size, or the mask holds an unknown index.
        """
        known = {BACKGROUND_INDEX, IGNORE_INDEX, *(each.index for each in self.classes.classes)}
        for stem, record in self._records.items():
            image, mask = self.images / record.image, _mask_path(self.folder, stem)
            try:
                header = check_image(image.read_bytes())
            except ImageError as error:
                raise ValueError(f"{image}: {error}") from error
            label_map, text = read_mask(mask)
            if label_map.shape != (header.height, header.width):
                raise ValueError(
                    f"expected a mask of the photo's {header.width} x {header.height} pixels, got "
                    f"{label_map.shape[1]} x {label_map.shape[0]} in {mask}"
                )
            unknown = set(occurring(label_map)) - known
            if unknown:
                raise ValueError(f"expected indices of classes.txt, got {min(unknown)} in {mask}")
            yield MaskedImage(image, record.image, stem, header, label_map, text, record.model, record.confidence)


def open_mask_folder(folder: Path, images: Path) -> MaskFolder:
    """Check that a folder's masks, its records and the images belong together, by name; no pixel is read yet.

    Raises:
        ValueError: if the folder is not finished, has no mask, lacks a mask or an image, or holds other files.
    """
    if not (folder / SUMMARY).is_file():
        raise ValueError(
            f"expected a folder that 'semples make-pseudo-masks' has finished, got no {SUMMARY} in {folder}"
        )
    records = {
        stem: record
        for stem, content in sorted(read_results(folder / RESULTS).items())
        if (record := _exported_record(stem, content)) is not None
    }
    if not records:
        raise ValueError(f"expected at least one mask, got none in {folder / RESULTS}")
    found = {path.name for path in (folder / "masks").iterdir() if not is_hidden(Path(path.name))}
    expected = {f"{stem}.png" for stem in records}
    _refuse(found - expected, f"expected only masks that {RESULTS} lists in {folder / 'masks'}")
    _refuse(expected - found, f"expected in {folder / 'masks'} every mask that {RESULTS} lists", "no ")
    missing = {each.image for each in records.values() if not (images / each.image).is_file()}
    _refuse(missing, f"expected in {images} every photo that has a mask", "no ")
    return MaskFolder(folder, images, read_class_list(folder / CLASSES), records)


def _refuse(names: set[str], expectation: str, negation: str = "") -> None:
    if names:
        raise ValueError(f"{expectation}, got {negation}{min(names)} ({len(names)} in all)")


def _exported_record(stem: str, content: Mapping[str, Any]) -> _Record | None:
    """Return the part of a record that exports need; None if it lacks it: its mask then counts as not listed."""
    try:
        image = PurePosixPath(content["image"])
        model = f"{content['model']['name']} {content['model']['version']}"
        confidence = {each["index"]: each["confidence"] for each in content["classes"]}
    except (KeyError, TypeError):
        return None
    if not _is_below(image) or stem not in (image.stem, path_name(str(image))):
        raise ValueError(f"expected {RESULTS} to name photos below their folder, got {image}")
    known = {index: value for index, value in confidence.items() if value is not None}
    return _Record(str(image), model, known)
