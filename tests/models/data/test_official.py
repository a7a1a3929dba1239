from pathlib import Path

import pytest

from benchmarks.data_lists import coco_lists, read_rows, voc_lists
from models.data.classes import read_class_list
from models.data.coco import COCO_CLASSES, COCO_SPLITS, _coco_list
from models.data.labels import read_label_rows
from models.data.official import VOC_ARCHIVE, Listed, evenly_spaced, listed_samples, official_list
from models.data.voc import VOC_CLASSES, VOC_SPLITS, voc_list
from tests.helpers.paths import ROOT

LISTS = ROOT / "models" / "data" / "lists"


@pytest.mark.parametrize("split", VOC_SPLITS)
def test_voc_is_the_official_list(shared: Path, split: str) -> None:
    folder = shared / "data" / "voc2012"
    labels = read_rows(folder / "image_labels.txt")
    stems = list(read_rows(folder / f"{split}_id.txt"))
    assert voc_list(split) == tuple(Listed(stem, tuple(labels[stem])) for stem in stems)


@pytest.mark.parametrize("split", COCO_SPLITS)
def test_coco_is_the_official_list(shared: Path, split: str) -> None:
    rows = read_rows(shared / "data" / "coco2014" / f"{split}.txt.gz")
    assert _coco_list(split) == tuple(Listed(stem, tuple(each)) for stem, each in rows.items())


def test_the_shipped_files_are_what_the_program_makes(shared: Path) -> None:
    assert (LISTS / "voc2012.txt.xz").read_bytes() == voc_lists(shared / "data" / "voc2012")
    assert (LISTS / "coco2014.txt.xz").read_bytes() == coco_lists(shared / "data" / "coco2014")


def test_classes_are_the_official_ones(shared: Path) -> None:
    """Against the photos of coco100, which are COCO 2014's too, and whose labels are names."""
    folder = shared / "data" / "coco100"
    known = {each.index: each.name for each in COCO_CLASSES.classes}
    assert len(known) == 80
    for each in read_class_list(folder / "classes.txt").classes:
        assert known[each.index] == each.name
    listed = {
        f"{each.stem[-12:]}.jpg": {COCO_CLASSES.names[channel] for channel in each.channels}
        for split in COCO_SPLITS
        for each in _coco_list(split)
    }
    rows = read_label_rows(folder / "labels.csv")
    alike = [name for name, labels in rows.items() if labels and set(labels) == listed[name]]
    assert len(alike) >= 90  # of 98; the annotations of 2017, which these are, have mended a few


def test_lists_hang_together() -> None:
    aug, train, val = (set(voc_list(split)) for split in ("train_aug", "train", "val"))
    assert (len(aug), len(train), len(val)) == (10_582, 1_464, 1_449)
    assert train < aug
    assert not aug & val
    assert len(VOC_CLASSES) == 20
    assert [len(_coco_list(split)) for split in COCO_SPLITS] == [82_081, 40_137]
    assert {channel for each in _coco_list("val") for channel in each.channels} == set(range(80))
    assert {channel for each in val for channel in each.channels} == set(range(20))
    assert _coco_list("train")[0].file_name == "COCO_train2014_000000000009.jpg"


def test_unknown_splits_name_the_known() -> None:
    with pytest.raises(ValueError, match="expected one of train_aug, train, val, got 'test'"):
        voc_list("test")
    with pytest.raises(ValueError, match="expected one of train, val, got ''"):
        official_list("coco2014", "", str)


def test_a_few_are_spread_over_all() -> None:
    assert evenly_spaced(range(10), 3) == [0, 3, 6]
    for count in (3, 9, None):
        assert evenly_spaced(range(3), count) == [0, 1, 2]
    with pytest.raises(ValueError, match="expected at least one, got 0"):
        evenly_spaced(range(3), 0)


def test_missing_and_empty_photos_are_named_and_counted(tmp_path: Path) -> None:
    listed = [Listed(f"p{number}", (0,)) for number in range(6)]
    (tmp_path / "p0.jpg").write_bytes(b"x")
    (tmp_path / "p1.jpg").touch()
    (tmp_path / "p2.jpg").symlink_to(tmp_path / "nowhere")
    message = r"expected 6 listed photos in .*, got 1: missing or empty are p1\.jpg, p2\.jpg, p3\.jpg, … \(5 in all\)"
    with pytest.raises(ValueError, match=message + ".*unpack VOCtrainval_11-May-2012.tar.* again"):
        listed_samples(tmp_path, listed, VOC_ARCHIVE)
