"""What other people's programs read from our COCO files and CVAT zips: odd names, holes and single pixels, exact.

pycocotools and datumaro are in the test environment (``tests/readers.txt``). FiftyOne needs packages of its own, in an
environment whose interpreter FIFTYONE_PYTHON names; ``make fiftyone`` makes it and runs this file.
"""

import json
import os
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from models.exports.coco import POLYGON_FILE, RLE_FILE, write_coco
from models.exports.cvat import write_cvat
from tests.helpers.export_folder import CLASSES, INDICES, photo, reader

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = [  # no backslash: datumaro and FiftyOne take it for a separator
    "plain.jpg",
    "one/cat.jpg",
    "two/cat.jpg",  # the same stem in another folder
    "NFC/caf\u00e9.jpg",
    "NFD/cafe\u0301 au lait.jpg",
    "a b/two  words.jpg",
    "odd/#1 100% ?a=1&b=%20.jpg",
    'odd/it\'s "quoted" <b>.jpg',
    "odd/semi;colon, comma [1].jpg",
    "漢字/猫 🐈.jpg",
    "кошка.jpg",
    "عربي.jpg",
    "dots.in.the.name.jpg",
    f"{'long' * 60}.jpg",
]
FIFTYONE = """
import json, sys
import numpy
from fiftyone.utils.coco import COCODetectionDatasetImporter

_, images, indices, target, *files = sys.argv
indices = json.loads(indices)
for file, labels_path in enumerate(files):
    importer = COCODetectionDatasetImporter(data_path=images, labels_path=labels_path, label_types="segmentations")
    maps, names = {}, {}
    with importer:
        for number, (path, metadata, labels) in enumerate(importer):
            label_map = numpy.zeros((metadata.height, metadata.width), dtype=numpy.uint8)
            found = labels["segmentations"] if isinstance(labels, dict) else labels
            for each in found.detections if found else ():
                left, top = round(each.bounding_box[0] * metadata.width), round(each.bounding_box[1] * metadata.height)
                rows, columns = each.mask.shape
                label_map[top : top + rows, left : left + columns][each.mask > 0] = indices[each.label]
            names[f"map{number}"], maps[f"map{number}"] = path, label_map
    numpy.savez(f"{target}/{file}.npz", names=json.dumps(names), **maps)
"""


def label_map(seed: int) -> NDArray[np.uint8]:
    """Single pixels, pixels that touch at corners alone, rings in rings, and whole sides, of three classes."""
    random = np.random.default_rng(seed)
    found = np.zeros((24 + seed, 31), dtype=np.uint8)
    found[2:17, 3:20] = 3
    found[4:15, 5:18] = 0
    found[6:13, 7:16] = 3
    found[8, 9] = found[9, 10] = 0
    found[0, 0] = 4
    found[-1, :] = 4
    found[19:22, 20:23] = np.eye(3, dtype=np.uint8) * 9
    found[2:12, 22:30] = np.where(random.random((10, 8)) < 0.4, 9, 0)
    found[18, 2:5] = 255
    return found


MAPS = {name: label_map(seed) for seed, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of photos, COCO files and an unpacked CVAT zip."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "annotations").mkdir()
    for name, found in MAPS.items():
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", found.shape[::-1]).save(path)
    write_coco((photo(name, found) for name, found in MAPS.items()), CLASSES, folder / "annotations")
    write_cvat((photo(name, found) for name, found in MAPS.items()), CLASSES, folder)
    with zipfile.ZipFile(folder / "annotations.zip") as archive:
        archive.extractall(folder / "cvat")
    return folder


def check(found: Mapping[str, NDArray[np.uint8]], *, ignored: bool = False) -> None:
    """Compare label maps by name with ours; programs that do not know ignored pixels have background there."""
    assert sorted(found) == sorted(MAPS)
    for name, pixels in found.items():
        kept = MAPS[name]
        assert np.array_equal(pixels, kept if ignored else np.where(kept == 255, 0, kept)), name


@pytest.mark.parametrize("file", [RLE_FILE, POLYGON_FILE])
def test_pycocotools(file: str, place: Path) -> None:
    coco = COCO(place / "annotations" / file)
    found = {}
    for image in coco.loadImgs(coco.getImgIds()):
        pixels = np.zeros((image["height"], image["width"]), dtype=np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            pixels[coco.annToMask(annotation).astype(bool)] = annotation["category_id"]
        pixels[coco_mask.decode(image["ignored"]).astype(bool)] = 255
        found[image["file_name"]] = pixels
    check(found, ignored=True)


@pytest.mark.parametrize("file", [RLE_FILE, POLYGON_FILE])
def test_datumaro_reads_coco(file: str, place: Path, tmp_path: Path) -> None:
    datumaro = reader("datumaro")
    (tmp_path / "images").symlink_to(place / "images")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_default.json").write_bytes((place / "annotations" / file).read_bytes())
    dataset = datumaro.Dataset.import_from(str(tmp_path), "coco_instances")
    names = [each.name for each in dataset.categories()[datumaro.AnnotationType.label]]
    found = {}
    for item in dataset:
        pixels = np.zeros(item.media.size, dtype=np.uint8)
        for annotation in item.annotations:
            if isinstance(annotation, datumaro.Polygon):
                polygon = coco_mask.frPyObjects([annotation.points], *pixels.shape)
                pixels[coco_mask.decode(polygon[0]).astype(bool)] = INDICES[names[annotation.label]]
            elif isinstance(annotation, datumaro.Mask):
                pixels[annotation.image.astype(bool)] = INDICES[names[annotation.label]]
        found[f"{item.id}.jpg"] = pixels
    check(found)


def test_datumaro_reads_cvat(place: Path) -> None:
    datumaro = reader("datumaro")
    dataset = datumaro.Dataset.import_from(str(place / "cvat"), "voc_segmentation")
    names = [each.name for each in dataset.categories()[datumaro.AnnotationType.label]]
    found = {}
    for item in dataset:
        [first, *_] = item.annotations
        pixels = np.zeros(first.image.shape, dtype=np.uint8)
        for annotation in item.annotations:
            pixels[annotation.image.astype(bool)] = INDICES[names[annotation.label]]
        found[f"{item.id}.jpg"] = pixels
    check(found, ignored=True)


@pytest.mark.timeout(900)  # it starts a database
def test_fiftyone(place: Path, tmp_path: Path) -> None:
    python = os.environ.get("FIFTYONE_PYTHON")
    if not python:
        pytest.skip("FIFTYONE_PYTHON names no interpreter with fiftyone, see 'make fiftyone'")
    images, files = place / "images", [place / "annotations" / RLE_FILE, place / "annotations" / POLYGON_FILE]
    arguments = [images, json.dumps(INDICES), tmp_path, *files]
    environment = {**os.environ, "HOME": str(tmp_path), "FIFTYONE_DO_NOT_TRACK": "1"}
    done = subprocess.run(
        [python, "-c", FIFTYONE, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for number in range(len(files)):
        with np.load(tmp_path / f"{number}.npz") as stored:
            names = json.loads(str(stored["names"]))
            check({Path(path).relative_to(images).as_posix(): stored[key] for key, path in names.items()})
