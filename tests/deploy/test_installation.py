"""What an installation needs: a Python that ``make`` finds, and a wheel that has everything."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from PIL import Image

from tests.helpers.paths import PHOTO, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMED = [re.sub(r"^.* :: ", "python", each) for each in PROJECT["classifiers"] if ":: Python ::" in each]


def make_setup(folder: Path, pythons: dict[str, int], *options: str) -> subprocess.CompletedProcess[str]:
    """``make setup`` where there are only these Pythons, each of which ends our question with a code."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "tests").mkdir()
    (folder / "tests" / "readers.txt").touch()
    programs = folder / "programs"
    programs.mkdir()
    for name in ("make", "sh", "test"):
        (programs / name).symlink_to(str(shutil.which(name)))
    for name, code in pythons.items():
        (programs / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (programs / name).chmod(0o755)
    command = [str(programs / "make"), "setup", *options]
    environment = {"PATH": str(programs)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        (dict.fromkeys(["python3", *NAMED], 0), NAMED[-1]),
        ({NAMED[-1]: 1, NAMED[0]: 0, "python3": 0}, NAMED[0]),  # an older one, or one without venv, says 1
        ({NAMED[0]: 127, "python3": 0}, "python3"),
        ({"python3": 1, "python": 0}, "python"),
    ],
)
def test_make_takes_a_python_that_is_there(pythons: dict[str, int], taken: str, tmp_path: Path) -> None:
    done = make_setup(tmp_path, pythons, "--dry-run")
    assert re.findall(r"(\S+) -m venv", done.stdout) == [taken]


def test_make_takes_the_python_that_is_named(tmp_path: Path) -> None:
    done = make_setup(tmp_path, {"python3": 0}, "--dry-run", "PYTHON=/opt/python")
    assert re.findall(r"(\S+) -m venv", done.stdout) == ["/opt/python"]


@pytest.mark.parametrize("pythons", [{}, {"python3": 1}, {"python3.11": 126, "python": 1}])
def test_without_a_python_make_says_so(pythons: dict[str, int], tmp_path: Path) -> None:
    done = make_setup(tmp_path, pythons)
    assert done.returncode != 0
    [line, of_make] = done.stderr.splitlines()
    assert line.startswith("expected Python 3.11 or later with venv, got none")
    assert of_make.startswith("make: ***")
    assert not (tmp_path / ".venv").exists()


def test_make_asks_for_the_versions_that_the_classifiers_name() -> None:
    [asked] = re.findall(r"for name in (.*) python3 python;", (ROOT / "Makefile").read_text())
    assert asked.split() == sorted(NAMED, key=lambda name: int(name.partition(".")[2]), reverse=True)


def test_the_extra_all_brings_what_each_command_needs() -> None:
    extras = PROJECT["optional-dependencies"]
    [everything] = extras["all"]
    assert {"api", "worker", "client", "embedded", "export"} <= {*re.findall(r"\w+", everything)}


VERSIONS = [f"{name.removeprefix('python')}.{patch}" for name in NAMED for patch in (0, 99)]
BY_TORCH = re.compile("nvidia-|cuda-|triton$|setuptools$")  # torch pins them itself


def needed(asked: list[Requirement], version: str) -> Iterator[Requirement]:
    """These requirements, and all that the installed packages that meet them ask for with a version of Python."""
    python = {"python_full_version": version, "python_version": version.rpartition(".")[0]}
    seen: set[tuple[str, str]] = set()
    while asked:
        requirement = asked.pop()
        name = canonicalize_name(requirement.name)
        if BY_TORCH.match(name) or name == "semples":
            continue
        yield requirement
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                asked += of_package(name, extra, python)


def of_package(name: str, extra: str, python: dict[str, str]) -> Iterator[Requirement]:
    with suppress(PackageNotFoundError):  # of other versions of Python
        supported = metadata(name).get("Requires-Python", "")
        assert python["python_full_version"] in SpecifierSet(supported), f"{name} needs Python {supported}"
        for each in map(Requirement, requires(name) or ()):
            if each.marker is None or each.marker.evaluate({"extra": extra, **python}):
                yield each


@pytest.mark.parametrize("version", VERSIONS)
def test_the_constraints_name_all_that_a_version_of_python_needs(version: str) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    extras = {name: each for name, each in PROJECT["optional-dependencies"].items() if name != "bench"}
    ours = [*PROJECT["dependencies"], *(each for extra in extras.values() for each in extra)]
    found = list(needed([Requirement(each) for each in ours], version))
    assert len(found) > 200
    for each in found:
        name = canonicalize_name(each.name)
        assert name in pinned, f"{each} is not in constraints.txt"
        assert each.specifier.contains(pinned[name], prereleases=True), f"{each}, got {pinned[name]}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="this environment is older than the extra dev: run make setup")
    folder = tmp_path_factory.mktemp("wheel")
    build = "from hatchling.build import build_wheel; import sys; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=ROOT, capture_output=True, timeout=100, check=True)
    [built] = folder.glob("semples-*-py3-none-any.whl")
    return built


def test_a_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        sizes = {each.filename: each.file_size for each in archive.infolist()}
        [points] = [archive.read(name).decode() for name in sizes if name.endswith("/entry_points.txt")]
    paths = [path for package in ("models", "service", "worker") for path in (ROOT / package).rglob("*")]
    files = {str(path.relative_to(ROOT)) for path in paths if path.is_file() and "__pycache__" not in path.parts}
    assert {name for name in sizes if ".dist-info/" not in name} == files
    for name in (
        "models/bundles/coco-demo/bundle.yaml",
        "models/bundles/coco-demo/clip_text.safetensors",
        "models/bundles/coco-demo/segmenter.safetensors",
        "models/configs/coco-demo.yaml",
        "models/nouns.txt",
        "models/reports/page.html",
        "service/web/index.html",
        "service/web/examples/cat.jpg",
    ):
        assert sizes[name] > 100, name  # no pointer of a large file's store
    assert "semples = models.cli:main" in points


_PAGE = """
from fastapi.testclient import TestClient
from redis import Redis
from service.app import create_app
from service.settings import Settings
from worker.storage import BlobStore
client = TestClient(create_app(Settings(), Redis(), BlobStore.open("memory://x")), base_url="http://127.0.0.1")
assert "Masks from photos" in client.get("/").text
assert client.get("/web/app.js").status_code == 200
import models, sys
print(models.__file__)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_installed_wheel_makes_a_mask_in_any_folder(wheel: Path, tmp_path: Path) -> None:
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    with ZipFile(wheel) as archive:
        archive.extractall(installed)
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(code: str, *arguments: str) -> str:
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(_PAGE).startswith(str(installed))
    main = "from models.cli import main; main()"
    run(main, "predict", str(PHOTO), "--labels", "cat", "--output", "out", "--threads", "1")
    with Image.open(empty / "out" / f"{PHOTO.stem}.png") as mask, Image.open(PHOTO) as photo:
        assert mask.size == photo.size
    assert "person" in run(main, "explain-prompts")
