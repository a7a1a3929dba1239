"""What every data set must do, asked of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from models.data.classes import ClassList, Sample
from models.data.coco import COCO_CLASSES, read_coco
from models.data.labels import read_folder
from models.data.loaders import Crops, light_augmentation
from models.data.voc import VOC_CLASSES, read_voc
from tests.conftest import CLASSES
from tests.helpers.downloads import make_coco, make_voc, photo


@dataclass(frozen=True)
class DataSet:
    classes: ClassList
    read: Callable[[], Sequence[Sample]]


def folder(root: Path) -> DataSet:
    for name in ("a.jpg", "more/b.jpg", "c.jpg"):
        photo(root / name)
    (root / "labels.csv").write_text("image,labels\na.jpg,cup;cat\nmore/b.jpg,bowl\nc.jpg,\n")
    return DataSet(CLASSES, lambda: read_folder(root, root / "labels.csv", CLASSES))


def voc(root: Path) -> DataSet:
    make_voc(root, photos=3)
    return DataSet(VOC_CLASSES, lambda: read_voc(root, "train_aug", photos=3))


def voc_xml(root: Path) -> DataSet:
    place = make_voc(root, photos=2)
    photos, labels = place / "JPEGImages", place / "Annotations"
    return DataSet(VOC_CLASSES, lambda: read_folder(photos, labels, VOC_CLASSES))


def coco(root: Path) -> DataSet:
    make_coco(root, photos=3)
    return DataSet(COCO_CLASSES, lambda: read_coco(root, "val", photos=3))


def coco_json(root: Path) -> DataSet:
    make_coco(root, photos=3)
    photos, labels = root / "train2014", root / "annotations" / "instances_train2014.json"
    return DataSet(COCO_CLASSES, lambda: read_folder(photos, labels, COCO_CLASSES))


@pytest.fixture(params=[folder, voc, voc_xml, coco, coco_json], ids=lambda make: make.__name__)
def data_set(request: pytest.FixtureRequest, tmp_path: Path) -> DataSet:
    made: DataSet = request.param(tmp_path)
    return made


def test_samples_are_photos_with_channels(data_set: DataSet) -> None:
    samples = data_set.read()
    assert len(samples) >= 2
    assert all(sample.path.is_file() for sample in samples)
    assert len({sample.stem for sample in samples}) == len(samples)
    assert any(sample.channels for sample in samples)
    for sample in samples:
        assert list(sample.channels) == sorted(set(sample.channels))
        assert set(sample.channels) <= set(range(len(data_set.classes)))


def test_reading_is_repeatable(data_set: DataSet) -> None:
    assert list(data_set.read()) == list(data_set.read())


def test_training_takes_them(data_set: DataSet) -> None:
    samples = data_set.read()
    crops = Crops(samples, classes=len(data_set.classes), transform=light_augmentation(32, min_area=1), seed=0)
    image, labels = crops[0]
    assert image.shape == (3, 32, 32)
    assert torch.nonzero(labels)[:, 0].tolist() == list(samples[0].channels)


def test_a_missing_photo_is_named(data_set: DataSet) -> None:
    path = data_set.read()[1].path
    path.unlink()
    with pytest.raises(ValueError, match=rf"expected .*{path.name}"):
        data_set.read()
