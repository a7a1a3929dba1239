from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from benchmarks.gpu import cases, speed
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.compare import FLOAT32, GRADIENTS, TOLERANCES, Case, difference, judge
from benchmarks.gpu.table import Item, Outcome, Row, failures, run_items, table
from models.build import GENERATOR_KINDS
from models.config import Config
from models.refine import REFINERS, Refiner, RefinerContext
from tests.conftest import CPU

SMALL = ["--device", "cpu", "--small"]


def test_differences_are_shares_of_the_highest_number() -> None:
    expected = torch.tensor([0.0, 2.0, -4.0])
    assert difference(torch.tensor([0.0, 2.0, -3.0]), expected) == pytest.approx(0.25)
    assert difference(expected, expected) == 0
    assert difference(torch.tensor([0.0, 2.0, float("nan")]), expected) == float("inf")


def test_differences_of_label_maps_are_shares_of_the_pixels() -> None:
    assert difference(torch.tensor([1, 2, 3, 255]), torch.tensor([1, 2, 3, 0])) == 0.25


def test_other_shapes_and_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(3,\) torch.float32, got \(2,\) torch.float32"):
        difference(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"expected \(2,\) torch.int64, got"):
        difference(torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected outputs \['a'\], got \['b'\]"):
        judge({"b": torch.zeros(1)}, {"a": torch.zeros(1)}, TOLERANCES[FLOAT32])


def test_the_worst_output_for_its_tolerance_is_told() -> None:
    expected = {"CAMs": torch.ones(2), GRADIENTS: torch.ones(2)}
    found = {"CAMs": torch.tensor([1.0, 1.125]), GRADIENTS: torch.tensor([1.0, 1.25])}
    assert judge(found, expected, TOLERANCES["bfloat16"]) == Outcome("CAMs: 0.12 > 0.1", failed=True)
    assert not judge(expected, expected, TOLERANCES[FLOAT32]).failed


def test_what_fails_is_named_and_the_rest_is_done() -> None:
    def broken() -> Outcome:
        raise RuntimeError("no kernel |\n for it")

    def ends() -> Outcome:
        raise SystemExit("starting serve failed")

    items = [Item("a", "x", broken), Item("b", "y", ends), Item("c", "z", lambda: Outcome("7 photos/s", 12.3))]
    rows = run_items(items, deadline=100, clock=lambda: 0)
    assert failures(rows) == ["a, x", "b, y"]
    *_, first, _, last = table(rows).splitlines()
    assert first == "| a | x | **RuntimeError: no kernel / for it** |  |"
    assert last == "| c | z | 7 photos/s | 12 |"


def test_what_no_longer_fits_is_skipped() -> None:
    now = iter([0.0, 6.0, 8.5])
    items = [Item(name, "x", lambda: Outcome("done"), needs=needs) for name, needs in (("a", 5), ("b", 5), ("c", 1))]
    rows = run_items(items, deadline=10, clock=lambda: next(now))
    assert [row.outcome.result for row in rows] == ["done", "skipped: the minutes are over", "done"]
    assert failures(rows) == []


def test_every_kind_is_compared() -> None:
    assert set(cases.GENERATORS) == set(GENERATOR_KINDS)
    (union,) = (get_args(each.annotation) for name, each in Config.model_fields.items() if name == "segmenter")
    assert set(cases.SEGMENTERS) == {get_args(each.model_fields["kind"].annotation)[0] for each in union}


@pytest.mark.timeout(300)
def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # One of each of what the demo bundle does, which is the slow part; the slow test below has all.
    monkeypatch.setattr(cases, "PREDICTIONS", {"pseudo masks": cases.PREDICTIONS["pseudo masks"]})
    monkeypatch.setattr(speed, "PREDICTORS", {cases.BUNDLE: speed.PREDICTORS[cases.BUNDLE]})
    monkeypatch.setattr(speed, "PRECISIONS", (FLOAT32,))
    path = tmp_path / "gpu.md"
    assert main([*SMALL, "--parts", "compare", "predictor", "stages", "--output", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert capsys.readouterr().out == text
    compared = {line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if "≤" in line}
    stages = ("pretrain-generator", "train-generator", "refine-generator")
    assert compared >= {f"step of {stage}, {kind}" for stage in stages for kind in GENERATOR_KINDS}
    assert compared >= {f"step of train-segmenter, {kind}" for kind in cases.SEGMENTERS} | {"step of learn-prompts"}
    assert compared >= {f"mask generator {kind}" for kind in GENERATOR_KINDS} | {f"refiner {name}" for name in REFINERS}
    assert "| predictor coco-demo, pseudo masks | bfloat16 | label maps: " in text
    assert text.count("photos/s") == len(speed.SMALL.batches) + 1
    assert "| step of stage (c), tiny networks | float32 |" in text
    assert "skipped" not in text


_offsets = iter((0.01, 0.0))


def unsteady(_context: RefinerContext) -> Refiner:
    """A refiner that adds something the first time only, as if devices computed different things."""
    offset = next(_offsets)
    return lambda _image, scores: scores + offset


def test_a_difference_is_found_and_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"pamr": REFINERS["pamr"], "unsteady": f"{__name__}:unsteady"}
    monkeypatch.setattr("models.refine.REFINERS", known)

    def refiners(**_options: object) -> Iterator[Case]:
        return (Case(f"refiner {name}", partial(cases._refiner, name), (FLOAT32,)) for name in known)

    monkeypatch.setattr(cases, "all_cases", refiners)
    assert main([*SMALL, "--parts", "compare"]) == 1
    printed = capsys.readouterr()
    assert "| refiner pamr | float32 | scores: 0 ≤ 0.0001 |" in printed.out
    assert "| refiner unsteady | float32 | **scores: 0.01 > 0.0001**" in printed.out
    assert printed.err.splitlines()[-1].endswith("got another of: refiner unsteady, float32")


def test_no_minutes_skip_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--minutes", "0"]) == 0
    *rows, last = capsys.readouterr().out.splitlines()[4:]
    assert rows
    assert all("skipped: the minutes are over" in row for row in [*rows, last])
    assert last.startswith("| service, coco-demo")


def test_an_unusable_device_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--device", "abacus"])
    assert ended.value.code == 2
    assert "expected a usable device such as cpu or cuda, got 'abacus'" in capsys.readouterr().err


def test_a_smaller_batch_where_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(step: Any, *_: object, **__: object) -> list[float]:
        if len(step.batch[0]) > 2:
            raise torch.OutOfMemoryError
        return [0.25]

    monkeypatch.setattr(speed, "step_seconds", seconds)
    sizes = speed.Sizes(stage_batches=(8, 4, 2, 1), paper_networks=False)
    (first, *_) = run_items(speed.stage_items(sizes, CPU), deadline=100, clock=lambda: 0)
    assert isinstance(first, Row)
    assert first.outcome.result == "250 ms, batch 2"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_whole_small_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SMALL) == 0
    text = capsys.readouterr().out
    assert "of the bare predictor's" in text
    assert "skipped" not in text
