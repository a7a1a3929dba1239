import time
from dataclasses import replace
from pathlib import Path

import pytest

from models.config import Config, dump_config
from models.data.classes import ClassList
from models.training.loop import Step
from models.training.run import Run, _check_space, _tensorboard_events, start_run
from tests.conftest import CLASSES, CPU, with_stage
from tests.helpers.command import semples, small_files
from tests.models.training.test_loop import Network


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
        return with_stage(tiny_config, "train_segmenter", epochs=count)

    start_run(epochs(5), CLASSES, tmp_path, device=CPU)
    with_result("train-generator")
    assert start_run(epochs(6), CLASSES, tmp_path, device=CPU).config == epochs(6)
    with_result("train-segmenter")
    with pytest.raises(ValueError, match=r"got train_segmenter.epochs: 6 before, 7 now"):
        start_run(epochs(7), CLASSES, tmp_path, device=CPU)
    used = with_stage(epochs(6), "segment", image_size=64)
    assert start_run(used, CLASSES, tmp_path, device=CPU).config == used


def test_tensorboard_reads_the_steps(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def steps(*places: tuple[int, int], loss: float) -> None:
        with _tensorboard_events(tmp_path) as write:
            for epoch, number in places:
                write(Step(epoch, number, 2, 0.1, {"match": loss, "loss": loss}))

    steps((0, 0), (0, 1), (1, 0), loss=4.0)
    time.sleep(1)  # event files are read in the order of the seconds in their names
    steps((0, 1), (1, 0), (1, 1), loss=2.0)  # killed after step 1, gone on from there
    found = accumulator.EventAccumulator(str(tmp_path))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"match", "loss", "learning_rate"}
    assert [(each.step, each.value) for each in found.Scalars("loss")] == [(0, 4.0), (1, 2.0), (2, 2.0), (3, 2.0)]


def test_without_steps_there_is_no_file(tmp_path: Path) -> None:
    with _tensorboard_events(tmp_path):
        pass
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_one_line(tiny_config: Config, data_options: list[object], tmp_path: Path) -> None:
    config, work = tmp_path / "tiny.yaml", tmp_path / "work"
    config.write_text(dump_config(tiny_config))
    with small_files(40_000):  # room for the configuration and the log, none for weights
        options = ["--config", config, "--device", "cpu", "--threads", 1]
        done = semples("train-generator", work, *data_options, *options)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("semples: File too large: ")
    assert "Traceback" not in done.stderr
    left = {path.name for path in (work / "train-generator").iterdir()}
    assert {name for name in left if "tfevents" not in name} == {"log.jsonl"}


def test_too_little_room_is_reported_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _check_space(tmp_path, Network())
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ValueError, match=r"MB free in .* for checkpoints, got 0 MB"):
        _check_space(tmp_path, Network())
