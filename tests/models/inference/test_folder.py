import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from models.bundle.bundle import load_bundle
from models.bundle.manifest import MANIFEST
from models.data.classes import Sample, read_class_list
from models.data.labels import read_folder
from models.data.mask_folder import RESULTS, open_mask_folder, read_results
from models.exports.coco import RLE_FILE
from models.inference.folder import (
    MaskJob,
    Outcome,
    make_here,
    make_in_processes,
    make_pseudo_masks,
    redecide,
    stored_samples,
)
from models.inference.masks import MaskOptions, SoftMaps, _otsu, estimate_thresholds
from models.inference.predictor import Predictor
from tests.conftest import CLASSES, CPU
from tests.helpers.command import semples, semples_ok

REFINE = "random_walk+pamr+region_vote"


def load(bundle: Path) -> Predictor:
    return Predictor(load_bundle(bundle, device=CPU))


def make_all(predictor: Predictor, samples: Sequence[Sample], job: MaskJob) -> Outcome:
    make = partial(make_here, predictor, job)
    return make_pseudo_masks(predictor.info, samples, job, make, on_image=lambda: None)


def redecide_all(predictor: Predictor, folder: Path, job: MaskJob) -> Outcome:
    stored = stored_samples(folder, predictor.info)
    make = partial(redecide, folder, predictor.info, job)
    return make_pseudo_masks(predictor.info, stored, job, make, on_image=lambda: None)


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, tiny_samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pseudo masks of the tiny data with stored scores, made in two processes, in which a damaged image fails alone."""
    output = tmp_path_factory.mktemp("masks")
    predictor = load(tiny_bundle)
    job = MaskJob(output, predictor.options(refine=REFINE), save_scores=True)
    broken = tmp_path_factory.mktemp("broken") / "broken.jpg"
    broken.write_bytes(tiny_samples[1].path.read_bytes()[:500])
    samples = [tiny_samples[0], Sample(broken, tiny_samples[1].channels), *tiny_samples[1:]]
    make = partial(make_in_processes, partial(load, tiny_bundle), job, processes=2)
    outcome = make_pseudo_masks(predictor.info, samples, job, make, on_image=lambda: None)
    assert outcome.made == 8
    assert [name for name, _ in outcome.failed] == ["broken.jpg"]
    return output


OPTIONS = [
    MaskOptions(REFINE, 0.0, background_threshold=0.4),
    MaskOptions(REFINE, 0.6, background_threshold=0.63),
    MaskOptions(REFINE, 0.0, background_power=1.7),
    MaskOptions(REFINE, 0.0, background_threshold=0.4, class_thresholds={"cat": 0.8}),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_stored_scores_give_a_fresh_runs_files(
    options: MaskOptions, folder: Path, tiny_bundle: Path, tiny_samples: list[Sample], tmp_path: Path
) -> None:
    predictor = load(tiny_bundle)
    fresh = MaskJob(tmp_path / "fresh", options, save_scores=False)
    make_all(predictor, tiny_samples, fresh)
    again = MaskJob(tmp_path / "again", options, save_scores=False)
    redecide_all(predictor, folder, again)
    for sample in tiny_samples:
        name = f"masks/{sample.stem}.png"
        assert (again.output / name).read_bytes() == (fresh.output / name).read_bytes()
    keys = ("image", "size", "model", "options", "ignored")
    old, new = (read_results(job.output / RESULTS) for job in (fresh, again))
    assert {stem: [row[key] for key in keys] for stem, row in old.items()} == {
        stem: [row[key] for key in keys] for stem, row in new.items()
    }
    assert [each["area"] for each in new["photo1"]["classes"]] == [each["area"] for each in old["photo1"]["classes"]]
    # Of the classes' own thresholds, a photo's record and mask name those of its classes.
    named = {"photo1": ("cat", options.class_thresholds), "photo0": ("bowl", {})}
    for stem, (name, thresholds) in named.items():
        for output, rows in ((fresh.output, old), (again.output, new)):
            assert [each["name"] for each in rows[stem]["classes"]] == [name]
            assert rows[stem]["options"]["class_thresholds"] == thresholds
            with Image.open(output / "masks" / f"{stem}.png") as mask:
                assert json.loads(mask.info["Options"])["class_thresholds"] == thresholds
    assert all(each["alignment_class"] is None for each in new["photo1"]["classes"])


def test_scores_are_needed(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    info = load(tiny_bundle).info
    with pytest.raises(ValueError, match="expected results of make-pseudo-masks"):
        stored_samples(tmp_path, info)
    (tmp_path / RESULTS).write_bytes((folder / RESULTS).read_bytes())
    with pytest.raises(ValueError, match="from 'make-pseudo-masks --save-scores'"):
        stored_samples(tmp_path, info)
    with pytest.raises(ValueError, match="expected masks of tiny 000000000000"):
        stored_samples(folder, info.model_copy(update={"version": "0" * 12}))


def test_a_photo_that_moved_is_made_anew(tiny_bundle: Path, tiny_data: Path, tmp_path: Path) -> None:
    predictor = load(tiny_bundle)
    job = MaskJob(tmp_path / "out", predictor.options(refine="none"), save_scores=False)

    def make(folder: str, photo: str) -> Outcome:
        (tmp_path / "images" / folder).mkdir(parents=True)
        shutil.copy(tiny_data / "images" / photo, tmp_path / "images" / folder / "x.jpg")
        (tmp_path / "labels.csv").write_text(f"image,labels\n{folder}/x.jpg,cat\n")
        samples = read_folder(tmp_path / "images", tmp_path / "labels.csv", CLASSES)
        return make_all(predictor, samples, job)

    assert make("a", "photo1.jpg").made == 1
    assert make("b", "photo2.jpg").made == 1
    (photo,) = open_mask_folder(job.output, tmp_path / "images").masked_images()
    assert photo.name == "b/x.jpg"


def test_otsu_by_hand() -> None:
    histogram = np.array([5, 0, 0, 0, 0, 0, 0, 5])
    assert _otsu(histogram) == pytest.approx(0.5)  # any split between is as good: their middle
    assert _otsu(np.array([0, 9, 0, 0])) == pytest.approx(0.5)
    assert _otsu(np.array([8, 8, 0, 4])) == pytest.approx(0.625)


def test_thresholds_are_of_each_class() -> None:
    random = np.random.default_rng(0)

    def maps(low: float, high: float, name: str) -> SoftMaps:
        scores = np.where(random.random((1, 20, 20)) < 0.5, low, high).astype(np.float16)
        return SoftMaps(scores, np.array([1]), (name,), (20, 20))

    items = [maps(0.1, 0.5, "cat") for _ in range(3)] + [maps(0.5, 0.9, "cup") for _ in range(3)]
    found = estimate_thresholds([*items, maps(0, 1, "rare")])
    assert list(found) == ["cat", "cup"]
    assert 0.15 < found["cat"] < 0.45
    assert 0.55 < found["cup"] < 0.85


def test_photos_of_folders_keep_their_names(tiny_bundle: Path, tiny_data: Path, tmp_path: Path) -> None:
    images, rows = tmp_path / "images", tmp_path / "labels.csv"
    for name in ("z/photo0.jpg", "a/photo1.jpg"):
        (images / name).parent.mkdir(parents=True)
        shutil.copy(tiny_data / "images" / Path(name).name, images / name)
    rows.write_text("image,labels\nz/photo0.jpg,cat\na/photo1.jpg,bowl\n")
    predictor = load(tiny_bundle)
    job = MaskJob(tmp_path / "out", predictor.options(refine="none"), save_scores=True)
    make_all(predictor, read_folder(images, rows, CLASSES), job)
    again = replace(job, output=tmp_path / "again", save_scores=False)
    redecide_all(predictor, job.output, again)
    for output in (job.output, again.output):
        made = read_results(output / RESULTS).values()
        assert [each["image"] for each in made] == ["z/photo0.jpg", "a/photo1.jpg"]
        exported = open_mask_folder(output, images).masked_images()
        assert [each.name for each in exported] == ["z/photo0.jpg", "a/photo1.jpg"]


def test_per_class_keeps_the_bundles_thresholds_of_rare_classes(
    folder: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    work = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, work)
    manifest = work / MANIFEST
    content = yaml.safe_load(manifest.read_text())
    content["inference"]["class_thresholds"] = {"bowl": 0.77, "cat": 0.66}
    manifest.write_text(yaml.safe_dump(content))
    version = load(work).info.version
    source = tmp_path / "masks"
    shutil.copytree(folder, source)
    results = source / RESULTS
    results.write_text(results.read_text().replace(load(tiny_bundle).info.version, version))
    # Each class has two photos; "bowl" gets a third.
    record = {"stem": "extra", **read_results(results)["photo0"], "image": "extra.jpg"}
    results.write_text(results.read_text() + json.dumps(record) + "\n")
    shutil.copy(source / "scores" / "photo0.npz", source / "scores" / "extra.npz")
    own = ("--output", tmp_path / "own", "--bundle", work, "--per-class")
    assert "thresholds estimated for 1 of 4 classes" in semples_ok("rethreshold", source, *own)
    thresholds = json.loads((tmp_path / "own" / "thresholds.json").read_text())
    assert thresholds.keys() == {"bowl", "cat"}
    assert thresholds["cat"] == 0.66
    assert thresholds["bowl"] != 0.77


def test_per_class_needs_photos(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    done = semples("rethreshold", folder, "--output", tmp_path / "own", "--bundle", tiny_bundle, "--per-class")
    assert done.returncode == 2
    assert "expected a class with at least 3 photos for --per-class, got none" in done.stderr
    assert not (tmp_path / "own").exists()


def test_a_process_that_dies_is_said_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    job = MaskJob(tmp_path, load(tiny_bundle).options(), save_scores=False)
    sample = Sample(tmp_path / "photo.jpg", (0,))
    dies = partial(os._exit, 1)
    with pytest.raises(ChildProcessError, match="a process that makes masks died"):
        list(make_in_processes(dies, job, [sample], processes=1))


OPEN_OPTIONS = (*("--vocabulary", "open", "--refine", "none"), *("--save-scores", "--background-threshold", 0.3))
OPEN_ROWS = "image,labels\nphoto0.jpg,zebra;bowl\nphoto1.jpg,mug\nphoto2.jpg,Fire-Truck;zebra\n"


@pytest.fixture(scope="module")
def open_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    path.write_text(OPEN_ROWS)
    return path


@pytest.fixture(scope="module")
def open_folder(
    open_labels: Path, tiny_data: Path, tiny_open_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("open") / "out"
    arguments = ("--images", tiny_data / "images", "--labels", open_labels, "--output", output)
    made = semples_ok("make-pseudo-masks", *arguments, "--bundle", tiny_open_bundle, *OPEN_OPTIONS)
    assert "3 masks made, 0 kept, 0 failed" in made
    return output


def test_a_photo_with_open_labels(tiny_data: Path, tiny_open_bundle: Path, tmp_path: Path) -> None:
    photo = tiny_data / "images" / "photo1.jpg"
    done = semples_ok(
        "predict", photo, "--labels", "zebra,mug", "--output", tmp_path, "--vocabulary", "open",
        "--bundle", tiny_open_bundle, "--refine", "none",
    )  # fmt: skip
    assert "zebra (zero-shot): " in done
    record = json.loads((tmp_path / "photo1.json").read_text())
    shown = [(each["index"], each["name"], each["zero_shot"]) for each in record["classes"]]
    assert shown == [(7, "cup", False), (10, "zebra", True)]
    with Image.open(tmp_path / "photo1.png") as mask:
        text = mask.info
    assert (text["Labels"], text["Zero-shot"]) == ("cup, zebra", "zebra")


def test_closed_bundles_and_closed_vocabularies_refuse_at_once(
    tiny_data: Path, tiny_bundle: Path, tiny_open_bundle: Path, open_labels: Path, tmp_path: Path
) -> None:
    photo = (tiny_data / "images" / "photo1.jpg", "--labels", "zebra", "--output", tmp_path)
    closed = semples("predict", *photo, "--bundle", tiny_bundle, "--vocabulary", "open")
    assert "expected a bundle with an open vocabulary, got 'tiny': it holds no" in closed.stderr
    unasked = semples("predict", *photo, "--bundle", tiny_open_bundle)
    assert "expected a known label, got 'zebra'" in unasked.stderr
    arguments = ("--images", tiny_data / "images", "--labels", open_labels)
    arguments += ("--output", tmp_path / "out")
    many = semples("make-pseudo-masks", *arguments, "--bundle", tiny_bundle, "--vocabulary", "open")
    assert "expected a bundle with an open vocabulary" in many.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_has_one_list_of_classes(open_folder: Path) -> None:
    classes = read_class_list(open_folder / "classes.txt")
    assert classes.names == ("bowl", "cat", "cup", "dining table", "fire truck", "zebra")
    assert [each.index for each in classes.classes] == [3, 4, 7, 9, 10, 11]
    found = {
        path.stem: set(np.unique(np.asarray(Image.open(path))).tolist()) for path in (open_folder / "masks").iterdir()
    }
    assert found["photo0"] <= {0, 3, 11}
    assert found["photo2"] <= {0, 10, 11}
    assert 11 in found["photo0"] | found["photo2"]
    settings = json.loads((open_folder / "settings.json").read_text())
    assert settings["zero_shot"] == ["fire truck", "zebra"]


def test_other_open_labels_would_change_the_numbers(
    open_folder: Path, tiny_data: Path, tiny_open_bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "labels.csv"
    other.write_text(OPEN_ROWS + "photo3.jpg,giraffe\n")
    arguments = ("--images", tiny_data / "images", "--labels", other, "--output", open_folder)
    again = semples("make-pseudo-masks", *arguments, "--bundle", tiny_open_bundle, *OPEN_OPTIONS)
    assert "got zero_shot.1: 'zebra' before, 'giraffe' now" in again.stderr


def test_masks_are_decided_anew_byte_for_byte(
    open_folder: Path, open_labels: Path, tiny_data: Path, tiny_open_bundle: Path, tmp_path: Path
) -> None:
    options = ("--bundle", tiny_open_bundle, "--background-threshold", 0.5)
    semples_ok("rethreshold", open_folder, "--output", tmp_path / "anew", *options)
    arguments = ("--images", tiny_data / "images", "--labels", open_labels, "--refine", "none")
    arguments += ("--output", tmp_path / "fresh", "--vocabulary", "open")
    semples_ok("make-pseudo-masks", *arguments, *options)
    for name in ("classes.txt", *(f"masks/photo{number}.png" for number in range(3))):
        assert (tmp_path / "anew" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    anew, before = (each / "masks" / "photo0.png" for each in (tmp_path / "anew", open_folder))
    assert anew.read_bytes() != before.read_bytes()


def test_exports_name_open_classes(open_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    images = ("--images", tiny_data / "images")
    semples_ok("export", open_folder, *images, "--format", "coco", "--output", tmp_path / "coco")
    content = json.loads((tmp_path / "coco" / RLE_FILE).read_text())
    names = {each["id"]: each["name"] for each in content["categories"]}
    assert (names[10], names[11]) == ("fire truck", "zebra")
    assert {each["category_id"] for each in content["annotations"]} & {10, 11}
