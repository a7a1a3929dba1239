"""What the service answers with, as values."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypedDict, TypeVar, get_type_hints
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.data.classes import ClassInfo, ClassList
from models.data.mask_files import read_cams, read_soft_maps
from models.inference.masks import ClassResult, MaskOptions, SoftMaps
from models.io import write_atomically
from service.client.errors import JobCanceled, JobFailed, SemplesError

T = TypeVar("T")

ENDED: Final = frozenset({"finished", "failed", "canceled"})


@dataclass(frozen=True)
class Job:
    """Where a job stands and, once it is finished, what came out.

    Attributes:
        id: of the job.
        task: "pseudo_mask" or "segment".
        status: "queued", "running", "finished", "failed" or "canceled".
        labels: canonical names, as the job has them; none to segment.
        model: the model's name.
        version: the hash of the model's content.
        classes: what became of each class; none before the end.
        ignored: share of the pixels that are 255, in [0, 1].
        document: all that the service says, in JSON's types.
    """

    id: str
    task: str
    status: str
    labels: tuple[str, ...]
    model: str
    version: str
    classes: tuple[ClassResult, ...]
    ignored: float
    document: Mapping[str, Any] = field(repr=False)

    @property
    def ended(self) -> bool:
        """Whether it is finished, failed or canceled."""
        return self.status in ENDED

    @property
    def progress(self) -> tuple[str, float] | None:
        """The stage of a running job and the fraction of all work that is done, if it has said so."""
        said = self.document.get("progress")
        return (str(said["stage"]), float(said["fraction"])) if said else None

    def finished(self) -> Job:
        """Return the job itself.

        Raises:
            JobFailed: if it has failed.
            JobCanceled: if it is canceled.
        """
        if self.status == "canceled":
            raise JobCanceled(f"job {self.id} was canceled", kind="job-canceled")
        if self.status == "failed":
            failure = self.document.get("failure", {})
            detail = str(failure.get("detail", "the job failed"))
            raise JobFailed(detail, kind="job-failed", members=failure)
        return self


@dataclass(frozen=True)
class Model:
    """A model that can be asked for.

    Attributes:
        name: to ask for it by.
        version: the hash of its content.
        ready: whether a live worker has it in memory.
        default: whether ``pseudo_mask`` takes it unless another is named.
        can_segment: whether ``segment`` takes it.
        classes: what may be labeled, with synonyms.
        defaults: how its pseudo masks are made unless a request says otherwise.
        document: all that the service says, in JSON's types; of one model alone ``nearest_nouns`` too.
    """

    name: str
    version: str
    ready: bool
    default: bool
    can_segment: bool
    classes: ClassList = field(repr=False)
    defaults: MaskOptions = field(repr=False)
    document: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Batch:
    """Where a batch stands.

    Attributes:
        id: of the batch.
        status: "queued", "running", "finished" or "canceled".
        counts: of its photos: total, waiting, queued, running, finished, failed, canceled.
        document: all that the service says, in JSON's types.
    """

    id: str
    status: str
    counts: Mapping[str, int]
    document: Mapping[str, Any] = field(repr=False)

    @property
    def ended(self) -> bool:
        """Whether nothing of it is done any more."""
        return self.status in ENDED


def read(answer: httpx.Response, parse: Callable[[Any], T]) -> T:
    """Parse an answer that is JSON.

    Raises:
        SemplesError: if it is something else, as what a page or a proxy says.
    """
    try:
        return parse(answer.json())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        kind = answer.headers.get("content-type", "nothing")
        raise SemplesError(
            f"expected an answer of the service to {answer.request.url.path}, got {kind[:80]}: is the URL right?",
            status=answer.status_code,
        ) from error


def job(document: Any) -> Job:
    """Read a job's document."""
    return Job(
        id=str(document["id"]),
        task=str(document["task"]),
        status=str(document["status"]),
        labels=tuple(document["labels"]),
        model=str(document["model"]["name"]),
        version=str(document["model"]["version"]),
        classes=tuple(map(_class, document.get("classes") or ())),
        ignored=float(document.get("ignored") or 0.0),
        document=document,
    )


def _class(said: Mapping[str, Any]) -> ClassResult:
    box = said.get("box")
    return ClassResult(
        index=int(said["index"]),
        name=str(said["name"]),
        area=float(said["area"]),
        confidence=said.get("confidence"),
        alignment_class=said.get("alignment_class"),
        alignment_background=said.get("alignment_background"),
        box=tuple(box) if box else None,
        zero_shot=bool(said.get("zero_shot", False)),
    )


def models(document: Any) -> tuple[Model, ...]:
    """Read the list of models."""
    return tuple(model(each, default=document["default"]) for each in document["models"])


def model(document: Any, *, default: str | None = None) -> Model:
    """Read a model's document."""
    said = document["model"]
    classes = (
        ClassInfo(int(each["index"]), str(each["name"]), tuple(each.get("synonyms", ())))
        for each in said["classes"]
    )
    return Model(
        name=str(said["name"]),
        version=str(said["version"]),
        ready=bool(document["ready"]),
        default=said["name"] == default,
        can_segment=bool(said.get("can_segment", False)),
        classes=ClassList(tuple(classes)),
        defaults=MaskOptions(
            refine=str(said["refine"]),
            min_confidence=float(said["min_confidence"]),
            background_threshold=float(said["background_threshold"]),
            class_thresholds=dict(said.get("class_thresholds", {})),
        ),
        document=document,
    )


def batch(document: Any) -> Batch:
    """Read a batch's document."""
    return Batch(str(document["id"]), str(document["status"]), dict(document["counts"]), document)


# A mask, what is known of it, and what can be fetched to it.


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


# The requests that a client makes, as values: nothing is sent here.

ImageLike = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""A photo: the path or the bytes of a JPEG, PNG or WebP, a Pillow image, or pixels, (H, W, 3) RGB or (H, W) gray."""

UNPACK_SECONDS: Final = 600.0
"""How long a service may look at a zip before it answers."""

_PNG_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


class SegmentOptions(TypedDict, total=False):
    """How an image is segmented; what is left out or None is the model's default.

    ``model`` is a name of ``models()``, ``refine`` a chain such as ``"random_walk+pamr"``; pixels less sure than
    ``min_confidence`` become 255.
    """

    model: str | None
    refine: str | None
    min_confidence: float | None


class Thresholds(TypedDict, total=False):
    """How scores become a mask; the background's score is the threshold, or (1 - best score)^power."""

    background_threshold: float | None
    background_power: float | None
    min_confidence: float | None


class PseudoMaskOptions(SegmentOptions, total=False):
    """How a pseudo mask is made; as SegmentOptions, with the background's score of Thresholds."""

    background_threshold: float | None
    background_power: float | None


class PhotoOptions(PseudoMaskOptions, total=False):
    """How one photo's pseudo mask is made; ``vocabulary`` "open" takes labels that the model was not trained on."""

    vocabulary: Literal["closed", "open"] | None


@dataclass(frozen=True)
class Call:
    """A request.

    Attributes:
        method, path: of it; the path is below the service's URL.
        query: None and what is left out are the same.
        form: fields; None and what is left out are the same.
        file: the form's field that is a file: its name, and the file's bytes or where it is.
        headers: of this request alone.
        patience: seconds that the service may stay silent beyond what a client bears otherwise.
    """

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    form: Mapping[str, Any] = field(default_factory=dict)
    file: tuple[str, bytes | Path] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    patience: float = 0.0

    @contextmanager
    def request(
        self, http: httpx.Client | httpx.AsyncClient, timeout: float
    ) -> Iterator[httpx.Request]:
        """Build the request that a client is to send; a file is open as long as this lasts.

        Raises:
            OSError: if the file cannot be read.
        """
        with ExitStack() as stack:
            content: Any = None
            if self.file is not None:
                name, source = self.file
                opened = (
                    stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
                )
                content = {name: (name, opened)}
            yield http.build_request(
                self.method,
                self.path,
                params=_given(self.query) or None,
                data=_given(self.form) or None,
                files=content,
                headers=dict(self.headers),
                timeout=httpx.Timeout(timeout, read=timeout + self.patience, pool=None),
            )


def pseudo_mask_call(
    image: bytes,
    labels: str | Sequence[str],
    options: PseudoMaskOptions | PhotoOptions,
    *,
    wait: int,
) -> Call:
    """Return the post of an image with its labels.

    Args:
        image: a file's bytes.
        labels: what the image shows; one alone may be given as it is.
        options: see PseudoMaskOptions.
        wait: seconds that the service may take to answer with the finished job.

    Raises:
        TypeError: if an option has another name.
        ValueError: if there is no label.
    """
    chosen = [labels] if isinstance(labels, str) else list(labels)
    if not chosen:
        raise ValueError("expected at least one label, got none")
    form = {**checked(options, PhotoOptions), "labels": chosen}
    return _post_image("/pseudo-mask", image, form, wait=wait)


def segment_call(image: bytes, options: SegmentOptions, *, wait: int) -> Call:
    """Return the post of an image alone; see ``pseudo_mask_call``."""
    return _post_image("/segment", image, checked(options, SegmentOptions), wait=wait)


def _post_image(path: str, image: bytes, form: Mapping[str, Any], *, wait: int) -> Call:
    query = {"wait": wait or None}
    return Call("POST", path, query=query, form=form, file=("image", image), patience=wait)


def batch_call(archive: Path, options: PseudoMaskOptions) -> Call:
    """Return the post of a zip of photos and labels; raises as ``pseudo_mask_call``."""
    form = checked(options, PseudoMaskOptions)
    return Call("POST", "/batches", form=form, file=("archive", archive), patience=UNPACK_SECONDS)


def checked(options: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Return options by name; raise TypeError for a name that their kind has not, as a function's keywords would."""
    known = sorted(get_type_hints(kind))
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"expected options {', '.join(known)}, got {unknown[0]!r}")
    return dict(options)


def quoted(text: str) -> str:
    """Return an id or a name as one segment of a path.

    Raises:
        ValueError: if it cannot be one.
    """
    if text in ("", ".", ".."):
        raise ValueError(f"expected an id or a name, got {text!r}")
    return quote(text, safe="")


def image_bytes(image: ImageLike) -> bytes:
    """Return an image's file: as it is where there is one, else as a PNG.

    Pixels and Pillow images are taken as they lie in memory, so that the mask has their height and width.

    Raises:
        TypeError: if it is none of the things that are taken.
        ValueError: if an array has another shape or type than it may have.
        OSError: if the file cannot be read.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        return _png(_picture(image))
    if isinstance(image, Image.Image):
        return _png(image)
    raise TypeError(
        f"expected a path, bytes, a Pillow image or an array, got {type(image).__name__}"
    )


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not fits or not pixels.size:
        raise ValueError(
            f"expected uint8 pixels (H, W, 3), (H, W, 4) or (H, W), got {pixels.dtype} {pixels.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    fits = picture.mode in _PNG_MODES
    # Without EXIF: its orientation would turn the mask away from these pixels. Speed before size.
    (picture if fits else picture.convert("RGB")).save(buffer, "PNG", compress_level=1, exif=b"")
    return buffer.getvalue()


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
