import shutil
from pathlib import Path

import pytest

from models.training.run import Run
from tests.helpers.command import semples, semples_ok, semples_refuses
from tests.helpers.html_page import Page


@pytest.fixture
def work(tiny_run: Run, tmp_path: Path) -> Path:
    shutil.copytree(tiny_run.work, tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def given(data_options: list[object], work: Path) -> list[object]:
    return [work, *data_options, "--output", work / "report.html", "--device", "cpu"]


def page_of(work: Path) -> Page:
    return Page((work / "report.html").read_text(encoding="utf-8"))


def test_the_bundle_is_packed_where_there_is_none(work: Path, given: list[object]) -> None:
    semples_ok("report", *given, "--photos", 1)
    page = page_of(work)
    assert len(page.all("img")) == 4
    assert "stage refine-generator" in page.section("run")
    assert "Nearest nouns" in page.section("prompts")
    assert not (work / "bundle").exists()

    (work / "refine-generator" / "generator.safetensors").unlink()
    semples_ok("report", *given, "--photos", 1)
    assert "stage train-generator" in page_of(work).section("run")


def test_the_runs_own_bundle_comes_before(work: Path, given: list[object], tiny_segmenter_bundle: Path) -> None:
    shutil.copytree(tiny_segmenter_bundle, work / "bundle")
    (work / "config.yaml").write_text((work / "config.yaml").read_text().replace("local-dir:", "local-dir:/nowhere"))
    semples_ok("report", *given, "--photos", 1)  # and CLIP is not needed
    assert len(page_of(work).all("img")) == 4


def test_without_clip_there_is_a_page_without_pictures(work: Path, given: list[object]) -> None:
    (work / "config.yaml").write_text((work / "config.yaml").read_text().replace("local-dir:", "local-dir:/nowhere"))
    done = semples("report", *given)
    assert done.returncode == 0
    assert "no pictures, for the bundle cannot be packed: " in done.stderr
    page = page_of(work)
    assert not page.all("img")
    assert "no bundle yet" in page.section("pictures")
    assert "train-generator done" in page.section("training")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--masks", "{none}"], "expected the output folder of make-pseudo-masks, got "),
        (["--bundle", "nope"], "got 'nope'"),
        (["--photos", "101"], "less than or equal to 100"),
    ],
)
def test_mistakes_are_refused(work: Path, given: list[object], more: list[str], message: str) -> None:
    options = (each.format(none=work / "none") for each in more)
    assert message in semples_refuses("report", *given, *options)
    assert not (work / "report.html").exists()
