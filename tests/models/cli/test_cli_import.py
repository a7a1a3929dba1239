"""``semples import-checkpoint`` as a user meets it, up to a prediction."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from models.cli import main
from models.config import Config, dump_config
from models.data.classes import write_class_list
from tests.conftest import CLASSES
from tests.helpers.paths import PHOTO
from tests.models.bundle.test_import_checkpoint import public_weaktr


def semples(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["semples", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with released files and a class list."""
    torch.save(public_weaktr(9), tmp_path / "weaktr.pth")
    torch.save({"prompts": torch.rand(4, 4, 16)}, tmp_path / "prompts.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    write_class_list(tmp_path / "classes.txt", CLASSES)
    return tmp_path


def test_from_released_files_to_a_prediction(
    place: Path,
    tiny_config: Config,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [place / "weaktr.pth", "--kind", "weaktr", "--classes", place / "classes.txt"]
    taken = ["--channels", "by-index", "--output", place / "ours.safetensors"]
    assert semples(monkeypatch, "import-checkpoint", *arguments, *taken) == 0
    printed = capsys.readouterr().out
    # What it prints is what the configuration needs.
    generator = yaml.safe_load(printed.splitlines()[1])["generator"]
    assert generator["spare_tokens"] == 5
    content = {**tiny_config.model_dump(mode="json"), "generator": generator}
    (place / "config.yaml").write_text(yaml.safe_dump(content))

    new = [
        "--work",
        place / "work",
        "--config",
        place / "config.yaml",
        "--classes",
        place / "classes.txt",
    ]
    assert (
        semples(monkeypatch, "import-checkpoint", place / "prompts.pth", "--kind", "prompts", *new)
        == 0
    )
    data = [
        "--images",
        tiny_data / "images",
        "--labels",
        tiny_data / "labels.csv",
        "--device",
        "cpu",
    ]
    assert semples(monkeypatch, "refine-generator", place / "work", *data) == 0
    bundle = ["--output", place / "bundle", "--licence", "MIT", "--trained-on", "squares"]
    assert semples(monkeypatch, "export-bundle", place / "work", *bundle, "--device", "cpu") == 0
    options = ["--labels", "cat", "--output", place / "out", "--bundle", place / "bundle"]
    assert semples(monkeypatch, "predict", PHOTO, *options) == 0
    assert (place / "out" / "cat.png").is_file()


def test_prompts_go_into_a_run_that_has_begun(
    place: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = place / "work"
    work.mkdir()
    (work / "config.yaml").write_text(dump_config(tiny_config))
    shutil.copy(place / "classes.txt", work / "classes.txt")
    arguments = [place / "prompts.pth", "--kind", "prompts", "--work", work]
    assert semples(monkeypatch, "import-checkpoint", *arguments) == 0
    found = load_file(work / "learn-prompts" / "prompts.safetensors")
    assert {name: tuple(each.shape) for name, each in found.items()} == {
        "context": (4, 4, 16), "embeddings": (4, 16), "class_text": (4, 16),
    }  # fmt: skip
    assert semples(monkeypatch, "import-checkpoint", *arguments) == 2  # never over what is there


WEAKTR = "--kind weaktr --classes classes.txt --output o"
MISTAKES = [
    (f"weaktr.pth {WEAKTR}", "expected 9 classes, as the file has"),
    (f"weaktr.pth {WEAKTR} --channels by-index --output weaktr.pth", "an output that keeps"),
    (f"weaktr.pth {WEAKTR} --channels nope", "No such file"),
    (f"prompts.pth {WEAKTR}", "expected a dictionary with 'model' in prompts.pth"),
    (f"text.pth {WEAKTR}", "expected a file that torch.save wrote, got text"),
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
    arguments: str,
    message: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    assert semples(monkeypatch, "import-checkpoint", *arguments.split()) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not {"o", "work"} & {path.name for path in place.iterdir()}
