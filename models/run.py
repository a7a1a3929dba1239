"""A run's work directory: its configuration, its classes, and a folder for each stage."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.config import Config, dump_config, load_config
from models.data.classes import ClassList, read_class_list, write_class_list
from models.training.loop import Step

OnStep = Callable[[Step], None]


class MissingStageError(ValueError):
    """A file that an earlier stage should have left is not there."""


@dataclass(frozen=True)
class Run:
    """What the stages of one run share.

    Attributes:
        config: its numbers.
        classes: its foreground classes.
        work: the work directory.
        device: where tensors live.
        workers: processes that load images; 0 loads in this one.
    """

    config: Config
    classes: ClassList
    work: Path
    device: torch.device
    workers: int = 0

    def existing(self, stage: str, name: str) -> Path:
        """Return the path of a file that a stage left.

        Raises:
            MissingStageError: if it is not there.
        """
        path = self.work / stage / name
        if not path.is_file():
            raise MissingStageError(f"expected {path} from 'semples {stage}', got no such file")
        return path

    def save(self, stage: str, name: str, tensors: Mapping[str, Tensor]) -> Path:
        """Write a stage's tensors, whole or not at all, and return their path."""
        path = self.work / stage / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(
            {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, partial
        )
        return partial.replace(path)

    @contextmanager
    def logged(self, stage: str, on_step: OnStep) -> Iterator[OnStep]:
        """Give a callback that writes each step to the stage's log.jsonl before it calls on_step."""
        path = self.work / stage / "log.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", buffering=1) as log:

            def report(step: Step) -> None:
                log.write(json.dumps(asdict(step)) + "\n")
                on_step(step)

            yield report


def start_run(
    config: Config, classes: ClassList, work: Path, *, device: torch.device, workers: int = 0
) -> Run:
    """Make the work directory and note in it what the run is.

    Raises:
        ValueError: if the directory belongs to a run with another configuration or other classes.
        OSError: if it cannot be written.
    """
    # Without any result nothing is lost: a start that failed must not block its own directory.
    if any(work.glob("*/*.safetensors")):
        before = open_run(work, device=device)
        if before.config != config or before.classes != classes:
            raise ValueError(
                f"expected {work} to be new, or of this configuration and these classes"
            )
    work.mkdir(parents=True, exist_ok=True)
    (work / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    write_class_list(work / "classes.txt", classes)
    return Run(config, classes, work, device, workers)


def open_run(work: Path, *, device: torch.device, workers: int = 0) -> Run:
    """Open the work directory that the first stage made.

    Raises:
        MissingStageError: if nothing was started there.
        ValueError: if its files are malformed.
    """
    if not (work / "config.yaml").is_file():
        raise MissingStageError(
            f"expected a work directory of 'semples train-generator', got {work}"
        )
    config = load_config(str(work / "config.yaml"))
    return Run(config, read_class_list(work / "classes.txt"), work, device, workers)


def seed_everything(seed: int) -> None:
    """Seed the sources that augmentation libraries draw from: random, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
