"""The one training loop of all stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from models.training.checkpoint import Checkpoint, Progress

BatchT = TypeVar("BatchT")
BatchT_co = TypeVar("BatchT_co", covariant=True)

Schedule = Literal["cosine", "poly"]
Precision = Literal["float32", "bfloat16", "float16"]
_POLY_POWER = 0.9


class Batches(Sized, Iterable[BatchT_co], Protocol[BatchT_co]):
    """What a stage learns from: batches, in a new order at each iteration."""


@dataclass(frozen=True)
class Group:
    """Parameters that learn alike.

    Attributes:
        parameters: those that require no gradient are left alone.
        rate: share of the learning rate.
    """

    parameters: Iterable[nn.Parameter]
    rate: float = 1.0


@dataclass(frozen=True)
class Optimization:
    """How parameters learn: AdamW, no warm-up.

    Attributes:
        epochs: how often all batches are seen; 0 leaves the parameters as they are.
        learning_rate: of the first step.
        weight_decay: AdamW's.
        schedule: "cosine" decays to 0 stepped per epoch; "poly" as (1 - t)^0.9 stepped per step.
        max_gradient_norm: gradients of a greater norm are scaled down to it; None leaves them.
        precision: of the forward pass; parameters stay in single precision.
    """

    epochs: int
    learning_rate: float
    weight_decay: float
    schedule: Schedule = "cosine"
    max_gradient_norm: float | None = None
    precision: Precision = "float32"

    def rate_at(self, epoch: int, share: float) -> float:
        """Return the learning rate of an epoch, of which a share in [0, 1) is over."""
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return float(self.learning_rate * (1 - (epoch + share) / self.epochs) ** _POLY_POWER)


@dataclass(frozen=True)
class Step:
    """One optimizer step, as reported.

    Attributes:
        epoch: from 0.
        step: within the epoch, from 0.
        learning_rate: that the step used, of a group whose share is 1.
        losses: the loss terms by name, and their sum as "loss".
    """

    epoch: int
    step: int
    learning_rate: float
    losses: Mapping[str, float]


def fit(
    groups: Sequence[Group],
    batches: Batches[BatchT],
    losses_of: Callable[[BatchT], Mapping[str, Tensor]],
    optimization: Optimization,
    *,
    on_step: Callable[[Step], None],
    checkpoint: Checkpoint | None = None,
) -> None:
    """Minimize the sum of the losses over the groups' parameters.

    Args:
        groups: what learns; everything else must be frozen by the caller.
        batches: iterated once an epoch; their ``generator``, if they have one, is part of a checkpoint.
        losses_of: batch → loss terms by name.
        optimization: how.
        on_step: called after each step.
        checkpoint: kept after each epoch; if there is one of a broken run, that run goes on as if nothing had been.

    Raises:
        ValueError: if nothing learns, there is no batch, or the checkpoint is another run's.
        FloatingPointError: if the loss is not finite, with the terms; the parameters are those before the step.
    """
    optimizer = _optimizer(groups, optimization, batches=len(batches))
    learning = [each for group in optimizer.param_groups for each in group["params"]]
    device = learning[0].device.type
    scaler = torch.amp.GradScaler(device, enabled=optimization.precision == "float16")
    mixed = torch.autocast(
        device,
        dtype=torch.float16 if optimization.precision == "float16" else torch.bfloat16,
        enabled=optimization.precision != "float32",
    )
    progress = Progress(optimizer, scaler, getattr(batches, "generator", None))
    first = checkpoint.restore(progress) if checkpoint else 0
    for epoch in range(first, optimization.epochs):
        for number, batch in enumerate(batches):
            rate = optimization.rate_at(epoch, number / len(batches))
            for group in optimizer.param_groups:
                group["lr"] = rate * group["share"]
            with mixed:
                terms = losses_of(batch)
            loss = torch.stack([term.float() for term in terms.values()]).sum()
            report = {name: term.item() for name, term in terms.items()} | {"loss": loss.item()}
            if not math.isfinite(report["loss"]):
                raise FloatingPointError(f"expected a finite loss in epoch {epoch}, got {report}")
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if optimization.max_gradient_norm is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(learning, optimization.max_gradient_norm)
            scaler.step(optimizer)
            scaler.update()
            on_step(Step(epoch, number, rate, report))
        if checkpoint:
            checkpoint.save(progress, epochs=epoch + 1)


def _optimizer(
    groups: Sequence[Group], optimization: Optimization, *, batches: int
) -> torch.optim.AdamW:
    learning = [[each for each in group.parameters if each.requires_grad] for group in groups]
    count = sum(map(len, learning))
    if not count or not batches:
        raise ValueError(
            f"expected parameters and batches, got {count} parameters, {batches} batches"
        )
    return torch.optim.AdamW(
        [
            {"params": each, "share": group.rate}
            for each, group in zip(learning, groups, strict=True)
        ],
        lr=optimization.learning_rate,
        weight_decay=optimization.weight_decay,
        eps=1e-8,
    )
