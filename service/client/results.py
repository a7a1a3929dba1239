"""A mask, what is known of it, and what can be fetched to it."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.data.mask_files import read_cams, read_soft_maps
from models.inference.masks import ClassResult, SoftMaps
from models.io import write_atomically
from service.client.documents import Job


@dataclass(frozen=True)
class Mask:
    """A label map as the service made it.

    Attributes:
        job_id: of the job that it belongs to.
        png: the file, byte by byte as ``GET /jobs/{id}/mask.png`` gives it.
    """

    job_id: str
    png: bytes = field(repr=False)

    @cached_property
    def label_map(self) -> NDArray[np.uint8]:
        """Class index per pixel, (H, W), in the upright frame; 0 background, 255 ignore."""
        with Image.open(io.BytesIO(self.png), formats=("PNG",)) as picture:
            return np.array(picture)

    @cached_property
    def provenance(self) -> Mapping[str, str]:
        """Where the mask comes from, the PNG's text: Software, Model, Licence, Labels, Options."""
        with Image.open(io.BytesIO(self.png), formats=("PNG",)) as picture:
            texts = ((str(key), value) for key, value in picture.info.items())
            return {key: value for key, value in texts if isinstance(value, str)}

    def save(self, path: str | Path) -> None:
        """Write the palette PNG, whole or not at all.

        Raises:
            OSError: if it cannot be written.
        """
        write_atomically(Path(path), self.png)


@dataclass(frozen=True)
class FinishedMask(Mask):
    """A mask and its job; ``Result`` and ``AsyncResult`` add what is fetched only when it is asked for.

    Attributes:
        job: as it stood at its end.
    """

    job: Job

    @property
    def classes(self) -> tuple[ClassResult, ...]:
        """What became of each class: area, confidence, alignment, box."""
        return self.job.classes

    @property
    def ignored(self) -> float:
        """Share of the pixels that are 255, in [0, 1]."""
        return self.job.ignored

    @property
    def is_empty(self) -> bool:
        """Whether no class has a pixel."""
        return all(each.box is None for each in self.classes)


Fetch: TypeAlias = Callable[[str], bytes]
FetchAsync: TypeAlias = Callable[[str], Awaitable[bytes]]


@dataclass(frozen=True)
class Result(FinishedMask):
    """What ``Client`` makes of an image. What is fetched later raises SemplesError as the client's methods do."""

    _fetch: Fetch = field(repr=False)

    @cached_property
    def _scores(self) -> bytes:
        return self._fetch("scores.npz")

    @cached_property
    def scores(self) -> SoftMaps:
        """The soft maps after refinement, before any threshold: ``scores`` (n, h, w) float16, ``names``, ``size``."""
        return read_soft_maps(io.BytesIO(self._scores))

    @cached_property
    def cams(self) -> NDArray[np.float16] | None:
        """The classes' CAMs before refinement, (n, h', w') float16, as ``classes``; None of ``segment``."""
        return read_cams(io.BytesIO(self._scores))

    @cached_property
    def overlay_png(self) -> bytes:
        """The file of ``overlay``."""
        return self._fetch("overlay.png")

    @cached_property
    def overlay(self) -> Image.Image:
        """The image with the mask's colors laid over it."""
        return picture(self.overlay_png)


@dataclass(frozen=True)
class AsyncResult(FinishedMask):
    """What ``AsyncClient`` makes of an image; what is fetched later is awaited, and fetched each time."""

    _fetch: FetchAsync = field(repr=False)

    async def scores(self) -> SoftMaps:
        """Return the soft maps; see ``Result.scores``."""
        return read_soft_maps(io.BytesIO(await self._fetch("scores.npz")))

    async def cams(self) -> NDArray[np.float16] | None:
        """Return the classes' CAMs; see ``Result.cams``."""
        return read_cams(io.BytesIO(await self._fetch("scores.npz")))

    async def overlay(self) -> Image.Image:
        """Return the image with the mask's colors laid over it."""
        return picture(await self._fetch("overlay.png"))


def picture(png: bytes) -> Image.Image:
    """Decode a picture whole."""
    image: Image.Image = Image.open(io.BytesIO(png), formats=("PNG",))
    image.load()
    return image
