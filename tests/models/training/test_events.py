from pathlib import Path

import pytest

from models.training.loop import Step
from models.training.run import tensorboard_events


def test_tensorboard_reads_the_steps(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def steps(*places: tuple[int, int], loss: float) -> None:
        with tensorboard_events(tmp_path) as write:
            for epoch, number in places:
                write(Step(epoch, number, 2, 0.1, {"match": loss, "loss": loss}))

    steps((0, 0), (0, 1), (1, 0), loss=4.0)
    steps((0, 1), (1, 0), (1, 1), loss=2.0)  # killed after step 1, gone on from there
    found = accumulator.EventAccumulator(str(tmp_path))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"match", "loss", "learning_rate"}
    assert [(each.step, each.value) for each in found.Scalars("loss")] == [
        (0, 4.0), (1, 2.0), (2, 2.0), (3, 2.0),
    ]  # fmt: skip


def test_without_steps_there_is_no_file(tmp_path: Path) -> None:
    with tensorboard_events(tmp_path):
        pass
    assert not any(tmp_path.iterdir())
