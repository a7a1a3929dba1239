"""What it takes to go on after a kill as if nothing had been: kept after each epoch, whole or not at all."""

from __future__ import annotations

import pickle
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Progress:
    """The loop's own state.

    Attributes:
        optimizer: with its moments.
        scaler: of mixed precision.
        generator: that batches are drawn with; None if they are not random.
    """

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    generator: torch.Generator | None


@dataclass(frozen=True)
class Checkpoint:
    """One file that keeps a module, the loop's state and all random states.

    Attributes:
        path: of the file.
        module: that learns, with its buffers.
        fingerprint: of the configuration and the data; a file with another one is refused.
        writes: whether this process is the one that writes.
    """

    path: Path
    module: nn.Module
    fingerprint: str
    writes: bool = True

    def save(self, progress: Progress, *, epochs: int) -> None:
        """Note the state after so many epochs.

        Raises:
            OSError: if the file cannot be written.
        """
        if not self.writes:
            return
        generator = progress.generator
        state = {
            "fingerprint": self.fingerprint,
            "epochs": epochs,
            "module": self.module.state_dict(),
            "optimizer": progress.optimizer.state_dict(),
            "scaler": progress.scaler.state_dict(),
            "batches": generator.get_state() if generator is not None else None,
            "random": _random_states(),
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def restore(self, progress: Progress) -> int:
        """Take up the state of the file, if there is one, and return how many epochs are done.

        Raises:
            ValueError: if the file is damaged or another run's.
        """
        if not self.path.is_file():
            return 0
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"expected a checkpoint, got a damaged {self.path}") from error
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"expected {self.path} of this configuration and these photos; delete it to start anew"
            )
        self.module.load_state_dict(state["module"])
        progress.optimizer.load_state_dict(state["optimizer"])
        progress.scaler.load_state_dict(state["scaler"])
        if progress.generator is not None:
            progress.generator.set_state(state["batches"])
        _restore_random(state["random"])
        return int(state["epochs"])


def _random_states() -> dict[str, Any]:
    """The sources that augmentation and dropout draw from, in types that load without executing anything."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def _restore_random(states: dict[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    # A run may go on with fewer GPUs than it began with.
    for device in range(min(len(states["cuda"]), torch.cuda.device_count())):
        torch.cuda.set_rng_state(states["cuda"][device], device)
