"""A run's work directory: its configuration, its classes, and a folder for each stage."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.config import Config, dump_config, load_config
from models.data.classes import ClassList, read_class_list, write_class_list
from models.tensors import write_tensors
from models.training.checkpoint import Checkpoint
from models.training.loop import Step
from models.training.processes import Processes

OnStep = Callable[[Step], None]


_CHECKPOINT = "checkpoint.pt"


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
        processes: this process among those that train together; only the first writes.
    """

    config: Config
    classes: ClassList
    work: Path
    device: torch.device
    workers: int = 0
    processes: Processes = field(default_factory=Processes)

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
        """Write a stage's result, whole or not at all, and return its path; its checkpoint has served."""
        path = self.work / stage / name
        if not self.processes.leads:
            return path
        write_tensors(path, tensors)
        (path.parent / _CHECKPOINT).unlink(missing_ok=True)
        return path

    def checkpoint(self, stage: str, module: nn.Module, samples: Sequence[object]) -> Checkpoint:
        """Return where a stage keeps its state from epoch to epoch.

        Args:
            stage: its name.
            module: that learns.
            samples: that it learns from, or what tells them from others; another run's state is not taken up.
        """
        content = f"{dump_config(self.config)}{self.classes}{samples}"
        (self.work / stage).mkdir(parents=True, exist_ok=True)
        return Checkpoint(
            self.work / stage / _CHECKPOINT,
            module,
            fingerprint=hashlib.sha256(content.encode()).hexdigest(),
            writes=self.processes.leads,
        )

    @contextmanager
    def logged(self, stage: str, on_step: OnStep) -> Iterator[OnStep]:
        """Give a callback that writes each step to the stage's log.jsonl before it calls on_step.

        The log of a run that goes on keeps the epochs that are not made again.
        """
        if not self.processes.leads:
            yield on_step
            return
        path = self.work / stage / "log.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+", encoding="utf-8", buffering=1) as log:
            begun = False

            def report(step: Step) -> None:
                nonlocal begun
                if not begun:
                    kept = _steps_before(path, step.epoch)
                    log.truncate(0)
                    log.writelines(kept)
                    begun = True
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


def _steps_before(path: Path, epoch: int) -> list[str]:
    """The lines of a log of earlier epochs; one that a kill cut off belongs to a later one."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] < epoch]


def seed_everything(seed: int) -> None:
    """Seed the sources that augmentation libraries draw from: random, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
