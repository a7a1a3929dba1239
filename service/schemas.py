"""What the API answers with, as documented in /docs."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from rq.job import Job

from models.data.classes import Vocabulary
from service.examples import JOB
from worker.queue.jobs import Status, failure_of, request_of, status_of
from worker.queue.registry import ModelInfo, NearNoun, WorkerInfo
from worker.queue.schema import (
    ClassRecord,
    ImageRecord,
    JobFailure,
    JobResult,
    ModelRef,
    Options,
    Progress,
    Task,
    Timings,
    job_links,
)


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
