"""What came out of a batch: its report, and its masks as an archive."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, BinaryIO

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.batch_archive import ArchiveFormat
from service.batch_report import BatchReport
from service.dependencies import BatchesDependency, PackersDependency
from service.errors import ProblemDocument
from service.routes.batches import BatchId

router = APIRouter(tags=["batches"])

_PROBLEM: dict[str, Any] = {"model": ProblemDocument}
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
