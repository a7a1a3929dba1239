"""One training image with its image-level labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """An image file and the channels of the classes it shows.

    Attributes:
        path: the image.
        channels: class channels, sorted, each once; empty if nothing is labeled.
    """

    path: Path
    channels: tuple[int, ...]

    @property
    def stem(self) -> str:
        """The name that this sample's masks carry."""
        return self.path.stem
