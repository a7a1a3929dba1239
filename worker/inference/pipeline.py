"""The steps of a job: bytes → photo → networks → segmentation → files and a record.

Each is a function of its own: the worker's loop decodes and encodes in threads of their own, and sends several photos
through the networks at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from rq import get_current_job

from models.data.classes import ClassList, with_open_labels
from models.data.images import MAX_PIXELS, UprightImage, read_image
from models.data.mask_files import label_map_png, provenance, scores_npz
from models.inference.masks import (
    CannotSegmentError,
    LabeledImage,
    MaskOptions,
    OnProgress,
    Segmentation,
    UnlabeledImage,
)
from worker.queue.failures import may_pass, persistently
from worker.queue.registry import ModelInfo
from worker.queue.schema import (
    ImageRecord,
    JobRequest,
    JobResult,
    ResultBlobs,
    Timings,
)
from worker.storage import BlobStore
from worker.telemetry import WorkerMetrics

# What a task needs and no job can carry: the model in memory and the blob store.

HalfDone = Any
"""What came out of the networks for one photo: the predictor's own business."""


class Described(Protocol):
    """A bundle's description."""

    @property
    def classes(self) -> ClassList:
        """The classes that can be asked for."""
        ...

    @property
    def can_segment(self) -> bool:
        """Whether it holds a segmenter."""
        ...

    @property
    def open_vocabulary(self) -> bool:
        """Whether labels may be others than its classes."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return it in JSON's types."""
        ...


class PredictorLike(Protocol):
    """What the worker needs of ``models.inference.predictor.Predictor``, so that torch stays out of here."""

    @property
    def device(self) -> object:
        """Where the work is done; its text is a device's name."""
        ...

    @property
    def info(self) -> Described:
        """What the model says of itself."""
        ...

    def options(self) -> MaskOptions:
        """Return the model's own options for pseudo masks."""
        ...

    def segment_options(self) -> MaskOptions:
        """Return the model's own options for segmenting."""
        ...

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (H, W) at which a labeled photo goes through the networks; only equal ones do so together."""
        ...

    def segment_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the same for a photo without labels."""
        ...

    def forward_cam(
        self, batch: Sequence[LabeledImage], *, on_progress: OnProgress = ...
    ) -> Sequence[HalfDone]:
        """Send photos of one working size through the networks; one thread alone does this."""
        ...

    def forward_segmenter(
        self, batch: Sequence[UnlabeledImage], *, on_progress: OnProgress = ...
    ) -> Sequence[HalfDone]:
        """Do the same with photos that nothing is said of."""
        ...

    def postprocess(self, half_done: HalfDone) -> Segmentation:
        """Make a segmentation of what came out of the networks; may be done in any thread."""
        ...

    def release_memory(self) -> None:
        """Give back memory of the device that is held and not used."""
        ...

    def device_memory(self) -> int | None:
        """Return the bytes of the device's memory that are held, None if it has none of its own."""
        ...


@dataclass(frozen=True)
class Runtime:
    """One process's model, store and name; made once, before the first job.

    Attributes:
        predictor: warm.
        model: what the predictor says of itself.
        blobs: shared with the service.
        worker: this worker's name.
        max_pixels: largest image.
        store_patience: seconds for which a blob store that is away is asked again.
        failures: why jobs failed, by job, known before RQ calls the task that raises it.
        meters: count what is done.
    """

    predictor: PredictorLike
    model: ModelInfo
    blobs: BlobStore
    worker: str
    max_pixels: int = MAX_PIXELS
    store_patience: float = 30.0
    failures: dict[str, BaseException] = field(default_factory=dict)
    meters: WorkerMetrics = field(default_factory=WorkerMetrics)


class _Holder:
    """Holds the one runtime of this process: RQ calls a task by its import path, with JSON alone."""

    runtime: Runtime | None = None


def install(runtime: Runtime | None) -> None:
    """Make a runtime the one that this process's tasks use; None: there is none any more."""
    _Holder.runtime = runtime


def installed() -> Runtime:
    """Return the process's runtime.

    Raises:
        RuntimeError: if there is none: the task was not run by our worker.
    """
    if _Holder.runtime is None:
        raise RuntimeError(
            "expected a worker started by ``python -m worker``, got no installed runtime"
        )
    return _Holder.runtime


T = TypeVar("T")

# Shares of a job's work, for its progress: the networks' part begins and ends at these fractions.
DECODED, ACTIVATED = 0.05, 0.75


@dataclass(frozen=True)
class Photo:
    """A decoded upload with what to do.

    Attributes:
        request: what was asked for.
        image: upright.
        asked: the same in the predictor's words.
        size: (H, W) at which it goes through the networks.
        seconds: that decoding took.
    """

    request: JobRequest
    image: UprightImage
    asked: LabeledImage | UnlabeledImage
    size: tuple[int, int]
    seconds: float

    @property
    def pixels(self) -> int:
        """Width times height of the upload."""
        height, width = self.image.pixels.shape[:2]
        return int(height * width)

    @property
    def key(self) -> Hashable:
        """Equal for photos that may go through the networks together."""
        return self.request.task, self.size


def decode(request: JobRequest, runtime: Runtime) -> Photo:
    """Fetch and decode an upload.

    Raises:
        BlobError: if the upload cannot be read.
        ImageError: if it is no readable image.
        CannotSegmentError: if this worker's model has no segmenter and needs one.
        UnknownLabelError: if this worker's model does not know a label.
    """
    started = time.perf_counter()
    predictor, options = runtime.predictor, request.options
    # The API has seen to labels and segmenter, but the bundle may have been another one then.
    classes = predictor.info.classes
    if request.task == "pseudo_mask":
        if request.vocabulary == "open" and runtime.model.open_vocabulary:
            classes = with_open_labels(classes, request.labels)
        classes.resolve(request.labels)
    elif not runtime.model.can_segment:
        raise CannotSegmentError(f"expected a model with a segmenter, got {runtime.model.name!r}")
    data = _patiently(runtime, partial(runtime.blobs.get, request.image))
    image = read_image(data, max_pixels=runtime.max_pixels)
    height, width = image.pixels.shape[:2]
    asked: LabeledImage | UnlabeledImage
    if request.task == "pseudo_mask":
        asked = LabeledImage(image.pixels, request.labels, options, classes)
        size = predictor.working_size(height, width)
    else:
        asked, size = UnlabeledImage(image.pixels, options), predictor.segment_size(height, width)
    return Photo(request, image, asked, size, time.perf_counter() - started)


def activate(
    photos: Sequence[Photo], runtime: Runtime, report: OnProgress
) -> tuple[Sequence[HalfDone], float]:
    """Send photos of one key through the networks; return what came out, and the seconds that it took.

    Args:
        photos: of one key.
        runtime: what to do it with.
        report: told the stage and the fraction of the whole job; what it raises stops the work.
    """
    started = time.perf_counter()

    def on_progress(stage: str, fraction: float) -> None:
        report(stage, DECODED + (ACTIVATED - DECODED) * fraction)

    asked = [each.asked for each in photos]
    labeled = [each for each in asked if isinstance(each, LabeledImage)]
    unlabeled = [each for each in asked if isinstance(each, UnlabeledImage)]
    predictor = runtime.predictor
    made: list[HalfDone] = []
    if labeled:
        made += predictor.forward_cam(labeled, on_progress=on_progress)
    if unlabeled:
        made += predictor.forward_segmenter(unlabeled, on_progress=on_progress)
    return made, time.perf_counter() - started


def conclude(
    photo: Photo, half_done: HalfDone, runtime: Runtime, *, waited: float, activated: float
) -> JobResult:
    """Refine what came out of the networks, decide the mask, store the files and write the record.

    Args:
        photo: what it is about.
        half_done: from ``activate``.
        runtime: what to do it with.
        waited: seconds in the queue.
        activated: seconds in the networks.

    Raises:
        BlobError: if the files cannot be stored.
    """
    started = time.perf_counter()
    segmentation = runtime.predictor.postprocess(half_done)
    refined = time.perf_counter()
    model, request = runtime.model, photo.request
    text = provenance(model, segmentation.classes, asdict(request.options))
    blobs = store(segmentation, runtime, text=text)
    encoded = time.perf_counter()
    height, width = segmentation.label_map.shape
    orientation = photo.image.exif_orientation
    return JobResult(
        model=model.ref,
        image=ImageRecord(width=width, height=height, exif_orientation=orientation),
        labels=request.labels,
        options=request.options,
        classes=segmentation.classes,
        ignored=segmentation.ignored,
        timings=Timings(
            queue=waited,
            decode=photo.seconds,
            model=activated + refined - started,
            encode=encoded - refined,
        ),
        blobs=blobs,
        worker=runtime.worker,
    )


def store(segmentation: Segmentation, runtime: Runtime, *, text: Mapping[str, str]) -> ResultBlobs:
    """Encode and store a segmentation's files.

    No overlay: encoding that takes longer than all the rest, and few ask for it.

    Args:
        segmentation: what to store.
        runtime: where to.
        text: provenance for the mask's text chunks.

    Raises:
        BlobError: if they cannot be stored.
    """

    def put(data: bytes) -> str:
        return _patiently(runtime, partial(runtime.blobs.put, "results", data))

    return ResultBlobs(
        mask=put(label_map_png(segmentation.label_map, text=text)),
        scores=put(scores_npz(segmentation)),
    )


def _patiently(runtime: Runtime, action: Callable[[], T]) -> T:
    """Ask the blob store again while it is away: a queue's attempts would be used up in seconds."""
    return persistently(action, passes=may_pass, patience=runtime.store_patience)


def run(request: JobRequest, runtime: Runtime, *, waited: float, report: OnProgress) -> JobResult:
    """Do all steps of one job, one after the other; see them for what they raise."""
    report("decode", 0.0)
    photo = decode(request, runtime)
    (half_done,), seconds = activate([photo], runtime, report)
    report("encode", ACTIVATED)
    return conclude(photo, half_done, runtime, waited=waited, activated=seconds)


# Tasks that a job may name; RQ calls them by their import path, with JSON alone.


def pseudo_mask(request: Mapping[str, Any]) -> dict[str, Any]:
    """Segment the classes that a queued request names.

    Args:
        request: a JobRequest in JSON's types.

    Returns:
        A JobResult in JSON's types.
    """
    return _work(request)


def segment_image(request: Mapping[str, Any]) -> dict[str, Any]:
    """Segment whatever a queued request's image shows; as ``pseudo_mask``."""
    return _work(request)


def _work(request: Mapping[str, Any]) -> dict[str, Any]:
    """Do all of it in a plain RQ worker; our loop comes here only to have RQ write down why a job failed."""
    runtime, job = installed(), get_current_job()
    error = runtime.failures.get(job.id) if job is not None else None
    if error is not None:
        raise error
    parsed = JobRequest.model_validate(request)
    return run(parsed, runtime, waited=0.0, report=_ignore).model_dump(mode="json")


def _ignore(stage: str, fraction: float) -> None:
    del stage, fraction
