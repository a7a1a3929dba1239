"""Odd file names through the commands that make and export masks: each works, or fails alone and is named."""

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.bundle import manifest
from models.bundle.manifest import BundleInfo
from models.cli import predict as predict_commands
from models.data.classes import ClassList
from models.exports import list_line
from models.inference.masks import LabeledImage, MaskOptions, Segmentation, UnlabeledImage, fill_defaults
from models.messages import printable
from tests.helpers.command import semples, semples_ok, semples_refuses
from tests.helpers.export_folder import make_folder
from tests.helpers.odd_names import is_utf8, odd_stems
from tests.helpers.service_doubles import _stripes
from tests.helpers.service_fixtures import png

STEMS = odd_stems()
GOOD = [stem for stem in STEMS if is_utf8(stem)]
_TOO_LONG = [stem for stem in GOOD if len(f"{stem}_overlay.png".encode()) > 255]


_SIZE = {"width": 30, "height": 20}


@cache
def _info() -> BundleInfo:
    return manifest.read_info(manifest.find_bundle("coco-demo"))


class _Stripes:
    """Stands for a predictor: what a name does to files needs no network."""

    def __init__(self, info: BundleInfo) -> None:
        self.info = info

    def options(self, **given: Any) -> MaskOptions:
        return fill_defaults(self.info.mask_options, **given)

    segment_options = options

    def pseudo_mask(
        self, image: Any, labels: Sequence[str], options: MaskOptions, *, classes: ClassList | None = None
    ) -> Segmentation:
        known = classes or self.info.classes
        return _stripes(LabeledImage(image, labels, options), known.resolve(labels), known)

    def segment(self, image: Any, options: MaskOptions) -> Segmentation:
        return _stripes(UnlabeledImage(image, options), self.info.classes.resolve(["cat"]), self.info.classes)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    info = _info()
    monkeypatch.setattr(manifest, "read_info", lambda _: info)
    monkeypatch.setattr(predict_commands, "_load_predictor", lambda *_: _Stripes(info))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, stem in enumerate(STEMS):
        (folder / f"{stem}.jpg").write_bytes(_jpeg(number))
    return folder


def _jpeg(number: int) -> bytes:
    return png(color=(number % 250, 30, 30))  # what a file is, its bytes say


def test_there_are_enough() -> None:
    assert len(STEMS) == len(set(STEMS)) >= 200
    assert len(STEMS) - len(GOOD) >= 5


def test_segment_makes_all_but_those_that_cannot_be(photos: Path, tmp_path: Path) -> None:
    (photos / "._macos.jpg").write_bytes(b"no photo")
    done = semples("segment", photos, "--output", tmp_path)
    bad = {*STEMS} - {*GOOD} | {*_TOO_LONG}
    assert done.returncode == 1
    assert f"{len(STEMS) - len(bad)} photos segmented, {len(bad)} failed" in done.stdout
    assert len(done.stderr.splitlines()) >= len(bad)
    assert all(f"{printable(stem)}.jpg: " in done.stderr for stem in bad)
    assert "macos" not in done.stdout + done.stderr
    assert all((tmp_path / f"{stem}.json").is_file() for stem in STEMS if stem not in bad)
    assert r"caf\xe9.jpg" in done.stderr
    assert not [each for each in done.stdout if not each.isprintable() and each != "\n"]
    assert done.stdout.count("\n") == len(STEMS) - len(bad) + 1


def test_predict_one_by_one(photos: Path, tmp_path: Path) -> None:
    for stem in STEMS:
        done = semples("predict", photos / f"{stem}.jpg", "--labels", "cat", "--output", tmp_path)
        failed = stem not in GOOD or stem in _TOO_LONG
        assert done.returncode == (2 if failed else 0), (stem, done.stderr)
        assert done.stderr.count("\n") == int(failed)
        if not failed:
            assert json.loads((tmp_path / f"{stem}.json").read_text("utf-8"))["image"] == f"{stem}.jpg"
            assert (tmp_path / f"{stem}_overlay.png").is_file()


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = [{"id": number, "file_name": f"{stem}.jpg", **_SIZE} for number, stem in enumerate(STEMS, start=1)]
    marks = [{"id": each["id"], "image_id": each["id"], "category_id": 1} for each in images]
    document = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": [
        {**mark, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0, "segmentation": [[0, 0, 1, 0, 1, 1]]} for mark in marks
    ]}  # fmt: skip
    path = tmp_path_factory.mktemp("labels") / "labels.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def masks(photos: Path, labels: Path, tmp_path: Path) -> Path:
    done = semples(
        "make-pseudo-masks", "--images", photos, "--labels", labels, "--output", tmp_path / "masks", "--save-scores"
    )
    bad = {*STEMS} - {*GOOD}
    assert done.returncode == 1, done.stderr
    assert f"{len(GOOD)} masks made, 0 kept, {len(bad)} failed" in done.stdout
    assert all(f"{printable(stem)}.jpg: " in done.stderr for stem in bad)
    summary = json.loads((tmp_path / "masks" / "summary.json").read_bytes())
    assert {each["image"] for each in summary["failed"]} == {f"{stem}.jpg" for stem in bad}
    return tmp_path / "masks"


def test_masks_of_a_folder_their_thresholds_and_exports(masks: Path, photos: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert f"{len(GOOD)} masks made" in semples_ok(
        "rethreshold", masks, "--output", again, "--background-threshold", 0.3
    )
    for form, file in (("coco", "annotations_rle.json"), ("label-studio", "tasks_0001.json")):
        semples_ok("export", masks, "--images", photos, "--format", form, "--output", tmp_path / form)
        assert json.loads((tmp_path / form / file).read_text("utf-8"))
    names = {each["file_name"] for each in json.loads((tmp_path / "coco/annotations_rle.json").read_text())["images"]}
    assert names == {f"{stem}.jpg" for stem in GOOD}
    # Their lists have a line a photo, which not every name can be: all photos, or nothing, and one line that says so.
    for form in ("voc", "cvat"):
        message = semples_refuses("export", masks, "--images", photos, "--format", form, "--output", tmp_path / form)
        assert "file names of one line" in message.splitlines()[-1]
        assert not (tmp_path / form).exists()


@pytest.mark.parametrize("form", ["voc", "cvat"])
def test_exports_that_list_names(form: str, tmp_path: Path) -> None:

    masks, photos = make_folder(tmp_path / "place")
    records = (masks / "results.jsonl").read_text().splitlines()
    record = json.loads(records[0])
    old = Path(record["image"])
    for stem in filter(_is_line, GOOD):
        new = {**record, "stem": stem, "image": f"{stem}{old.suffix}"}
        (photos / new["image"]).write_bytes((photos / old).read_bytes())
        (masks / "masks" / f"{stem}.png").write_bytes((masks / "masks" / f"{old.stem}.png").read_bytes())
        records.append(json.dumps(new))
    (masks / "results.jsonl").write_text("\n".join(records) + "\n")
    semples_ok("export", masks, "--images", photos, "--format", form, "--output", tmp_path / "out")


def _is_line(stem: str) -> bool:
    try:
        return bool(list_line(stem))
    except ValueError:
        return False


@pytest.mark.parametrize("name", ["a b", "a::b", 'q"u', "line\nbreak", "caf\udce9", "#%", "-x", "[red]"])
def test_odd_folders(name: str, tmp_path: Path) -> None:
    source, output = tmp_path / name, tmp_path / f"{name} out"
    source.mkdir()
    (source / "cat.jpg").write_bytes(_jpeg(1))
    done = semples_ok("segment", source, "--output", output)
    assert printable(output) in done
    assert np.asarray(Image.open(output / "cat.png")).shape == (20, 30)


def test_photos_of_two_folders_share_a_name(tmp_path: Path) -> None:
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    for number, name in enumerate(("cats/1.jpg", "dogs/1.jpg", "dogs/2.jpg")):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(_jpeg(number))
    labels = tmp_path / "labels.csv"
    make = ("make-pseudo-masks", "--images", photos, "--labels", labels, "--output", masks, "--save-scores")
    labels.write_text("image,labels\ncats/1.jpg,cat\ndogs/1.jpg,\n")
    assert "1 masks made, 0 kept" in semples_ok(*make)
    assert [each.name for each in (masks / "masks").iterdir()] == ["1.png"]
    labels.write_text("image,labels\ncats/1.jpg,cat\ndogs/1.jpg,dog\ndogs/2.jpg,dog\n")
    assert "3 masks made, 0 kept" in semples_ok(*make)
    assert "0 masks made, 3 kept" in semples_ok(*make)
    names = {"cats__1.png", "dogs__1.png", "2.png"}
    assert {each.name for each in (masks / "masks").iterdir()} == names
    semples_ok("rethreshold", masks, "--output", tmp_path / "again", "--background-threshold", 0.3)
    assert {each.name for each in (tmp_path / "again" / "masks").iterdir()} == names
    for form in ("voc", "coco", "cvat", "label-studio"):
        semples_ok("export", masks, "--images", photos, "--format", form, "--output", tmp_path / form)
    labels.write_text("image,labels\ncats/1.jpg,cat\ndogs/2.jpg,dog\n")
    ours = (masks / "masks" / "cats__1.png").read_bytes()
    Image.open(masks / "masks" / "cats__1.png").save(masks / "masks" / "cats__1.png")  # corrected by hand
    assert "cats__1.png" in semples_refuses(*make)
    assert (masks / "masks" / "cats__1.png").is_file()
    (masks / "masks" / "cats__1.png").write_bytes(ours)
    assert "1 masks made, 1 kept" in semples_ok(*make)
    assert {each.name for each in (masks / "masks").iterdir()} == {"1.png", "2.png", "dogs__1.png"}
    assert {each.name for each in (masks / "scores").iterdir()} == {"1.npz", "2.npz", "dogs__1.npz"}
    coco = tmp_path / "again.coco"
    semples_ok("export", masks, "--images", photos, "--format", "coco", "--output", coco)
    names = [each["file_name"] for each in json.loads((coco / "annotations_rle.json").read_text())["images"]]
    assert sorted(names) == ["cats/1.jpg", "dogs/1.jpg", "dogs/2.jpg"]


def test_a_pipe_a_broken_link_and_a_folder_do_not_end_a_run(tmp_path: Path) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    os.mkfifo(photos / "a.jpg")
    (photos / "b.jpg").symlink_to("nowhere")
    (photos / "c.jpg").mkdir()
    (photos / "d.jpg").write_bytes(b"damaged")
    (photos / "z.jpg").write_bytes(_jpeg(1))
    (output / "z.json").mkdir(parents=True)
    (photos / "zz.jpg").write_bytes(_jpeg(2))
    done = semples("segment", photos, "--output", output, "--overwrite")
    assert done.returncode == 1
    assert "1 photos segmented, 4 failed" in done.stdout
    assert [name for name in "abdz" if f"/{name}.jpg: " in done.stderr] == list("abdz")
    assert (output / "zz.json").is_file()


@pytest.mark.parametrize("command", ["predict", "segment", "make-pseudo-masks"])
def test_files_of_others_beside_the_photos_are_kept(command: str, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(_jpeg(1))
    (tmp_path / "labels.csv").write_text("image,labels\ncat.jpg,cat\n")
    mine = {tmp_path / "cat.json": b'{"shapes": []}', tmp_path / "cat.png": png(), tmp_path / "classes.txt": b"cat\n"}
    for path, content in mine.items():
        path.write_bytes(content)
    arguments = {
        "predict": [tmp_path / "cat.jpg", "--labels", "cat"],
        "segment": [tmp_path / "cat.jpg"],
        "make-pseudo-masks": ["--images", tmp_path, "--labels", tmp_path / "labels.csv"],
    }[command]
    named = "classes.txt" if command == "make-pseudo-masks" else "cat.json"
    assert named in semples_refuses(command, *arguments, "--output", tmp_path)
    assert {path: path.read_bytes() for path in mine} == mine
    semples_ok(command, *arguments, "--output", tmp_path, "--overwrite")
    semples_ok(command, *arguments, "--output", tmp_path)  # ours now
