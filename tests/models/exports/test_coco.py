"""COCO json read back by pycocotools."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from models.data.mask_folder import open_mask_folder
from models.exports.coco import POLYGON_FILE, RLE_FILE, write_coco
from tests.helpers.export_folder import CLASSES, label_maps, make_folder

# pycocotools' decoder itself: its arrays do not take numpy 2's copy argument.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    masks = open_mask_folder(*make_folder(tmp_path))
    output = tmp_path / "coco"
    output.mkdir()
    said = write_coco(masks.photos(), masks.classes, output)
    assert said.startswith("4 photos, 9 annotations")
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
