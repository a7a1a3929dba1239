"""The one training loop of all stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from models.data.loaders import derive_seed
from models.training.checkpoint import Checkpoint, Position, Progress
from models.training.distributed import Processes

BatchT = TypeVar("BatchT")
BatchT_co = TypeVar("BatchT_co", covariant=True)

Schedule = Literal["cosine", "poly"]
Precision = Literal["float32", "bfloat16", "float16"]
_POLY_POWER = 0.9


class Batches(Sized, Protocol[BatchT_co]):
    """What a stage learns from."""

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[BatchT_co]:
        """Iterate over an epoch's batches, the same whenever it is asked for, without the first few."""
        ...


@dataclass(frozen=True)
class Part(Generic[BatchT]):
    """A part of a batch.

    Attributes:
        batch: itself a batch.
        weight: share of the whole batch's loss that its loss stands for; where several processes train together and
            average their gradients, times their number.
    """

    batch: BatchT
    weight: float


def whole(batch: BatchT) -> Sequence[Part[BatchT]]:
    """Return a batch as its only part."""
    return [Part(batch, 1.0)]


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
        seed: of what the networks draw themselves.
    """

    epochs: int
    learning_rate: float
    weight_decay: float
    schedule: Schedule = "cosine"
    max_gradient_norm: float | None = None
    precision: Precision = "float32"
    seed: int = 0

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
        steps: of the epoch.
        learning_rate: that the step used, of a group whose share is 1.
        losses: the loss terms by name, and their sum as "loss".
    """

    epoch: int
    step: int
    steps: int
    learning_rate: float
    losses: Mapping[str, float]

    @property
    def epochs_done(self) -> float:
        """How many epochs are over with this step."""
        return self.epoch + (self.step + 1) / self.steps


def fit(
    groups: Sequence[Group],
    batches: Batches[BatchT],
    losses_of: Callable[[BatchT], Mapping[str, Tensor]],
    optimization: Optimization,
    *,
    on_step: Callable[[Step], None],
    checkpoint: Checkpoint | None = None,
    parts_of: Callable[[BatchT], Sequence[Part[BatchT]]] = whole,
) -> None:
    """Minimize the sum of the losses over the groups' parameters.

    Args:
        groups: what learns; everything else must be frozen by the caller.
        batches: seen once an epoch.
        losses_of: batch, or part of one, → loss terms by name.
        optimization: how.
        on_step: called after each step.
        checkpoint: kept now and then; if there is one of a broken run, that run goes on as if nothing had been.
        parts_of: cuts a batch into what memory can hold at a time; gradients add up.

    Raises:
        ValueError: if nothing learns, there is no batch, or the checkpoint is another run's.
        FloatingPointError: if the loss is not finite, with the terms; the parameters are those before the step.
        OSError: if the checkpoint cannot be written.
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

    progress = Progress(optimizer, scaler)
    start = checkpoint.restore(progress) if checkpoint else Position()
    for at, batch in _rest(batches, start, epochs=optimization.epochs):
        # What networks draw themselves, such as dropout, follows from the position: going on needs no state of it.
        torch.manual_seed(derive_seed(optimization.seed, at.epoch, at.step))
        rate = optimization.rate_at(at.epoch, at.step / len(batches))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        optimizer.zero_grad(set_to_none=True)
        reports = []
        for part in parts_of(batch):
            with mixed:
                terms = losses_of(part.batch)
            loss = torch.stack([term.float() for term in terms.values()]).sum()
            reports.append(_report(terms, loss, part.weight))
            if not math.isfinite(reports[-1]["loss"]):
                raise FloatingPointError(
                    f"expected a finite loss in epoch {at.epoch}, step {at.step}, got {reports[-1]}"
                )
            scaler.scale(loss * part.weight).backward()  # type: ignore[no-untyped-call]
        if optimization.max_gradient_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(learning, optimization.max_gradient_norm)
        scaler.step(optimizer)
        scaler.update()
        on_step(Step(at.epoch, at.step, len(batches), rate, _sum(reports)))
        if checkpoint:
            checkpoint.keep(progress, at, steps=len(batches))


def _rest(
    batches: Batches[BatchT], start: Position, *, epochs: int
) -> Iterator[tuple[Position, BatchT]]:
    for epoch in range(start.epoch, epochs):
        first = start.step if epoch == start.epoch else 0
        for number, batch in enumerate(batches.epoch(epoch, skip=first), start=first):
            yield Position(epoch, number), batch


def _report(terms: Mapping[str, Tensor], loss: Tensor, weight: float) -> dict[str, float]:
    return {name: term.item() * weight for name, term in {**terms, "loss": loss}.items()}


def _sum(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(each[name] for each in reports) for name in reports[0]}


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


# Batches cut into parts that memory can hold, so weighted that their gradients add up to the whole batch's.

Pair: TypeAlias = tuple[Tensor, Tensor]


def weighted_parts(
    count: Callable[[Tensor], Tensor],
    *,
    size: int | None,
    processes: Processes,
    device: torch.device,
) -> Callable[[Pair], list[Part[Pair]]]:
    """Return what cuts batches of images and targets.

    A loss that is a mean over some things (image and class pairs, labeled pixels) is, over a whole batch, the mean of
    its parts' losses weighted by how many of these things each part has; so is the average over processes.

    Args:
        count: targets → how many things the loss is a mean over.
        size: images a part, at most; None takes a process's share of the batch at once.
        processes: that share each batch.
        device: this process's.
    """

    def parts_of(batch: Pair) -> list[Part[Pair]]:
        images, targets = batch
        length = size or max(len(images), 1)
        pieces = list(zip(torch.split(images, length), torch.split(targets, length), strict=True))
        counts = torch.stack([count(piece).sum() for _, piece in pieces]).to(device).double()
        total = processes.sum(counts.sum())
        # Nothing to learn from anywhere: the losses are 0 whatever their weight.
        weights = counts * (processes.count / total if total else 1.0)
        return [Part(piece, weight) for piece, weight in zip(pieces, weights.tolist(), strict=True)]

    return parts_of
