"""Follow a job, fetch its files."""

from __future__ import annotations

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Path, Request, Response
from rq.job import Job
from sse_starlette import EventSourceResponse

from service.api.dependencies import JobsDependency, ListenersDependency
from service.api.errors import ProblemDocument, ProblemError
from service.api.schemas import JobDocument, job_document
from service.jobs.service import Jobs
from service.jobs.watch import END, job_source, resume_after
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


# Listen to a job.

HEARTBEAT_SECONDS = 15
_EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": ["status", "progress", "end"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
    "examples": [
        {"id": "1764045380000-0", "event": "status", "data": '{"status": "queued"}'},
        {"id": "1764045380012-0", "event": "status", "data": '{"status": "running"}'},
        {
            "id": "1764045380012-1",
            "event": "progress",
            "data": '{"stage": "cam", "fraction": 0.05}',
        },
        {"id": "end", "event": "end", "data": '{"status": "finished"}'},
    ],
}


@router.get(
    "/jobs/{job_id}/events",
    response_class=Response,
    responses={
        200: {
            "description": "status, progress and, last, end.",
            "content": {"text/event-stream": {"schema": _EVENT}},
        },
        204: {"description": "The client has the end already."},
        404: _PROBLEM,
        503: _PROBLEM,
    },
)
async def get_events(
    job_id: JobId,
    jobs: JobsDependency,
    listeners: ListenersDependency,
    last_event_id: Annotated[str | None, Header(description="Go on after this event.")] = None,
) -> Response:
    """Follow a job by server-sent events, replayed from the start: `status`, `progress` and, as the last one, `end`.

    Comments keep the connection open. More listeners than the service has places for are turned away with 503.
    """
    job = await run_sync(jobs.find, job_id)
    if last_event_id == END and status_of(job) in TERMINAL:
        return Response(status_code=204)  # a browser asks again until it gets this
    if listeners.full:
        raise ProblemError("too-many-listeners", "all places of listeners are taken")
    events = listeners.listen(job_source(job.id), after=resume_after(last_event_id))
    return EventSourceResponse(events, ping=HEARTBEAT_SECONDS)
