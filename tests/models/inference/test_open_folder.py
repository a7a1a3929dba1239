"""Open labels on the command line: one photo, and a folder whose masks are decided anew and exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from models.cli import app
from models.data.classes import read_class_list
from models.exports.coco import RLE_FILE

ROWS = "image,labels\nphoto0.jpg,zebra;bowl\nphoto1.jpg,mug\nphoto2.jpg,Fire-Truck;zebra\n"


def semples(*arguments: object) -> Result:
    """The command in this process, which has loaded torch already."""
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    path.write_text(ROWS)
    return path


@pytest.fixture(scope="module")
def folder(
    labels: Path, tiny_data: Path, tiny_open_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Masks of three photos, with scores."""
    output = tmp_path_factory.mktemp("open") / "out"
    arguments = ("--images", tiny_data / "images", "--labels", labels, "--output", output)
    made = semples(
        "make-pseudo-masks", *arguments, "--bundle", tiny_open_bundle, "--vocabulary", "open",
        "--refine", "none", "--save-scores", "--background-threshold", 0.3,
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "3 masks made, 0 kept, 0 failed" in made.stdout
    return output


def test_one_photo(tiny_data: Path, tiny_open_bundle: Path, tmp_path: Path) -> None:
    photo = tiny_data / "images" / "photo1.jpg"
    done = semples(
        "predict", photo, "--labels", "zebra,mug", "--output", tmp_path, "--vocabulary", "open",
        "--bundle", tiny_open_bundle, "--refine", "none",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "zebra (zero-shot): " in done.stdout
    record = json.loads((tmp_path / "photo1.json").read_text())
    shown = [(each["index"], each["name"], each["zero_shot"]) for each in record["classes"]]
    assert shown == [(7, "cup", False), (10, "zebra", True)]
    with Image.open(tmp_path / "photo1.png") as mask:
        text = mask.info
    assert (text["Labels"], text["Zero-shot"]) == ("cup, zebra", "zebra")


def test_closed_bundles_and_closed_vocabularies_refuse_at_once(
    tiny_data: Path, tiny_bundle: Path, tiny_open_bundle: Path, labels: Path, tmp_path: Path
) -> None:
    photo = (tiny_data / "images" / "photo1.jpg", "--labels", "zebra", "--output", tmp_path)
    closed = semples("predict", *photo, "--bundle", tiny_bundle, "--vocabulary", "open")
    assert "expected a bundle with an open vocabulary, got 'tiny': it holds no" in str(
        closed.exception
    )
    unasked = semples("predict", *photo, "--bundle", tiny_open_bundle)
    assert "expected a known label, got 'zebra'" in str(unasked.exception)
    arguments = ("--images", tiny_data / "images", "--labels", labels, "--output", tmp_path / "out")
    many = semples("make-pseudo-masks", *arguments, "--bundle", tiny_bundle, "--vocabulary", "open")
    assert "expected a bundle with an open vocabulary" in str(many.exception)
    assert not (tmp_path / "out").exists()


def test_a_folder_has_one_list_of_classes(folder: Path) -> None:
    classes = read_class_list(folder / "classes.txt")
    assert classes.names == ("bowl", "cat", "cup", "dining table", "fire truck", "zebra")
    assert [each.index for each in classes.classes] == [3, 4, 7, 9, 10, 11]
    found = {
        path.stem: set(np.unique(np.asarray(Image.open(path))).tolist())
        for path in (folder / "masks").iterdir()
    }
    assert found["photo0"] <= {0, 3, 11}
    assert found["photo2"] <= {0, 10, 11}
    assert 11 in found["photo0"] | found["photo2"]
    assert json.loads((folder / "settings.json").read_text())["zero_shot"] == [
        "fire truck",
        "zebra",
    ]


def test_other_open_labels_would_change_the_numbers(
    folder: Path, tiny_data: Path, tiny_open_bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "labels.csv"
    other.write_text(ROWS + "photo3.jpg,giraffe\n")
    arguments = ("--images", tiny_data / "images", "--labels", other, "--output", folder)
    again = semples(
        "make-pseudo-masks", *arguments, "--bundle", tiny_open_bundle, "--vocabulary", "open",
        "--refine", "none", "--save-scores", "--background-threshold", 0.3,
    )  # fmt: skip
    assert "got zero_shot.1: 'zebra' before, 'giraffe' now" in str(again.exception)


def test_masks_are_decided_anew_byte_for_byte(
    folder: Path, labels: Path, tiny_data: Path, tiny_open_bundle: Path, tmp_path: Path
) -> None:
    options = ("--bundle", tiny_open_bundle, "--background-threshold", 0.5)
    anew = semples("rethreshold", folder, "--output", tmp_path / "anew", *options)
    assert anew.exit_code == 0, anew.output
    arguments = ("--images", tiny_data / "images", "--labels", labels, "--refine", "none")
    fresh = semples(
        "make-pseudo-masks", *arguments, "--output", tmp_path / "fresh", *options,
        "--vocabulary", "open",
    )  # fmt: skip
    assert fresh.exit_code == 0, fresh.output
    for name in ("classes.txt", *(f"masks/photo{number}.png" for number in range(3))):
        assert (tmp_path / "anew" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    assert (tmp_path / "anew" / "masks" / "photo0.png").read_bytes() != (
        folder / "masks" / "photo0.png"
    ).read_bytes()


def test_exports_name_open_classes(folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    done = semples(
        "export", folder, "--images", tiny_data / "images", "--format", "coco",
        "--output", tmp_path / "coco",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "coco" / RLE_FILE).read_text())
    names = {each["id"]: each["name"] for each in content["categories"]}
    assert (names[10], names[11]) == ("fire truck", "zebra")
    assert {each["category_id"] for each in content["annotations"]} & {10, 11}
