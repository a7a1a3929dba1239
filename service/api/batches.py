"""Routes of batches: post a zip of photos with their labels, follow it, fetch its report and masks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Annotated, BinaryIO, Final

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Form, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api.errors import ProblemError, problem_responses
from service.api.forms import BatchForm, require_multipart
from service.api.jobs import LastEventId, event_response, event_route
from service.api.schemas import BatchDocument, ItemList
from service.api.state import State
from service.batches.archive import ArchiveFormat
from service.batches.report import BatchReport
from service.batches.service import BatchService
from service.jobs.watch import batch_source
from worker.batches.records import ItemStatus
from worker.batches.store import BatchState

router = APIRouter(tags=["batches"])

_BatchId = Annotated[str, Path(description="As in the batch's document.")]

_CHUNK_BYTES: Final = 2**18
_COUNTS: Final = '{"waiting": 61200, "queued": 600, "running": 16, "finished": 38180, "failed": 4, "canceled": 0}'


@router.post(
    "/batches",
    status_code=202,
    response_model=BatchDocument,
    dependencies=[Depends(require_multipart)],
    responses=problem_responses(400, 401, 408, 409, 413, 415, 422, 429, 503),
)
async def post_batch(
    request: Request,
    form: Annotated[BatchForm, Form(media_type="multipart/form-data")],
    state: State,
) -> Response:
    """Make masks of all photos in a zip from the labels in it: `labels.csv` or others, at its root.

    The same zip, options and model version give the same batch, which goes on: photos that failed for a transient
    reason, or were canceled, run again.
    """
    model = await run_sync(state.models.choose, form.model or None, "pseudo_mask")
    submit = partial(state.batches.submit, form, form.archive.file, model)
    batch = await run_sync(submit, limiter=state.unpackers)
    document = await run_sync(_describe, request, state.batches, batch)
    headers = {"Location": document.links.self}
    return JSONResponse(document.model_dump(mode="json"), 202, headers)


@router.get("/batches/{batch_id}", responses=problem_responses(404, 503))
def get_batch(request: Request, batch_id: _BatchId, state: State) -> BatchDocument:
    """Return a batch's state."""
    return _describe(request, state.batches, state.batches.find(batch_id))


@router.delete(
    "/batches/{batch_id}",
    response_model=BatchDocument,
    responses={
        200: {"description": "It had not ended, and is canceled."},
        204: {"description": "It had ended, and is deleted with its zip; or there was none."},
        **problem_responses(503),
    },
)
def delete_batch(request: Request, batch_id: _BatchId, state: State) -> Response | BatchDocument:
    """Cancel a batch, or delete it.

    Of one that has not ended, what is not done is canceled; what is done stays, and can be fetched. One that has ended
    is deleted with its zip. Doing it again is no error.
    """
    batches = state.batches
    try:
        batch = batches.find(batch_id)
    except ProblemError:
        return Response(status_code=204)
    if batch.end is not None and batches.delete(batch.record):
        return Response(status_code=204)
    batches.cancel(batch.record)
    return _describe(request, batches, batches.find(batch_id))


@router.get("/batches/{batch_id}/items", responses=problem_responses(404, 422, 503))
def get_items(
    batch_id: _BatchId,
    state: State,
    status: Annotated[ItemStatus | None, Query(description="Only photos in this state.")] = None,
    after: Annotated[int, Query(ge=0, lt=2**31, description="As `next` says.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most photos in the answer.")] = 100,
) -> ItemList:
    """List a batch's photos by their number in the zip, a page at a time."""
    return state.batches.page(state.batches.find(batch_id), status, after=after, limit=limit)


@router.get(
    "/batches/{batch_id}/events",
    **event_route(
        "counts and, last, end.",
        ["counts", "end"],
        [{"id": "1764045380000-0", "event": "counts", "data": _COUNTS}],
    ),
)
async def get_batch_events(batch_id: _BatchId, state: State, last_event_id: LastEventId = None) -> Response:
    """Follow a batch by server-sent events: `counts` when they change and, as the last one, `end`.

    They are replayed from the start, or from the earliest of the last 256. Comments keep the connection open.
    """
    batch = await run_sync(state.batches.find, batch_id)
    source, ended = batch_source(batch.record.id), batch.end is not None
    return event_response(state.events, source, last_event_id=last_event_id, ended=ended)


@router.get("/batches/{batch_id}/report", responses=problem_responses(404, 422, 503))
def get_report(
    batch_id: _BatchId,
    state: State,
    low_confidence: Annotated[
        float, Query(ge=0, le=1, description="Photos whose foreground is less sure are listed.")
    ] = 0.5,
    limit: Annotated[int, Query(ge=0, le=100_000, description="Most entries of a list.")] = 1000,
) -> BatchReport:
    """Report the results of the photos that are done: by class, and which ones need a look."""
    batch = state.batches.find(batch_id)
    return state.batches.report(batch, low_confidence=low_confidence, limit=limit)


@router.get(
    "/batches/{batch_id}/archive.zip",
    response_class=Response,
    responses={
        200: {
            "description": "The archive.",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        },
        **problem_responses(404, 409, 422, 503),
    },
)
async def get_archive(
    batch_id: _BatchId,
    state: State,
    form: Annotated[ArchiveFormat, Query(alias="format", description="Whose format.")] = "voc",
) -> Response:
    """Return the masks as a VOC folder, COCO json or CVAT mask zip, with what failed and what made them.

    It is made for each request, which takes a while for many photos; nothing is sent before that.
    """
    batch = await run_sync(state.batches.ended, batch_id)
    file = await run_sync(partial(state.batches.pack, batch, form), limiter=state.packers)
    headers = {
        "Content-Disposition": f'attachment; filename="{batch.record.id}-{form}.zip"',
        "Content-Length": str(os.fstat(file.fileno()).st_size),
    }
    return _OpenFileResponse(file, headers)


def _describe(request: Request, batches: BatchService, batch: BatchState) -> BatchDocument:
    root = request.scope.get("root_path", "")
    return batches.describe(batch, f"{root}/batches/{batch.record.id}")


class _OpenFileResponse(StreamingResponse):
    """Sends a temporary file and closes it even if the client disconnects, which frees its disk space."""

    def __init__(self, file: BinaryIO, headers: Mapping[str, str]) -> None:
        chunks = iter(partial(file.read, _CHUNK_BYTES), b"")
        super().__init__(chunks, headers=headers, media_type="application/zip")
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()
