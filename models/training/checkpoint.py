"""What it takes to go on after a kill as if nothing had been: kept now and then, whole or not at all."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.io import write_atomically


@dataclass(frozen=True)
class Position:
    """How far training has come: so many whole epochs, and so many steps of the next one."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Progress:
    """The loop's own state. Of randomness there is none: each step's follows from the seed and its position.

    Attributes:
        optimizer: with its moments.
        scaler: of mixed precision.
    """

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


@dataclass(frozen=True)
class Checkpoint:
    """One file that keeps a module and the loop's state.

    Attributes:
        path: of the file.
        module: that learns, with its buffers.
        fingerprint: of the configuration, the data and the files of earlier stages; a file with another one is refused.
        writes: whether this process is the one that writes.
        every: steps after which it is kept within an epoch; at an epoch's end it always is.
    """

    path: Path
    module: nn.Module
    fingerprint: str
    writes: bool = True
    every: int = 500

    def keep(self, progress: Progress, at: Position, *, steps: int) -> None:
        """Note the state after a step, if it is the last of its epoch or one that is due.

        Args:
            progress: the loop's state.
            at: the step's position.
            steps: of an epoch.

        Raises:
            OSError: if the file cannot be written.
        """
        last = at.step + 1 == steps
        if self.writes and (last or (at.step + 1) % self.every == 0):
            self._save(
                progress, Position(at.epoch + 1) if last else Position(at.epoch, at.step + 1)
            )

    def _save(self, progress: Progress, position: Position) -> None:
        state = {
            "fingerprint": self.fingerprint,
            "position": (position.epoch, position.step),
            "module": self.module.state_dict(),
            "optimizer": progress.optimizer.state_dict(),
            "scaler": progress.scaler.state_dict(),
        }
        # By way of memory: writing to a full disk itself, torch says so with a RuntimeError of its own words.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.path, buffer.getvalue())

    def restore(self, progress: Progress) -> Position:
        """Take up the state of the file, if there is one, and return its position.

        Raises:
            ValueError: if the file is damaged or another run's.
        """
        if not self.path.is_file():
            return Position()
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            fingerprint, position = state["fingerprint"], Position(*state["position"])
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
            raise ValueError(f"expected a checkpoint, got a damaged {self.path}") from error
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"expected {self.path} of this configuration, these photos and earlier stages; delete it to start anew"
            )
        self.module.load_state_dict(state["module"])
        progress.optimizer.load_state_dict(state["optimizer"])
        progress.scaler.load_state_dict(state["scaler"])
        return position
