import json
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest

from models.data.mask_folder import open_mask_folder
from models.exports.label_studio import _brush_rle, write_label_studio
from tests.helpers.export_folder import CLASSES, label_maps, make_folder, photo, reader


@pytest.fixture
def brush() -> ModuleType:
    return reader("label_studio_converter.brush")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    masks = open_mask_folder(*make_folder(tmp_path))
    (tmp_path / "tasks").mkdir()
    write_label_studio(masks.masked_images(), masks.classes, tmp_path / "tasks", image_prefix="s3://b/")
    return tmp_path / "tasks"


def test_the_converter_reads_the_same_pixels(brush: ModuleType, exported: Path) -> None:
    tasks = json.loads((exported / "tasks_0001.json").read_text())
    kept = label_maps()
    assert len(tasks) == len(kept)
    for task in tasks:
        found = kept[unquote(task["data"]["image"]).removeprefix("s3://b/")]
        rebuilt = np.zeros(found.shape, dtype=np.uint8)
        for region in task["predictions"][0]["result"]:
            flat = {**region, **region["value"]}
            ((name, mask),) = brush.decode_from_annotation("mask", [flat]).items()
            assert set(np.unique(mask)) <= {0, 255}
            label = name.removeprefix("mask-").removesuffix("-0")
            rebuilt[mask > 0] = 255 if label == "ignored" else CLASSES.classes[CLASSES.channel(label)].index
        assert np.array_equal(rebuilt, found)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 5), (13, 17), (130, 131), (300, 400)])
@pytest.mark.parametrize("density", [0, 0.002, 0.3, 1])
def test_strokes_are_exact(brush: ModuleType, size: tuple[int, int], density: float) -> None:
    mask = np.random.default_rng(0).random(size) < density
    decoded = brush.decode_rle(_brush_rle(mask)).reshape(*size, 4)
    assert np.array_equal(decoded, np.repeat(255 * mask[..., None], 4, axis=-1))


def test_strokes_are_those_of_the_converter(brush: ModuleType) -> None:
    mask = np.random.default_rng(0).random((9, 7)) < 0.5
    theirs = brush.mask2rle(mask.astype(np.uint8) * 255)
    assert _brush_rle(mask) == theirs[: len(_brush_rle(mask))]  # theirs may end in an empty byte


def test_predictions_name_their_model_and_doubt(exported: Path) -> None:
    tasks = json.loads((exported / "tasks_0001.json").read_text())
    predictions = {task["data"]["image"]: task["predictions"][0] for task in tasks}
    assert predictions["s3://b/flat.jpg"]["model_version"] == "tiny 1"
    assert predictions["s3://b/flat.jpg"]["score"] == 0.6
    assert predictions["s3://b/picture.png"] == {"model_version": "tiny 1", "result": []}
    assert "s3://b/gro%C3%9Fe%20Katze.jpg" in predictions


def test_the_interface_has_every_label_and_the_regions_names(exported: Path) -> None:
    view = ElementTree.parse(exported / "interface.xml").getroot()
    brushes = view.find("BrushLabels")
    assert brushes is not None
    assert [each.get("value") for each in brushes] == [*CLASSES.names, "ignored"]
    region = json.loads((exported / "tasks_0001.json").read_text())[0]["predictions"][0]["result"][0]
    assert region["from_name"] == brushes.get("name")
    image = view.find("Image")
    assert image is not None
    assert region["to_name"] == brushes.get("toName") == image.get("name")
    assert image.get("value") == "$image"


def test_a_thousand_photos_a_file(tmp_path: Path) -> None:
    found = np.array([[0, 3]], dtype=np.uint8)
    photos = (photo(f"{number}.jpg", found) for number in range(1001))
    write_label_studio(photos, CLASSES, tmp_path, image_prefix="")
    counts = [len(json.loads(path.read_text())) for path in sorted(tmp_path.glob("tasks_*.json"))]
    assert counts == [1000, 1]
