import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.data.classes import read_class_list
from models.data.coco import COCO_CLASSES, _coco_list, read_coco
from models.data.labels import read_folder
from models.data.official import evenly_spaced
from models.prepare import draw_instances
from tests.helpers.command import Done, semples
from tests.helpers.downloads import SIZE, annotation, compressed, crowd, make_coco, square, write_json

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PHOTOS = 3  # of each list


def prepare(root: Path, out: Path, *, code: int = 0) -> Done:
    done = semples("prepare", "coco", root, "--output", out, "--photos", PHOTOS)
    assert done.returncode == code, done.stderr
    return done


def test_end_to_end(tmp_path: Path) -> None:
    root, out = make_coco(tmp_path / "coco", photos=PHOTOS), tmp_path / "out"
    done = prepare(root, out)
    assert f"{root / 'train2014'}: 3 photos, 3 of them read whole" in done.stdout
    assert f"--images {root / 'train2014'} --labels {out / 'labels.csv'}" in done.stdout
    assert "semples:" not in done.stderr

    assert read_class_list(out / "classes.txt") == COCO_CLASSES
    for name, split in (("labels", "train"), ("labels_val", "val")):
        samples = read_folder(root / f"{split}2014", out / f"{name}.csv", COCO_CLASSES)
        assert samples == read_coco(root, split, photos=PHOTOS)
        for sample in samples:
            with Image.open(out / "ground_truth" / split / f"{sample.stem}.png") as picture:
                drawn = np.array(picture)
            assert drawn.shape == SIZE
            expected = {COCO_CLASSES.classes[channel].index for channel in sample.channels}
            assert set(np.unique(drawn)) == {0} | expected
            assert all((drawn == index).sum() == 20 for index in expected)  # squares of 2 x 10

    (out / "ground_truth" / "val" / f"{samples[0].stem}.png").unlink()
    printed = prepare(root, out).stdout
    assert "train: all 3 label maps kept" in printed
    assert "val: 1 label maps written, 2 kept" in printed


def test_json_is_not_read_where_nothing_is_left_to_draw(tmp_path: Path) -> None:
    root, out = make_coco(tmp_path / "coco", photos=PHOTOS), tmp_path / "out"
    prepare(root, out)
    (root / "annotations" / "instances_train2014.json").write_text("half of it")
    prepare(root, out)


def test_other_labels_than_the_lists_are_noted(tmp_path: Path) -> None:
    root, out = make_coco(tmp_path / "coco", photos=PHOTOS), tmp_path / "out"
    path = root / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][:-1]
    write_json(path, content)
    assert "differ in the labels of 1 photos" in prepare(root, out).stderr
    samples = read_folder(root / "val2014", out / "labels_val.csv", COCO_CLASSES)
    assert samples == read_coco(root, "val", photos=PHOTOS)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        write_json(path, content)

    return edit


def first(**fields: object) -> Callable[[Path], object]:
    return edited(lambda content: content["annotations"][0].update(fields))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def grow(path: Path) -> None:
    Image.new("RGB", (50, 60)).save(path)


VAL = evenly_spaced(_coco_list("val"), PHOTOS)[1].file_name
JSON = "annotations/instances_val2014.json"
CAPTIONS = {"info": {}, "images": [], "licenses": [], "annotations": []}
DAMAGE = {
    "a missing photo": (f"val2014/{VAL}", Path.unlink, f"missing or empty are {VAL} (1 in all); unpack val2014.zip"),
    "a truncated photo": (f"val2014/{VAL}", cut, f"{VAL}: cannot read the image"),
    "a photo of another size": (f"val2014/{VAL}", grow, "got 50 x 60 pixels instead of 40 x 30 in"),
    "no annotations": (JSON, Path.unlink, "got no such file; unpack annotations_trainval2014.zip"),
    "truncated annotations": (JSON, cut, "expected JSON in"),
    "captions": (JSON, lambda path: write_json(path, CAPTIONS), "expected COCO's instances (images, annotations"),
    "keypoints": (JSON, edited(lambda content: content.update(categories=content["categories"][:1], annotations=[])),
                  "expected COCO's 80 categories in"),
    "another split": (JSON, edited(lambda content: content["images"][0].update(file_name="a.jpg")),
                      "expected the listed photos in"),
    "a broken polygon": (JSON, first(segmentation=[1, 2, 3, 4]),
                         "expected polygons in annotation 1, got others"),
    "broken run lengths": (JSON, first(segmentation={"size": [1, 2]}),
                           "expected run lengths of 40 x 30 pixels in annotation 1, got others"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_line_and_exit_code_2(case: str, tmp_path: Path) -> None:
    name, damage, message = DAMAGE[case]
    root = make_coco(tmp_path / "coco", photos=PHOTOS)
    damage(root / name)
    errors = prepare(root, tmp_path / "out", code=2).stderr.splitlines()
    [line] = [each for each in errors if "semples: " in each]
    assert message in line


def test_nothing_there_says_what_to_download(tmp_path: Path) -> None:
    line = prepare(tmp_path, tmp_path / "out", code=2).stderr
    assert f"expected train2014 in {tmp_path}, got none; unpack train2014.zip (from http:" in line


def test_drawing() -> None:
    """By hand: the crowd is at the bottom, the small one on top of the large one, whatever their order."""
    everywhere = np.ones(SIZE, dtype=bool)
    stripe = np.zeros(SIZE, dtype=bool)
    stripe[:, 30:] = True
    annotations = [
        annotation(1, 0, 17, [square(4, 4, 8, 8)]),
        annotation(2, 0, 90, [square(0, 0, 20, 20), square(20, 20, 24, 24)]),
        annotation(3, 0, 1, crowd(everywhere)),
        annotation(4, 0, 5, []),
        annotation(6, 0, 5, [[2, 2, 9, 9]]),
        annotation(5, 0, 44, compressed(stripe)),
    ]
    annotations[-1]["iscrowd"] = 0
    found = draw_instances(annotations, SIZE)
    expected = np.ones(SIZE, dtype=np.uint8)
    expected[:, 30:] = 44
    expected[:20, :20] = expected[20:24, 20:24] = 90
    expected[4:8, 4:8] = 17
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)
    assert np.array_equal(draw_instances(annotations[::-1], SIZE), expected)


def test_nothing_to_draw_is_background() -> None:
    assert not draw_instances([], SIZE).any()
