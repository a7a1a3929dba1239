"""Post a zip of photos with their labels, and follow what becomes of it."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Form, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse

from service.batch_schemas import BatchDocument, ItemList
from service.batches import Batches
from service.dependencies import (
    BatchesDependency,
    CatalogDependency,
    ListenersDependency,
    UnpackersDependency,
)
from service.errors import ProblemDocument, ProblemError
from service.events import END, batch_source, resume_after
from service.routes.events import HEARTBEAT_SECONDS
from service.routes.posts import require_multipart
from service.uploads import BatchForm
from worker.batches.records import ItemStatus
from worker.batches.store import Standing

router = APIRouter(tags=["batches"])

_PROBLEM: dict[str, Any] = {"model": ProblemDocument}
_COUNTS = '{"waiting": 61200, "queued": 600, "running": 16, "finished": 38180, "failed": 4, "canceled": 0}'
_EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": ["counts", "end"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
    "examples": [
        {"id": "1764045380000-0", "event": "counts", "data": _COUNTS},
        {"id": "end", "event": "end", "data": '{"status": "finished"}'},
    ],
}

BatchId = Annotated[str, Path(description="As in the batch's document.")]


def describe(request: Request, batches: Batches, standing: Standing) -> BatchDocument:
    """Return a batch's document; blocks."""
    root = request.scope.get("root_path", "")
    return batches.describe(standing, f"{root}/batches/{standing.record.id}")


@router.post(
    "/batches",
    status_code=202,
    response_model=BatchDocument,
    dependencies=[Depends(require_multipart)],
    responses={code: _PROBLEM for code in (400, 401, 408, 409, 413, 415, 422, 429, 503)},
)
async def post_batch(
    request: Request,
    form: Annotated[BatchForm, Form(media_type="multipart/form-data")],
    batches: BatchesDependency,
    catalog: CatalogDependency,
    unpackers: UnpackersDependency,
) -> Response:
    """Make masks of all photos in a zip from the labels in it: `labels.csv` or others, at its root.

    The same zip, options and model version give the same batch, which goes on: photos that failed for a reason that may
    have passed, or were canceled, run again.
    """
    model = await run_sync(catalog.choose, form.model or None, "pseudo_mask")
    submit = partial(batches.submit, form, form.archive.file, model)
    standing = await run_sync(submit, limiter=unpackers)
    document = await run_sync(describe, request, batches, standing)
    headers = {"Location": document.links.self}
    return JSONResponse(document.model_dump(mode="json"), 202, headers)


@router.get("/batches/{batch_id}", responses={404: _PROBLEM, 503: _PROBLEM})
def get_batch(request: Request, batch_id: BatchId, batches: BatchesDependency) -> BatchDocument:
    """Say where a batch stands."""
    return describe(request, batches, batches.find(batch_id))


@router.delete(
    "/batches/{batch_id}",
    response_model=BatchDocument,
    responses={
        200: {"description": "It had not ended, and is canceled."},
        204: {"description": "It had ended, and is gone with its zip; or there was none."},
        503: _PROBLEM,
    },
)
def delete_batch(
    request: Request, batch_id: BatchId, batches: BatchesDependency
) -> Response | BatchDocument:
    """Cancel a batch, or remove it.

    Of one that has not ended, what is not done is canceled; what is done stays, and can be fetched. One that has ended
    is removed with its zip. Doing it again is no error.
    """
    try:
        standing = batches.find(batch_id)
    except ProblemError:
        return Response(status_code=204)
    if standing.end is not None and batches.forget(standing.record):
        return Response(status_code=204)
    batches.cancel(standing.record)
    return describe(request, batches, batches.find(batch_id))


@router.get("/batches/{batch_id}/items", responses={404: _PROBLEM, 422: _PROBLEM, 503: _PROBLEM})
def get_items(
    batch_id: BatchId,
    batches: BatchesDependency,
    status: Annotated[ItemStatus | None, Query(description="Only photos in this state.")] = None,
    after: Annotated[int, Query(ge=0, lt=2**31, description="As `next` says.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most photos in the answer.")] = 100,
) -> ItemList:
    """List a batch's photos by their number in the zip, a page at a time."""
    return batches.page(batches.find(batch_id), status, after=after, limit=limit)


@router.get(
    "/batches/{batch_id}/events",
    response_class=Response,
    responses={
        200: {
            "description": "counts and, last, end.",
            "content": {"text/event-stream": {"schema": _EVENT}},
        },
        204: {"description": "The client has the end already."},
        404: _PROBLEM,
        503: _PROBLEM,
    },
)
async def get_batch_events(
    batch_id: BatchId,
    batches: BatchesDependency,
    listeners: ListenersDependency,
    last_event_id: Annotated[str | None, Header(description="Go on after this event.")] = None,
) -> Response:
    """Follow a batch by server-sent events: `counts` when they change and, as the last one, `end`.

    They are replayed from the start, or from the earliest of the last 256. Comments keep the connection open.
    """
    standing = await run_sync(batches.find, batch_id)
    if last_event_id == END and standing.end is not None:
        return Response(status_code=204)  # a browser asks again until it gets this
    if listeners.full:
        raise ProblemError("too-many-listeners", "all places of listeners are taken")
    source = batch_source(standing.record.id)
    events = listeners.listen(source, after=resume_after(last_event_id))
    return EventSourceResponse(events, ping=HEARTBEAT_SECONDS)
