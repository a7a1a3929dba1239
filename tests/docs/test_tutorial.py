"""docs/tutorial.md, command by command."""

import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.offline_clip.build import save_clip
from tests.helpers.markdown import Block, blocks
from tests.helpers.paths import ROOT
from tests.helpers.service_fixtures import wait_for
from tests.helpers.serving import free_port
from tests.helpers.shell import Shell, require_curl
from tests.helpers.vit import TINY_VIT, tiny_vit_clip

PORT = "8000"
MASKS = "work/pseudo-masks"
LABELS = {"cat.jpg": {"cat"}, "coffee.jpg": {"cup", "dining table"}, "clock.jpg": {"clock"}}


@contextmanager
def serving(shell: Shell, script: str, port: int) -> Iterator[None]:
    process = shell.start(f"exec {script}")

    def ready() -> bool:
        if process.poll() is not None:
            raise ChildProcessError(process.stderr.read() if process.stderr else "")
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
        return False

    try:
        wait_for(ready, seconds=120, what="the service")
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as mask:
        return np.array(mask)


def run(shell: Shell, scripts: list[Block], replaced: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Run scripts, one of which serves those behind it; returns what those before it and behind it print."""
    shutil.copytree(ROOT / "benchmarks" / "photos", shell.folder / "benchmarks" / "photos")
    port = free_port()
    texts = [each.text.replace(PORT, str(port)) for each in scripts]
    for old, new in replaced.items():
        assert sum(old in text for text in texts) == 1
        texts = [text.replace(old, new) for text in texts]
    [at] = [number for number, each in enumerate(scripts) if "serve" in each.words]
    before = [shell.run(text) for text in texts[:at]]
    with serving(shell, texts[at], port):
        return before, [shell.run(text) for text in texts[at + 1 :]]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_masks_of_any_label(tmp_path: Path) -> None:
    """With a CLIP in open_clip's own format in place of the one that is downloaded."""
    require_curl()
    scripts = [each for each in blocks("tutorial.md") if each.language == "bash" and "clip" in each.words]
    save_clip(tiny_vit_clip(), tmp_path / "tiny", config=TINY_VIT)
    run(Shell(tmp_path), scripts, {"--clip ViT-B-16 --pretrained openai": f"--clip local-dir:{tmp_path / 'tiny'}"})
    assert pixels(tmp_path / "coffee.png").shape == (400, 600)
    assert len(np.unique(pixels(tmp_path / "coffee.png"))) > 1
    lines = (tmp_path / "my-clip-masks" / "classes.txt").read_text().splitlines()
    assert {"espresso cup", "saucer", "spoon", "alarm clock"} <= {line.split(" ", 1)[1] for line in lines}
    assert len(list((tmp_path / "my-clip-masks" / "masks").glob("*.png"))) == 3


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_training_runs_as_it_stands(tmp_path: Path) -> None:
    require_curl()
    scripts = [each for each in blocks("tutorial.md") if each.language == "bash" and "clip" not in each.words]
    trained, printed = run(Shell(tmp_path), scripts, {})
    _says_what_it_wrote(trained[2])
    assert "mean IoU, fixed: 100.00 %" in trained[3]
    _masks_are_of_the_labels(tmp_path / "mine")
    assert "<article>" in (tmp_path / "mine" / "work" / "report.html").read_text()
    mine = tmp_path / "mine"
    assert np.array_equal(pixels(mine / "cat.png"), pixels(mine / MASKS / "masks" / "cat.png"))
    job = json.loads(printed[1])
    assert (job["task"], job["status"], job["model"]["name"]) == ("segment", "finished", "mine")


def _says_what_it_wrote(output: str) -> None:
    """The lines that the page shows are those that came, but for the count of empty masks."""
    [shown] = [each for each in blocks("tutorial.md") if each.text.startswith("train-generator: ")]
    came, expected = output.splitlines(), shown.text.splitlines()
    assert came[:-1] == expected[:-1]
    assert " empty of 4 labels" in came[-1]
    assert came[-1].endswith("; see mine/work/report.html")


def _masks_are_of_the_labels(mine: Path) -> None:
    lines = (mine / MASKS / "classes.txt").read_text().splitlines()
    index = {name: int(number) for number, name in (line.split(" ", 1) for line in lines)}
    assert set(index) == {"background"}.union(*LABELS.values())
    for photo, labels in LABELS.items():
        mask = pixels(mine / MASKS / "masks" / f"{Path(photo).stem}.png")
        assert set(np.unique(mask)) <= {0, 255, *(index[each] for each in labels)}
