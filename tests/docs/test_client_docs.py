"""docs/client.md: each snippet runs."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.helpers.client_fixtures import Script
from tests.helpers.paths import ROOT
from tests.helpers.service_fixtures import WorkerProcess
from tests.service.client.test_requests import Batches

TEXT = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
URL = '"http://127.0.0.1:8000"'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number, path in enumerate(["photo.jpg", "photos/a.jpg", "photos/b.jpg"]):
        Image.new("RGB", (30, 20), (131, number * 50, 0)).save(path)
    (tmp_path / "labels.csv").write_text("image,labels\na.jpg,cat\nb.jpg,bowl\n")
    with zipfile.ZipFile("photos.zip", "w") as archive:
        archive.write("labels.csv")
    return tmp_path


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) == 6
    assert all(URL in each for each in SNIPPETS)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs(
    snippet: str, folder: Path, api: httpx.Client, worker: WorkerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    del worker
    if "submit_batch" in snippet:
        code = snippet.replace(URL, f"{URL}, transport=double, sleep=lambda _: None")
    else:
        code = snippet.replace(URL, repr(str(api.base_url)))
    exec(compile(code, "client.md", "exec"), {"double": Script(then=Batches())})
    printed = capsys.readouterr().out
    assert printed
    for name in re.findall(r'save\("(.*?)"\)|"(masks\.zip|out)"', snippet):
        assert (folder / "".join(name)).exists()
    if "UnknownLabel" in snippet:
        assert printed == "catt is not known; perhaps ('cat',)\n"
    if "client.batch(" in snippet:
        assert printed == "2 0 0 ()\n"


def test_the_command_has_the_options_that_are_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.client.cli", "--help"],
        cwd=ROOT,
        env={"COLUMNS": "200", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    named = set(re.findall(r"--[a-z][a-z-]+", TEXT))
    assert {"--concurrency", "--key-file"} <= named
    assert named <= set(re.findall(r"--[a-z-]+", done.stdout))
