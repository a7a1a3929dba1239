"""The work directory of a run: configuration, classes, and a folder for each stage's log, checkpoint and result."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from models.build import class_captions, require_backbone
from models.bundle.manifest import GENERATOR_FILE, TEXT_TOWER_FILE, TOWER_FILE, find_bundle
from models.bundle.towers import load_clip_of
from models.clip import FrozenClip, load_clip
from models.config import (
    ClipConfig,
    Config,
    GeneratorStageConfig,
    PretrainConfig,
    PromptStageConfig,
    SegmenterStageConfig,
    dump_config,
    load_config,
)
from models.data.classes import ClassList, class_list_txt, read_class_list, write_class_list
from models.data.loaders import RandomBatches, derive_seed
from models.data.provenance import CONFIG_HEADER, refuse_foreign
from models.io import first_difference, hash_file, read_json, write_atomically, write_json
from models.tensors import write_tensors
from models.training.checkpoint import Checkpoint
from models.training.distributed import Processes
from models.training.loop import Optimization, Step

OnStep = Callable[[Step], None]
_StageConfig: TypeAlias = GeneratorStageConfig | PretrainConfig | PromptStageConfig | SegmenterStageConfig
BatchT = TypeVar("BatchT")

PRETRAIN_STAGE = "pretrain-generator"
FINAL_STAGE = "refine-generator"  # of the mask generator
SEGMENTER_STAGE = "train-segmenter"
GENERATOR_WEIGHTS = "generator.safetensors"
PHOTOS = "photos.txt"

_BUNDLE = "bundle:"  # before the name or folder of a bundle whose CLIP is meant
_CHECKPOINT = "checkpoint.pt"
_INPUTS = "inputs.json"
# The files of earlier stages that a stage's result depends on.
_PRETRAINED = f"{PRETRAIN_STAGE}/{GENERATOR_WEIGHTS}"
_FINAL_GENERATOR = f"{FINAL_STAGE}/{GENERATOR_WEIGHTS}"
_STAGE_INPUTS = {
    "train-generator": (_PRETRAINED,),
    "learn-prompts": (f"train-generator/{GENERATOR_WEIGHTS}",),
    FINAL_STAGE: (_PRETRAINED, "learn-prompts/prompts.safetensors"),
}
# Sections that may change until the segmenter is trained; "segment" may change at any time.
_SEGMENTER_SECTIONS = {"segmenter", "train_segmenter", "segment"}


@dataclass(frozen=True)
class Run:
    """What all stages of a run share. Only the main process writes files."""

    config: Config
    classes: ClassList
    work: Path
    device: torch.device
    workers: int = 0
    processes: Processes = field(default_factory=Processes)

    def existing(self, stage: str, name: str) -> Path:
        """Return the path of a stage's file.

        Raises:
            ValueError: if there is no such file.
        """
        path = self.work / stage / name
        if not path.is_file():
            raise ValueError(f"expected {path} from 'semples {stage}', got no such file")
        return path

    def save(self, stage: str, name: str, tensors: Mapping[str, Tensor]) -> Path:
        """Write a stage's result atomically, delete its checkpoint, and return the result's path."""
        path = self.work / stage / name
        if self.processes.is_main_process:
            write_tensors(path, tensors)
            write_json(path.parent / _INPUTS, _input_hashes(self.work, self.config, stage))
            (path.parent / _CHECKPOINT).unlink(missing_ok=True)
        return path

    def is_current(self, stage: str) -> bool:
        """Return whether a stage's inputs are the same files as when its result was made; deleted ones do not count."""
        path = self.work / stage / _INPUTS
        if not path.is_file():
            return True
        before, now = read_json(path), _input_hashes(self.work, self.config, stage)
        return all(before.get(name) == digest for name, digest in now.items())

    def optimization(self, settings: _StageConfig) -> Optimization:
        """Return the optimizer settings of a stage."""
        return Optimization(
            settings.epochs,
            settings.learning_rate,
            settings.weight_decay,
            precision=settings.precision,
            seed=derive_seed(self.config.seed, self.processes.rank),  # each process its own dropout
        )

    def batches(
        self, items: Callable[[int], Dataset[BatchT]], count: int, *, batch_size: int, views: int | None = None
    ) -> RandomBatches[BatchT]:
        """Return random batches of items, this process's share of each; see RandomBatches."""
        return RandomBatches(
            items,
            count,
            batch_size=batch_size,
            seed=self.config.seed,
            workers=self.workers,
            share=(self.processes.rank, self.processes.count),
            views=views,
        )

    def checkpoint(self, stage: str, module: nn.Module, samples: Sequence[object]) -> Checkpoint:
        """Return the checkpoint of a stage; its fingerprint covers the samples, or their digests."""
        config = _config_fingerprint(self.config, [stage])
        content = f"{config}{self.classes}{samples}{_input_hashes(self.work, self.config, stage)}"
        (self.work / stage).mkdir(parents=True, exist_ok=True)
        _check_space(self.work, module)
        return Checkpoint(
            self.work / stage / _CHECKPOINT,
            module,
            fingerprint=hashlib.sha256(content.encode()).hexdigest(),
            writes=self.processes.is_main_process,
        )

    @contextmanager
    def logged(self, stage: str, on_step: OnStep) -> Iterator[OnStep]:
        """Give a callback that writes each step to log.jsonl and TensorBoard, and then calls on_step.

        When a run continues from a checkpoint, later steps of the old log are removed.
        """
        if not self.processes.is_main_process:
            yield on_step
            return
        path = self.work / stage / "log.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            path.open("a+", encoding="utf-8", buffering=1) as log,
            _tensorboard_events(path.parent) as write_event,
        ):
            started = False

            def report(step: Step) -> None:
                nonlocal started
                if not started:
                    earlier = _steps_before(path, step)
                    log.truncate(0)
                    log.writelines(earlier)
                    started = True
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
    overwrite: bool = False,
) -> Run:
    """Create the work directory, or open one of the same configuration and classes.

    Raises:
        ValueError: if a backbone is unknown, or the directory has results of another configuration or other classes
            or, without ``overwrite``, files of our names that are not ours.
    """
    for place, name in config.backbones.items():
        require_backbone(name, place=place)
    # Only results bind a directory to its configuration: after a failed start it can be used again.
    stages = {path.parent.name for path in work.glob("*/*.safetensors")}
    if stages:
        before = open_run(work, device=device)
        difference = first_difference(
            _config_fingerprint(before.config, stages) | {"classes": before.classes.names},
            _config_fingerprint(config, stages) | {"classes": classes.names},
        )
        if difference or before.classes != classes:
            raise ValueError(
                f"expected {work} to be new, or of this configuration and these classes, got "
                f"{difference or 'other indices'}"
            )
    else:
        _refuse_foreign(work, classes, overwrite=overwrite)
    run = Run(config, classes, work, device, workers, processes or Processes())
    if run.processes.is_main_process:
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(work / "config.yaml", f"{CONFIG_HEADER}\n{dump_config(config)}".encode())
        write_class_list(work / "classes.txt", classes)
    return run


def _refuse_foreign(work: Path, classes: ClassList, *, overwrite: bool) -> None:
    """Raise ValueError if a folder without results has a user's own files where a run's are written."""
    refuse_foreign([work / "config.yaml"], overwrite=overwrite)
    if not (work / "config.yaml").exists():
        same = hashlib.sha256(class_list_txt(classes)).hexdigest()
        refuse_foreign([work / "classes.txt", work / PHOTOS], overwrite=overwrite, hashes=[same])


def open_run(
    work: Path,
    *,
    device: torch.device,
    workers: int = 0,
    processes: Processes | None = None,
) -> Run:
    """Open an existing work directory.

    Raises:
        ValueError: if it is not a work directory.
        ValueError: if its files are malformed.
    """
    if not (work / "config.yaml").is_file():
        raise ValueError(f"expected a work directory of 'semples train-generator', got {work}")
    config = load_config(str(work / "config.yaml"))
    classes = read_class_list(work / "classes.txt")
    return Run(config, classes, work, device, workers, processes or Processes())


def read_clip(config: ClipConfig) -> FrozenClip:
    """Load the frozen CLIP of a configuration, on the CPU: by open_clip or, as "bundle:NAME", from a bundle.

    Raises:
        ValueError: if it cannot be loaded; see ``load_clip`` and ``load_clip_of``.
    """
    if not config.model.startswith(_BUNDLE):
        return load_clip(config.model, config.pretrained, normalization=config.normalization)
    if config.pretrained is not None or config.normalization != "clip":
        raise ValueError(f"expected clip.pretrained: null and the bundle's own normalization for {config.model!r}")
    return load_clip_of(find_bundle(config.model.removeprefix(_BUNDLE)))


def supervision(run: Run) -> tuple[FrozenClip, Tensor]:
    """Return the frozen CLIP and the class text embeddings, (K, D), L2-normalized."""
    clip = read_clip(run.config.clip).to(run.device)
    return clip, clip.embed_classes(class_captions(run.config, run.classes))


@contextmanager
def _tensorboard_events(folder: Path) -> Iterator[OnStep]:
    """Give a callback that writes steps as TensorBoard events, purging later ones, if tensorboard is installed."""
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


def _input_hashes(work: Path, config: Config, stage: str) -> dict[str, str]:
    """SHA-256 of the files that a stage starts from; missing ones are left out."""
    paths = {name: work / name for name in _STAGE_INPUTS.get(stage, ())}
    if stage == SEGMENTER_STAGE and config.segmenter.kind == "features":
        paths[_FINAL_GENERATOR] = work / _FINAL_GENERATOR
    if config.clip.model.startswith(_BUNDLE):
        folder = find_bundle(config.clip.model.removeprefix(_BUNDLE))
        paths |= {f"clip/{name}": folder / name for name in (GENERATOR_FILE, TOWER_FILE, TEXT_TOWER_FILE)}
    if config.generator.weights:
        paths["generator.weights"] = Path(config.generator.weights)
    return {name: hash_file(path) for name, path in paths.items() if path.is_file()}


def _config_fingerprint(config: Config, stages: Collection[str]) -> dict[str, Any]:
    """The part of the configuration that the results of these stages depend on."""
    excluded = _SEGMENTER_SECTIONS if SEGMENTER_STAGE not in stages else {"segment"}
    return config.model_dump(mode="json", exclude=excluded)


def _check_space(work: Path, module: nn.Module) -> None:
    """Check for the space of two checkpoints, each with weights and two moments, before hours of training."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    needed, free = 6 * size, shutil.disk_usage(work).free
    if free < needed:
        raise ValueError(f"expected {needed / 1e6:.0f} MB free in {work} for checkpoints, got {free / 1e6:.0f} MB")


def _steps_before(path: Path, step: Step) -> list[str]:
    """The log's complete lines of earlier steps."""

    def position(line: str) -> tuple[int, int]:
        content = json.loads(line)
        return content["epoch"], content["step"]

    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n") and position(line) < (step.epoch, step.step)]
