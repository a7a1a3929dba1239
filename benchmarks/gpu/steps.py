"""Training steps of all stages by the project's own loop: for their gradients, and for their time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from benchmarks.gpu.compare import GRADIENTS, Outputs, amp_precision
from benchmarks.stage_speed import our_losses
from models.clip import FrozenClip
from models.data.loaders import Batch
from models.generators import MaskGenerator
from models.prompts import BackgroundPrompts
from models.segmenters import Segmenter
from models.training.generator import classification_losses
from models.training.loop import LossesOf, Optimization, ParameterGroup, Step, fit

PRETRAIN: Final = "pretrain-generator"
# The paper's letters.
PAPER_STAGES: Final[Mapping[str, str]] = MappingProxyType(
    {"train-generator": "a", "learn-prompts": "b", "refine-generator": "c"}
)
_MOST_STEPS = 20
_WARM_UP = 2


@dataclass(frozen=True)
class TrainingStep:
    """What a step takes: the module that learns, its losses, and the batch, which may be on the CPU."""

    module: nn.Module
    losses_of: LossesOf[Any]
    batch: Any


def generator_step(
    stage: str,
    generator: MaskGenerator,
    clip: FrozenClip,
    prompts: BackgroundPrompts,
    batch: Batch,
    *,
    names: tuple[str, ...],
) -> TrainingStep:
    """Return the step of a stage before the segmenter's; the networks are on one device."""
    if stage == PRETRAIN:
        generator.let_all_learn()
        return TrainingStep(generator, classification_losses(generator.evidence, device=clip.mean.device), batch)
    generator.let_learn("all")
    letter = PAPER_STAGES[stage]
    losses_of, given = our_losses(letter, generator, clip, prompts, batch, names=names)
    return TrainingStep(prompts if letter == "b" else generator, losses_of, given)


def segmenter_step(segmenter: Segmenter, batch: Batch, *, device: torch.device) -> TrainingStep:
    """Return the step of training a segmenter on images and label maps, without dropout, which is random."""
    for module in segmenter.train().modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    images, label_maps = (each.to(device) for each in batch)
    return TrainingStep(segmenter, lambda given: segmenter.loss(*given), (images, label_maps))


@dataclass(frozen=True)
class _OneBatch:
    """An epoch of one batch: once, and while it is wanted again."""

    batch: Any
    again: Callable[[], bool]

    def __len__(self) -> int:
        return 1

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Any]:
        """Give the batch; see ``fit``."""
        del number, skip
        yield self.batch
        while self.again():
            yield self.batch


def gradients_of(step: TrainingStep, precision: str) -> Outputs:
    """Return the losses of a step, and the gradients of what learns as one vector; the weights stay as they are.

    In float16 the step is repeated while gradients overflow: the loop's scaler begins far too high.
    """
    parameters = [each for each in step.module.parameters() if each.requires_grad]
    steps: list[Step] = []

    def overflow() -> bool:
        finite = all(each.grad is None or bool(each.grad.isfinite().all()) for each in parameters)
        return not finite and len(steps) < _MOST_STEPS

    _fit(step, overflow, precision, on_step=steps.append, learning_rate=0.0)
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    return {
        "losses": torch.tensor([*steps[-1].losses.values()]),
        GRADIENTS: torch.cat([each.flatten() for each in gradients]),
    }


def step_seconds(step: TrainingStep, precision: str, *, device: torch.device, seconds: float) -> list[float]:
    """Return the seconds of each step, without the first ones, for so long; at least one."""
    ends: list[float] = []

    def ended(_: Step) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ends.append(time.perf_counter())

    def again() -> bool:
        return len(ends) <= _WARM_UP or ends[-1] - ends[_WARM_UP - 1] < seconds

    _fit(step, again, precision, on_step=ended, learning_rate=1e-5)
    return [end - begin for begin, end in zip(ends[_WARM_UP - 1 :], ends[_WARM_UP:], strict=False)]


def _fit(
    step: TrainingStep,
    again: Callable[[], bool],
    precision: str,
    *,
    on_step: Callable[[Step], object],
    learning_rate: float,
) -> None:
    optimization = Optimization(1, learning_rate, 0.0, precision=amp_precision(precision))  # type: ignore[arg-type]
    group = ParameterGroup(step.module.parameters())
    fit([group], _OneBatch(step.batch, again), step.losses_of, optimization, on_step=on_step)  # type: ignore[arg-type]
