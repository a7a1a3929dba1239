"""Mean IoU of masks under two evaluation protocols, which every table must name.

``fixed``: the label maps as they are; thresholds and checkpoint (the last epoch) were chosen without ground truth.
``oracle``: the stored scores of the same photos, at the background threshold that is best for this ground truth; the
checkpoint is the last epoch as well. Papers choose both by the ground truth of the training images.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX, ClassList
from models.data.mask_files import OVERLAY, occurring, read_indexed, read_label_map, read_soft_maps, voc_palette
from models.data.photos import visible_files
from models.data.provenance import CURVE_HEADER
from models.inference.masks import SoftMaps, upsample_bilinear

THRESHOLDS: Final = tuple(percent / 100 for percent in range(5, 96))

_SHIFTED: Final = 10  # times the pixels that must agree better one index off
_REORDERED: Final = 3  # classes that another order must move: two may be an error of the masks
_MAX_NAMED: Final = 10
_Pairs: TypeAlias = Sequence[tuple[Path, Path]]  # a file and its ground truth


@dataclass(frozen=True)
class IouReport:
    """Intersection over union of a set of label maps.

    ``iou`` and ground truth ``pixels`` are by index, (K + 1,); IoU is NaN where an index is in neither side.
    ``mean_iou`` is the mean of the defined values of the counted classes, in [0, 1]; NaN if there is none.
    """

    iou: Tensor
    pixels: Tensor
    mean_iou: float


@dataclass(frozen=True)
class Sweep:
    """Reports at ascending background thresholds."""

    thresholds: tuple[float, ...]
    reports: tuple[IouReport, ...]

    @property
    def best(self) -> tuple[float, IouReport]:
        """The threshold with the highest mean IoU ("oracle"), and its report."""
        at = max(range(len(self.reports)), key=lambda index: self.reports[index].mean_iou)
        return self.thresholds[at], self.reports[at]


@dataclass(frozen=True)
class _EvaluationFiles:
    """Label maps, for ``fixed``, and soft scores, for ``oracle``, of the same photos; either may be empty."""

    masks: _Pairs
    scores: _Pairs
    unpaired: int  # photos that have only one of mask and scores
    missing: int  # ground truths without a file
    left_out: int = 0  # masks, or scores, without ground truth


@dataclass(frozen=True)
class Measured:
    """Results under each protocol, None where there were no files, and the number of compared photos."""

    images: int
    fixed: IouReport | None
    oracle: Sweep | None


def confusion_matrix(ground_truth: Tensor, prediction: Tensor, *, indices: int) -> Tensor:
    """Count pixels by (ground truth, prediction), both (H, W), → (indices, indices + 1) int64.

    Pixels whose ground truth is 255 do not count. The last column holds ignored pixels (255) and indices out of range
    of the prediction: they count as missed for their ground truth, and for no prediction.
    """
    return _count_pairs(ground_truth, prediction.clamp(max=indices), indices, indices + 1)


def iou_report(matrix: Tensor, *, min_pixels: int = 0) -> IouReport:
    """Turn a summed confusion matrix into IoU: TP / (T + P - TP).

    Classes with fewer than ``min_pixels`` ground truth pixels are not in the mean; with 0, a class without ground truth
    that is predicted counts as 0.
    """
    true_positive = matrix.diagonal().double()
    pixels = matrix.sum(dim=1)
    predicted = matrix[:, : matrix.shape[0]].sum(dim=0)
    union = pixels + predicted - true_positive
    iou = torch.where(union > 0, true_positive / union, torch.nan)
    return IouReport(iou=iou, pixels=pixels, mean_iou=float(iou[pixels >= min_pixels].nanmean()))


def find_files(
    ground_truth: Path, *, masks: Path | None, scores: Path | None, allow_missing: bool = False
) -> _EvaluationFiles:
    """Pair label maps (``STEM.png``) and scores (``STEM.npz``) with their ground truth."""
    sides: list[dict[str, tuple[Path, Path]]] = []
    left_out = 0
    for folder, suffix in ((masks, ".png"), (scores, ".npz")):
        pairs: _Pairs = ()
        if folder is not None:
            pairs = _matching_files(folder, ground_truth, suffix, allow_missing=allow_missing)
            left_out = max(left_out, len(_predictions(folder, suffix)) - len(pairs))
        sides.append({path.stem: (path, truth) for path, truth in pairs})
    given = [side for side in sides if side]
    if not given:
        raise ValueError("expected a folder of label maps or of scores, got neither")
    stems = sorted(set.intersection(*map(set, given)))
    if not stems:
        raise ValueError(f"expected masks and scores of the same photos, got {masks} and {scores}")
    of_masks, of_scores = (tuple(side[stem] for stem in stems if side) for side in sides)
    return _EvaluationFiles(
        masks=of_masks,
        scores=of_scores,
        unpaired=len(set.union(*map(set, given))) - len(stems),
        missing=len(visible_files(ground_truth, ".png")) - len(stems),
        left_out=left_out,
    )


def _matching_files(
    predictions: Path, ground_truth: Path, suffix: str, *, allow_missing: bool = False
) -> list[tuple[Path, Path]]:
    """Pair predictions, STEM + suffix without overlays, with ground truth, STEM.png."""
    if not predictions.is_dir():
        raise ValueError(f"expected a folder, got no such one: {predictions}")
    pairs = [(path, ground_truth / f"{path.stem}.png") for path in _predictions(predictions, suffix)]
    if not pairs:
        raise ValueError(f"expected *{suffix} files in {predictions}, got none")
    if same := [path for path, truth in pairs if truth.exists() and path.samefile(truth)]:
        raise ValueError(f"expected masks beside their ground truth, got one file for both: {same[0]}")
    missing = [truth.name for _, truth in pairs if not truth.is_file()]
    if missing and not (allow_missing and len(missing) < len(pairs)):
        raise ValueError(f"expected {missing[0]} in {ground_truth}, got no such file ({len(missing)} missing)")
    return [pair for pair in pairs if pair[1].is_file()]


def measure(
    files: _EvaluationFiles,
    classes: ClassList,
    *,
    min_pixels: int = 0,
    on_image: Callable[[], None] = lambda: None,
) -> Measured:
    """Compare files with their ground truth under each protocol that they allow."""
    fixed = oracle = None
    if files.masks:
        fixed = _evaluate_label_maps(files.masks, classes, min_pixels=min_pixels, on_image=on_image)
    if files.scores:
        oracle = _sweep_scores(files.scores, classes, thresholds=THRESHOLDS, min_pixels=min_pixels, on_image=on_image)
    return Measured(len(files.masks or files.scores), fixed, oracle)


def _evaluate_label_maps(
    pairs: _Pairs,
    classes: ClassList,
    *,
    min_pixels: int = 0,
    on_image: Callable[[], None] = lambda: None,
) -> IouReport:
    """Compare label maps with their ground truth, both in the class list's indices."""
    indices = _count_indices(classes)
    matrix = torch.zeros(indices, indices + 1, dtype=torch.int64)
    ground_truth = _GroundTruth(classes)
    for prediction, truth in pairs:
        with _named_errors(prediction, truth):
            matrix += confusion_matrix(ground_truth.read(truth), _read(prediction), indices=indices)
        on_image()
    ground_truth.check(matrix, min_pixels=min_pixels)
    return iou_report(matrix, min_pixels=min_pixels)


def _sweep_scores(
    pairs: _Pairs,
    classes: ClassList,
    *,
    thresholds: Sequence[float],
    min_pixels: int = 0,
    on_image: Callable[[], None] = lambda: None,
) -> Sweep:
    """Compare stored scores with their ground truth at every background threshold."""
    ground_truth = _GroundTruth(classes)

    def count(scores: Path, truth: Path) -> Tensor:
        with _named_errors(scores, truth):
            maps = read_soft_maps(scores)
            counts = _count_levels(ground_truth.read(truth), maps, _count_indices(classes), thresholds)
        on_image()
        return counts

    total = reduce(operator.add, (count(*pair) for pair in pairs))
    ground_truth.check(total.sum(dim=-1), min_pixels=min_pixels)
    return _to_sweep([total], thresholds, min_pixels=min_pixels)


def sweep_soft_maps(
    items: Iterable[tuple[Tensor, SoftMaps]],
    classes: ClassList,
    *,
    thresholds: Sequence[float],
    min_pixels: int,
) -> Sweep:
    """Compare soft maps with their ground truth, (H, W), at ascending background thresholds."""
    indices = _count_indices(classes)
    counts = (_count_levels(truth, maps, indices, thresholds) for truth, maps in items)
    return _to_sweep(counts, thresholds, min_pixels=min_pixels)


def measured_to_json(measured: Measured, classes: ClassList, files: _EvaluationFiles) -> dict[str, Any]:
    """Return results in JSON types: those of ``fixed`` with ``oracle`` inside, or those of ``oracle`` alone."""
    missing = {"missing_predictions": files.missing, "missing_ground_truths": files.left_out}
    oracle = _oracle_to_json(measured.oracle, classes, measured.images) if measured.oracle else {}
    if measured.fixed is None:
        return oracle | missing
    fixed = _report_to_json(measured.fixed, classes, images=measured.images) | {"rule": "fixed"}
    return fixed | missing | ({"oracle": oracle} if oracle else {})


def _report_to_json(report: IouReport, classes: ClassList, *, images: int) -> dict[str, Any]:
    """Return a report in JSON types; IoU in [0, 1], null where a class does not occur."""
    return {
        "images": images,
        "mean_iou": nan_to_none(report.mean_iou),
        "classes": [
            {
                "index": index,
                "name": name,
                "iou": nan_to_none(float(report.iou[index])),
                "pixels": int(report.pixels[index]),
            }
            for index, name in classes.names_by_index.items()
        ],
    }


def curve_csv(sweep: Sweep) -> str:
    """Return the mean IoU, in [0, 1], at each threshold as CSV; an empty field where it is undefined."""
    rows = (f"{threshold},{'' if mean is None else mean}" for threshold, mean in _curve(sweep).items())
    return "\n".join([CURVE_HEADER, *rows]) + "\n"


def nan_to_none(value: float) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def _oracle_to_json(sweep: Sweep, classes: ClassList, images: int) -> dict[str, Any]:
    threshold, report = sweep.best
    curve = {str(each): mean for each, mean in _curve(sweep).items()}
    named = {"rule": "oracle", "threshold": threshold, "curve": curve}
    return _report_to_json(report, classes, images=images) | named


def _curve(sweep: Sweep) -> dict[float, float | None]:
    means = (nan_to_none(report.mean_iou) for report in sweep.reports)
    return dict(zip(sweep.thresholds, means, strict=True))


def _predictions(folder: Path, suffix: str) -> list[Path]:
    return [path for path in visible_files(folder, suffix) if not path.stem.endswith(OVERLAY)]


def _count_pairs(ground_truth: Tensor, prediction: Tensor, rows: int, columns: int) -> Tensor:
    """Count pixels by (ground truth, prediction) below (rows, columns), without those of ground truth 255."""
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


def _count_levels(truth: Tensor, maps: SoftMaps, indices: int, thresholds: Sequence[float]) -> Tensor:
    """Count, at [i, j, b], the pixels of class i whose best class is j, with a score above exactly b thresholds."""
    levels = torch.tensor(thresholds)
    winner, best = _best_class(maps, indices)
    # One pass for all thresholds: the label encodes the best class and the level of its score.
    leveled = winner * (len(levels) + 1) + torch.bucketize(best, levels)
    columns = indices * (len(levels) + 1)
    return _count_pairs(truth, leveled, indices, columns).view(indices, indices, len(levels) + 1)


def _to_sweep(counts: Iterable[Tensor], thresholds: Sequence[float], *, min_pixels: int) -> Sweep:
    total = reduce(operator.add, counts)
    reports = (iou_report(_matrix_at(total, level), min_pixels=min_pixels) for level in range(len(thresholds)))
    return Sweep(tuple(thresholds), tuple(reports))


def _matrix_at(counts: Tensor, level: int) -> Tensor:
    """The confusion matrix at one threshold, where scores that are not above it are background."""
    matrix = torch.zeros(counts.shape[0], counts.shape[0] + 1, dtype=torch.int64)
    matrix[:, :-1] = counts[..., level + 1 :].sum(dim=-1)
    matrix[:, BACKGROUND_INDEX] += counts[..., : level + 1].sum(dim=(1, 2))
    return matrix


def _best_class(maps: SoftMaps, indices: int) -> tuple[Tensor, Tensor]:
    """Each pixel's best class, as an index in label maps, and its score, both (H, W)."""
    height, width = maps.size
    if not maps.names:
        return torch.zeros(maps.size, dtype=torch.int64), torch.zeros(maps.size)
    if maps.indices.max() >= indices:
        raise ValueError(f"expected scores of known classes, got {maps.indices.tolist()}")
    scores = upsample_bilinear(upsample_bilinear(maps.scores, width, axis=2), height, axis=1)
    best = torch.from_numpy(scores.max(axis=0))
    return torch.from_numpy(maps.indices[scores.argmax(axis=0)]), best


class _GroundTruth:
    """Label maps of what is true, in which listed classes must occur: a figure for others would mean nothing."""

    def __init__(self, classes: ClassList) -> None:
        self._listed = {each.index for each in classes.classes}
        self._found: set[int] = set()
        self._files = 0

    def read(self, path: Path) -> Tensor:
        """Read a label map, (H, W); ValueError if it holds colors, or values that no listed class has."""
        label_map, palette = read_indexed(path)
        values = set(occurring(label_map))
        self._found |= values
        self._files += 1
        self._check_colors(values, palette)
        if unknown := sorted(values - self._listed - {BACKGROUND_INDEX, IGNORE_INDEX}):
            raise ValueError(f"expected values of listed classes, 0 or 255 in the ground truth, got {_few(unknown)}")
        return torch.from_numpy(label_map)

    def _check_colors(self, values: set[int], palette: NDArray[np.uint8] | None) -> None:
        """Raise ValueError if a palette shows VOC's colors of listed classes at other values, as a converter leaves."""
        known = {tuple(color): index for index, color in enumerate(voc_palette().tolist())}
        shown = {} if palette is None else {each: known.get(tuple(palette[each])) for each in values - {IGNORE_INDEX}}
        meant = {value: index for value, index in shown.items() if value != index}
        if meant and all(index in self._listed | {BACKGROUND_INDEX, IGNORE_INDEX} for index in shown.values()):
            value, index = next(iter(sorted(meant.items())))
            raise ValueError(
                f"expected class indices as values, got VOC's colors by another palette: {value} has that of {index}"
            )

    def check(self, counts: Tensor, *, min_pixels: int) -> None:
        """Raise ValueError if no listed class counts, or all seem to be off by one, or in another order.

        ``counts`` are pixels by (truth, found), which may have a column for ignored ones at its end.
        """
        if not self._found & self._listed:
            raise ValueError(
                f"expected ground truth in which a listed class occurs, got the values {_few(sorted(self._found))} "
                f"alone in {self._files} files"
            )
        most = max(int(counts[index].sum()) for index in self._listed)
        if most < min_pixels <= int(counts[BACKGROUND_INDEX].sum()):  # the mean would be the background's
            raise ValueError(f"expected a listed class of at least {min_pixels} true pixels, got at most {most}")
        # Without the background, which is also where a right ground truth has what was not found.
        found = counts[1:, 1 : len(counts)]
        right, total = int(found.diagonal().sum()), int(found.sum())
        for offset in (-1, 1):
            agreeing = found.diagonal(offset=-offset)
            shifted = int(agreeing.sum())
            # Of several classes: one that is taken for its neighbor in the list is an error of the masks.
            if int((agreeing > 0).sum()) > 1 and shifted > _SHIFTED * max(right, 1) and 2 * shifted > total:
                raise ValueError(
                    f"expected ground truth in the classes' indices, got one that fits {offset:+d} better: {shifted} "
                    f"pixels agree with it, {right} as it is"
                )
        truths, guesses = linear_sum_assignment(found.numpy(), maximize=True)
        agreeing = found[truths, guesses]
        moved = [(t + 1, g + 1) for t, g, n in zip(truths, guesses, agreeing.tolist(), strict=True) if n and t != g]
        ordered = int(agreeing.sum())
        if len(moved) >= _REORDERED and ordered > _SHIFTED * max(right, 1) and 2 * ordered > total:
            pairs = ", ".join(f"{true} is found as {guess}" for true, guess in moved[:_MAX_NAMED])
            raise ValueError(
                f"expected ground truth in the classes' indices, got one that fits in another order: {pairs}; "
                f"{ordered} pixels agree so, {right} as it is"
            )


def _few(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:_MAX_NAMED])) + (", …" if len(values) > _MAX_NAMED else "")


@contextmanager
def _named_errors(found: Path, truth: Path) -> Iterator[None]:
    """Put the files' names before errors about their content."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{found} and {truth}: {error}") from error


def _count_indices(classes: ClassList) -> int:
    return max(each.index for each in classes.classes) + 1


def _read(path: Path) -> Tensor:
    return torch.from_numpy(read_label_map(path))
