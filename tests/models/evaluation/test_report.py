import base64
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from models.bundle.bundle import load_bundle
from models.config import Config
from models.data.classes import ClassInfo, ClassList, Sample
from models.evaluation.report import (
    Sources,
    _describe_options,
    _read_steps,
    _stage_parts,
    describe_masks,
    masks_part,
    write_report,
)
from models.inference.folder import MaskJob, make_here, make_pseudo_masks
from models.inference.predictor import Predictor
from models.training.loop import Step
from models.training.run import Run, start_run
from tests.conftest import CLASSES, CPU
from tests.helpers.html_page import Element, Page

OPTIONS = {
    "refine": "pamr", "min_confidence": 0.0, "background_threshold": 0.4, "background_power": None,
    "class_thresholds": {},
}  # fmt: skip
CAT = {
    "images": 3, "mean_area": 0.1, "mean_confidence": 0.5, "mean_alignment_class": None,
    "mean_alignment_background": None, "empty": ["a.jpg", "b.jpg"],
}  # fmt: skip
SUMMARY = {
    "options": OPTIONS, "masks": 3, "unlabeled": 1, "classes": {"cat": CAT},
    "failed": [{"image": "c.jpg", "reason": "cannot read"}],
}  # fmt: skip


def test_a_summary(tmp_path: Path) -> None:
    assert masks_part(tmp_path) is None
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    part = masks_part(tmp_path)
    assert part is not None
    assert (part.made, part.unlabeled, part.failed) == (3, 1, (("c.jpg", "cannot read"),))
    assert part.empty == 2
    [row] = part.rows
    assert (row.name, row.photos, row.area, row.to_class) == ("cat", 3, 0.1, None)


@pytest.mark.parametrize(
    ("classes", "failed", "words"),
    [
        ({"cat": CAT}, [], "2 empty of 3 labels (cat 2 of 3)"),
        ({"cat": {**CAT, "empty": []}}, [], "0 empty of 3 labels"),
        (
            {"bowl": {**CAT, "empty": ["c.jpg"]}, "cat": CAT},
            SUMMARY["failed"],
            "3 empty of 6 labels (cat 2 of 3, bowl 1 of 3); photos that failed: 1",
        ),
    ],
)
def test_describe_masks(tmp_path: Path, classes: object, failed: object, words: str) -> None:
    content = {**SUMMARY, "classes": classes, "failed": failed}
    (tmp_path / "summary.json").write_text(json.dumps(content))
    part = masks_part(tmp_path)
    assert part is not None
    assert describe_masks(part) == words


@pytest.mark.parametrize("key", ["options", "masks", "classes", "failed"])
def test_another_json_is_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({**SUMMARY, key: None}))
    if key == "masks":
        (tmp_path / "summary.json").write_text(json.dumps({"images": 3}))
    with pytest.raises(ValueError, match="expected a summary of make-pseudo-masks in"):
        masks_part(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "refined by pamr, background threshold 0.4"),
        ({"refine": "none"}, "not refined, background threshold 0.4"),
        ({"background_power": 2, "background_threshold": None}, "refined by pamr, background power 2"),
        (
            {"class_thresholds": {"cat": 0.3}, "min_confidence": 0.2},
            "refined by pamr, background threshold 0.4, thresholds of their own for 1 classes, least confidence 0.2",
        ),
    ],
)
def test_describe_options(change: dict[str, object], words: str) -> None:
    assert _describe_options({**OPTIONS, **change}) == words


def write_log(run: Run, stage: str, steps: list[Step]) -> Path:
    with run.logged(stage, lambda step: None) as report:
        for step in steps:
            report(step)
    return run.work / stage / "log.jsonl"


def logged_part(run: Run, stage: str, steps: list[Step]) -> Any:
    write_log(run, stage, steps)
    return {each.name: each for each in _stage_parts(run.work)}[stage]


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Run:
    return Run(tiny_run.config, tiny_run.classes, tmp_path, tiny_run.device)


def step_of(epoch: int, step: int, steps: int = 4, **losses: float) -> Step:
    return Step(epoch, step, steps, 0.1, losses)


STEPS = [
    step_of(epoch, step, match=2.0 - epoch, refine=step / 10, loss=2.0 - epoch + step / 10)
    for epoch in range(2)
    for step in range(4)
]


def test_a_log_comes_back_but_for_a_line_that_a_kill_cut(run: Run) -> None:
    log = write_log(run, "train-generator", STEPS)
    assert _read_steps(log) == STEPS
    content = log.read_text()
    log.write_text(content[:-25])
    assert _read_steps(log) == STEPS[:-1]
    log.write_bytes(content.encode() + b'{"epoch": 2, "st\xff\n[1]\n7\n\n')
    assert _read_steps(log) == STEPS
    assert _read_steps(run.work / "no" / "log.jsonl") == []


def test_terms_and_plots(run: Run) -> None:
    part = logged_part(run, "refine-generator", STEPS)
    assert (part.state, part.epochs, part.steps) == ("unfinished", 2, 8)
    assert [(t.name, t.first, t.last) for t in part.terms] == [
        ("match", 2.0, 1.0),
        ("refine", pytest.approx(0.15), pytest.approx(0.15)),
        ("loss", pytest.approx(2.15), pytest.approx(1.15)),
    ]
    losses, rate = part.plots
    assert [line.name for line in losses.lines] == ["match", "refine", "loss"]
    assert [line.name for line in rate.lines] == ["learning rate"]
    assert losses.x_ticks[-1].label == "2.0"


def test_an_epoch_of_one_step_is_an_epoch_wide(run: Run) -> None:
    part = logged_part(run, "train-generator", [step_of(0, 0, 1, match=1.0)])
    for plot in part.plots:
        assert (plot.x_ticks[0].label, plot.x_ticks[-1].label) == ("0.0", "1.0")


def test_the_sum_of_one_term_is_not_shown_twice(run: Run) -> None:
    part = logged_part(run, "learn-prompts", [step_of(0, 0, 1, prompt=1.0, loss=1.0)])
    assert [term.name for term in part.terms] == ["prompt"]


def test_stages_come_in_order_and_others_last(run: Run) -> None:
    write_log(run, "another-stage", STEPS)
    write_log(run, "pretrain-generator", STEPS)
    (run.work / "train-generator").mkdir()
    (run.work / "train-generator" / "generator.safetensors").touch()
    parts = _stage_parts(run.work)
    assert [(part.name, part.state) for part in parts] == [
        ("pretrain-generator", "unfinished"),
        ("train-generator", "done"),
        ("learn-prompts", "not run"),
        ("refine-generator", "not run"),
        ("train-segmenter", "not run"),
        ("another-stage", "unfinished"),
    ]
    assert parts[1].plots == ()


WritePage = Callable[..., Page]
SCRIPT = "<script>alert('1')</script>"


@pytest.fixture(scope="module")
def made(tiny_bundle: Path, tiny_samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made")
    predictor = Predictor(load_bundle(tiny_bundle, device=CPU))
    job = MaskJob(output, predictor.options(), save_scores=True)
    make = partial(make_here, predictor, job)
    make_pseudo_masks(predictor.info, tiny_samples, job, make, on_image=lambda: None)
    return output


@pytest.fixture
def page(tiny_run: Run, tiny_bundle: Path, tmp_path: Path) -> WritePage:
    def write(*sources: Any, run: Run = tiny_run, bundle: Path | None = tiny_bundle, photos: int = 6) -> Page:
        samples, masks, truth = (*sources, None, None)[:3]
        output = tmp_path / "new" / "report.html"
        write_report(run, Sources(samples, masks, bundle, truth), output, photos=photos)
        return Page(output.read_text(encoding="utf-8"))

    return write


def size_of(image: Element) -> tuple[int, int]:
    data = base64.b64decode(str(image.attributes["src"]).partition(",")[2])
    with Image.open(io.BytesIO(data)) as picture:
        return picture.size


def test_a_whole_page(tiny_data: Path, tiny_samples: list[Sample], made: Path, page: WritePage) -> None:
    whole = page(tiny_samples, made, tiny_data / "masks")
    assert whole.all("h1")[0].text == "tiny"
    assert "seed 0" in whole.section("run")
    assert "8 labeled, 0 without a label" in whole.section("run")
    assert "semples " in whole.section("run")

    truth = whole.section("truth")
    assert "mean IoU, fixed" in truth
    assert "mean IoU, oracle" in truth
    assert "last epoch, at 0." in truth
    assert "class fixed oracle true pixels background" in truth

    photos = whole.all("article")
    assert len(photos) == 6
    panels = [figure.text for figure in whole.all("figure") if figure.children[0].tag == "img"]
    assert panels == ["photo", "CAM", "refined scores", "pseudo mask", "ground truth"] * 6

    assert "8 masks, refined by pamr, background threshold 0.4" in whole.section("masks")
    assert "cat 2" in whole.section("masks")
    training = whole.section("training")
    assert "train-generator done 1 2 match" in training
    assert "learn-prompts done 2" in training
    assert "train-segmenter not run 0 0 –" in training
    rows = [row for row in whole.all("tr") if len(row.children) == 3 and "nouns" not in row.text]
    assert [row.children[0].text for row in rows] == list(CLASSES.names)
    assert all(len(row.children[2].children) == 8 for row in rows)


def test_nothing_comes_from_elsewhere_and_all_can_read_it(
    tiny_samples: list[Sample], made: Path, page: WritePage
) -> None:
    whole = page(tiny_samples, made, photos=2)
    assert not {"script", "link", "iframe", "object", "embed"} & {e.tag for e in whole.elements}
    ids = [e.attributes["id"] for e in whole.elements if "id" in e.attributes]
    assert len(set(ids)) == len(ids)
    for element in whole.elements:
        for key, value in element.attributes.items():
            assert not key.startswith("on")
            if key == "href":
                assert str(value).removeprefix("#") in ids
            assert key != "src" or str(value).startswith("data:image/jpeg;base64,")
    assert "url(" not in whole.all("style")[0].text
    assert whole.all("html")[0].attributes["lang"] == "en"
    for image in whole.all("img"):
        assert image.attributes["alt"]
        assert size_of(image) == (80, 60)
    for table in whole.all("table"):
        assert table.children[0].tag == "caption"
    assert all(e.attributes.get("scope") in ("row", "col") for e in whole.all("th"))
    drawn = [svg for svg in whole.all("svg") if svg.attributes.get("role") == "img"]
    assert len(drawn) == 6
    assert all(svg.attributes["aria-label"] for svg in drawn)
    assert "how good the masks are was not measured" in whole.section("truth")


def test_pictures_are_bounded_however_large_the_photo(tmp_path: Path, page: WritePage) -> None:
    Image.effect_noise((3000, 2000), 90).convert("RGB").save(tmp_path / "large.jpg")
    whole = page([Sample(tmp_path / "large.jpg", (1,))])
    assert {size_of(image) for image in whole.all("img")} == {(320, 213)}


def test_equal_runs_give_equal_pages(
    tiny_run: Run, tiny_bundle: Path, tiny_samples: list[Sample], made: Path, tmp_path: Path
) -> None:
    sources = Sources(tiny_samples, made, tiny_bundle)
    shares: list[float] = []
    write_report(tiny_run, sources, tmp_path / "a.html", photos=3, on_fraction=shares.append)
    write_report(tiny_run, replace(sources, samples=tiny_samples[::-1]), tmp_path / "b.html", photos=3)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert shares == [1 / 3, 2 / 3, 1]


def test_names_are_text_and_never_markup(
    tiny_run: Run, tiny_bundle: Path, tiny_samples: list[Sample], tmp_path: Path, page: WritePage
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    manifest = (bundle / "bundle.yaml").read_text()
    (bundle / "bundle.yaml").write_text(
        manifest.replace("name: cat", f'name: "{SCRIPT}"').replace("  cat:", f'  "{SCRIPT}":')
    )
    classes = ClassList(tuple(ClassInfo(c.index, SCRIPT) if c.name == "cat" else c for c in CLASSES.classes))
    photo = tmp_path / '"><img src=x onerror=alert(2)>&.jpg'
    photo.write_bytes(tiny_samples[0].path.read_bytes())
    run = replace(tiny_run, classes=classes)
    predictor = Predictor(load_bundle(bundle, device=CPU))
    job = MaskJob(tmp_path / "masks", predictor.options(), save_scores=False)
    odd = [Sample(photo, (1,), tmp_path)]
    make_pseudo_masks(predictor.info, odd, job, partial(make_here, predictor, job), on_image=lambda: None)
    Image.new("L", (80, 60), 4).save(tmp_path / f"{photo.stem}.png")
    whole = page(odd, job.output, tmp_path, run=run, bundle=bundle)
    assert not whole.all("script")
    assert all("onerror" not in e.attributes for e in whole.elements)
    for name in ("run", "truth", "pictures", "masks", "prompts"):
        assert SCRIPT in whole.section(name)
    assert photo.name in whole.section("pictures")
    assert whole.all("img")[1].attributes["alt"] == f"{photo.name}, CAM of {SCRIPT}"


def test_a_run_that_has_only_begun(tiny_config: Config, tmp_path: Path, page: WritePage) -> None:
    run = start_run(tiny_config, CLASSES, tmp_path / "work", device=CPU)
    bare = page([], tmp_path / "none", tmp_path, run=run, bundle=None)
    assert "no pseudo masks yet to compare" in bare.section("truth")
    assert "no bundle yet to make them with" in bare.section("pictures")
    assert "Not made yet" in bare.section("masks")
    assert "train-generator not run 0 0 –" in bare.section("training")
    assert "no bundle yet to ask" in bare.section("prompts")
    assert not bare.all("img")


def test_parts_that_a_stage_left_out(
    tiny_bundle: Path, tiny_data: Path, tiny_samples: list[Sample], made: Path, tmp_path: Path, page: WritePage
) -> None:
    bundle, masks = tmp_path / "bundle", tmp_path / "masks"
    shutil.copytree(tiny_bundle, bundle)
    text = (bundle / "bundle.yaml").read_text()
    start, end = text.index("nearest_nouns:"), text.index("files:")
    (bundle / "bundle.yaml").write_text(text[:start] + text[end:])
    shutil.copytree(made, masks)
    shutil.rmtree(masks / "scores")
    (masks / "summary.json").unlink()  # killed before the end
    (masks / "masks" / "photo0.png").unlink()
    part = page(tiny_samples, masks, tiny_data / "masks", bundle=bundle, photos=0)
    assert "the folder has no stored scores" in part.section("truth")
    assert "in 7 photos; 1 ground truths have no mask" in part.section("truth")
    assert "last epoch, at" not in part.section("truth")
    assert "no photo was asked for" in part.section("pictures")
    assert "not to the end" in part.section("masks")
    assert "The bundle has no learned prompts" in part.section("prompts")


def test_a_photo_that_cannot_be_read_is_reported(tiny_samples: list[Sample], tmp_path: Path, page: WritePage) -> None:
    (tmp_path / "bad.jpg").write_bytes(tiny_samples[0].path.read_bytes()[:200])
    unreadable = [Sample(tmp_path / name, (0,)) for name in ("bad.jpg", "gone.jpg")]
    pictures = page([*unreadable, tiny_samples[2]]).section("pictures")
    assert pictures.count("It could not be read") == 2
    assert "pseudo mask" in pictures


def test_another_runs_bundle_is_refused(tiny_run: Run, tiny_samples: list[Sample], page: WritePage) -> None:
    other = replace(tiny_run, classes=ClassList(CLASSES.classes[:3]))
    with pytest.raises(ValueError, match=r"expected a bundle with the run's classes, got .*tiny"):
        page(tiny_samples, run=other)
