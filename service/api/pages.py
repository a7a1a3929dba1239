"""The web page at ``/`` and the list of calls at ``/docs``; their files are in ``service/web``."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response
from starlette.datastructures import Headers
from starlette.responses import FileResponse
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Scope

router = APIRouter(include_in_schema=False)

FOLDER: Final = Path(__file__).parents[1] / "web"
# Not from the system's table: a browser runs no script of another type.
_TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}


class _WebFiles(StaticFiles):
    """Static files that browsers keep and revalidate each time, which costs a 304."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        path = Path(full_path)
        tag = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        response = FileResponse(
            path,
            status_code=status_code,
            headers={"ETag": f'"{tag}"', "Cache-Control": "no-cache"},
            media_type=_TYPES.get(path.suffix),
            stat_result=stat_result,
        )
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            return NotModifiedResponse(response.headers)
        return response


_files: Final = _WebFiles(directory=FOLDER)

# Routes rather than a mount: a request's route is counted in the metrics, and a mount has none.


@router.get("/")
async def get_page(request: Request) -> Response:
    """Return the page."""
    return await _files.get_response("index.html", request.scope)


@router.get("/docs")
async def get_docs(request: Request) -> Response:
    """Return the list of calls, drawn from /openapi.json."""
    return await _files.get_response("docs.html", request.scope)


@router.get("/web/{name}")
async def get_file(name: str, request: Request) -> Response:
    """Return a script, the style sheet or the icon."""
    return await _files.get_response(name, request.scope)


@router.get("/web/examples/{name}")
async def get_example(name: str, request: Request) -> Response:
    """Return an example photo."""
    return await _files.get_response(f"examples/{name}", request.scope)
