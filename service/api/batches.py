"""Post a zip of photos with their labels, and follow what becomes of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, BinaryIO

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Form, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from service.api.dependencies import (
    BatchesDependency,
    CatalogDependency,
    ListenersDependency,
    PackersDependency,
    UnpackersDependency,
)
from service.api.errors import ProblemDocument, ProblemError
from service.api.forms import BatchForm
from service.api.jobs import HEARTBEAT_SECONDS
from service.api.masks import require_multipart
from service.api.schemas import BatchDocument, ItemList
from service.batches.archive import ArchiveFormat
from service.batches.report import BatchReport
from service.batches.service import Batches
from service.jobs.watch import END, batch_source, resume_after
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


# What came out of a batch: its report, and its masks as an archive.

_PART_BYTES = 2**18


@router.get("/batches/{batch_id}/report", responses={404: _PROBLEM, 422: _PROBLEM, 503: _PROBLEM})
def get_report(
    batch_id: BatchId,
    batches: BatchesDependency,
    low_confidence: Annotated[
        float, Query(ge=0, le=1, description="Photos whose foreground is less sure are listed.")
    ] = 0.5,
    limit: Annotated[int, Query(ge=0, le=100_000, description="Most entries of a list.")] = 1000,
) -> BatchReport:
    """Say what came out of the photos that are done: by class, and which ones need a look."""
    standing = batches.find(batch_id)
    return batches.report(standing, low_confidence=low_confidence, limit=limit)


@router.get(
    "/batches/{batch_id}/archive.zip",
    response_class=Response,
    responses={
        200: {
            "description": "The archive.",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        },
        **{code: _PROBLEM for code in (404, 409, 422, 503)},
    },
)
async def get_archive(
    batch_id: BatchId,
    batches: BatchesDependency,
    packers: PackersDependency,
    form: Annotated[ArchiveFormat, Query(alias="format", description="Whose format.")] = "voc",
) -> Response:
    """Return the masks as a VOC folder, COCO json or CVAT mask zip, with what failed and what made them.

    It is made for each request, which takes a while for many photos; nothing is sent before that.
    """
    standing = await run_sync(batches.ended, batch_id)
    file = await run_sync(partial(batches.pack, standing, form), limiter=packers)
    size = os.fstat(file.fileno()).st_size
    headers = {
        "Content-Disposition": f'attachment; filename="{standing.record.id}-{form}.zip"',
        "Content-Length": str(size),
    }
    return _FileResponse(file, headers)


class _FileResponse(StreamingResponse):
    """Sends a file and closes it, whatever becomes of the client: only then is its room on the disk free."""

    def __init__(self, file: BinaryIO, headers: Mapping[str, str]) -> None:
        super().__init__(_parts(file), headers=headers, media_type="application/zip")
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


def _parts(file: BinaryIO) -> Iterator[bytes]:
    while part := file.read(_PART_BYTES):
        yield part
