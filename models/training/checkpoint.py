"""Checkpoints within a stage: a run that was killed continues with the same results."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.io import write_atomically


@dataclass(frozen=True)
class TrainingPosition:
    """Number of completed epochs, and of completed steps in the next one."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """The file with a module's, an optimizer's and a gradient scaler's state.

    No random state is stored: the seed of each step follows from the run's seed and the step's position. The
    fingerprint is of configuration, data and stage inputs; a file with another one is refused.
    """

    path: Path
    module: nn.Module
    fingerprint: str
    writes: bool = True  # whether this process writes the file
    every: int = 500  # steps between two saves; the end of an epoch is always saved

    def save_if_due(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        done: TrainingPosition,
        *,
        steps: int,
    ) -> None:
        """Save the state after the step ``done`` if it ends its epoch of ``steps`` steps, or a save is due."""
        ends_epoch = done.step + 1 == steps
        if not self.writes or not (ends_epoch or (done.step + 1) % self.every == 0):
            return
        position = (done.epoch + 1, 0) if ends_epoch else (done.epoch, done.step + 1)
        # Serialized in memory: on a full disk torch.save itself raises a RuntimeError without the cause.
        buffer = io.BytesIO()
        torch.save(
            {
                "fingerprint": self.fingerprint,
                "position": position,
                "module": self.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
            },
            buffer,
        )
        write_atomically(self.path, buffer.getvalue())

    def restore(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> TrainingPosition:
        """Load the file's state if there is a file, and return where to continue."""
        if not self.path.is_file():
            return TrainingPosition()
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            fingerprint, position = state["fingerprint"], TrainingPosition(*state["position"])
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
            raise ValueError(f"expected a checkpoint, got a damaged {self.path}") from error
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"expected {self.path} of this configuration, these photos and earlier stages; delete it to start anew"
            )
        self.module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        return position
