"""Batches cut into parts that memory can hold, so weighted that their gradients add up to the whole batch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from models.training.loop import Part
from models.training.processes import Processes

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
