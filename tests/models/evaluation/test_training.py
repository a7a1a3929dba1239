from pathlib import Path

import pytest

from models.evaluation.report import read_steps, stage_parts
from models.training.loop import Step
from models.training.run import Run


def write_log(run: Run, stage: str, steps: list[Step]) -> Path:
    with run.logged(stage, lambda step: None) as report:
        for step in steps:
            report(step)
    return run.work / stage / "log.jsonl"


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Run:
    return Run(tiny_run.config, tiny_run.classes, tmp_path, tiny_run.device)


STEPS = [
    Step(
        epoch,
        step,
        4,
        0.1,
        {"match": 2.0 - epoch, "refine": step / 10, "loss": 2.0 - epoch + step / 10},
    )
    for epoch in range(2)
    for step in range(4)
]


def test_a_log_comes_back_but_for_a_line_that_a_kill_cut(run: Run) -> None:
    log = write_log(run, "train-generator", STEPS)
    assert read_steps(log) == STEPS
    content = log.read_text()
    log.write_text(content[:-25])
    assert read_steps(log) == STEPS[:-1]
    log.write_bytes(content.encode() + b'{"epoch": 2, "st\xff\n[1]\n7\n\n')
    assert read_steps(log) == STEPS
    assert read_steps(run.work / "no" / "log.jsonl") == []


def test_terms_and_plots(run: Run) -> None:
    write_log(run, "refine-generator", STEPS)
    part = {each.name: each for each in stage_parts(run.work)}["refine-generator"]
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
    write_log(run, "train-generator", [Step(0, 0, 1, 0.1, {"match": 1.0})])
    part = {each.name: each for each in stage_parts(run.work)}["train-generator"]
    for plot in part.plots:
        assert (plot.x_ticks[0].label, plot.x_ticks[-1].label) == ("0.0", "1.0")


def test_the_sum_of_one_term_is_not_shown_twice(run: Run) -> None:
    write_log(run, "learn-prompts", [Step(0, 0, 1, 0.1, {"prompt": 1.0, "loss": 1.0})])
    part = {each.name: each for each in stage_parts(run.work)}["learn-prompts"]
    assert [term.name for term in part.terms] == ["prompt"]


def test_stages_come_in_order_and_others_last(run: Run) -> None:
    write_log(run, "another-stage", STEPS)
    write_log(run, "pretrain-generator", STEPS)
    (run.work / "train-generator").mkdir()
    (run.work / "train-generator" / "generator.safetensors").touch()
    parts = stage_parts(run.work)
    assert [(part.name, part.state) for part in parts] == [
        ("pretrain-generator", "unfinished"),
        ("train-generator", "done"),
        ("learn-prompts", "not run"),
        ("refine-generator", "not run"),
        ("train-segmenter", "not run"),
        ("another-stage", "unfinished"),
    ]
    assert parts[1].plots == ()
