"""Whose a work directory is."""

from dataclasses import replace
from pathlib import Path

import pytest

from models.config import Config
from models.data.classes import ClassList
from models.training.run import Run, start_run
from tests.conftest import CLASSES, CPU


def test_another_configuration_needs_another_folder(tiny_run: Run) -> None:
    other = tiny_run.config.model_copy(update={"seed": 5})
    with pytest.raises(ValueError, match=r"of this configuration and .* got seed: 0 before, 5 now"):
        start_run(other, CLASSES, tiny_run.work, device=CPU)
    fewer = ClassList(CLASSES.classes[:1])
    with pytest.raises(ValueError, match=r"got classes.1: 'cat' before, nothing now"):
        start_run(tiny_run.config, fewer, tiny_run.work, device=CPU)
    renumbered = ClassList(tuple(replace(each, index=each.index + 1) for each in CLASSES.classes))
    with pytest.raises(ValueError, match="got other indices"):
        start_run(tiny_run.config, renumbered, tiny_run.work, device=CPU)


def test_the_segmenter_may_change_until_there_is_one(tiny_config: Config, tmp_path: Path) -> None:
    def with_result(stage: str) -> None:
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "x.safetensors").write_bytes(b"")

    def epochs(count: int) -> Config:
        stage = tiny_config.train_segmenter.model_copy(update={"epochs": count})
        return tiny_config.model_copy(update={"train_segmenter": stage})

    start_run(epochs(5), CLASSES, tmp_path, device=CPU)
    with_result("train-generator")
    assert start_run(epochs(6), CLASSES, tmp_path, device=CPU).config == epochs(6)
    with_result("train-segmenter")
    with pytest.raises(ValueError, match=r"got train_segmenter.epochs: 6 before, 7 now"):
        start_run(epochs(7), CLASSES, tmp_path, device=CPU)
    segment = tiny_config.segment.model_copy(update={"image_size": 64})
    used = epochs(6).model_copy(update={"segment": segment})
    assert start_run(used, CLASSES, tmp_path, device=CPU).config == used
