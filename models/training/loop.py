"""The one training loop of all stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

BatchT = TypeVar("BatchT")
BatchT_co = TypeVar("BatchT_co", covariant=True)


class Batches(Sized, Iterable[BatchT_co], Protocol[BatchT_co]):
    """What a stage learns from: batches, in a new order at each iteration."""


@dataclass(frozen=True)
class Step:
    """One optimizer step, as reported.

    Attributes:
        epoch: from 0.
        step: within the epoch, from 0.
        learning_rate: that the step used.
        losses: the loss terms by name, and their sum as "loss".
    """

    epoch: int
    step: int
    learning_rate: float
    losses: Mapping[str, float]


def fit(
    parameters: Iterable[nn.Parameter],
    batches: Batches[BatchT],
    losses_of: Callable[[BatchT], Mapping[str, Tensor]],
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    on_step: Callable[[Step], None],
) -> None:
    """Minimize the sum of the losses over parameters: AdamW, cosine decay to 0 stepped per epoch, no warm-up.

    Args:
        parameters: what learns; everything else must be frozen by the caller.
        batches: iterated once an epoch.
        losses_of: batch → loss terms by name.
        epochs: how often all batches are seen; 0 leaves the parameters as they are.
        learning_rate: of the first epoch.
        weight_decay: AdamW's.
        on_step: called after each step.

    Raises:
        ValueError: if nothing learns or there is no batch.
        FloatingPointError: if the loss is not finite, with the terms; the parameters are those before the step.
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    if not learning or not len(batches):
        raise ValueError(
            f"expected parameters and batches, got {len(learning)} parameters, {len(batches)} batches"
        )
    optimizer = torch.optim.AdamW(learning, lr=learning_rate, weight_decay=weight_decay, eps=1e-8)
    for epoch in range(epochs):
        rate = learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        for group in optimizer.param_groups:
            group["lr"] = rate
        for number, batch in enumerate(batches):
            terms = losses_of(batch)
            loss = torch.stack(list(terms.values())).sum()
            report = {name: term.item() for name, term in terms.items()} | {"loss": loss.item()}
            if not math.isfinite(report["loss"]):
                raise FloatingPointError(f"expected a finite loss in epoch {epoch}, got {report}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            on_step(Step(epoch, number, rate, report))
