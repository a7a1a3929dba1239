"""What the API answers with, as documented in /docs."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel
from rq.job import Job, JobStatus

from worker.presence import ModelInfo, NearNoun, WorkerInfo
from worker.protocol import (
    ClassRecord,
    ImageRecord,
    JobFailure,
    JobRequest,
    JobResult,
    ModelRef,
    Options,
    Progress,
    Task,
    Timings,
)

Status = Literal["queued", "running", "finished", "failed", "canceled"]

_STATUS: Final[dict[JobStatus, Status]] = {
    JobStatus.STARTED: "running",
    JobStatus.FINISHED: "finished",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELED: "canceled",
    JobStatus.STOPPED: "canceled",
}


class Links(BaseModel):
    """Paths of a job and its files; the files are there once it is finished."""

    self: str
    mask: str | None = None
    overlay: str | None = None
    scores: str | None = None


class JobDocument(BaseModel):
    """A job: where it stands and, once finished, what came out for each class.

    To segment takes no ``labels``; ``classes`` are then those that were found.
    """

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
    """Redis answers and these workers are alive, each with a warm model."""

    status: Literal["ready"] = "ready"
    workers: tuple[WorkerInfo, ...]


def status_of(job: Job) -> Status:
    """Return a job's status in the API's words."""
    return _STATUS.get(job.get_status(refresh=False), "queued")


def request_of(job: Job) -> JobRequest:
    """Return what a job was asked to do."""
    return JobRequest.model_validate(job.args[0])


def failure_of(job: Job) -> JobFailure:
    """Return why a job failed."""
    noted = job.meta.get("failure")
    if noted is not None:
        return JobFailure.model_validate(noted)
    # Nobody was there to note it: its worker died before it had the job in its hands.
    return JobFailure(code="worker_died", detail="the job's workers died", repeatable=True)


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
    files: dict[str, Any] = {}
    if result is not None:
        files = {
            "mask": f"{path}/mask.png",
            "overlay": f"{path}/overlay.png",
            "scores": f"{path}/scores.npz",
        }
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
        options=request.options,
        image=result.image if result else None,
        classes=result.classes if result else None,
        ignored=result.ignored if result else None,
        timings=result.timings if result else None,
        failure=failure_of(job) if status == "failed" else None,
        links=Links(self=path, **files),
    )
