"""Which channels of a foreign network are ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models.data.classes import ClassList


def choose_channels(
    classes: ClassList, available: int, channels: Mapping[int, int] | None
) -> list[int]:
    """Return the channels of a foreign network that are the classes', in their order.

    Args:
        classes: wanted.
        available: channels that the network has.
        channels: class index → channel; None takes all channels, as many as there are classes, in order.

    Raises:
        ValueError: if the numbers differ, or a class has no channel, or one that is not there or another's.
    """
    if channels is None:
        if available != len(classes):
            raise ValueError(
                f"expected {available} classes, as the file has, or --channels that says which are "
                f"wanted, got {len(classes)} classes"
            )
        return list(range(available))
    missing = [info.name for info in classes.classes if info.index not in channels]
    if missing:
        raise ValueError(f"expected a channel for each class, got none for {missing[0]!r}")
    chosen = [channels[info.index] for info in classes.classes]
    if len(set(chosen)) < len(chosen) or not all(0 <= each < available for each in chosen):
        raise ValueError(f"expected distinct channels from 0 to {available - 1}, got {chosen}")
    return chosen


def read_channels(path: Path) -> dict[int, int]:
    """Read a text file of "class-index channel" lines.

    Raises:
        ValueError: if a line has another form.
        OSError: if the file cannot be read.
    """
    channels = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        parts = line.split()
        if len(parts) != 2 or not all(part.isdecimal() for part in parts):
            raise ValueError(f"{path}:{number}: expected 'class-index channel', got {line!r}")
        channels[int(parts[0])] = int(parts[1])
    return channels
