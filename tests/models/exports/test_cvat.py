import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data.mask_folder import open_mask_folder
from models.exports.cvat import write_cvat
from tests.helpers.export_folder import CLASSES, INDICES, label_maps, make_folder, reader


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    masks = open_mask_folder(*make_folder(tmp_path))
    (tmp_path / "cvat").mkdir()
    write_cvat(masks.masked_images(), masks.classes, tmp_path / "cvat")
    return tmp_path / "cvat"


def test_colors_mean_what_the_label_map_says(exported: Path) -> None:
    kept = {Path(name).stem: found for name, found in label_maps().items()}
    with zipfile.ZipFile(exported / "annotations.zip") as archive:
        assert archive.testzip() is None
        lines = archive.read("labelmap.txt").decode().splitlines()
        assert lines[0] == "# label:color_rgb:parts:actions"
        assert lines[1:3] == ["background:0,0,0::", "bowl:128,128,0::"]
        indices = {
            tuple(map(int, color.split(","))): INDICES[name]
            for name, color, _, _ in (line.split(":") for line in lines[1:])
        }
        stems = archive.read("ImageSets/Segmentation/default.txt").decode().splitlines()
        assert sorted(stems) == sorted(kept)
        for stem, found in kept.items():
            picture = Image.open(io.BytesIO(archive.read(f"SegmentationClass/{stem}.png")))
            assert picture.mode == "RGB"
            pixels = np.array(picture).reshape(-1, 3)
            rebuilt = np.array([indices[tuple(each)] for each in pixels.tolist()])
            assert np.array_equal(rebuilt.reshape(found.shape), found)


def test_datumaro_reads_the_same_pixels_and_no_background(exported: Path, tmp_path: Path) -> None:
    datumaro = reader("datumaro")
    with zipfile.ZipFile(exported / "annotations.zip") as archive:
        archive.extractall(tmp_path / "unzipped")
    dataset = datumaro.Dataset.import_from(str(tmp_path / "unzipped"), "voc_segmentation")
    names = [each.name for each in dataset.categories()[datumaro.AnnotationType.label]]
    kept = {Path(name).stem: found for name, found in label_maps().items()}
    assert len(dataset) == len(kept)
    for item in dataset:
        rebuilt = np.zeros(kept[item.id].shape, dtype=np.uint8)
        for annotation in item.annotations:
            assert names[annotation.label] != "background"
            rebuilt[annotation.image.astype(bool)] = INDICES[names[annotation.label]]
        assert np.array_equal(rebuilt, kept[item.id])


def test_labels_for_the_task(exported: Path) -> None:
    labels = json.loads((exported / "labels.json").read_text())
    assert [each["name"] for each in labels] == [*CLASSES.names, "ignored"]
    assert labels[0] == {"name": "bowl", "color": "#808000", "attributes": []}


def test_equal_masks_give_equal_zips(exported: Path, tmp_path: Path) -> None:
    masks = open_mask_folder(tmp_path / "run", tmp_path / "images")
    (tmp_path / "again").mkdir()
    write_cvat(masks.masked_images(), masks.classes, tmp_path / "again")
    again = (tmp_path / "again" / "annotations.zip").read_bytes()
    assert again == (exported / "annotations.zip").read_bytes()
