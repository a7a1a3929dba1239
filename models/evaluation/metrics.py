"""Confusion matrix and intersection over union."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX, ClassList
from models.data.mask_files import OVERLAY, read_label_map, read_soft_maps
from models.inference.masks import SoftMaps, upsample_bilinear


@dataclass(frozen=True)
class IouReport:
    """Intersection over union of a set of label maps.

    Attributes:
        iou: per index, (K + 1,), NaN where an index occurs in neither side.
        pixels: ground truth pixels per index, (K + 1,).
        mean_iou: mean of the defined values among the counted classes, in [0, 1]; NaN if there is none.
    """

    iou: Tensor
    pixels: Tensor
    mean_iou: float


def confusion_matrix(ground_truth: Tensor, prediction: Tensor, *, indices: int) -> Tensor:
    """Count pixels by (ground truth, prediction), → (indices, indices + 1) int64.

    Pixels whose ground truth is 255 do not count. The last column holds what the prediction ignored (255)
    or calls by an index out of range: such a pixel belongs to its ground truth and to no prediction, so it is missed.

    Args:
        ground_truth: (H, W) integer label map.
        prediction: (H, W) integer label map.
        indices: number of label map indices, background included.

    Raises:
        ValueError: if the shapes differ, or the ground truth has an index out of range.
    """
    return count_pairs(ground_truth, prediction.clamp(max=indices), indices, indices + 1)


def count_pairs(ground_truth: Tensor, prediction: Tensor, rows: int, columns: int) -> Tensor:
    """Count pixels by (ground truth, prediction) below (rows, columns), but for those whose ground truth is 255.

    Raises:
        ValueError: if the shapes differ, or the ground truth has an index out of range.
    """
    if ground_truth.shape != prediction.shape:
        raise ValueError(
            f"expected a prediction of the ground truth's size {tuple(ground_truth.shape)}, "
            f"got {tuple(prediction.shape)}"
        )
    counted = ground_truth != IGNORE_INDEX
    truth, guess = ground_truth[counted].long(), prediction[counted].long()
    if truth.numel() and int(truth.max()) >= rows:
        raise ValueError(f"expected ground truth below {rows}, got {int(truth.max())}")
    return torch.bincount(truth * columns + guess, minlength=rows * columns).view(rows, columns)


def iou_report(matrix: Tensor, *, min_pixels: int = 0) -> IouReport:
    """Turn a summed confusion matrix into IoU: TP / (T + P - TP).

    Args:
        matrix: (indices, indices + 1), as ``confusion_matrix`` counts.
        min_pixels: classes with fewer ground truth pixels stay out of the mean;
            with 0 a class that is only predicted counts as 0.
    """
    true_positive = matrix.diagonal().double()
    pixels = matrix.sum(dim=1)
    predicted = matrix[:, : matrix.shape[0]].sum(dim=0)
    union = pixels + predicted - true_positive
    iou = torch.where(union > 0, true_positive / union, torch.nan)
    return IouReport(iou=iou, pixels=pixels, mean_iou=float(iou[pixels >= min_pixels].nanmean()))


# Label maps, or stored scores over a range of thresholds, against ground truth.

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
    band = upsample_bilinear(upsample_bilinear(maps.scores, width, axis=2), height, axis=1)
    return torch.from_numpy(maps.indices[band.argmax(axis=0)]), torch.from_numpy(band.max(axis=0))


def _count(classes: ClassList) -> int:
    return max(each.index for each in classes.classes) + 1


def _read(path: Path) -> Tensor:
    return torch.from_numpy(read_label_map(path))


# Masks measured under the two rules that a table must name.
#
# ``fixed``: the label maps as they are; their thresholds and the checkpoint (the last epoch) were chosen without ground
# truth. ``oracle``: the stored scores of the same photos at the background threshold that this very ground truth likes
# best; the checkpoint is the last epoch here too. Papers choose both by the ground truth of the training images.

THRESHOLDS: Final = tuple(percent / 100 for percent in range(5, 96))

Pairs = tuple[tuple[Path, Path], ...]  # a file and its ground truth


@dataclass(frozen=True)
class Files:
    """What is compared with ground truth.

    Attributes:
        masks: label maps, each with its ground truth; none if ``fixed`` is not asked for.
        scores: soft scores likewise, for ``oracle``; of the same photos if both are there.
        unpaired: photos left out because only one of mask and scores is there.
        missing: ground truths that nothing is compared with.
        left_out: masks, or scores, without a ground truth.
    """

    masks: Pairs
    scores: Pairs
    unpaired: int
    missing: int
    left_out: int = 0


@dataclass(frozen=True)
class Measured:
    """The outcome under each rule; None where it was not asked for.

    Attributes:
        images: how many photos were compared.
        fixed: of the label maps.
        oracle: of the scores, at every threshold.
    """

    images: int
    fixed: IouReport | None
    oracle: Sweep | None


def find_files(
    ground_truth: Path, *, masks: Path | None, scores: Path | None, allow_missing: bool = False
) -> Files:
    """Pair label maps (``STEM.png``) and scores (``STEM.npz``) with their ground truth.

    Raises:
        ValueError: if there is nothing to compare, or as ``matching_files`` does.
    """
    sides: list[dict[str, tuple[Path, Path]]] = []
    left_out = 0
    for folder, suffix in ((masks, ".png"), (scores, ".npz")):
        pairs = (
            matching_files(folder, ground_truth, suffix, allow_missing=allow_missing)
            if folder is not None
            else []
        )
        if folder is not None:
            left_out = max(left_out, count_left_out(folder, pairs, suffix))
        sides.append({path.stem: (path, truth) for path, truth in pairs})
    asked = [side for side in sides if side]
    if not asked:
        raise ValueError("expected a folder of label maps or of scores, got neither")
    stems = sorted(set.intersection(*map(set, asked)))
    if not stems:
        raise ValueError(f"expected masks and scores of the same photos, got {masks} and {scores}")
    of_masks, of_scores = (tuple(side[stem] for stem in stems if side) for side in sides)
    return Files(
        masks=of_masks,
        scores=of_scores,
        unpaired=len(set.union(*map(set, asked))) - len(stems),
        missing=count_missing(of_masks or of_scores, ground_truth),
        left_out=left_out,
    )


def measure(
    files: Files,
    classes: ClassList,
    *,
    min_pixels: int = 0,
    on_image: Callable[[], None] = lambda: None,
) -> Measured:
    """Compare with ground truth under each rule that there are files for.

    Raises:
        ValueError: if a file is not what it should be, with its path.
    """
    fixed = oracle = None
    if files.masks:
        fixed = evaluate_label_maps(files.masks, classes, min_pixels=min_pixels, on_image=on_image)
    if files.scores:
        oracle = sweep_scores(
            files.scores, classes, thresholds=THRESHOLDS, min_pixels=min_pixels, on_image=on_image
        )
    return Measured(len(files.masks or files.scores), fixed, oracle)


def measured_to_json(measured: Measured, classes: ClassList, files: Files) -> dict[str, Any]:
    """Return what was measured in JSON's types: ``fixed`` if there is one, with ``oracle`` under its name."""
    missing = {"missing_predictions": files.missing, "missing_ground_truths": files.left_out}
    oracle = _oracle_to_json(measured.oracle, classes, measured.images) if measured.oracle else {}
    if measured.fixed is None:
        return oracle | missing
    fixed = report_to_json(measured.fixed, classes, images=measured.images) | {"rule": "fixed"}
    return fixed | missing | ({"oracle": oracle} if oracle else {})


def curve_csv(sweep: Sweep) -> str:
    """Return the mean IoU, in [0, 1], at each threshold as CSV; an empty field where none is defined."""
    rows = (
        f"{threshold},{'' if (mean := number(report.mean_iou)) is None else mean}"
        for threshold, report in zip(sweep.thresholds, sweep.reports, strict=True)
    )
    return "\n".join(["threshold,mean_iou", *rows]) + "\n"


def _oracle_to_json(sweep: Sweep, classes: ClassList, images: int) -> dict[str, Any]:
    threshold, report = sweep.best
    curve = {
        str(each): number(found.mean_iou)
        for each, found in zip(sweep.thresholds, sweep.reports, strict=True)
    }
    named = {"rule": "oracle", "threshold": threshold, "curve": curve}
    return report_to_json(report, classes, images=images) | named
