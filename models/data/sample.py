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
        folder: of all images, which may hold this one in a folder of its own; None if that does not matter.
    """

    path: Path
    channels: tuple[int, ...]
    folder: Path | None = None

    @property
    def name(self) -> str:
        """The image's file name, with the folders that it lies in below the folder of all images."""
        return (
            self.path.name if self.folder is None else self.path.relative_to(self.folder).as_posix()
        )

    @property
    def stem(self) -> str:
        """The name that this sample's masks carry."""
        return self.path.stem
