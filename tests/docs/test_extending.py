"""docs/extending.md, applied to a copy of the code to the letter, holds what it promises."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers.markdown import Block, blocks
from tests.helpers.paths import ROOT

# What is on the page, used together; it runs in the copy.
TOGETHER = """
from pathlib import Path

import torch

from models.bundle.bundle import load_bundle
from models.config import Config, dump_config, parse_config
from models.data.labels import classes_of, read_folder
from models.inference.predictor import Predictor
from models.training.export import export_bundle
from models.training.generator import pretrain_generator, train_generator
from models.training.run import start_run


def test_all_together(tiny_config: Config, tiny_data: Path, tmp_path: Path) -> None:
    text = dump_config(tiny_config.model_copy(update={"pretrain_generator": None}))
    content = text.replace("kind: zero_shot\\n  output_stride: 16", "kind: patches")
    assert content != text
    content = content.replace("pretrain_generator: null", "pretrain_generator: {epochs: 1, crop_size: 64}")
    config = parse_config(content, source="here")
    labels = tmp_path / "labels.tab"
    rows = (tiny_data / "labels.csv").read_text().splitlines()[1:]
    labels.write_text("\\n".join(rows).replace(",", "\\t"))
    classes = classes_of(labels)
    assert classes.names == ("bowl", "cat", "cup", "dining table")
    samples = read_folder(tiny_data / "images", labels, classes)
    run = start_run(config, classes, tmp_path / "work", device=torch.device("cpu"))
    pretrain_generator(run, samples, lambda step: None)
    train_generator(run, samples, lambda step: None)
    export_bundle(run, tmp_path / "bundle", stage="train-generator", licence="none", trained_on="squares")
    predictor = Predictor(load_bundle(tmp_path / "bundle", device=torch.device("cpu")))
    assert predictor.info.generator.kind == "patches"
    image = torch.zeros(64, 80, 3, dtype=torch.uint8).numpy()
    found = predictor.pseudo_mask(image, ["cat"], predictor.options(refine="random_walk+smooth"))
    assert found.label_map.shape == (64, 80)
"""


def apply(block: Block, copy: Path) -> Path:
    """Make the file or the edit that a block shows; returns the file."""
    path = copy / block.head.removeprefix("# ")
    if block.language == "python":
        assert not path.exists(), f"line {block.line}: {path.name} is there already"
        path.write_text(block.body, encoding="utf-8")
        return path
    lines = block.body.splitlines()
    assert all(line[:1] in ("+", "-", " ") for line in lines), f"line {block.line}"
    before = "".join(f"{line[1:]}\n" for line in lines if line[0] != "+")
    after = "".join(f"{line[1:]}\n" for line in lines if line[0] != "-")
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"line {block.line}: not found once in {path.name}"
    path.write_text(text.replace(before, after), encoding="utf-8")
    return path


def test_the_page_holds_in_a_copy_of_the_code(tmp_path: Path) -> None:
    for folder in ("models", "tests"):
        ignored = shutil.ignore_patterns("bundles", "__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    touched = {apply(each, tmp_path) for each in blocks("extending.md")}
    assert len(touched) == 9
    (tmp_path / "tests" / "test_together.py").write_text(TOGETHER, encoding="utf-8")
    tests = [
        "models/refine/test_contract",
        "models/generators/test_generators",
        "models/data/test_contract",
        "test_together",
    ]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rp"),
            *(f"tests/{name}.py" for name in tests),
            *("-k", "smooth or patches or tab_separated or together"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ran = [line for line in done.stdout.splitlines() if line.startswith("PASSED ")]
    for word, least in (("smooth", 20), ("patches", 2), ("tab_separated", 4), ("together", 1)):
        assert sum(word in line for line in ran) >= least, done.stdout
    _is_clean(touched, tmp_path)


def _is_clean(files: set[Path], copy: Path) -> None:
    """What readers copy is as the house has it."""
    for check in (["check", "--quiet"], ["format", "--check", "--quiet"]):
        done = subprocess.run(
            ["ruff", *check, *map(str, sorted(files))],
            cwd=copy,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
