"""docs/tutorial.md, command by command."""

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.helpers.markdown import Block, blocks
from tests.helpers.paths import ROOT
from tests.helpers.service_fixtures import wait_for
from tests.helpers.serving import free_port
from tests.helpers.shell import Shell, require_curl

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


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    require_curl()
    shell = Shell(tmp_path)
    shutil.copytree(ROOT / "benchmarks" / "photos", tmp_path / "benchmarks" / "photos")
    port = free_port()
    scripts = [each for each in blocks("tutorial.md") if each.language == "bash"]
    [at] = [number for number, each in enumerate(scripts) if "serve" in each.words]

    def of(block: Block) -> str:
        return block.text.replace(PORT, str(port))

    trained = [shell.run(of(each)) for each in scripts[:at]]
    _says_what_it_wrote(trained[2])
    assert "mean IoU, fixed: 100.00 %" in trained[3]
    _masks_are_of_the_labels(tmp_path / "mine")
    assert "<article>" in (tmp_path / "mine" / "work" / "report.html").read_text()
    with serving(shell, of(scripts[at]), port):
        printed = [shell.run(of(each)) for each in scripts[at + 1 :]]
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
