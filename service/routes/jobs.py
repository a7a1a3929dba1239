"""Post an image, follow its job, fetch its files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Form, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from rq.job import Job

from service.dependencies import DecodersDependency, JobsDependency, WaiterDependency
from service.errors import ProblemDocument, ProblemError
from service.jobs import Jobs, ResultFile
from service.schemas import JobDocument, job_document, status_of
from service.uploads import (
    PseudoMaskForm,
    Upload,
    build_request,
    parse_wait,
    read_form,
    wants_png,
)
from worker.protocol import JobRequest

router = APIRouter(tags=["jobs"])

MAX_WAIT = 60.0

_PROBLEM: dict[str, Any] = {"model": ProblemDocument}
_FILE: dict[int | str, dict[str, Any]] = {404: _PROBLEM, 409: _PROBLEM, 503: _PROBLEM}

JobId = Annotated[str, Path(description="As in the job's document.")]


@dataclass(frozen=True)
class Wishes:
    """How the client would like to be answered.

    Attributes:
        seconds: how long it waits for the result.
        png: whether it wants the mask itself.
        token: its Idempotency-Key.
    """

    seconds: float
    png: bool
    token: str | None


def wishes(
    wait: Annotated[
        float | None, Query(ge=0, le=MAX_WAIT, description="Seconds to wait for the result.")
    ] = None,
    prefer: Annotated[str | None, Header(description="wait=N: as ?wait=N.")] = None,
    accept: Annotated[str, Header(description="image/png: the mask, if waited for.")] = "*/*",
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> Wishes:
    """Read the query and the headers of a post."""
    seconds = parse_wait(wait, prefer, most=MAX_WAIT)
    return Wishes(seconds=seconds, png=wants_png(accept), token=idempotency_key)


def require_multipart(content_type: Annotated[str, Header()] = "") -> None:
    """Refuse a body of another kind, which would look like an empty form."""
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        got = content_type[:80] or "nothing"
        raise ProblemError("not-multipart", f"expected multipart/form-data, got {got}")


@router.post(
    "/pseudo-mask",
    status_code=202,
    response_model=JobDocument,
    dependencies=[Depends(require_multipart)],
    responses={
        200: {
            "model": JobDocument,
            "description": "Done within the wait; with Accept: image/png, the mask itself.",
            "content": {"image/png": {}},
        },
        **{code: _PROBLEM for code in (400, 409, 413, 415, 422, 503)},
    },
)
async def post_pseudo_mask(
    request: Request,
    form: Annotated[PseudoMaskForm, Form(media_type="multipart/form-data")],
    wish: Annotated[Wishes, Depends(wishes)],
    jobs: JobsDependency,
    waiter: WaiterDependency,
    decoders: DecodersDependency,
) -> Response:
    """Make a mask of an image from the labels of what it shows.

    The same image, labels, options and model version give the same job, which runs once.
    """
    upload = await read_form(form)
    checked = await run_sync(partial(_check, upload, jobs), limiter=decoders)
    job = await run_sync(partial(jobs.submit, checked, upload.data, token=wish.token))
    if wish.seconds > 0:
        await waiter.wait(job.id, wish.seconds)
        job = await run_sync(jobs.find, job.id)
    done = wish.seconds > 0 and status_of(job) not in ("queued", "running")
    path = _path(request, job.id)
    headers = {"Location": path, "Vary": "Accept, Prefer"}
    if done and wish.png:
        mask = await run_sync(jobs.file, job, "mask")
        return Response(mask, 200, headers, "image/png")
    document = await run_sync(_describe, job, jobs, path)
    content = document.model_dump(mode="json", exclude_none=True)
    return JSONResponse(content, 200 if done else 202, headers)


@router.get(
    "/jobs/{job_id}",
    response_model_exclude_none=True,
    responses={404: _PROBLEM, 503: _PROBLEM},
)
def get_job(request: Request, job_id: JobId, jobs: JobsDependency) -> JobDocument:
    """Say where a job stands and, once it is finished, what came out."""
    return _describe(jobs.find(job_id), jobs, _path(request, job_id))


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
    """Return the soft maps: cams, scores, class_index, class_name, image_size."""
    return _file(job_id, jobs, "scores", "application/octet-stream")


def _check(upload: Upload, jobs: Jobs) -> JobRequest:
    model = jobs.choose_model(upload.model)
    return build_request(upload, model, max_pixels=jobs.limits.max_pixels)


def _describe(job: Job, jobs: Jobs, path: str) -> JobDocument:
    return job_document(job, jobs.result(job), position=jobs.position(job), path=path)


def _overlay(jobs: Jobs, job_id: str) -> bytes:
    return jobs.overlay(jobs.find(job_id))


def _file(job_id: str, jobs: Jobs, file: ResultFile, media_type: str) -> Response:
    return Response(jobs.file(jobs.find(job_id), file), media_type=media_type)


def _path(request: Request, job_id: str) -> str:
    return f"{request.scope.get('root_path', '')}/jobs/{job_id}"
