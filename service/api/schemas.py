"""What the API answers with, as documented in /docs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from rq.job import Job

from models.data.classes import Vocabulary
from service.api.errors import invalid_field
from worker.batches.records import BatchItem, ItemOutcome, ItemStatus
from worker.batches.store import Standing
from worker.queue.jobs import Status, failure_of, request_of, status_of
from worker.queue.registry import ModelInfo, NearNoun, WorkerInfo
from worker.queue.schema import (
    ClassRecord,
    FailureCode,
    ImageRecord,
    JobFailure,
    JobRequest,
    JobResult,
    ModelRef,
    Options,
    Progress,
    Task,
    Timings,
    job_links,
)

# Examples for the schema in /docs.

_PATH: Final = "/jobs/2f5c0c8f4c1e4d0a9b7a6c5d4e3f2a1b"

JOB: Final[dict[str, Any]] = {
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
        "refine": "pamr",
        "min_confidence": 0.0,
        "background_threshold": 0.4,
        "class_thresholds": {},
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
    "links": {
        "self": _PATH,
        "events": f"{_PATH}/events",
        "mask": f"{_PATH}/mask.png",
        "overlay": f"{_PATH}/overlay.png",
        "confidence": f"{_PATH}/confidence.png",
        "cams": {"cat": f"{_PATH}/cam/1.png"},
        "scores": f"{_PATH}/scores.npz",
        "coco": f"{_PATH}/coco.json",
        "polygons": f"{_PATH}/polygons.json",
        "label_studio": f"{_PATH}/label-studio.json",
        "cvat": f"{_PATH}/cvat.xml",
    },
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
    """A job: where it stands and, once finished, what came out for each class.

    To segment takes no ``labels``; ``classes`` are then those that were found. ``vocabulary`` is open where a label is
    none of the model's classes; what came of it is ``zero_shot``.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [JOB]})

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
    options: Options
    image: ImageRecord | None = None
    classes: tuple[ClassRecord, ...] | None = None
    ignored: float | None = None
    timings: Timings | None = None
    failure: JobFailure | None = None
    links: Links


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
    """Redis answers, the blob store can be written, and these workers are alive, each with a warm model."""

    status: Literal["ready"] = "ready"
    workers: tuple[WorkerInfo, ...]


def job_document(
    job: Job, result: JobResult | None, *, position: int | None, path: str
) -> JobDocument:
    """Describe a job.

    Args:
        job: the job.
        result: what came out, if it is finished.
        position: jobs before it in the queue, if it is queued.
        path: the job's own.
    """
    status = status_of(job)
    request = request_of(job)
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
        links=links(path, result),
    )


def links(path: str, result: JobResult | None) -> Links:
    """Return the paths of a job's files.

    Args:
        path: the job's own.
        result: what came out, if it is finished.
    """
    paths: dict[str, Any] = dict(job_links(path, finished=result is not None))
    if result is not None:
        # By index: a name may hold whatever a path cannot.
        paths["cams"] = {each.name: f"{path}/cam/{each.index}.png" for each in result.classes}
    return Links(**paths)


# Fields that several requests share, so that their bounds and words are the same everywhere.

BackgroundThreshold = Annotated[
    float | None, Field(gt=0, lt=1, description="The background's score everywhere.")
]
BackgroundPower = Annotated[
    float | None,
    Field(
        gt=0,
        le=10,
        description="p of the background's score (1 - max)^p, instead of background_threshold.",
    ),
]
MinConfidence = Annotated[
    float | None, Field(ge=0, lt=1, description="Pixels less sure than this become 255, ignore.")
]


# How a finished job's scores are decided anew, as a query says it.


class Choices(BaseModel):
    """What shall be other than in the job; a misspelt one is an error, not a silent default."""

    model_config = ConfigDict(extra="forbid")

    background_threshold: BackgroundThreshold = None
    background_power: BackgroundPower = None
    min_confidence: MinConfidence = None

    def applied_to(self, request: JobRequest) -> Options:
        """Return a job's options with what was chosen.

        Raises:
            ProblemError: if two rules for the background are chosen, or one for a job that has none.
        """
        background = self.model_dump(
            include={"background_threshold", "background_power"}, exclude_none=True
        )
        field = next(iter(background), "")
        if len(background) == 2:
            raise invalid_field("background_power", "expected one rule for the background, got two")
        if background and request.task == "segment":
            raise invalid_field(field, "a segmenter decides itself what is background")
        changes = self.model_dump(include={"min_confidence"}, exclude_none=True)
        if background:
            # As if posted: a rule of one's own replaces the model's, with the exceptions to it.
            nothing = {"background_threshold": None, "background_power": None}
            changes |= {**nothing, **background, "class_thresholds": {}}
        return request.options.model_copy(update=changes)


class NamedChoices(Choices):
    """The same for annotations, which also name the image that they are about."""

    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        # What XML cannot hold is in no file name that is meant well.
        pattern=r"^[^\u0000-\u001f\u007f-\u009f\ufffe\uffff]+$",
        description="What the annotations call the image: a file name or URL. The job's id if left out.",
        examples=["photo.jpg"],
    )


ChoicesQuery = Annotated[Choices, Query()]
NamedChoicesQuery = Annotated[NamedChoices, Query()]


# What the API says of batches, as documented in /docs.

BatchStatus = Literal["queued", "running", "finished", "canceled"]

_BATCH_PATH: Final = "/batches/8c1f0e5d7b6a49388f1e2d3c4b5a6978"
BATCH: Final[dict[str, Any]] = {
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
    "links": {
        "self": _BATCH_PATH,
        "events": f"{_BATCH_PATH}/events",
        "items": f"{_BATCH_PATH}/items",
        "report": f"{_BATCH_PATH}/report",
        "archive": f"{_BATCH_PATH}/archive.zip",
    },
}


class Counts(BaseModel):
    """How many photos there are, and how many are in which state; ``waiting`` is not yet handed to the queue."""

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
    """A batch: where it stands."""

    model_config = ConfigDict(json_schema_extra={"examples": [BATCH]})

    id: str
    status: BatchStatus
    counts: Counts
    model: ModelRef
    created_at: datetime
    ended_at: datetime | None
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

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
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
            ]
        }
    )

    items: tuple[ItemDocument, ...]
    next: int | None


def batch_document(
    standing: Standing, counts: dict[ItemStatus, int], *, path: str
) -> BatchDocument:
    """Describe a batch.

    Args:
        standing: the batch.
        counts: of its items by state.
        path: the batch's own.
    """
    record = standing.record
    # Items may have failed before any was tried.
    begun = counts["running"] + counts["finished"] + counts["canceled"]
    parts = {each: f"{path}/{each}" for each in ("events", "items", "report")}
    return BatchDocument(
        id=record.id,
        status=standing.end or ("running" if begun else "queued"),
        counts=Counts(total=record.total, **counts),
        model=record.request.model,
        created_at=record.created_at,
        ended_at=standing.ended_at,
        links=BatchLinks(self=path, archive=f"{path}/archive.zip", **parts),
    )


def item_document(
    number: int, item: BatchItem, status: ItemStatus, outcome: ItemOutcome
) -> ItemDocument:
    """Describe a photo."""
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
