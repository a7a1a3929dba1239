"""Follow a job, fetch its files."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Path, Request, Response
from rq.job import Job

from service.dependencies import DecodersDependency, JobsDependency
from service.errors import ProblemDocument
from service.jobs import Jobs, ResultFile
from service.schemas import JobDocument, job_document

router = APIRouter(tags=["jobs"])

_PROBLEM: dict[str, Any] = {"model": ProblemDocument}
_FILE: dict[int | str, dict[str, Any]] = {404: _PROBLEM, 409: _PROBLEM, 503: _PROBLEM}

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
    response_model_exclude_none=True,
    responses={404: _PROBLEM, 503: _PROBLEM},
)
def delete_job(request: Request, job_id: JobId, jobs: JobsDependency) -> JobDocument:
    """Take a job back: one that waits is canceled at once, one that runs as soon as its worker looks up.

    What is finished, failed or canceled stays so. Doing it again changes nothing.
    """
    return describe(jobs.cancel(jobs.find(job_id)), jobs, job_path(request, job_id))


@router.get("/jobs/{job_id}/mask.png", response_class=Response, responses=_FILE)
def get_mask(job_id: JobId, jobs: JobsDependency) -> Response:
    """Return the label map: a palette PNG in VOC colors, 0 background, 255 ignore."""
    return _file(job_id, jobs, "mask", "image/png")


@router.get("/jobs/{job_id}/overlay.png", response_class=Response, responses=_FILE)
async def get_overlay(
    job_id: JobId, jobs: JobsDependency, decoders: DecodersDependency
) -> Response:
    """Return the image with the mask's colors laid over it."""
    draw = partial(_overlay, jobs, job_id)
    return Response(await run_sync(draw, limiter=decoders), media_type="image/png")


@router.get("/jobs/{job_id}/scores.npz", response_class=Response, responses=_FILE)
def get_scores(job_id: JobId, jobs: JobsDependency) -> Response:
    """Return the soft maps: scores, class_index, class_name, image_size; cams of a pseudo mask."""
    return _file(job_id, jobs, "scores", "application/octet-stream")


def _overlay(jobs: Jobs, job_id: str) -> bytes:
    return jobs.overlay(jobs.find(job_id))


def _file(job_id: str, jobs: Jobs, file: ResultFile, media_type: str) -> Response:
    return Response(jobs.file(jobs.find(job_id), file), media_type=media_type)
