"""Whether one folder of masks is better than another, or the photos are too few to say.

Both are compared with the same label maps. Photos are drawn again with replacement (a bootstrap), both folders with the
same draws; the interval has 95 % of the differences of mean IoU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.demo_bundle import CLASSES, MIN_PIXELS
from models.data.classes import ClassList, read_class_list
from models.data.mask_files import read_label_map
from models.evaluation.metrics import confusion_matrix, iou_report


@dataclass(frozen=True)
class Difference:
    """Mean IoU of two folders, in [0, 1], and the ends of the interval of second minus first."""

    first: float
    second: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return it in percent."""
        gain = self.second - self.first
        return (
            f"{self.first:.1%} and {self.second:.1%}: {100 * gain:+.1f} points, "
            f"95 % of the draws from {100 * self.low:+.1f} to {100 * self.high:+.1f}"
        )


def compare(
    first: Path, second: Path, truth: Path, classes: ClassList, *, min_pixels: int, draws: int, seed: int
) -> Difference:
    """Compare two folders of label maps on the photos of which all three have one.

    Raises:
        ValueError: if there is no such photo.
    """
    stems = sorted({path.stem for path in truth.glob("*.png")} & _stems(first) & _stems(second))
    if not stems:
        raise ValueError(f"expected label maps of the same photos in {first}, {second} and {truth}, got none")
    sides = [_matrices(folder, truth, stems, classes) for folder in (first, second)]
    counted = sides[0].sum(dim=(0, 2)) >= min_pixels
    counted[0] = True
    random = np.random.default_rng(seed)
    gains = []
    for _ in range(draws):
        drawn = torch.from_numpy(random.integers(len(stems), size=len(stems)))
        before, after = (_mean_iou(side[drawn].sum(dim=0), counted) for side in sides)
        gains.append(after - before)
    low, high = np.percentile(gains, [2.5, 97.5])
    before, after = (_mean_iou(side.sum(dim=0), counted) for side in sides)
    return Difference(before, after, float(low), float(high))


def _stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.png")}


def _matrices(folder: Path, truth: Path, stems: Sequence[str], classes: ClassList) -> Tensor:
    """Confusion matrices, one a photo: (N, K + 1, K + 2) with the listed indices in order."""
    indices = [0, *(each.index for each in classes.classes)]
    columns = [*indices, -1]  # the last: ignored, or not in the list
    pairs = ([torch.from_numpy(read_label_map(each / f"{stem}.png")) for each in (truth, folder)] for stem in stems)
    return torch.stack([confusion_matrix(*pair, indices=max(indices) + 1)[indices][:, columns] for pair in pairs])


def _mean_iou(matrix: Tensor, counted: Tensor) -> float:
    """Mean IoU of the counted classes that occur in the ground truth."""
    found = iou_report(matrix)
    return float(found.iou[counted & (found.pixels > 0)].mean())


def main() -> None:
    """Print the difference of two folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--ground-truth", type=Path, required=True)
    parser.add_argument("--classes", type=Path, default=CLASSES)
    parser.add_argument("--min-pixels", type=int, default=MIN_PIXELS)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(
        compare(
            arguments.first, arguments.second, arguments.ground_truth, read_class_list(arguments.classes),
            min_pixels=arguments.min_pixels, draws=arguments.draws, seed=arguments.seed,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
