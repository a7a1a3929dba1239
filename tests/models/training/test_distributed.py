"""Two processes learn what one would: stages (a) and (c), started as torchrun starts them."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.build import build_generator
from models.config import Config
from models.training.run import open_run, start_run, supervision
from tests.conftest import CLASSES, CPU, with_stage

STAGE = """
import os, sys
from pathlib import Path
import torch
from models.training import generator
from models.data.labels import read_folder
from models.training.run import open_run
from models.training.distributed import join_processes

stage, work, images, labels = sys.argv[1], *map(Path, sys.argv[2:])
torch.set_num_threads(1)
with join_processes(os.environ, backend="gloo") as processes:
    run = open_run(work, device=torch.device("cpu"), processes=processes)
    samples = read_folder(images, labels, run.classes)
    getattr(generator, stage)(run, samples, lambda step: None)
"""


def run_together(code: str, *arguments: object, processes: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={
                **os.environ, "WORLD_SIZE": str(processes), "RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            },
        )
        for rank in range(processes)
    ]  # fmt: skip
    assert [process.wait(timeout=100) for process in together] == [0] * processes


def distance_of_updates(initial: Mapping[str, Tensor], one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """How far two trainings from the same weights came apart, as a share of how far the first one came.

    Adam turns rounding noise of gradients near 0 into whole steps, so single weights may part ways.
    """

    def update(learned: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([(learned[name] - initial[name]).float().flatten() for name in initial])

    assert update(one).norm() > 0.1
    return float((update(other) - update(one)).norm() / update(one).norm())


@pytest.mark.slow
def test_two_processes_learn_what_one_would(tiny_config: Config, tiny_data: Path, tmp_path: Path) -> None:
    images, labels = tiny_data / "images", tmp_path / "labels.csv"
    # Processes get different numbers of present classes, and one photo has all: the mean is over pairs, not photos.
    rows = (tiny_data / "labels.csv").read_text().splitlines()
    rows[1] = "photo0.jpg,bowl;cat;cup;dining table"
    labels.write_text("\n".join(rows) + "\n")
    learned = []
    # A device that holds one photo at a time must give the same as well.
    for processes, at_once in ((1, None), (2, None), (1, 1), (2, 1)):
        changes = {"micro_batch_size": at_once, "epochs": 2, "learning_rate": 1e-3}
        config = with_stage(tiny_config, "train_generator", **changes)
        work = tmp_path / f"{processes}-{at_once}"
        start_run(config, CLASSES, work, device=CPU)
        run_together(STAGE, "train_generator", work, images, labels, processes=processes)
        learned.append(load_file(work / "train-generator" / "generator.safetensors"))
        assert len((work / "train-generator" / "log.jsonl").read_text().splitlines()) == 4
    clip, class_text = supervision(open_run(tmp_path / "1-None", device=CPU))
    initial = build_generator(tiny_config, clip, class_text, device=CPU).state_dict()
    for other in learned[1:]:
        assert distance_of_updates(initial, learned[0], other) < 0.02
