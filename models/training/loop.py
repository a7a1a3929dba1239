"""The training loop of all stages: AdamW, learning-rate schedule, mixed precision, micro-batches, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from models.data.loaders import derive_seed
from models.training.checkpoint import Checkpoint, TrainingPosition
from models.training.distributed import Processes

BatchT = TypeVar("BatchT")
BatchT_co = TypeVar("BatchT_co", covariant=True)
LossesOf: TypeAlias = Callable[[BatchT], Mapping[str, Tensor]]  # batch → loss terms by name
# batch → micro-batches, each with the factor of its loss in the whole batch's loss
Split: TypeAlias = Callable[[BatchT], Sequence[tuple[BatchT, float]]]
_Tensors: TypeAlias = tuple[Tensor, ...]  # images, targets, and what else a batch has

_POLY_POWER = 0.9


class _Batches(Sized, Protocol[BatchT_co]):
    """The batches of an epoch, the same each time that the epoch is asked for."""

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[BatchT_co]:
        """Iterate over an epoch's batches, without the first ``skip``."""
        ...


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with one factor of the learning rate; those without ``requires_grad`` are left out."""

    parameters: Iterable[nn.Parameter]
    rate: float = 1.0


@dataclass(frozen=True)
class Optimization:
    """AdamW without warm-up. Zero epochs leave the parameters unchanged.

    The cosine schedule decays to 0, updated once an epoch; "poly" decays as (1 - t)^0.9, updated each step. Precision
    is that of the forward pass; parameters stay in single precision.
    """

    epochs: int
    learning_rate: float
    weight_decay: float
    schedule: Literal["cosine", "poly"] = "cosine"
    max_gradient_norm: float | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0

    def rate_at(self, epoch: int, fraction: float) -> float:
        """Return the learning rate after a fraction in [0, 1) of an epoch."""
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return float(self.learning_rate * (1 - (epoch + fraction) / self.epochs) ** _POLY_POWER)


@dataclass(frozen=True)
class Step:
    """One optimizer step, as the logs hold it; epochs, and steps within an epoch, count from 0.

    The learning rate is that of a parameter group with factor 1; the losses contain their sum as "loss".
    """

    epoch: int
    step: int
    steps: int
    learning_rate: float
    losses: Mapping[str, float]

    @property
    def epochs_done(self) -> float:
        """Completed epochs, with a fraction, after this step."""
        return self.epoch + (self.step + 1) / self.steps


def fit(
    groups: Sequence[ParameterGroup],
    batches: _Batches[BatchT],
    losses_of: LossesOf[BatchT],
    optimization: Optimization,
    *,
    on_step: Callable[[Step], None],
    checkpoint: Checkpoint | None = None,
    split: Split[BatchT] | None = None,
) -> None:
    """Minimize the sum of the losses over the parameters of the groups; the caller freezes all others.

    An existing checkpoint is restored first, with the same results as without a break. ``split`` divides a batch into
    micro-batches that fit into memory, whose gradients are accumulated.

    Raises:
        ValueError: if there is no parameter or no batch, or the checkpoint belongs to another run.
        FloatingPointError: if the loss is not finite; parameters stay as they were before the step.
    """
    optimizer = _optimizer(groups, optimization, batches=len(batches))
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    device = parameters[0].device.type
    scaler = torch.amp.GradScaler(device, enabled=optimization.precision == "float16")
    autocast = torch.autocast(
        device,
        dtype=torch.float16 if optimization.precision == "float16" else torch.bfloat16,
        enabled=optimization.precision != "float32",
    )
    start = checkpoint.restore(optimizer, scaler) if checkpoint else TrainingPosition()
    for at, batch in _remaining(batches, start, epochs=optimization.epochs):
        # A seed of the position makes random numbers of the networks, as of dropout, independent of restarts.
        torch.manual_seed(derive_seed(optimization.seed, at.epoch, at.step))
        learning_rate = optimization.rate_at(at.epoch, at.step / len(batches))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["share"]
        optimizer.zero_grad(set_to_none=True)
        micro = split(batch) if split else [(batch, 1.0)]
        losses = _accumulate_gradients(micro, losses_of, scaler, autocast, at)
        if optimization.max_gradient_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, optimization.max_gradient_norm)
        scaler.step(optimizer)
        scaler.update()
        on_step(Step(at.epoch, at.step, len(batches), learning_rate, losses))
        if checkpoint:
            checkpoint.save_if_due(optimizer, scaler, at, steps=len(batches))


def micro_batches(
    count: Callable[[Tensor], Tensor],
    *,
    size: int | None,
    processes: Processes,
    device: torch.device,
) -> Split[Any]:
    """Return a function that splits batches of images and targets into at most ``size`` images for ``fit``.

    A loss that is a mean over items (image and class pairs, labeled pixels) of a whole batch equals the mean of its
    micro-batches' losses weighted by their numbers of items, which ``count`` returns for each of the targets; the same
    holds for the average over processes.
    """

    def split(batch: _Tensors) -> list[tuple[_Tensors, float]]:
        length = size or max(len(batch[0]), 1)
        pieces = list(zip(*(torch.split(each, length) for each in batch), strict=True))
        counts = torch.stack([count(piece[1]).sum() for piece in pieces]).to(device).double()
        total = processes.sum(counts.sum())
        # Without any item all losses are 0, whatever their weight.
        weights = counts * (processes.count / total if total else 1.0)
        return list(zip(pieces, weights.tolist(), strict=True))

    return split


def _remaining(
    batches: _Batches[BatchT], start: TrainingPosition, *, epochs: int
) -> Iterator[tuple[TrainingPosition, BatchT]]:
    for epoch in range(start.epoch, epochs):
        first = start.step if epoch == start.epoch else 0
        for number, batch in enumerate(batches.epoch(epoch, skip=first), start=first):
            yield TrainingPosition(epoch, number), batch


def _accumulate_gradients(
    micro: Sequence[tuple[BatchT, float]],
    losses_of: LossesOf[BatchT],
    scaler: torch.amp.GradScaler,
    autocast: AbstractContextManager[object],
    at: TrainingPosition,
) -> dict[str, float]:
    """Add up the gradients of the micro-batches; returns the loss terms of the whole batch."""
    total: dict[str, float] = {}
    for batch, weight in micro:
        with autocast:
            terms = losses_of(batch)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        values = {name: term.item() * weight for name, term in {**terms, "loss": loss}.items()}
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"expected a finite loss in epoch {at.epoch}, step {at.step}, got {values}")
        total = {name: total.get(name, 0) + value for name, value in values.items()}
        scaler.scale(loss * weight).backward()  # type: ignore[no-untyped-call]
    return total


def _optimizer(groups: Sequence[ParameterGroup], optimization: Optimization, *, batches: int) -> torch.optim.AdamW:
    trainable = [[each for each in group.parameters if each.requires_grad] for group in groups]
    count = sum(map(len, trainable))
    if not count or not batches:
        raise ValueError(f"expected parameters and batches, got {count} parameters, {batches} batches")
    return torch.optim.AdamW(
        [{"params": parameters, "share": group.rate} for parameters, group in zip(trainable, groups, strict=True)],
        lr=optimization.learning_rate,
        weight_decay=optimization.weight_decay,
        eps=1e-8,
    )
