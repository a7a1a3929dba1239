"""The API's response documents."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict
from rq.job import Job

from models.bundle.manifest import NearNoun
from models.data.classes import Vocabulary
from models.data.photos import MatchRule
from models.inference.masks import ClassResult, MaskOptions
from worker.batches.records import BatchItem, ItemOutcome, ItemStatus
from worker.batches.store import BatchState
from worker.queue.jobs import Status, failure_of, request_of, result_of, status_of
from worker.queue.registry import ModelInfo, WorkerInfo
from worker.queue.schema import (
    FailureCode,
    ImageRecord,
    JobFailure,
    JobResult,
    ModelRef,
    Progress,
    Task,
    Timings,
    job_links,
)

BatchStatus = Literal["queued", "running", "finished", "canceled"]

_JOB_PATH: Final = "/jobs/2f5c0c8f4c1e4d0a9b7a6c5d4e3f2a1b"
_JOB: Final[dict[str, Any]] = {
    "id": "2f5c0c8f4c1e4d0a9b7a6c5d4e3f2a1b",
    "task": "pseudo_mask",
    "status": "finished",
    "created_at": "2026-11-25T08:30:00.120000Z",
    "started_at": "2026-11-25T08:30:00.125000Z",
    "ended_at": "2026-11-25T08:30:00.480000Z",
    "model": {"name": "coco-demo", "version": "0123456789ab"},
    "labels": ["cat"],
    "vocabulary": "closed",
    "options": {
        "refine": "random_walk+pamr+region_vote",
        "min_confidence": 0.0,
        "background_threshold": 0.5,
        "class_thresholds": {},
        "threshold_slope": 0.45,
    },
    "image": {"width": 640, "height": 480, "exif_orientation": 1},
    "classes": [
        {
            "index": 1,
            "name": "cat",
            "area": 0.21,
            "confidence": 0.83,
            "alignment_class": 0.27,
            "alignment_background": 0.16,
            "box": [120, 80, 400, 420],
            "zero_shot": False,
        }
    ],
    "ignored": 0.0,
    "timings": {"queue": 0.002, "decode": 0.011, "model": 0.3, "encode": 0.02},
    "links": {**job_links(_JOB_PATH, finished=True), "cams": {"cat": f"{_JOB_PATH}/cam/1.png"}},
}

_BATCH_PATH: Final = "/batches/8c1f0e5d7b6a49388f1e2d3c4b5a6978"
_BATCH: Final[dict[str, Any]] = {
    "id": "8c1f0e5d7b6a49388f1e2d3c4b5a6978",
    "status": "running",
    "counts": {
        "total": 100000,
        "waiting": 61200,
        "queued": 600,
        "running": 16,
        "finished": 38180,
        "failed": 4,
        "canceled": 0,
    },
    "model": {"name": "coco-demo", "version": "0123456789ab"},
    "created_at": "2026-11-25T08:30:00.120000Z",
    "ended_at": None,
    "matched": {"path": 99998, "case": 2},
    "links": {
        "self": _BATCH_PATH,
        "events": f"{_BATCH_PATH}/events",
        "items": f"{_BATCH_PATH}/items",
        "report": f"{_BATCH_PATH}/report",
        "archive": f"{_BATCH_PATH}/archive.zip",
    },
}
_ITEMS: Final[dict[str, Any]] = {
    "items": [
        {
            "number": 17,
            "image": "street/tram.png",
            "labels": ["car"],
            "status": "failed",
            "job": None,
            "problem": {
                "title": "Image unreadable",
                "detail": "cannot read the image: image file is truncated",
                "code": "image_unreadable",
            },
        }
    ],
    "next": None,
}


class Links(BaseModel):
    """Paths of a job and its files; the files are there once it is finished.

    ``cams`` has one for each class, by name.
    """

    self: str
    events: str
    mask: str | None = None
    overlay: str | None = None
    confidence: str | None = None
    cams: dict[str, str] | None = None
    scores: str | None = None
    coco: str | None = None
    polygons: str | None = None
    label_studio: str | None = None
    cvat: str | None = None


class JobDocument(BaseModel):
    """A job: its status and, once finished, the result of each class.

    To segment takes no ``labels``; ``classes`` are then those that were found. ``vocabulary`` is open where a label is
    none of the model's classes; its result is ``zero_shot``.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_JOB]})

    id: str
    task: Task
    status: Status
    position: int | None = None
    progress: Progress | None = None
    created_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    model: ModelRef
    labels: tuple[str, ...]
    vocabulary: Vocabulary
    options: MaskOptions
    image: ImageRecord | None = None
    classes: tuple[ClassResult, ...] | None = None
    ignored: float | None = None
    timings: Timings | None = None
    failure: JobFailure | None = None
    links: Links


def job_document(job: Job, *, position: int | None, path: str) -> JobDocument:
    """Describe a job at its path and its position in the queue; reads its result from Redis."""
    status, request, result = status_of(job), request_of(job), result_of(job)
    progress = job.meta.get("progress") if status == "running" else None
    return JobDocument(
        id=job.id,
        task=request.task,
        status=status,
        position=position,
        progress=Progress.model_validate(progress) if progress else None,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        model=result.model if result else request.model,
        labels=request.labels,
        vocabulary=request.vocabulary,
        options=request.options,
        image=result.image if result else None,
        classes=result.classes if result else None,
        ignored=result.ignored if result else None,
        timings=result.timings if result else None,
        failure=failure_of(job) if status == "failed" else None,
        links=_links(path, result),
    )


def _links(path: str, result: JobResult | None) -> Links:
    paths: dict[str, Any] = dict(job_links(path, finished=result is not None))
    if result is not None:
        # By index: a name may hold characters that a path cannot.
        paths["cams"] = {each.name: f"{path}/cam/{each.index}.png" for each in result.classes}
    return Links(**paths)


class ModelSummary(BaseModel):
    """A model that can be asked for; ``ready`` says that a live worker has it in memory."""

    ready: bool
    model: ModelInfo


class ModelDocument(ModelSummary):
    """A model and what the background prompt of each class learned: the nouns nearest to it, nearest first."""

    nearest_nouns: dict[str, tuple[NearNoun, ...]]


class ModelList(BaseModel):
    """All models, and which ones ``POST /pseudo-mask`` and ``POST /segment`` take unless one is named."""

    default: str | None
    default_segment: str | None
    models: tuple[ModelSummary, ...]


class Health(BaseModel):
    """The process is up."""

    status: Literal["ok"] = "ok"
    version: str


class Readiness(BaseModel):
    """Redis answers, the blob store can be written, and these workers are alive, each with a loaded model."""

    status: Literal["ready"] = "ready"
    workers: tuple[WorkerInfo, ...]


class ProblemDescription(BaseModel):
    """What a problem's type means."""

    type: str
    status: int
    title: str
    advice: str


class Counts(BaseModel):
    """Number of photos, and of those in each state; ``waiting`` is not yet in the queue."""

    total: int
    waiting: int
    queued: int
    running: int
    finished: int
    failed: int
    canceled: int


class BatchLinks(BaseModel):
    """Paths of a batch; the archive is there once it has ended."""

    self: str
    events: str
    items: str
    report: str
    archive: str


class BatchDocument(BaseModel):
    """A batch and its state; ``matched`` is the number of rows of labels by the rule that found their photo."""

    model_config = ConfigDict(json_schema_extra={"examples": [_BATCH]})

    id: str
    status: BatchStatus
    counts: Counts
    model: ModelRef
    created_at: datetime
    ended_at: datetime | None
    matched: dict[MatchRule, int]
    links: BatchLinks


class ItemProblem(BaseModel):
    """Why a photo has no mask."""

    title: str
    detail: str
    code: FailureCode


class ItemDocument(BaseModel):
    """A photo of a batch; ``image`` is its path in the zip."""

    number: int
    image: str
    labels: tuple[str, ...]
    status: ItemStatus
    job: str | None
    problem: ItemProblem | None


class ItemList(BaseModel):
    """A page of photos; ``next`` is what the next page is asked for ``after``, null after the last one."""

    model_config = ConfigDict(json_schema_extra={"examples": [_ITEMS]})

    items: tuple[ItemDocument, ...]
    next: int | None


def batch_document(batch: BatchState, counts: dict[ItemStatus, int], *, path: str) -> BatchDocument:
    """Describe a batch at its path, with the counts of its items by state."""
    record = batch.record
    # Items may have failed before any was tried.
    begun = counts["running"] + counts["finished"] + counts["canceled"]
    parts = {each: f"{path}/{each}" for each in ("events", "items", "report")}
    return BatchDocument(
        id=record.id,
        status=batch.end or ("running" if begun else "queued"),
        counts=Counts(total=record.total, **counts),
        model=record.request.model,
        created_at=record.created_at,
        ended_at=batch.ended_at,
        matched=record.matched,
        links=BatchLinks(self=path, archive=f"{path}/archive.zip", **parts),
    )


def item_document(number: int, item: BatchItem, status: ItemStatus, outcome: ItemOutcome) -> ItemDocument:
    """Describe a photo of a batch."""
    return ItemDocument(
        number=number,
        image=item.image,
        labels=item.labels,
        status=status,
        job=outcome.job,
        problem=problem_of(outcome.failure),
    )


def problem_of(failure: JobFailure | None) -> ItemProblem | None:
    """Return a failure as a problem."""
    if failure is None:
        return None
    title = failure.code.replace("_", " ").capitalize()
    return ItemProblem(title=title, detail=failure.detail, code=failure.code)
