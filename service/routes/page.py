"""The page for people at ``/``, and the one that lists the calls at ``/docs``; their files are in ``service/web``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

from fastapi import APIRouter, Request, Response

from service.errors import ProblemError

page_router = APIRouter(include_in_schema=False)

FOLDER: Final = Path(__file__).parents[1] / "web"
# Not from the system's table: a browser runs no script of another type.
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    """A file of the page.

    Attributes:
        content: its bytes.
        media_type: with which it is sent.
        tag: its ETag; from the content, because installed files may all have the same time.
    """

    content: bytes
    media_type: str
    tag: str


@cache
def assets() -> Mapping[str, Asset]:
    """Return the page's files by name; they are few and small, and read once."""
    files = [path for path in sorted(FOLDER.iterdir()) if path.suffix in _TYPES]
    return MappingProxyType({path.name: _read(path) for path in files})


def _read(path: Path) -> Asset:
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return Asset(content, _TYPES[path.suffix], tag)


def answer(name: str, request: Request) -> Response:
    """Return a file, or 304 if the client has it already.

    Raises:
        ProblemError: if there is no such file.
    """
    asset = assets().get(name)
    if asset is None:
        raise ProblemError("not-found", "no such file of the page")
    # no-cache: keep it, but ask each time, which costs a 304.
    headers = {"ETag": asset.tag, "Cache-Control": "no-cache"}
    known = request.headers.get("if-none-match", "")
    if asset.tag in (each.strip().removeprefix("W/") for each in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.media_type)


@page_router.api_route("/", methods=["GET", "HEAD"])
async def get_page(request: Request) -> Response:
    """Return the page."""
    return answer("index.html", request)


@page_router.api_route("/docs", methods=["GET", "HEAD"])
async def get_docs(request: Request) -> Response:
    """Return the page that lists the calls, drawn from /openapi.json."""
    return answer("docs.html", request)


@page_router.api_route("/web/{name}", methods=["GET", "HEAD"])
async def get_asset(name: str, request: Request) -> Response:
    """Return a script, a style or a picture of the pages."""
    return answer(name, request)
