"""Polygons against pycocotools' own rasterizer."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from models.exports.coco import outline

# pycocotools' decoder itself: its arrays do not take numpy 2's copy argument.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def check(mask: NDArray[np.bool_]) -> None:
    """The polygons' union is the mask, they do not overlap, and none touches itself."""
    polygons = outline(mask)
    if not mask.any():
        assert polygons == []
        return
    parts = coco_mask.frPyObjects(polygons, *mask.shape)
    assert np.array_equal(coco_mask.decode(coco_mask.merge(parts)), mask)
    assert sum(int(coco_mask.area(each)) for each in parts) == mask.sum()
    for polygon in polygons:
        corners = list(zip(polygon[0::2], polygon[1::2], strict=True))
        assert len(set(corners)) == len(corners) >= 4
        following = corners[1:] + corners[:1]
        twice = [x * v - u * y for (x, y), (u, v) in zip(corners, following, strict=True)]
        assert sum(twice) > 0  # clockwise, as rows grow downwards


@pytest.mark.parametrize("size", [(3, 4), (1, 6), (6, 1)])
def test_every_small_mask_is_exact(size: tuple[int, int]) -> None:
    for bits in itertools.product([False, True], repeat=size[0] * size[1]):
        check(np.array(bits).reshape(size))


@pytest.mark.parametrize("density", [0.1, 0.5, 0.7, 0.95])
def test_noise_is_exact(density: float) -> None:
    random = np.random.default_rng(0)
    for height, width in random.integers(1, 70, (20, 2)):
        check(random.random((height, width)) < density)


def test_a_rectangle_is_its_four_corners() -> None:
    mask = np.zeros((10, 20), dtype=bool)
    mask[2:5, 7:19] = True
    assert outline(mask) == [[7, 2, 19, 2, 19, 5, 7, 5]]


def test_a_ring_is_cut_in_two_and_an_island_stays() -> None:
    mask = np.ones((9, 9), dtype=bool)
    mask[2:7, 2:7] = False
    mask[4, 4] = True
    check(mask)
    assert len(outline(mask)) == 3


def test_many_holes_in_a_large_mask() -> None:
    mask = np.ones((300, 400), dtype=bool)
    mask[::7, ::5] = False
    check(mask)
