import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.config import Config, dump_config
from models.data.classes import write_class_list
from models.data.mask_files import software_version
from tests.conftest import CLASSES
from tests.helpers.command import Done, python, semples, semples_ok, semples_process, semples_refuses
from tests.helpers.paths import PHOTO


def test_help_names_every_command() -> None:
    listed = semples_ok("--help")
    for command in (
        "prepare", "pretrain-generator", "train-generator", "learn-prompts", "refine-generator",
        "make-pseudo-masks", "evaluate", "export-bundle", "explain-prompts", "import-checkpoint", "predict",
        "report", "serve", "worker", "segment", "train-segmenter", "run-all",
    ):  # fmt: skip
        assert f" {command} " in listed


def test_version() -> None:
    assert semples_ok("--version") == f"{software_version()}\n"


@pytest.mark.parametrize("command", ["serve", "worker", "api-key", "janitor", "dead"])
def test_programs_call_themselves_as_people_call_them(command: str) -> None:
    shown = semples_process(command, "--help")
    assert shown.returncode == 0
    assert f"usage: semples {command} " in shown.stdout.lower()
    assert "python -m" not in shown.stdout


_WITHOUT = "import sys; sys.modules.update(dict.fromkeys({missing!r})); from models.cli import main; main()"


@pytest.mark.parametrize(
    ("arguments", "missing", "message"),
    [
        (
            ["predict", PHOTO, "--labels", "cat", "--output", "OUT"],
            ["torch"],
            "semples[all], got an installation without torch",
        ),
        (["segment", PHOTO, "--output", "OUT"], ["torch", "timm"], "semples[all], got an installation without "),
        (["evaluate", "--ground-truth", ".", "--classes", "c.txt"], ["torch"], "without torch"),
        (["submit", PHOTO, "--labels", "cat", "--to", "http://127.0.0.1:9"], ["anyio", "httpx"], "semples[client]"),
        (["serve"], ["rq"], "semples[all]"),
        (["api-key", "alice"], ["rq"], "semples[api]"),
    ],
)
def test_an_installation_without_packages_gets_one_line(
    arguments: list[object], missing: list[str], message: str, tmp_path: Path
) -> None:
    given = (str(tmp_path) if each == "OUT" else str(each) for each in arguments)
    done = python("-c", _WITHOUT.format(missing=missing), *given, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("semples: expected the packages of ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_predict(tiny_bundle: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    with Image.open(PHOTO) as picture:
        picture.save(photo, exif=exif)
    semples_ok(
        "predict", photo, "--labels", "cat", "--labels", "mug", "--output", tmp_path / "out",
        "--bundle", tiny_bundle, "--refine", "none", "--threads", 1,
    )  # fmt: skip
    with Image.open(tmp_path / "out" / "photo.png") as mask:
        assert mask.mode == "P"
        assert mask.size == (300, 451)
        assert set(np.unique(np.array(mask))) <= {0, 4, 7}
        assert mask.info["Model"].startswith("tiny ")
    with Image.open(tmp_path / "out" / "photo_overlay.png") as overlay:
        assert overlay.size == (300, 451)
    record = json.loads((tmp_path / "out" / "photo.json").read_text())
    assert [each["name"] for each in record["classes"]] == ["cat", "cup"]
    assert record["model"]["name"] == "tiny"
    assert record["options"] == {
        "refine": "none", "min_confidence": 0.0, "background_threshold": 0.4,
        "background_power": None, "class_thresholds": {}, "threshold_slope": 0.0,
    }  # fmt: skip
    assert record["exif_orientation"] == 6
    assert {"area", "confidence", "alignment_class", "alignment_background"} <= set(record["classes"][0])


def test_folder_of_masks_resumes_and_is_measured(
    tiny_bundle: Path, tiny_data: Path, data_options: list[object], tmp_path: Path
) -> None:
    output = tmp_path / "out"

    def make(*extra: object) -> Done:
        options = ["--output", output, "--bundle", tiny_bundle, "--save-scores", "--threads", 1, *extra]
        return semples("make-pseudo-masks", *data_options, *options)

    first = make()
    assert first.returncode == 0, first.stderr
    assert "8 masks made, 0 kept, 0 failed" in first.stdout
    before = {path.name: path.read_bytes() for path in (output / "masks").iterdir()}
    summary = json.loads((output / "summary.json").read_text())
    assert summary["masks"] == 8
    assert summary["classes"]["cat"]["images"] == 2
    assert (output / "classes.txt").read_text().startswith("0 background\n3 bowl\n")

    # Killed halfway: two masks gone, the last record cut off.
    (output / "masks" / "photo0.png").unlink()
    records = (output / "results.jsonl").read_text()
    (output / "results.jsonl").write_text(records[:-20])
    again = make()
    assert "2 masks made, 6 kept, 0 failed" in again.stdout
    assert {path.name: path.read_bytes() for path in (output / "masks").iterdir()} == before
    assert json.loads((output / "summary.json").read_text()) == summary
    assert len((output / "results.jsonl").read_text().splitlines()) == 9

    other = make("--refine", "none")
    assert other.returncode == 2
    assert "to be new or made with the same model and options" in other.stderr
    assert "got options.refine: 'pamr' before, 'none' now" in other.stderr

    truth = ["--ground-truth", tiny_data / "masks", "--classes", output / "classes.txt", "--json"]
    fixed_report = json.loads(semples_ok("evaluate", "--predictions", output / "masks", *truth))
    assert 0 <= fixed_report["mean_iou"] <= 1
    assert [each["name"] for each in fixed_report["classes"]][:2] == ["background", "bowl"]
    oracle = json.loads(semples("evaluate", "--scores", output / "scores", *truth).stdout)
    assert oracle["curve"]["0.4"] == pytest.approx(fixed_report["mean_iou"], abs=1e-6)
    assert oracle["mean_iou"] >= fixed_report["mean_iou"] - 1e-6
    assert "--predictions and --scores" in semples_refuses("evaluate", *truth)


def test_photos_without_ground_truth_may_be_left_out(tiny_data: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_data / "masks", tmp_path / "some")
    (tmp_path / "some" / "photo3.png").unlink()
    write_class_list(tmp_path / "classes.txt", CLASSES)
    arguments = [
        "evaluate", "--predictions", tiny_data / "masks", "--ground-truth", tmp_path / "some",
        "--classes", tmp_path / "classes.txt", "--json",
    ]  # fmt: skip
    assert "expected photo3.png" in semples(*arguments).stderr
    some = semples(*arguments, "--allow-missing")
    assert "1 predictions have no ground truth" in some.stderr
    result = json.loads(some.stdout)
    assert (result["images"], result["missing_ground_truths"], result["mean_iou"]) == (7, 1, 1)


def test_a_broken_photo_fails_alone(tiny_bundle: Path, tiny_data: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    good = (tiny_data / "images" / "photo0.jpg").read_bytes()
    (images / "good.jpg").write_bytes(good)
    (images / "bad.jpg").write_bytes(good[:200])
    (tmp_path / "labels.csv").write_text("image,labels\nbad.jpg,cat\ngood.jpg,bowl\n")
    done = semples(
        "make-pseudo-masks", "--images", images, "--labels", tmp_path / "labels.csv",
        "--output", tmp_path / "out", "--bundle", tiny_bundle, "--threads", 1,
    )  # fmt: skip
    assert done.returncode == 1
    assert "1 masks made, 0 kept, 1 failed" in done.stdout
    assert "bad.jpg" in done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["failed"][0]["image"] == "bad.jpg"
    assert [path.name for path in (tmp_path / "out" / "masks").iterdir()] == ["good.png"]


def test_train_export_explain(tiny_config: Config, data_options: list[object], tmp_path: Path) -> None:
    config, work, bundle = tmp_path / "tiny.yaml", tmp_path / "work", tmp_path / "bundle"
    config.write_text(dump_config(tiny_config))
    for command in (
        ["train-generator", work, *data_options, "--config", config],
        ["learn-prompts", work, *data_options],
        ["refine-generator", work, *data_options],
        ["export-bundle", work, "--output", bundle, "--licence", "CC0", "--trained-on", "squares"],
    ):
        semples_ok(*command, "--device", "cpu")
    of_bundle = json.loads(semples_ok("explain-prompts", bundle, "--json"))
    of_run = json.loads(semples_ok("explain-prompts", work, "--json", "--device", "cpu"))
    assert set(of_bundle) == {"bowl", "cat", "cup", "dining table"}
    assert of_bundle == of_run
    assert len(of_bundle["cat"]) == 8


def test_stages_need_their_predecessors(data_options: list[object], tmp_path: Path) -> None:
    refused = semples_refuses("learn-prompts", tmp_path / "nothing", *data_options)
    assert "expected a work directory of 'semples train-generator'" in refused
