"""Tasks that a job may name: job → bytes → model → blobs and a result record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rq import get_current_job
from rq.job import Job
from rq.utils import now

from models.files import provenance, scores_npz
from models.images import UprightImage, read_image
from models.pictures import label_map_png
from models.segmentation import MaskOptions, Segmentation
from worker.failures import CannotSegmentError
from worker.protocol import (
    ClassRecord,
    ImageRecord,
    JobRequest,
    JobResult,
    Progress,
    ResultBlobs,
    Timings,
)
from worker.runtime import OnProgress, Runtime, installed

# Shares of a job's work, for its progress: the model's part begins and ends at these fractions.
_DECODED, _SEGMENTED = 0.05, 0.85


def pseudo_mask(request: Mapping[str, Any]) -> dict[str, Any]:
    """Segment the classes that a queued request names; a task that RQ calls.

    Args:
        request: a JobRequest in JSON's types.

    Returns:
        A JobResult in JSON's types.
    """
    return _work(request)


def segment_image(request: Mapping[str, Any]) -> dict[str, Any]:
    """Segment whatever a queued request's image shows; a task that RQ calls, as ``pseudo_mask``."""
    return _work(request)


def _work(request: Mapping[str, Any]) -> dict[str, Any]:
    job = get_current_job()
    waited = _waited(job) if job is not None else 0.0
    report = progress_writer(job) if job is not None else _ignore_progress
    parsed = JobRequest.model_validate(request)
    return run(parsed, installed(), waited=waited, report=report).model_dump(mode="json")


def run(request: JobRequest, runtime: Runtime, *, waited: float, report: OnProgress) -> JobResult:
    """Do what a request asks for and store the files.

    Decoding, the model and encoding are functions of their own, so that a batch can share the
    middle one.

    Args:
        request: what to do.
        runtime: what to do it with.
        waited: seconds in the queue.
        report: told the stage and the fraction of the whole job.

    Raises:
        BlobError: if the upload cannot be read or the results not stored.
        ImageError: if the upload is no readable image.
        CannotSegmentError: if this worker's model has no segmenter and needs one.
        UnknownLabelError: if this worker's model does not know a label.
    """
    started = time.perf_counter()
    report("decode", 0.0)
    image = read_image(runtime.blobs.get(request.image), max_pixels=runtime.max_pixels)
    decoded = time.perf_counter()
    segmentation = segment(image, request, runtime, report)
    segmented = time.perf_counter()
    report("encode", _SEGMENTED)
    model = runtime.model
    names = [each.name for each in segmentation.classes]
    text = provenance(model, names, request.options.model_dump())
    blobs = store(segmentation, runtime, text=text)
    encoded = time.perf_counter()
    height, width = segmentation.label_map.shape
    return JobResult(
        model=model.ref,
        image=ImageRecord(width=width, height=height, exif_orientation=image.exif_orientation),
        labels=request.labels,
        options=request.options,
        classes=tuple(ClassRecord(**asdict(each)) for each in segmentation.classes),
        ignored=segmentation.ignored,
        timings=Timings(
            queue=waited,
            decode=decoded - started,
            model=segmented - decoded,
            encode=encoded - segmented,
        ),
        blobs=blobs,
        worker=runtime.worker,
    )


def segment(
    image: UprightImage, request: JobRequest, runtime: Runtime, report: OnProgress
) -> Segmentation:
    """Run the model on one image; its progress is the middle part of the job's."""
    predictor, pixels = runtime.predictor, image.pixels
    options = MaskOptions(**request.options.model_dump())

    def on_progress(stage: str, fraction: float) -> None:
        report(stage, _DECODED + (_SEGMENTED - _DECODED) * fraction)

    if request.task == "pseudo_mask":
        return predictor.pseudo_mask(pixels, request.labels, options, on_progress=on_progress)
    # The API has seen to it, but the bundle may have been another one then.
    if not runtime.model.can_segment:
        raise CannotSegmentError(f"expected a model with a segmenter, got {runtime.model.name!r}")
    return predictor.segment(pixels, options, on_progress=on_progress)


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
    put = runtime.blobs.put
    return ResultBlobs(
        mask=put("results", label_map_png(segmentation.label_map, text=text)),
        scores=put("results", scores_npz(segmentation)),
    )


def progress_writer(job: Job) -> OnProgress:
    """Return a function that writes progress into a job's meta, at each stage and each tenth."""
    written = Progress(stage="", fraction=-1.0)

    def write(stage: str, fraction: float) -> None:
        nonlocal written
        if stage == written.stage and fraction - written.fraction < 0.1:
            return
        written = Progress(stage=stage, fraction=round(fraction, 3))
        job.meta["progress"] = written.model_dump()
        job.save_meta()  # type: ignore[no-untyped-call]

    return write


def _waited(job: Job) -> float:
    """Seconds since a job was queued, not below 0 where two hosts' clocks differ."""
    return max(0.0, (now() - job.enqueued_at).total_seconds()) if job.enqueued_at else 0.0


def _ignore_progress(stage: str, fraction: float) -> None:
    del stage, fraction
