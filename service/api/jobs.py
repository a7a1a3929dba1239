"""Routes of a job: its document, its cancellation, its events."""

from __future__ import annotations

from typing import Annotated, Any, Final

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Path, Request, Response
from rq.job import Job
from sse_starlette import EventSourceResponse

from service.api.errors import ProblemError, problem_responses
from service.api.schemas import JobDocument, job_document
from service.api.state import State
from service.jobs.service import JobService
from service.jobs.watch import END, EventSource, EventStream, job_source
from worker.queue.jobs import FINISHED_STATUSES, status_of

router = APIRouter(tags=["jobs"])

JobId = Annotated[str, Path(description="As in the job's document.")]
LastEventId = Annotated[str | None, Header(description="Go on after this event.")]

_PING_SECONDS: Final = 15


def job_path(request: Request, job_id: str) -> str:
    """Return the path of a job's document, as the client sees it."""
    return f"{request.scope.get('root_path', '')}/jobs/{job_id}"


def describe_job(request: Request, job: Job, jobs: JobService) -> JobDocument:
    """Return a job's document; blocks."""
    return job_document(job, position=jobs.position(job), path=job_path(request, job.id))


@router.get("/jobs/{job_id}", response_model_exclude_none=True, responses=problem_responses(404, 503))
def get_job(request: Request, job_id: JobId, state: State) -> JobDocument:
    """Return a job's status and, once it is finished, its result."""
    return describe_job(request, state.jobs.find(job_id), state.jobs)


@router.delete(
    "/jobs/{job_id}",
    response_model=JobDocument,
    response_model_exclude_none=True,
    responses={
        200: {"description": "It waited or ran, and is being canceled."},
        204: {"description": "It had ended, and is deleted with its files; or there was none."},
        **problem_responses(503),
    },
)
def delete_job(request: Request, job_id: JobId, state: State) -> Response | JobDocument:
    """Cancel a job, or delete it.

    One that waits is canceled at once, one that runs when its worker next checks. One that has ended is deleted with
    its image and its files, except those that another job has, too. Doing it again is no error.
    """
    try:
        job = state.jobs.find(job_id)
    except ProblemError:
        return Response(status_code=204)
    if status_of(job) in FINISHED_STATUSES:
        state.jobs.delete(job_id)
        return Response(status_code=204)
    return describe_job(request, state.jobs.cancel(job), state.jobs)


def event_route(description: str, names: list[str], examples: list[dict[str, str]]) -> dict[str, Any]:
    """Return the arguments of a route that answers with server-sent events of these names."""
    schema = {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "event": {"enum": names},
            "data": {"type": "string", "contentMediaType": "application/json"},
        },
        "required": ["event", "data"],
        "examples": [*examples, {"id": END, "event": "end", "data": '{"status": "finished"}'}],
    }
    content = {"text/event-stream": {"schema": schema}}
    return {
        "response_class": Response,
        "responses": {
            200: {"description": description, "content": content},
            204: {"description": "The client has the end already."},
            **problem_responses(404, 503),
        },
    }


def event_response(events: EventStream, source: EventSource, *, last_event_id: str | None, ended: bool) -> Response:
    """Answer with the events of a job or a batch; ProblemError if too many clients listen already."""
    if last_event_id == END and ended:
        return Response(status_code=204)  # a browser reconnects until it gets this
    if events.full:
        raise ProblemError("too-many-listeners", "all places of listeners are taken")
    found = events.listen(source, last_event_id=last_event_id)
    return EventSourceResponse(found, ping=_PING_SECONDS)


@router.get(
    "/jobs/{job_id}/events",
    **event_route(
        "status, progress and, last, end.",
        ["status", "progress", "end"],
        [
            {"id": "1764045380000-0", "event": "status", "data": '{"status": "queued"}'},
            {"id": "1764045380012-0", "event": "status", "data": '{"status": "running"}'},
            {
                "id": "1764045380012-1",
                "event": "progress",
                "data": '{"stage": "cam", "fraction": 0.05}',
            },
        ],
    ),
)
async def get_events(job_id: JobId, state: State, last_event_id: LastEventId = None) -> Response:
    """Follow a job by server-sent events, replayed from the start: `status`, `progress` and, as the last one, `end`.

    Comments keep the connection open. More listeners than the service has places for are refused with 503.
    """
    job = await run_sync(state.jobs.find, job_id)
    ended = status_of(job) in FINISHED_STATUSES
    return event_response(state.events, job_source(job.id), last_event_id=last_event_id, ended=ended)
