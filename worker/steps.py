"""The steps of a job: bytes → photo → networks → segmentation → files and a record.

Each is a function of its own: the worker's loop decodes and encodes in threads of their own, and sends several photos
through the networks at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

from models.data.classes import with_open_labels
from models.data.images import UprightImage, read_image
from models.data.mask_files import label_map_png, provenance, scores_npz
from models.inference.forward import Labeled, Unlabeled
from models.inference.masks import MaskOptions, OnProgress, Segmentation
from worker.failures import CannotSegmentError, may_pass
from worker.persistence import persistently
from worker.protocol import (
    ClassRecord,
    ImageRecord,
    JobRequest,
    JobResult,
    ResultBlobs,
    Timings,
)
from worker.runtime import HalfDone, Runtime

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
    asked: Labeled | Unlabeled
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
    predictor, options = runtime.predictor, MaskOptions(**request.options.model_dump())
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
    asked: Labeled | Unlabeled
    if request.task == "pseudo_mask":
        asked = Labeled(image.pixels, request.labels, options, classes)
        size = predictor.working_size(height, width)
    else:
        asked, size = Unlabeled(image.pixels, options), predictor.segment_size(height, width)
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
    labeled = [each for each in asked if isinstance(each, Labeled)]
    unlabeled = [each for each in asked if isinstance(each, Unlabeled)]
    predictor = runtime.predictor
    made: list[HalfDone] = []
    if labeled:
        made += predictor.activate(labeled, on_progress=on_progress)
    if unlabeled:
        made += predictor.activate_segments(unlabeled, on_progress=on_progress)
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
    segmentation = runtime.predictor.finish(half_done)
    refined = time.perf_counter()
    model, request = runtime.model, photo.request
    text = provenance(model, segmentation.classes, request.options.model_dump())
    blobs = store(segmentation, runtime, text=text)
    encoded = time.perf_counter()
    height, width = segmentation.label_map.shape
    orientation = photo.image.exif_orientation
    return JobResult(
        model=model.ref,
        image=ImageRecord(width=width, height=height, exif_orientation=orientation),
        labels=request.labels,
        options=request.options,
        classes=tuple(ClassRecord(**asdict(each)) for each in segmentation.classes),
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
