"""Several processes that train one network together, as torchrun starts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import (
    all_reduce,
    destroy_process_group,
    get_rank,
    get_world_size,
    init_process_group,
)
from torch.nn.parallel import DistributedDataParallel

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: its number.
        count: how many they are.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes files."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of all processes' values; on GPUs, the tensor must be on one."""
        if self.count > 1:
            value = value.clone()
            all_reduce(value)
        return value


@contextmanager
def join_processes(environment: Mapping[str, str], *, backend: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, and leave them at the end; a process alone joins none.

    Args:
        environment: this process's own, where torch finds torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR, …) too.
        backend: "nccl" for GPUs, "gloo" for CPUs.
    """
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    init_process_group(backend)
    try:
        yield Processes(get_rank(), get_world_size())
    finally:
        destroy_process_group()


class _Learner(nn.Module, Generic[BatchT]):
    """What learns and its losses as one module, which is what can be run in parallel."""

    def __init__(
        self, module: nn.Module, losses_of: Callable[[BatchT], Mapping[str, Tensor]]
    ) -> None:
        super().__init__()
        self.module = module
        self.losses_of = losses_of

    def forward(self, batch: BatchT) -> Mapping[str, Tensor]:
        return self.losses_of(batch)


def in_parallel(
    losses_of: Callable[[BatchT], Mapping[str, Tensor]],
    module: nn.Module,
    processes: Processes,
    *,
    device: torch.device,
) -> Callable[[BatchT], Mapping[str, Tensor]]:
    """Return the same losses, whose backward pass averages a module's gradients over all processes.

    Args:
        losses_of: batch → loss terms by name.
        module: all that learns in it.
        processes: that train together; a process alone gets the losses back as they are.
        device: this process's.
    """
    if processes.count == 1:
        return losses_of
    return DistributedDataParallel(
        _Learner(module, losses_of), device_ids=[device] if device.type == "cuda" else None
    )
