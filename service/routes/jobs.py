"""Follow a job, fetch its files."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from rq.job import Job

from service.dependencies import JobsDependency
from service.errors import ProblemDocument, ProblemError
from service.jobs import Jobs
from service.schemas import JobDocument, job_document
from worker.queue.jobs import TERMINAL, status_of

router = APIRouter(tags=["jobs"])

_PROBLEM: dict[str, Any] = {"model": ProblemDocument}

JobId = Annotated[str, Path(description="As in the job's document.")]


def job_path(request: Request, job_id: str) -> str:
    """Return the path of a job's document, as the client sees it."""
    return f"{request.scope.get('root_path', '')}/jobs/{job_id}"


def describe(job: Job, jobs: Jobs, path: str) -> JobDocument:
    """Return a job's document; blocks."""
    return job_document(job, jobs.result(job), position=jobs.position(job), path=path)


@router.get(
    "/jobs/{job_id}",
    response_model_exclude_none=True,
    responses={404: _PROBLEM, 503: _PROBLEM},
)
def get_job(request: Request, job_id: JobId, jobs: JobsDependency) -> JobDocument:
    """Say where a job stands and, once it is finished, what came out."""
    return describe(jobs.find(job_id), jobs, job_path(request, job_id))


@router.delete(
    "/jobs/{job_id}",
    response_model=JobDocument,
    response_model_exclude_none=True,
    responses={
        200: {"description": "It waited or ran, and is being canceled."},
        204: {"description": "It was over, and is gone with its files; or there was none."},
        503: _PROBLEM,
    },
)
def delete_job(request: Request, job_id: JobId, jobs: JobsDependency) -> Response | JobDocument:
    """Take a job back, or remove it.

    One that waits is canceled at once, one that runs as soon as its worker looks up. One that is over is removed with
    its image and its files, except those that another job has, too. Doing it again is no error.
    """
    try:
        job = jobs.find(job_id)
    except ProblemError:
        return Response(status_code=204)
    if status_of(job) in TERMINAL:
        jobs.remove(job_id)
        return Response(status_code=204)
    return describe(jobs.cancel(job), jobs, job_path(request, job_id))
