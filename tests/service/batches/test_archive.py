"""A batch's archives read back by the formats' own libraries, pixel by pixel as the photos' masks."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torchvision.datasets import VOCSegmentation

from models.exports.coco import POLYGON_FILE, RLE_FILE
from tests.helpers.batch_zips import accepted, ended, items, janitor, packed, photo, rows
from tests.helpers.export_folder import reader
from tests.helpers.service_doubles import NAMES
from tests.helpers.service_fixtures import Place, WorkerProcess

# pycocotools' decoder itself: its arrays do not take numpy 2's copy argument.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LabelMap = NDArray[np.uint8]


def turned() -> bytes:
    """A JPEG that lies on its side: 24 x 36 pixels."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((36, 24), 50).convert("RGB").save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def batch(place: Place, running_worker: WorkerProcess, api: httpx.Client) -> str:
    """A batch with photos in folders, one on its side, ignored pixels, and one that failed."""
    running_worker.ensure()
    labels = {
        "a.png": "cat;bowl",
        "große/Katze.jpg": "cat",
        "w.webp": "dining_table",
        "no.png": "cat",
    }
    files = {"a.png": photo(), "große/Katze.jpg": turned(), "w.webp": photo(width=50)}
    archive = packed({"labels.csv": rows(labels), **files, "no.png": b"no picture"})
    with janitor(place):
        path = accepted(api, archive, min_confidence="0.65")
        assert ended(api, path)["counts"]["finished"] == 3
    return path


@pytest.fixture(scope="module")
def masks(api: httpx.Client, batch: str) -> dict[str, LabelMap]:
    """The jobs' own masks by photo."""
    found = {}
    for each in items(api, batch, status="finished"):
        content = api.get(f"/jobs/{each['job']}/mask.png").content
        found[each["image"]] = np.array(Image.open(io.BytesIO(content)))
    assert any((mask == 255).any() for mask in found.values())
    assert found["große/Katze.jpg"].shape == (36, 24)
    return found


def unpack(api: httpx.Client, batch: str, form: str, folder: Path) -> dict[str, Any]:
    """Fetch and unpack an archive; what it says of itself."""
    with api.stream("GET", f"{batch}/archive.zip", params={"format": form}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/zip"
        content = answer.read()
    assert len(content) == int(answer.headers["content-length"])
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    failed = json.loads((folder / "failed.json").read_text(encoding="utf-8"))
    assert [(each["number"], each["image"], each["problem"]["code"]) for each in failed] == [
        (4, "no.png", "image_unreadable")
    ]
    about: dict[str, Any] = json.loads((folder / "batch.json").read_text(encoding="utf-8"))
    assert (about["batch"], about["format"]) == (batch.rpartition("/")[2], form)
    assert about["model"] == {"name": "double", "version": "0123456789ab"}
    assert about["options"]["min_confidence"] == 0.65
    assert about["software"].startswith("semples ")
    return about


def by_stem(masks: dict[str, LabelMap]) -> dict[str, LabelMap]:
    return {Path(name).stem: mask for name, mask in masks.items()}


def test_voc(api: httpx.Client, batch: str, masks: dict[str, LabelMap], tmp_path: Path) -> None:
    unpack(api, batch, "voc", tmp_path / "VOCdevkit" / "VOC2012")
    dataset = VOCSegmentation(str(tmp_path), image_set="train")
    assert sorted(Path(each).stem for each in dataset.images) == sorted(by_stem(masks))
    for path, (image, mask) in zip(dataset.masks, dataset, strict=True):
        assert np.array_equal(np.array(mask), by_stem(masks)[Path(path).stem])
        assert mask.info["Model"] == "double 0123456789ab"
        assert image.size == mask.size
        assert 0x0112 not in image.getexif()


def test_coco(api: httpx.Client, batch: str, masks: dict[str, LabelMap], tmp_path: Path) -> None:
    unpack(api, batch, "coco", tmp_path)
    for name in (RLE_FILE, POLYGON_FILE):
        coco = COCO(tmp_path / name)
        assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == list(NAMES)
        images = coco.loadImgs(coco.getImgIds())
        assert sorted(each["file_name"] for each in images) == sorted(masks)
        for image in images:
            rebuilt = np.zeros((image["height"], image["width"]), dtype=np.uint8)
            for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
                rebuilt[coco.annToMask(annotation).astype(bool)] = annotation["category_id"]
                assert 0.65 < annotation["score"] <= 1
            if "ignored" in image:
                rebuilt[coco_mask.decode(image["ignored"]).astype(bool)] = 255
            assert np.array_equal(rebuilt, masks[image["file_name"]])


def test_cvat(api: httpx.Client, batch: str, masks: dict[str, LabelMap], tmp_path: Path) -> None:
    datumaro = reader("datumaro")
    unpack(api, batch, "cvat", tmp_path)
    with zipfile.ZipFile(tmp_path / "annotations.zip") as archive:
        archive.extractall(tmp_path / "unzipped")
    dataset = datumaro.Dataset.import_from(str(tmp_path / "unzipped"), "voc_segmentation")
    names = [each.name for each in dataset.categories()[datumaro.AnnotationType.label]]
    indices = {name: index for index, name in enumerate(NAMES, start=1)} | {"ignored": 255}
    kept = {str(Path(name).with_suffix("")): mask for name, mask in masks.items()}
    assert sorted(item.id for item in dataset) == sorted(kept)
    for item in dataset:
        rebuilt = np.zeros(kept[item.id].shape, dtype=np.uint8)
        for annotation in item.annotations:
            rebuilt[annotation.image.astype(bool)] = indices[names[annotation.label]]
        assert np.array_equal(rebuilt, kept[item.id])


def test_the_same_again_is_the_same_zip(api: httpx.Client, batch: str) -> None:
    one, two = (api.get(f"{batch}/archive.zip").content for _ in range(2))
    assert one == two


def test_masks_that_are_gone_are_listed(
    api: httpx.Client, place: Place, batch: str, masks: dict[str, LabelMap]
) -> None:
    job = items(api, batch, status="finished")[0]["job"]
    key = place.queue.fetch_job(job).return_value()["blobs"]["mask"]
    content = place.blobs.get(key)
    place.blobs.delete(key)
    with zipfile.ZipFile(io.BytesIO(api.get(f"{batch}/archive.zip").content)) as archive:
        failed = json.loads(archive.read("failed.json"))
        assert [each["image"] for each in failed] == ["no.png", "a.png"]
        assert len([each for each in archive.namelist() if each.startswith("Seg")]) == 2
    place.blobs.put("results", content)
    assert len(masks) == 3


def test_no_such_format(api: httpx.Client, batch: str) -> None:
    answer = api.get(f"{batch}/archive.zip", params={"format": "yolo"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "format"
