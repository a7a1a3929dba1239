"""What the commands that make tables, label files, weights, bundles and work directories never overwrite."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle.manifest import bundle_paths
from models.config import Config, dump_config
from models.data.classes import write_class_list
from models.data.mask_files import label_map_png
from models.io import write_atomically
from tests.conftest import CLASSES
from tests.helpers.command import semples_ok, semples_refuses
from tests.helpers.downloads import make_voc
from tests.models.bundle.test_import_checkpoint import public_weaktr

MINE = b"mine, of many hours\n"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(target: Path, mine: bytes, *command: object, works: bool = True) -> None:
    """Check that a command refuses to replace a file, names it, and replaces it when asked; then needs no asking."""
    write_atomically(target, mine)
    before = contents(target.parent)
    message = semples_refuses(*command)
    assert "--overwrite" in message
    assert str(target) in message.replace("\n", "")
    assert contents(target.parent) == before
    if works:
        semples_ok(*command, "--overwrite")
        assert not target.exists() or target.read_bytes() != mine
        semples_ok(*command)


@pytest.mark.parametrize("mine", [MINE, b"", b"threshold,loss\n0.1,2\n", b"\xff\xfe\x00"])
def test_a_table_of_somebody_else(mine: bytes, tiny_data: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    write_class_list(tmp_path / "classes.txt", CLASSES)
    made = ["--images", tiny_data / "images", "--labels", tiny_data / "labels.csv", "--bundle", tiny_bundle]
    semples_ok("make-pseudo-masks", *made, "--output", tmp_path / "out", "--save-scores")
    command = ["evaluate", "--scores", tmp_path / "out/scores", "--ground-truth", tiny_data / "masks"]
    command += ["--classes", tmp_path / "out/classes.txt", "--min-pixels", 1]
    check(tmp_path / "tables" / "curve.csv", mine, *command, "--curve", tmp_path / "tables" / "curve.csv")


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("download")
    make_voc(root, photos=2)
    return root


@pytest.mark.parametrize("name", ["labels.csv", "classes.txt", "labels_val.csv", "prepared.json"])
def test_label_files_of_somebody_else(name: str, voc: Path, tmp_path: Path) -> None:
    mine = b'{"software": "other"}' if name.endswith("json") else b"image,labels\n2007_000129.jpg,cat\n"
    check(tmp_path / "out" / name, mine, "prepare", "voc", voc, "--output", tmp_path / "out", "--photos", 2)


def test_label_files_that_were_changed_since(voc: Path, tmp_path: Path) -> None:
    command = ["prepare", "voc", voc, "--output", tmp_path]
    semples_ok(*command, "--photos", 1)
    semples_ok(*command, "--photos", 2)  # after a trial
    labels = tmp_path / "labels.csv"
    corrected = labels.read_text().replace("image,labels", "image,labels,checked by")
    check(labels, corrected.encode(), *command, "--photos", 2)


def test_weights_of_somebody_else(tmp_path: Path) -> None:
    torch.save(public_weaktr(9), tmp_path / "weaktr.pth")
    write_class_list(tmp_path / "classes.txt", CLASSES)
    command = ["import-checkpoint", tmp_path / "weaktr.pth", "--kind", "weaktr", "--classes", tmp_path / "classes.txt"]
    for name in ("ours.safetensors", "ours"):
        target = tmp_path / "weights" / name
        write_atomically(target, MINE)
        assert name in semples_refuses(*command, "--channels", "by-index", "--output", target)
        assert target.read_bytes() == MINE
        semples_ok(*command, "--channels", "by-index", "--output", target, "--overwrite")
    semples_ok(*command, "--channels", "by-index", "--output", tmp_path / "weights/ours.safetensors")


@pytest.mark.parametrize("name", ["generator.safetensors", "segmenter.safetensors", "bundle.yaml"])
def test_bundles_of_somebody_else(name: str, tiny_config: Config, data_options: list[object], tmp_path: Path) -> None:
    work, bundle, config = tmp_path / "work", tmp_path / "bundle", tmp_path / "tiny.yaml"
    config.write_text(dump_config(tiny_config))
    semples_ok("train-generator", work, *data_options, "--config", config, "--device", "cpu")
    told = ["--licence", "CC0", "--trained-on", "squares", "--stage", "train-generator"]
    check(bundle / name, b"en: {hello: world}\n", "export-bundle", work, "--output", bundle, *told, "--device", "cpu")
    check(bundle / name, MINE, "new-bundle", bundle, "--clip", "local-dir:nowhere", works=False)
    check(bundle / name, MINE, "run-all", work, *data_options, "--config", config, "--output", bundle, works=False)


@pytest.mark.parametrize("name", ["config.yaml", "classes.txt", "photos.txt"])
@pytest.mark.parametrize("command", ["train-generator", "pretrain-generator", "run-all"])
def test_a_work_directory_among_files_of_somebody_else(
    command: str, name: str, tiny_config: Config, data_options: list[object], tmp_path: Path
) -> None:
    work, config = tmp_path / "mine", tmp_path / "tiny.yaml"
    config.write_text(dump_config(tiny_config))
    commented = b"# chosen after a week\n" + config.read_bytes()
    mine = commented if name == "config.yaml" else MINE
    check(work / name, mine, command, work, *data_options, "--config", config, "--device", "cpu", works=False)


def test_a_work_directory_that_is_replaced_when_asked(
    tiny_config: Config, data_options: list[object], tmp_path: Path
) -> None:
    config = tmp_path / "work" / "config.yaml"
    write_atomically(config, b"# chosen after a week\n" + dump_config(tiny_config).encode())
    command = ["train-generator", tmp_path / "work", *data_options, "--config", config, "--device", "cpu"]
    semples_refuses(*command)
    semples_ok(*command, "--overwrite")
    semples_ok(*command)  # which continues


def test_prompts_into_a_folder_with_a_configuration_of_somebody_else(tiny_config: Config, tmp_path: Path) -> None:
    torch.save({"prompts": torch.rand(4, 4, 16)}, tmp_path / "prompts.pth")
    write_class_list(tmp_path / "classes.txt", CLASSES)
    (tmp_path / "tiny.yaml").write_text(dump_config(tiny_config))
    new = ["--config", tmp_path / "tiny.yaml", "--classes", tmp_path / "classes.txt", "--work", tmp_path / "work"]
    command = ["import-checkpoint", tmp_path / "prompts.pth", "--kind", "prompts", *new]
    check(tmp_path / "work" / "config.yaml", MINE, *command, works=False)
    semples_ok(*command, "--overwrite")


def test_thresholds_of_somebody_else(tiny_data: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    images = sorted((tiny_data / "images").iterdir())
    (tmp_path / "labels.csv").write_text("image,labels\n" + "".join(f"{each.name},cat\n" for each in images))
    made = ["--images", tiny_data / "images", "--labels", tmp_path / "labels.csv", "--bundle", tiny_bundle]
    semples_ok("make-pseudo-masks", *made, "--output", tmp_path / "out", "--save-scores")
    target = tmp_path / "new" / "thresholds.json"
    command = ["rethreshold", tmp_path / "out", "--output", target.parent, "--bundle", tiny_bundle, "--per-class"]
    check(target, json.dumps({"cat": 0.5}).encode(), *command)


def test_every_file_of_a_bundle_is_known(tiny_bundle: Path) -> None:
    assert {path.name for path in tiny_bundle.iterdir()} <= {path.name for path in bundle_paths(tiny_bundle)}


def test_ground_truth_that_is_there_is_kept(voc: Path, tmp_path: Path) -> None:
    command = ["prepare", "voc", voc, "--output", tmp_path, "--photos", 1]
    semples_ok(*command)
    [truth] = (tmp_path / "ground_truth" / "val").glob("*.png")
    mine = label_map_png(np.zeros((2, 3), dtype=np.uint8))
    truth.write_bytes(mine)
    semples_ok(*command, "--overwrite")
    assert truth.read_bytes() == mine
