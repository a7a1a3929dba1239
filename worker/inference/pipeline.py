"""Steps of a job: preprocess (fetch and decode), forward (the networks), postprocess (refine and decide), upload.

Threads preprocess and postprocess; one thread alone sends the images of several jobs forward at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from models.data.classes import with_open_labels
from models.data.images import MAX_PIXELS, UprightImage, read_image
from models.data.mask_files import mask_png, scores_npz
from models.inference.masks import (
    CannotSegmentError,
    LabeledImage,
    MaskOptions,
    OnProgress,
    Segmentation,
    UnlabeledImage,
)
from worker.queue.failures import is_transient, retry
from worker.queue.registry import ModelInfo
from worker.queue.schema import ImageRecord, JobRequest, JobResult, ResultBlobs, Timings
from worker.storage import BlobStore
from worker.telemetry import WorkerMetrics

if TYPE_CHECKING:
    from models.inference.forward import ForwardOutput
    from models.inference.predictor import Predictor

_T = TypeVar("_T")

_PREPROCESSED, _FORWARDED = 0.05, 0.75
"""Fractions of a job's work at which the networks begin and end."""

_STORE_PATIENCE: Final = 30.0


@dataclass(frozen=True)
class WorkerContext:
    """What all jobs of a worker process share."""

    predictor: Predictor
    model: ModelInfo
    blobs: BlobStore
    worker: str  # its name
    max_pixels: int = MAX_PIXELS  # of an image
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)


@dataclass(frozen=True)
class PreprocessedImage:
    """A decoded upload and its job's request."""

    request: JobRequest
    image: UprightImage
    sample: LabeledImage | UnlabeledImage  # the image as the predictor takes it
    size: tuple[int, int]  # (H, W) in the networks
    seconds: float  # of preprocessing

    @property
    def pixels(self) -> int:
        """Width times height of the upload."""
        height, width = self.image.pixels.shape[:2]
        return int(height * width)

    @property
    def batch_key(self) -> Hashable:
        """Equal for images that may go through the networks together."""
        return self.request.task, self.size


def preprocess(request: JobRequest, context: WorkerContext) -> PreprocessedImage:
    """Fetch and decode an upload; BlobError, ImageError, CannotSegmentError or UnknownLabelError."""
    started = time.perf_counter()
    predictor, options = context.predictor, request.options
    # The API has checked labels and segmenter, but perhaps against another version of the bundle.
    classes = predictor.info.classes
    if request.task == "pseudo_mask":
        if request.vocabulary == "open" and context.model.open_vocabulary:
            classes = with_open_labels(classes, request.labels)
        classes.resolve(request.labels)
    elif not context.model.can_segment:
        raise CannotSegmentError(f"expected a model with a segmenter, got {context.model.name!r}")
    data = _retry_store(partial(context.blobs.get, request.image))
    image = read_image(data, max_pixels=context.max_pixels)
    height, width = image.pixels.shape[:2]
    sample: LabeledImage | UnlabeledImage
    if request.task == "pseudo_mask":
        sample = LabeledImage(image.pixels, request.labels, options, classes)
        size = predictor.working_size(height, width)
    else:
        sample, size = UnlabeledImage(image.pixels, options), predictor.segment_size(height, width)
    return PreprocessedImage(request, image, sample, size, time.perf_counter() - started)


def forward(
    images: Sequence[PreprocessedImage], context: WorkerContext, report: OnProgress
) -> tuple[Sequence[ForwardOutput], float]:
    """Send images of one batch key through the networks; return what comes out, and the seconds that it took.

    ``report`` gets the stage and the fraction of the whole job; an exception that it raises stops the work.
    """
    started = time.perf_counter()

    def on_progress(stage: str, fraction: float) -> None:
        report(stage, _PREPROCESSED + (_FORWARDED - _PREPROCESSED) * fraction)

    samples = [each.sample for each in images]
    labeled = [each for each in samples if isinstance(each, LabeledImage)]
    unlabeled = [each for each in samples if isinstance(each, UnlabeledImage)]
    predictor = context.predictor
    outputs: list[ForwardOutput] = []
    if labeled:
        outputs += predictor.forward_cam(labeled, on_progress=on_progress)
    if unlabeled:
        outputs += predictor.forward_segmenter(unlabeled, on_progress=on_progress)
    return outputs, time.perf_counter() - started


def postprocess(
    image: PreprocessedImage,
    output: ForwardOutput,
    context: WorkerContext,
    *,
    waited: float,
    forward_seconds: float,
) -> JobResult:
    """Refine the networks' output, decide the mask, store the files and return the result; BlobError.

    ``waited`` is the seconds in the queue, ``forward_seconds`` those in the networks.
    """
    started = time.perf_counter()
    segmentation = context.predictor.postprocess(output)
    refined = time.perf_counter()
    model, request = context.model, image.request
    blobs = upload(segmentation, context, request.options)
    encoded = time.perf_counter()
    height, width = segmentation.label_map.shape
    decoded = image.image
    return JobResult(
        model=model.ref,
        image=ImageRecord(
            width=width,
            height=height,
            exif_orientation=decoded.exif_orientation,
            value_range=decoded.value_range,
        ),
        labels=request.labels,
        options=request.options,
        classes=segmentation.classes,
        ignored=segmentation.ignored,
        timings=Timings(
            queue=waited,
            decode=image.seconds,
            model=forward_seconds + refined - started,
            encode=encoded - refined,
        ),
        blobs=blobs,
        worker=context.worker,
    )


def upload(segmentation: Segmentation, context: WorkerContext, options: MaskOptions) -> ResultBlobs:
    """Encode and store the mask, with provenance as its text chunks, and the scores; BlobError.

    No overlay: encoding it takes longer than all the rest, and few requests need it.
    """

    def put(data: bytes) -> str:
        return _retry_store(partial(context.blobs.put, "results", data))

    return ResultBlobs(
        mask=put(mask_png(segmentation, context.model, options)),
        scores=put(scores_npz(segmentation)),
    )


def _retry_store(action: Callable[[], _T]) -> _T:
    """Retry while the blob store does not answer: a job's attempts would be used up in seconds."""
    return retry(action, retryable=is_transient, patience=_STORE_PATIENCE)
