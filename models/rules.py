"""Masks measured under the two rules that a table must name.

``fixed``: the label maps as they are; their thresholds and the checkpoint (the last epoch) were chosen without ground
truth. ``oracle``: the stored scores of the same photos at the background threshold that this very ground truth likes
best; the checkpoint is the last epoch here too. Papers choose both by the ground truth of the training images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from models.data.classes import ClassList
from models.evaluate import (
    Sweep,
    count_left_out,
    count_missing,
    evaluate_label_maps,
    matching_files,
    number,
    report_to_json,
    sweep_scores,
)
from models.metrics import IouReport

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
