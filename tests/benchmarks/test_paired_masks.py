from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.paired_masks import Difference, compare
from models.data.classes import ClassInfo, ClassList

CLASSES = ClassList((ClassInfo(index=3, name="cat"), ClassInfo(index=7, name="cup")))


def write(folder: Path, **rows: list[int]) -> Path:
    folder.mkdir()
    for stem, values in rows.items():
        Image.fromarray(np.array([values], dtype=np.uint8)).save(folder / f"{stem}.png")
    return folder


def difference(first: Path, second: Path, truth: Path, min_pixels: int = 0) -> Difference:
    return compare(first, second, truth, CLASSES, min_pixels=min_pixels, draws=200, seed=0)


def test_two_folders_by_hand(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth", a=[3, 3, 0, 0], b=[7, 0, 0, 0], alone=[3, 3, 3, 3])
    worse = write(tmp_path / "worse", a=[3, 0, 0, 0], b=[7, 0, 0, 255])
    better = write(tmp_path / "better", a=[3, 3, 0, 0], b=[7, 0, 0, 0])
    found = difference(worse, better, truth)
    # Background 4 of 6, cat 1 of 2, cup 1 of 1: ignored pixels are missed.
    assert found.first == pytest.approx((4 / 6 + 1 / 2 + 1) / 3)
    assert found.second == 1
    assert 0 < found.low <= 1 - found.first <= found.high
    assert difference(worse, better, truth, min_pixels=2).first == pytest.approx((4 / 6 + 1 / 2) / 2)
    same = difference(better, better, truth)
    assert (same.low, same.high) == (0, 0)
    assert str(difference(better, worse, truth)).startswith("100.0% and 72.2%: -27.8 points, 95 % of the draws from ")


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    truth, other = write(tmp_path / "truth", a=[3, 0]), write(tmp_path / "other", b=[3, 0])
    with pytest.raises(ValueError, match="expected label maps of the same photos in"):
        difference(other, other, truth)
