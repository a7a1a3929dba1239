"""Several processes that train one network together, as torchrun starts them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed import destroy_process_group, get_rank, get_world_size, init_process_group
from torch.nn.parallel import DistributedDataParallel


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


def in_parallel(losses: nn.Module, processes: Processes, *, device: torch.device) -> nn.Module:
    """Return a module whose backward pass averages the gradients of all processes.

    Each process's loss is the mean over its own pixels, so with ignored pixels the average weighs them a little
    differently than one process with the whole batch would.
    """
    if processes.count == 1:
        return losses
    return DistributedDataParallel(losses, device_ids=[device] if device.type == "cuda" else None)
