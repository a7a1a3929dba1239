import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from models.data.mask_folder import open_mask_folder
from models.exports.coco import POLYGON_FILE, RLE_FILE, outline, write_coco
from tests.helpers.export_folder import CLASSES, label_maps, make_folder

# pycocotools' decoder itself: its arrays do not take numpy 2's copy argument.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    masks = open_mask_folder(*make_folder(tmp_path))
    output = tmp_path / "coco"
    output.mkdir()
    summary = write_coco(masks.masked_images(), masks.classes, output)
    assert summary.startswith("4 photos, 9 annotations")
    return output


@pytest.mark.parametrize("name", [RLE_FILE, POLYGON_FILE])
def test_pycocotools_reads_the_same_pixels(exported: Path, name: str) -> None:
    coco = COCO(exported / name)
    kept = label_maps()
    assert sorted(each["file_name"] for each in coco.loadImgs(coco.getImgIds())) == sorted(kept)
    for image in coco.loadImgs(coco.getImgIds()):
        rebuilt = np.zeros((image["height"], image["width"]), dtype=np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            mask = coco.annToMask(annotation).astype(bool)
            assert annotation["area"] == mask.sum()
            assert (rebuilt[mask] == 0).all()
            rebuilt[mask] = annotation["category_id"]
        if "ignored" in image:
            rebuilt[coco_mask.decode(image["ignored"]).astype(bool)] = 255
        assert np.array_equal(rebuilt, kept[image["file_name"]])


def test_each_file_has_its_own_kind_of_segmentation(exported: Path) -> None:
    by_rle = json.loads((exported / RLE_FILE).read_text())
    by_polygons = json.loads((exported / POLYGON_FILE).read_text())
    assert [(each["id"], each["name"]) for each in by_rle["categories"]] == [
        (each.index, each.name) for each in CLASSES.classes
    ]
    assert [each["id"] for each in by_rle["annotations"]] == list(range(1, 10))
    for one, other in zip(by_rle["annotations"], by_polygons["annotations"], strict=True):
        assert isinstance(one.pop("segmentation")["counts"], str)
        assert isinstance(other.pop("segmentation")[0][0], int)
        assert one == other
        assert one["iscrowd"] == 0
        assert one["score"] == {3: 0.8, 4: 0.6, 9: 0.9}[one["category_id"]]
    bowl = next(each for each in by_rle["annotations"] if each["category_id"] == 3)
    assert bowl["bbox"] == [3, 2, 17, 13]


def test_nothing_but_background_is_a_valid_file(tmp_path: Path) -> None:
    write_coco([], CLASSES, tmp_path)
    for name in (RLE_FILE, POLYGON_FILE):
        assert COCO(tmp_path / name).getImgIds() == []


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
