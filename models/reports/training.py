"""What the stages' logs say: how far each came, and its curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.reports.curve import Line, Plot, Point, draw, thin
from models.run import SEGMENTER_STAGE
from models.training.loop import Step

_STAGES = ("train-generator", "learn-prompts", "refine-generator", SEGMENTER_STAGE)
_PRETRAINING = "pretrain-generator"  # not part of every run
_LOG = "log.jsonl"
_MOST_POINTS = 200
_SUM = "loss"


@dataclass(frozen=True)
class Term:
    """A loss term's mean over the first and over the last epoch."""

    name: str
    first: float
    last: float


@dataclass(frozen=True)
class StagePart:
    """One stage.

    Attributes:
        name: of its command.
        state: "done", "unfinished" or "not run".
        epochs: that were begun.
        steps: that were made.
        terms: of its loss.
        plots: losses and learning rate; none before the first step.
    """

    name: str
    state: str
    epochs: int
    steps: int
    terms: tuple[Term, ...]
    plots: tuple[Plot, ...]


def stage_parts(work: Path) -> tuple[StagePart, ...]:
    """Describe the method's stages in their order, pre-training before them, and any other that has left a log."""
    logged = {path.parent.name for path in work.glob(f"*/{_LOG}")}
    begun = [_PRETRAINING] if _PRETRAINING in logged else []
    others = sorted(logged - {_PRETRAINING, *_STAGES})
    return tuple(_stage_part(work / name) for name in (*begun, *_STAGES, *others))


def read_steps(log: Path) -> list[Step]:
    """Read a stage's log; lines that a kill left unreadable are passed over, a missing log has no step.

    Raises:
        OSError: if it cannot be read.
    """
    if not log.is_file():
        return []
    steps = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
            steps.append(Step(**found))
        except (TypeError, ValueError):
            continue
    return steps


def _stage_part(folder: Path) -> StagePart:
    steps = read_steps(folder / _LOG)
    done = any(folder.glob("*.safetensors"))
    return StagePart(
        name=folder.name,
        state="done" if done else "unfinished" if steps else "not run",
        epochs=len({step.epoch for step in steps}),
        steps=len(steps),
        terms=tuple(_term(name, steps) for name in _names(steps)),
        plots=_plots(folder.name, steps),
    )


def _plots(stage: str, steps: Sequence[Step]) -> tuple[Plot, ...]:
    losses = [
        Line(name, _curve(steps, [step.losses.get(name) for step in steps]))
        for name in _names(steps)
    ]
    rate = Line("learning rate", _curve(steps, [step.learning_rate for step in steps]))
    # Whole epochs, so that one of a single step is no point in the middle of nowhere.
    span = (0, 1 + max((step.epoch for step in steps), default=0))
    plots = (
        draw(losses, title=f"Losses of {stage} by epoch", x_name="epoch", x_span=span),
        draw([rate], title=f"Learning rate of {stage} by epoch", x_name="epoch", x_span=span),
    )
    return tuple(plot for plot in plots if plot)


def _names(steps: Sequence[Step]) -> list[str]:
    """The loss terms' names; their sum only if it is one of several."""
    names = list(dict.fromkeys(name for step in steps for name in step.losses))
    return [name for name in names if name != _SUM] if len(names) == 2 else names


def _curve(steps: Sequence[Step], values: Sequence[float | None]) -> list[Point]:
    """Values over epochs: step s of n in epoch e lies at e + s / n."""
    length = 1 + max((step.step for step in steps), default=0)
    points = [
        (step.epoch + step.step / length, value)
        for step, value in zip(steps, values, strict=True)
        if value is not None
    ]
    return thin(points, most=_MOST_POINTS)


def _term(name: str, steps: Sequence[Step]) -> Term:
    by_epoch: dict[int, list[float]] = {}
    for step in steps:
        if name in step.losses:
            by_epoch.setdefault(step.epoch, []).append(step.losses[name])
    means = [sum(values) / len(values) for _, values in sorted(by_epoch.items())]
    return Term(name, means[0], means[-1])
