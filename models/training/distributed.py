"""Data-parallel training over the processes that torchrun starts."""

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
    """This process's rank, and the number of processes that train together."""

    rank: int = 0
    count: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over all processes; with NCCL the tensor must be on a GPU."""
        if self.count > 1:
            value = value.clone()
            all_reduce(value)
        return value


@contextmanager
def join_processes(environment: Mapping[str, str], *, backend: str) -> Iterator[Processes]:
    """Join torchrun's process group for the duration of the block; without torchrun, do nothing.

    torch itself reads RANK, MASTER_ADDR, … of this process's environment. The backend is "nccl" for GPUs, "gloo" for
    CPUs.
    """
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    init_process_group(backend)
    try:
        yield Processes(get_rank(), get_world_size())
    finally:
        destroy_process_group()


def data_parallel(
    losses_of: Callable[[BatchT], Mapping[str, Tensor]],
    module: nn.Module,
    processes: Processes,
    *,
    device: torch.device,
) -> Callable[[BatchT], Mapping[str, Tensor]]:
    """Return the same losses, whose gradients for the parameters of ``module`` are averaged over all processes."""
    if processes.count == 1:
        return losses_of
    return DistributedDataParallel(
        _LossModule(module, losses_of), device_ids=[device] if device.type == "cuda" else None
    )


class _LossModule(nn.Module, Generic[BatchT]):
    """The module and its losses as one module, as DistributedDataParallel expects."""

    def __init__(self, module: nn.Module, losses_of: Callable[[BatchT], Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.module = module
        self.losses_of = losses_of

    def forward(self, batch: BatchT) -> Mapping[str, Tensor]:
        return self.losses_of(batch)
