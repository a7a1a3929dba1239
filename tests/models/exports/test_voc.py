from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import VOCSegmentation

from models.data.classes import ClassInfo, ClassList, read_class_list
from models.data.images import read_image
from models.data.mask_folder import open_mask_folder
from models.exports.voc import write_voc
from tests.helpers.export_folder import CLASSES, INDICES, TURNED, label_maps, make_folder, photo, reader


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    masks = open_mask_folder(*make_folder(tmp_path))
    output = tmp_path / "VOCdevkit" / "VOC2012"
    output.mkdir(parents=True)
    summary = write_voc(masks.masked_images(), masks.classes, output)
    assert summary == "4 photos, 2 of them encoded anew as upright JPEG"
    return output


@pytest.mark.parametrize("subset", ["train", "trainval"])
def test_torchvision_reads_the_same_pixels(exported: Path, subset: str) -> None:
    dataset = VOCSegmentation(str(exported.parents[1]), image_set=subset)
    kept = {Path(name).stem: found for name, found in label_maps().items()}
    assert sorted(Path(each).stem for each in dataset.images) == sorted(kept)
    for path, (image, mask) in zip(dataset.masks, dataset, strict=True):
        assert mask.mode == "P"
        assert mask.info["Model"] == "tiny 1"
        assert np.array_equal(np.array(mask), kept[Path(path).stem])
        assert image.size == mask.size


def test_datumaro_reads_the_same_pixels(exported: Path) -> None:
    datumaro = reader("datumaro")
    dataset = datumaro.Dataset.import_from(str(exported), "voc_segmentation")
    names = [each.name for each in dataset.categories()[datumaro.AnnotationType.label]]
    assert names == ["background", *CLASSES.names, "ignored"]
    kept = {Path(name).stem: found for name, found in label_maps().items()}
    assert len(dataset) == 2 * len(kept)  # train and trainval
    for item in dataset:
        rebuilt = np.full(kept[item.id].shape, 1, dtype=np.uint8)
        for annotation in item.annotations:
            rebuilt[annotation.image.astype(bool)] = INDICES[names[annotation.label]]
        assert np.array_equal(rebuilt, kept[item.id])


def test_photos_are_linked_or_encoded_upright(exported: Path, tmp_path: Path) -> None:
    flat = exported / "JPEGImages" / "flat.jpg"
    assert flat.samefile(tmp_path / "images" / "flat.jpg")
    turned = read_image((tmp_path / "images" / TURNED).read_bytes()).pixels
    with Image.open(exported / "JPEGImages" / TURNED) as picture:
        assert 0x0112 not in picture.getexif()
        difference = np.array(picture).astype(int) - turned
    assert np.abs(difference).mean() < 8  # noise is the worst case for JPEG
    assert (exported / "JPEGImages" / "picture.jpg").is_file()
    assert read_class_list(exported / "classes.txt") == CLASSES


@pytest.mark.parametrize("name", ["a:b", "a,b", "Ignored", "background", "#1"])
def test_names_that_the_label_map_cannot_hold(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected (no class|class names)"):
        write_voc([], ClassList((ClassInfo(1, name),)), tmp_path)


@pytest.mark.parametrize("name", ["#1.jpg", " 1.jpg"])
def test_stems_that_a_list_cannot_hold(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / name)
    found = photo(str(tmp_path / name), np.zeros((4, 4), dtype=np.uint8))
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="expected file names of one line that neither begin with #"):
        write_voc([found], CLASSES, tmp_path / "out")
