"""Steps as TensorBoard shows them, where its package is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from models.training.loop import Step


@contextmanager
def tensorboard_events(folder: Path) -> Iterator[Callable[[Step], None]]:
    """Give a callback that writes a step's losses and learning rate as events of a folder.

    A run that goes on takes back what it had written of later steps. Without the package ``tensorboard`` nothing is
    written.
    """
    if find_spec("tensorboard") is None:
        yield lambda _: None
        return
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (optional, and slow to import)

    writer: SummaryWriter | None = None

    def write(step: Step) -> None:
        nonlocal writer
        at = step.epoch * step.steps + step.step
        if writer is None:
            writer = SummaryWriter(str(folder), purge_step=at)
        for name, value in {**step.losses, "learning_rate": step.learning_rate}.items():
            writer.add_scalar(name, value, at)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
