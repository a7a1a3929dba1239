"""Values of the client: jobs, models, batches, masks and results, read from the service's JSON; images to post."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.data.classes import ClassInfo, ClassList
from models.data.mask_files import read_cams, read_mask, read_soft_maps
from models.inference.masks import ClassResult, MaskOptions, SoftMaps
from models.io import write_atomically
from service.client.errors import JobCanceled, JobFailed

ImageLike = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""A path or the bytes of a JPEG, PNG or WebP, a Pillow image, or pixels, (H, W, 3) RGB or (H, W) gray."""

_ENDED: Final = frozenset({"finished", "failed", "canceled"})
_PNG_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


@dataclass(frozen=True)
class Job:
    """A job's state and, once it is finished, its result."""

    id: str
    task: str  # "pseudo_mask" or "segment"
    status: str  # "queued", "running", "finished", "failed" or "canceled"
    labels: tuple[str, ...]  # canonical names; none to segment
    model: str  # its name
    version: str  # hash of the model's content
    classes: tuple[ClassResult, ...]  # none before the end
    ignored: float  # share of the pixels that are 255, in [0, 1]
    document: Mapping[str, Any] = field(repr=False)  # the service's whole answer

    @classmethod
    def from_json(cls, document: Any) -> Job:
        """Read the service's answer."""
        return cls(
            id=str(document["id"]),
            task=str(document["task"]),
            status=str(document["status"]),
            labels=tuple(document["labels"]),
            model=str(document["model"]["name"]),
            version=str(document["model"]["version"]),
            classes=tuple(map(_class_result, document.get("classes") or ())),
            ignored=float(document.get("ignored") or 0.0),
            document=document,
        )

    @property
    def ended(self) -> bool:
        """Whether it is finished, failed or canceled."""
        return self.status in _ENDED

    @property
    def progress(self) -> tuple[str, float] | None:
        """The stage of a running job and the fraction of all work that is done, if it is known."""
        known = self.document.get("progress")
        return (str(known["stage"]), float(known["fraction"])) if known else None

    def finished(self) -> Job:
        """Return the job itself; raise JobFailed or JobCanceled if it has no mask."""
        if self.status == "canceled":
            raise JobCanceled(f"job {self.id} was canceled", kind="job-canceled")
        if self.status == "failed":
            failure = self.document.get("failure", {})
            detail = str(failure.get("detail", "the job failed"))
            raise JobFailed(detail, kind="job-failed", members=failure)
        return self


def _class_result(document: Mapping[str, Any]) -> ClassResult:
    box = document.get("box")
    return ClassResult(
        index=int(document["index"]),
        name=str(document["name"]),
        area=float(document["area"]),
        confidence=document.get("confidence"),
        alignment_class=document.get("alignment_class"),
        alignment_background=document.get("alignment_background"),
        box=tuple(box) if box else None,
        zero_shot=bool(document.get("zero_shot", False)),
    )


@dataclass(frozen=True)
class Model:
    """A model of the service."""

    name: str
    version: str  # hash of its content
    ready: bool  # a live worker has it in memory
    default: bool  # ``pseudo_mask`` takes it unless another is named
    can_segment: bool
    classes: ClassList = field(repr=False)
    defaults: MaskOptions = field(repr=False)
    document: Mapping[str, Any] = field(repr=False)  # the service's whole answer

    @classmethod
    def from_json(cls, document: Any, *, default: str | None = None) -> Model:
        """Read the service's answer; ``default`` is the default model's name."""
        model = document["model"]
        classes = (
            ClassInfo(int(each["index"]), str(each["name"]), tuple(each.get("synonyms", ())))
            for each in model["classes"]
        )
        return cls(
            name=str(model["name"]),
            version=str(model["version"]),
            ready=bool(document["ready"]),
            default=model["name"] == default,
            can_segment=bool(model.get("can_segment", False)),
            classes=ClassList(tuple(classes)),
            defaults=MaskOptions(
                refine=str(model["refine"]),
                min_confidence=float(model["min_confidence"]),
                background_threshold=float(model["background_threshold"]),
                class_thresholds=dict(model.get("class_thresholds", {})),
                threshold_slope=float(model.get("threshold_slope", 0)),
            ),
            document=document,
        )


@dataclass(frozen=True)
class Batch:
    """A batch's state."""

    id: str
    status: str  # "queued", "running", "finished" or "canceled"
    counts: Mapping[str, int]
    document: Mapping[str, Any] = field(repr=False)  # the service's whole answer

    @classmethod
    def from_json(cls, document: Any) -> Batch:
        """Read the service's answer."""
        counts = dict(document["counts"])
        return cls(str(document["id"]), str(document["status"]), counts, document)

    @property
    def ended(self) -> bool:
        """Whether no image of it is still to be done."""
        return self.status in _ENDED


@dataclass(frozen=True)
class Mask:
    """A label map of the service."""

    job_id: str
    png: bytes = field(repr=False)  # as ``GET /jobs/{id}/mask.png`` returns it

    @cached_property
    def label_map(self) -> NDArray[np.uint8]:
        """Class index per pixel, (H, W), in the upright frame; 0 background, 255 ignore."""
        return read_mask(self.png)[0]

    @cached_property
    def provenance(self) -> Mapping[str, str]:
        """The PNG's text chunks: Software, Model, Licence, Labels, Options."""
        return read_mask(self.png)[1]

    def save(self, path: str | Path) -> None:
        """Write the palette PNG, whole or not at all."""
        write_atomically(Path(path), self.png)


@dataclass(frozen=True)
class _FinishedMask(Mask):
    """A mask and its job; ``Result`` and ``AsyncResult`` add files that are fetched on demand."""

    job: Job

    @property
    def classes(self) -> tuple[ClassResult, ...]:
        """One result a class: area, confidence, alignment, box."""
        return self.job.classes

    @property
    def ignored(self) -> float:
        """Share of the pixels that are 255, in [0, 1]."""
        return self.job.ignored

    @property
    def is_empty(self) -> bool:
        """Whether no class has a pixel."""
        return all(each.box is None for each in self.classes)


@dataclass(frozen=True)
class Result(_FinishedMask):
    """A result of ``Client``. Files that are fetched later raise SemplesError as the client's methods do."""

    _fetch: Callable[[str], bytes] = field(repr=False)

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
        return _decode_png(self.overlay_png)


@dataclass(frozen=True)
class AsyncResult(_FinishedMask):
    """A result of ``AsyncClient``; files that are fetched later are awaited, and fetched each time."""

    _fetch: Callable[[str], Awaitable[bytes]] = field(repr=False)

    async def scores(self) -> SoftMaps:
        """Return the soft maps; see ``Result.scores``."""
        return read_soft_maps(io.BytesIO(await self._fetch("scores.npz")))

    async def cams(self) -> NDArray[np.float16] | None:
        """Return the classes' CAMs; see ``Result.cams``."""
        return read_cams(io.BytesIO(await self._fetch("scores.npz")))

    async def overlay(self) -> Image.Image:
        """Return the image with the mask's colors laid over it."""
        return _decode_png(await self._fetch("overlay.png"))


def _decode_png(png: bytes) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(png), formats=("PNG",))
    image.load()
    return image


def image_bytes(image: ImageLike) -> bytes:
    """Return an image's file: unchanged if it is one, else encoded as a PNG of the same height and width.

    Raises:
        TypeError: if it is of another type.
        ValueError: if an array has another shape or type than it may have.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        return _encode_png(_from_pixels(image))
    if isinstance(image, Image.Image):
        return _encode_png(image)
    raise TypeError(f"expected a path, bytes, a Pillow image or an array, got {type(image).__name__}")


def _from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not fits or not pixels.size:
        raise ValueError(f"expected uint8 pixels (H, W, 3), (H, W, 4) or (H, W), got {pixels.dtype} {pixels.shape}")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _encode_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    fits = picture.mode in _PNG_MODES
    # Without EXIF: its orientation would rotate the mask. Speed before size.
    (picture if fits else picture.convert("RGB")).save(buffer, "PNG", compress_level=1, exif=b"")
    return buffer.getvalue()
