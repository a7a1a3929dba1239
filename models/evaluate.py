"""Label maps, or stored scores over a range of thresholds, against ground truth."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.data.classes import BACKGROUND_INDEX, ClassList
from models.data.label_maps import read_label_map
from models.files import OVERLAY, read_soft_maps
from models.metrics import IouReport, confusion_matrix, count_pairs, iou_report
from models.pseudo_masks import SoftMaps, stretch

OnImage = Callable[[], None]


@dataclass(frozen=True)
class Sweep:
    """Mean IoU at each background threshold.

    Attributes:
        thresholds: ascending.
        reports: one a threshold.
    """

    thresholds: tuple[float, ...]
    reports: tuple[IouReport, ...]

    @property
    def best(self) -> tuple[float, IouReport]:
        """The threshold that the ground truth likes best ("oracle"), and its report."""
        at = max(range(len(self.reports)), key=lambda index: self.reports[index].mean_iou)
        return self.thresholds[at], self.reports[at]


def count_missing(pairs: Sequence[tuple[Path, Path]], ground_truth: Path) -> int:
    """Return how many ground truths have no prediction: they are not counted, which may flatter."""
    return len(list(ground_truth.glob("*.png"))) - len(pairs)


def count_left_out(predictions: Path, pairs: Sequence[tuple[Path, Path]], suffix: str) -> int:
    """Return how many predictions have no ground truth and are not counted."""
    return len(_predictions(predictions, suffix)) - len(pairs)


def matching_files(
    predictions: Path, ground_truth: Path, suffix: str, *, allow_missing: bool = False
) -> list[tuple[Path, Path]]:
    """Pair the files of two folders by stem.

    Args:
        predictions: folder of ``<stem><suffix>``; the overlays beside them are passed over.
        ground_truth: folder of ``<stem>.png``.
        suffix: of the predictions.
        allow_missing: leave out predictions without a ground truth, as where only a part of the photos was labeled.

    Raises:
        ValueError: if nothing is left to compare, or a prediction lacks a ground truth that it must have.
    """
    if not predictions.is_dir():
        raise ValueError(f"expected a folder, got no such one: {predictions}")
    pairs = [
        (path, ground_truth / f"{path.stem}.png") for path in _predictions(predictions, suffix)
    ]
    if not pairs:
        raise ValueError(f"expected *{suffix} files in {predictions}, got none")
    missing = [truth.name for _, truth in pairs if not truth.is_file()]
    if missing and not (allow_missing and len(missing) < len(pairs)):
        raise ValueError(
            f"expected {missing[0]} in {ground_truth}, got no such file ({len(missing)} missing)"
        )
    return [pair for pair in pairs if pair[1].is_file()]


def _predictions(folder: Path, suffix: str) -> list[Path]:
    return [path for path in sorted(folder.glob(f"*{suffix}")) if not path.stem.endswith(OVERLAY)]


def evaluate_label_maps(
    pairs: Sequence[tuple[Path, Path]], classes: ClassList, *, min_pixels: int, on_image: OnImage
) -> IouReport:
    """Compare label maps with ground truth; indices in both mean what the class list says.

    Raises:
        ValueError: if a file is not a label map, sizes differ, or the ground truth has an unknown index.
    """
    indices = _count(classes)
    matrix = torch.zeros(indices, indices + 1, dtype=torch.int64)
    for prediction, truth in pairs:
        with _naming(prediction, truth):
            matrix += confusion_matrix(_read(truth), _read(prediction), indices=indices)
        on_image()
    return iou_report(matrix, min_pixels=min_pixels)


def sweep_scores(
    pairs: Sequence[tuple[Path, Path]],
    classes: ClassList,
    *,
    thresholds: Sequence[float],
    min_pixels: int,
    on_image: OnImage,
) -> Sweep:
    """Compare stored scores with ground truth at every background threshold.

    Raises:
        ValueError: as ``evaluate_label_maps``.
    """

    def counted(scores_file: Path, truth_file: Path) -> Tensor:
        with _naming(scores_file, truth_file):
            maps = read_soft_maps(scores_file)
            counts = _count_levels(_read(truth_file), maps, _count(classes), thresholds)
        on_image()
        return counts

    return _as_sweep((counted(*pair) for pair in pairs), thresholds, min_pixels=min_pixels)


def sweep_soft_maps(
    items: Iterable[tuple[Tensor, SoftMaps]],
    classes: ClassList,
    *,
    thresholds: Sequence[float],
    min_pixels: int,
) -> Sweep:
    """Compare soft maps with their ground truth, (H, W), at every constant background.

    Args:
        items: ground truth and soft maps of each image.
        classes: what the indices mean.
        thresholds: ascending.
        min_pixels: as ``iou_report`` takes it.

    Raises:
        ValueError: if sizes differ, or an index is unknown.
    """
    indices = _count(classes)
    counts = (_count_levels(truth, maps, indices, thresholds) for truth, maps in items)
    return _as_sweep(counts, thresholds, min_pixels=min_pixels)


def _count_levels(
    truth: Tensor, maps: SoftMaps, indices: int, thresholds: Sequence[float]
) -> Tensor:
    """Count, at [i, j, b], the pixels of class i whose best class is j, with a score above exactly b thresholds."""
    levels = torch.tensor(thresholds)
    winner, best = _best_class(maps, indices)
    # One count for all thresholds: a label that also tells how many of them the score is above.
    leveled = winner * (len(levels) + 1) + torch.bucketize(best, levels)
    columns = indices * (len(levels) + 1)
    return count_pairs(truth, leveled, indices, columns).view(indices, indices, len(levels) + 1)


def _as_sweep(counts: Iterable[Tensor], thresholds: Sequence[float], *, min_pixels: int) -> Sweep:
    total = reduce(operator.add, counts)
    reports = (
        iou_report(_at_level(total, level), min_pixels=min_pixels)
        for level in range(len(thresholds))
    )
    return Sweep(tuple(thresholds), tuple(reports))


def _at_level(counts: Tensor, level: int) -> Tensor:
    """The confusion matrix at one threshold: what is not above it is background."""
    matrix = torch.zeros(counts.shape[0], counts.shape[0] + 1, dtype=torch.int64)
    matrix[:, :-1] = counts[..., level + 1 :].sum(dim=-1)
    matrix[:, BACKGROUND_INDEX] += counts[..., : level + 1].sum(dim=(1, 2))
    return matrix


def report_to_json(report: IouReport, classes: ClassList, *, images: int) -> dict[str, Any]:
    """Return a report in JSON's types; IoU in [0, 1], null where a class does not occur."""
    names = {BACKGROUND_INDEX: "background"} | {each.index: each.name for each in classes.classes}
    return {
        "images": images,
        "mean_iou": number(report.mean_iou),
        "classes": [
            {
                "index": index,
                "name": name,
                "iou": number(float(report.iou[index])),
                "pixels": int(report.pixels[index]),
            }
            for index, name in names.items()
        ],
    }


def number(value: float) -> float | None:
    """Return a value as JSON has it, which has no NaN."""
    return None if math.isnan(value) else value


@contextmanager
def _naming(found: Path, truth: Path) -> Iterator[None]:
    """Put the files' names before a complaint about their content."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{found} and {truth}: {error}") from error


def _best_class(maps: SoftMaps, indices: int) -> tuple[Tensor, Tensor]:
    """Return each pixel's best class, as an index in label maps, and its score, both (H, W)."""
    height, width = maps.size
    if not maps.names:
        return torch.zeros(maps.size, dtype=torch.int64), torch.zeros(maps.size)
    if maps.indices.max() >= indices:
        raise ValueError(f"expected scores of known classes, got {maps.indices.tolist()}")
    band = stretch(stretch(maps.scores, width, axis=2), height, axis=1)
    return torch.from_numpy(maps.indices[band.argmax(axis=0)]), torch.from_numpy(band.max(axis=0))


def _count(classes: ClassList) -> int:
    return max(each.index for each in classes.classes) + 1


def _read(path: Path) -> Tensor:
    return torch.from_numpy(read_label_map(path))
