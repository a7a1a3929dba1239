"""Listen to a job."""

from __future__ import annotations

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Response
from sse_starlette import EventSourceResponse

from service.dependencies import JobsDependency, ListenersDependency
from service.errors import ProblemDocument, ProblemError
from service.events import END, job_source, resume_after
from service.routes.jobs import JobId
from worker.queue.jobs import TERMINAL, status_of

router = APIRouter(tags=["jobs"])

HEARTBEAT_SECONDS = 15
_PROBLEM: dict[str, Any] = {"model": ProblemDocument}
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
