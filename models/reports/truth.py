"""The pseudo masks against ground truth, under both rules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.data.classes import BACKGROUND_INDEX, read_class_list
from models.evaluate import Sweep, number
from models.metrics import IouReport
from models.reports.curve import Line, Plot, draw
from models.rules import find_files, measure


@dataclass(frozen=True)
class IouRow:
    """A class's IoU under each rule, in [0, 1]; None where it has none."""

    name: str
    pixels: int
    fixed: float | None
    oracle: float | None


@dataclass(frozen=True)
class TruthPart:
    """What was measured.

    Attributes:
        images: photos with mask and ground truth.
        missing: ground truths without a mask.
        fixed: mean IoU in [0, 1]; None if no class occurs.
        oracle: mean IoU at the best threshold; None without stored scores.
        threshold: that one.
        rows: the background and the classes that occur in the ground truth.
        plot: mean IoU over the threshold; None without stored scores.
    """

    images: int
    missing: int
    fixed: float | None
    oracle: float | None
    threshold: float | None
    rows: tuple[IouRow, ...]
    plot: Plot | None


def truth_part(masks: Path, ground_truth: Path) -> TruthPart | None:
    """Compare a folder of make-pseudo-masks with ground truth; None if it has no masks.

    Raises:
        ValueError: if no mask has a ground truth, or a file is not what it should be.
    """
    if not any((masks / "masks").glob("*.png")):
        return None
    scores = masks / "scores"
    classes = read_class_list(masks / "classes.txt")
    files = find_files(
        ground_truth,
        masks=masks / "masks",
        scores=scores if any(scores.glob("*.npz")) else None,
        allow_missing=True,
    )
    measured = measure(files, classes)
    if measured.fixed is None:
        return None
    threshold, best = measured.oracle.best if measured.oracle else (None, None)
    names = {BACKGROUND_INDEX: "background"} | {each.index: each.name for each in classes.classes}
    fixed, pixels = measured.fixed, measured.fixed.pixels
    return TruthPart(
        images=measured.images,
        missing=files.missing,
        fixed=number(fixed.mean_iou),
        oracle=None if best is None else number(best.mean_iou),
        threshold=threshold,
        rows=tuple(
            IouRow(name, int(pixels[index]), _iou(fixed, index), _iou(best, index))
            for index, name in names.items()
            if pixels[index]
        ),
        plot=_curve(measured.oracle, fixed) if measured.oracle else None,
    )


def _iou(report: IouReport | None, index: int) -> float | None:
    return None if report is None else number(float(report.iou[index]))


def _curve(sweep: Sweep, fixed: IouReport) -> Plot | None:
    points = [
        (threshold, 100 * report.mean_iou)
        for threshold, report in zip(sweep.thresholds, sweep.reports, strict=True)
    ]
    level = [(x, 100 * fixed.mean_iou) for x in (sweep.thresholds[0], sweep.thresholds[-1])]
    threshold, best = sweep.best
    return draw(
        [Line("mean IoU in percent", points), Line("fixed", level)],
        title="Mean IoU in percent by background threshold, with its maximum (oracle) marked",
        x_name="background threshold",
        marks=[(threshold, 100 * best.mean_iou)],
    )
