"""A run's work directory: its configuration, its classes, and a folder for each stage."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from models.build import require_backbone
from models.config import Config, dump_config, load_config
from models.data.classes import ClassList, read_class_list, write_class_list
from models.data.loaders import RandomBatches, derive_seed
from models.io import first_difference, read_json, write_atomically, write_json
from models.tensors import write_tensors
from models.training.checkpoint import Checkpoint
from models.training.distributed import Processes
from models.training.loop import Step

# Which files a stage rests on, so that what was made of others is not taken up, nor taken for done.

_INITIAL = "pretrain-generator/generator.safetensors"
_RESTS_ON = {
    "train-generator": (_INITIAL,),
    "learn-prompts": ("train-generator/generator.safetensors",),
    "refine-generator": (_INITIAL, "learn-prompts/prompts.safetensors"),
}
_NOTE = "inputs.json"


def inputs_of(work: Path, config: Config, stage: str) -> dict[str, str]:
    """Return the hashes of the files that a stage starts from, as they are now; missing ones are left out.

    Args:
        work: the run's directory.
        config: of the run.
        stage: its name; one that is made of photos alone has no such files.

    Raises:
        OSError: if one cannot be read.
    """
    paths = {name: work / name for name in _RESTS_ON.get(stage, ())}
    if config.generator.weights:
        paths["generator.weights"] = Path(config.generator.weights)
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in paths.items()
        if path.is_file()
    }


def note_inputs(work: Path, config: Config, stage: str) -> None:
    """Note beside a stage's result what it was made of.

    Raises:
        OSError: if that fails.
    """
    write_json(work / stage / _NOTE, inputs_of(work, config, stage))


def is_current(work: Path, config: Config, stage: str) -> bool:
    """Return whether a stage's result was made of its files as they are now; those that are gone cannot tell.

    Raises:
        ValueError: if the note is damaged.
    """
    if not (work / stage / _NOTE).is_file():
        return True
    noted = read_json(work / stage / _NOTE)
    now = inputs_of(work, config, stage)
    return all(noted.get(name) == digest for name, digest in now.items())


# Steps as TensorBoard shows them, where its package is installed.


@contextmanager
def tensorboard_events(folder: Path) -> Iterator[Callable[[Step], None]]:
    """Give a callback that writes a step's losses and learning rate as events of a folder.

    A run that goes on takes back what it had written of later steps. Without the package ``tensorboard`` nothing is
    written.
    """
    if find_spec("tensorboard") is None:
        yield lambda _: None
        return
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (optional, and slow to import)

    writer: SummaryWriter | None = None

    def write(step: Step) -> None:
        nonlocal writer
        at = step.epoch * step.steps + step.step
        if writer is None:
            writer = SummaryWriter(str(folder), purge_step=at)
        for name, value in {**step.losses, "learning_rate": step.learning_rate}.items():
            writer.add_scalar(name, value, at)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


OnStep = Callable[[Step], None]
BatchT = TypeVar("BatchT")


_CHECKPOINT = "checkpoint.pt"
# What only the segmenter reads may change until there is one, and how a finished one is used at any time.
SEGMENTER_STAGE = "train-segmenter"
_SEGMENTER_SECTIONS = {"segmenter", "train_segmenter", "segment"}


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
        note_inputs(self.work, self.config, stage)
        (path.parent / _CHECKPOINT).unlink(missing_ok=True)
        return path

    @property
    def own_seed(self) -> int:
        """Seed of what this process draws for itself, such as dropout."""
        return derive_seed(self.config.seed, self.processes.rank)

    def batches(
        self, items: Callable[[int], Dataset[BatchT]], count: int, *, batch_size: int
    ) -> RandomBatches[BatchT]:
        """Return random batches of items, this process's share of each; see RandomBatches."""
        return RandomBatches(
            items,
            count,
            batch_size=batch_size,
            seed=self.config.seed,
            workers=self.workers,
            share=(self.processes.rank, self.processes.count),
        )

    def checkpoint(self, stage: str, module: nn.Module, samples: Sequence[object]) -> Checkpoint:
        """Return where a stage keeps its state from epoch to epoch.

        Args:
            stage: its name.
            module: that learns.
            samples: that it learns from, or what tells them from others; another run's state is not taken up.

        Raises:
            ValueError: if the disk has no room for it.
        """
        inputs = inputs_of(self.work, self.config, stage)
        content = f"{_binding(self.config, [stage])}{self.classes}{samples}{inputs}"
        (self.work / stage).mkdir(parents=True, exist_ok=True)
        _check_space(self.work, module)
        return Checkpoint(
            self.work / stage / _CHECKPOINT,
            module,
            fingerprint=hashlib.sha256(content.encode()).hexdigest(),
            writes=self.processes.leads,
        )

    @contextmanager
    def logged(self, stage: str, on_step: OnStep) -> Iterator[OnStep]:
        """Give a callback that writes each step to the stage's log.jsonl, and for TensorBoard, before it calls on_step.

        The log of a run that goes on keeps the steps that are not made again.
        """
        if not self.processes.leads:
            yield on_step
            return
        path = self.work / stage / "log.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            path.open("a+", encoding="utf-8", buffering=1) as log,
            tensorboard_events(path.parent) as write_event,
        ):
            begun = False

            def report(step: Step) -> None:
                nonlocal begun
                if not begun:
                    kept = _steps_before(path, step)
                    log.truncate(0)
                    log.writelines(kept)
                    begun = True
                log.write(json.dumps(asdict(step)) + "\n")
                write_event(step)
                on_step(step)

            yield report


def start_run(
    config: Config,
    classes: ClassList,
    work: Path,
    *,
    device: torch.device,
    workers: int = 0,
    processes: Processes | None = None,
) -> Run:
    """Make the work directory and note in it what the run is.

    Raises:
        ValueError: if the configuration names a backbone that there is not, or the directory belongs to a run with
            another one or other classes.
        OSError: if it cannot be written.
    """
    for place, name in config.backbones.items():
        require_backbone(name, place=place)
    # Without any result nothing is lost: a start that failed must not block its own directory.
    begun = {path.parent.name for path in work.glob("*/*.safetensors")}
    if begun:
        before = open_run(work, device=device)
        difference = first_difference(
            _binding(before.config, begun) | {"classes": before.classes.names},
            _binding(config, begun) | {"classes": classes.names},
        )
        if difference or before.classes != classes:
            raise ValueError(
                f"expected {work} to be new, or of this configuration and these classes, got "
                f"{difference or 'other indices'}"
            )
    run = Run(config, classes, work, device, workers, processes or Processes())
    if run.processes.leads:
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(work / "config.yaml", dump_config(config).encode())
        write_class_list(work / "classes.txt", classes)
    return run


def open_run(
    work: Path,
    *,
    device: torch.device,
    workers: int = 0,
    processes: Processes | None = None,
) -> Run:
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
    classes = read_class_list(work / "classes.txt")
    return Run(config, classes, work, device, workers, processes or Processes())


def _binding(config: Config, stages: Collection[str]) -> dict[str, Any]:
    """The numbers that results of some stages rest on, by section."""
    free = _SEGMENTER_SECTIONS if SEGMENTER_STAGE not in stages else {"segment"}
    return config.model_dump(mode="json", exclude=free)


def _check_space(work: Path, module: nn.Module) -> None:
    """Miss room for checkpoints before hours of training do: weights and two moments, the last file and the next."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    needed, free = 6 * size, shutil.disk_usage(work).free
    if free < needed:
        raise ValueError(
            f"expected {needed / 1e6:.0f} MB free in {work} for checkpoints, got {free / 1e6:.0f} MB"
        )


def _steps_before(path: Path, step: Step) -> list[str]:
    """The lines of a log of earlier steps; one that a kill cut off belongs to a later one."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [
        line for line in lines if line.endswith("\n") and _place(line) < (step.epoch, step.step)
    ]


def _place(line: str) -> tuple[int, int]:
    content = json.loads(line)
    return content["epoch"], content["step"]
