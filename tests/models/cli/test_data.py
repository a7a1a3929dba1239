import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from models.config import Config, dump_config
from models.data.classes import write_class_list
from tests.conftest import CLASSES
from tests.helpers.command import semples_ok, semples_refuses
from tests.helpers.export_folder import make_folder
from tests.helpers.paths import PHOTO
from tests.models.bundle.test_import_checkpoint import public_weaktr


@pytest.fixture
def place(tmp_path: Path) -> Path:
    torch.save(public_weaktr(9), tmp_path / "weaktr.pth")
    torch.save({"prompts": torch.rand(4, 4, 16)}, tmp_path / "prompts.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    write_class_list(tmp_path / "classes.txt", CLASSES)
    return tmp_path


def test_from_released_files_to_a_prediction(place: Path, tiny_config: Config, data_options: list[object]) -> None:
    arguments = [place / "weaktr.pth", "--kind", "weaktr", "--classes", place / "classes.txt"]
    taken = ["--channels", "by-index", "--output", place / "ours.safetensors"]
    printed = semples_ok("import-checkpoint", *arguments, *taken)
    # What it prints is what the configuration needs.
    generator = yaml.safe_load(printed.splitlines()[1])["generator"]
    assert generator["spare_tokens"] == 5
    content = {**tiny_config.model_dump(mode="json"), "generator": generator}
    (place / "config.yaml").write_text(yaml.safe_dump(content))

    new = ["--config", place / "config.yaml", "--classes", place / "classes.txt"]
    prompts = [place / "prompts.pth", "--kind", "prompts", "--work", place / "work"]
    semples_ok("import-checkpoint", *prompts, *new)
    semples_ok("refine-generator", place / "work", *data_options, "--device", "cpu")
    bundle = ["--output", place / "bundle", "--licence", "MIT", "--trained-on", "squares"]
    semples_ok("export-bundle", place / "work", *bundle, "--device", "cpu")
    options = ["--labels", "cat", "--output", place / "out", "--bundle", place / "bundle"]
    semples_ok("predict", PHOTO, *options)
    assert (place / "out" / "cat.png").is_file()


def test_prompts_go_into_a_run_that_has_begun(place: Path, tiny_config: Config) -> None:
    work = place / "work"
    work.mkdir()
    (work / "config.yaml").write_text(dump_config(tiny_config))
    shutil.copy(place / "classes.txt", work / "classes.txt")
    arguments = [place / "prompts.pth", "--kind", "prompts", "--work", work]
    semples_ok("import-checkpoint", *arguments)
    found = load_file(work / "learn-prompts" / "prompts.safetensors")
    assert {name: tuple(each.shape) for name, each in found.items()} == {
        "context": (4, 4, 16), "embeddings": (4, 16), "class_text": (4, 16),
    }  # fmt: skip
    semples_refuses("import-checkpoint", *arguments)  # never over what is there


WEAKTR = "--kind weaktr --classes classes.txt --output o"
MISTAKES = [
    (f"weaktr.pth {WEAKTR}", "expected 9 classes, as the file has"),
    (f"weaktr.pth {WEAKTR} --channels by-index --output weaktr.pth", "an output that keeps"),
    (f"weaktr.pth {WEAKTR} --channels nope", "No such file"),
    (f"prompts.pth {WEAKTR}", "expected a dictionary with 'model' in prompts.pth"),
    (f"text.pth {WEAKTR}", "expected a file that torch.save wrote, got a damaged or foreign one: text.pth"),
    (f"missing.pth {WEAKTR}", "No such file"),
    (f"weaktr.pth {WEAKTR} --work work", "expected --classes and --output with weaktr"),
    ("weaktr.pth --kind weaktr --output o", "expected --classes and --output with weaktr"),
    ("prompts.pth --kind prompts --work work", "expected a work directory"),
    ("prompts.pth --kind prompts --output o", "expected --work with prompts"),
    ("prompts.pth --kind prompts --work work --config coco-demo", "expected --work with prompts"),
    (
        "weaktr.pth --kind prompts --work work --config coco-demo --classes classes.txt",
        "expected a dictionary with 'prompts' in weaktr.pth, got the keys model",
    ),
    ("prompts.pth --kind sam", "Invalid value for '--kind'"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_get_one_line(
    arguments: str, message: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    semples_refuses("import-checkpoint", *arguments.split())
    [line] = capfd.readouterr().err.splitlines()
    assert message in line
    assert not {"o", "work"} & {path.name for path in place.iterdir()}


EXPORTED = {
    "voc": {"JPEGImages", "SegmentationClass", "ImageSets", "labelmap.txt", "classes.txt"},
    "coco": {"annotations_rle.json", "annotations_polygons.json"},
    "cvat": {"annotations.zip", "labels.json"},
    "label-studio": {"tasks_0001.json", "interface.xml"},
}


@pytest.mark.parametrize("form", EXPORTED)
def test_every_format(form: str, tmp_path: Path) -> None:
    folder, images = make_folder(tmp_path)
    options = ["--images", images, "--format", form, "--output", tmp_path / "out"]
    printed = semples_ok("export", folder, *options)
    assert {each.name for each in (tmp_path / "out").iterdir()} == EXPORTED[form]
    assert printed.replace("\n", " ").startswith(f"{tmp_path / 'out'}: 4 photos")
    assert "expected a new or empty folder" in semples_refuses("export", folder, *options)


def test_what_make_pseudo_masks_wrote(tiny_bundle: Path, tiny_data: Path, tmp_path: Path) -> None:
    images, folder = tiny_data / "images", tmp_path / "run"
    made = ["--labels", tiny_data / "labels.csv", "--output", folder, "--bundle", tiny_bundle]
    semples_ok("make-pseudo-masks", "--images", images, *made)
    options = ["--images", images, "--format", "voc", "--output", tmp_path / "voc"]
    semples_ok("export", folder, *options)
    for number in range(8):
        name = f"photo{number}.png"
        with (
            Image.open(tmp_path / "voc" / "SegmentationClass" / name) as exported,
            Image.open(folder / "masks" / name) as mask,
        ):
            assert np.array_equal(np.array(exported), np.array(mask))
            assert exported.info["Model"] == mask.info["Model"]


@pytest.mark.parametrize("form", EXPORTED)
def test_a_broken_mask_leaves_no_export(form: str, tmp_path: Path) -> None:
    folder, images = make_folder(tmp_path)
    (folder / "masks" / "turned.png").write_bytes(b"")
    options = ["--images", images, "--format", form, "--output", tmp_path / "out"]
    assert "turned.png" in semples_refuses("export", folder, *options)
    assert {each.name for each in tmp_path.iterdir()} == {"run", "images"}


def test_a_prefix_is_for_label_studio(tmp_path: Path) -> None:
    folder, images = make_folder(tmp_path)
    options = ["--images", images, "--output", tmp_path / "out", "--image-prefix", "s3://bucket/"]
    refused = semples_refuses("export", folder, *options, "--format", "voc")
    assert "--image-prefix with label-studio only" in refused
    semples_ok("export", folder, *options, "--format", "label-studio")
    assert '"s3://bucket/flat.jpg"' in (tmp_path / "out" / "tasks_0001.json").read_text()
