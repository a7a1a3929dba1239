"""The disk on which zips lie while they come in and go out, and who has a place there."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final, Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from service.auth import route_path
from service.errors import ProblemError, response, to_problem

PREFIX: Final = "semples-archive-"
"""Of folders in which archives are put together."""
LEFT_SECONDS: Final = 24 * 3600
"""A folder that nobody has touched for so long was left by an API that died."""

Zip = Literal["posted", "archive"]
_ARCHIVE: Final = re.compile(r"/batches/[^/]+/archive\.zip")


class SpoolPlaces:
    """ASGI middleware with so many places for zips that are posted, and as many for archives; 503 to all others.

    A request has its place before a byte of its body is read, and until its answer is sent: so long there may be a zip
    of it on the disk, however slow the client is.

    Args:
        app: what is protected.
        most: places of each kind.
    """

    def __init__(self, app: ASGIApp, *, most: int) -> None:
        self.app = app
        self._most = most
        self._taken: Counter[Zip] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; see ASGI."""
        kind = _zip_of(scope)
        if kind is None:
            await self.app(scope, receive, send)
            return
        if self._taken[kind] >= self._most:
            busy = "zips are being received" if kind == "posted" else "archives are on their way"
            refusal = ProblemError("too-many-zips", f"{self._taken[kind]} {busy} already")
            await response(to_problem(refusal))(scope, receive, send)
            return
        self._taken[kind] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._taken[kind] -= 1


def _zip_of(scope: Scope) -> Zip | None:
    if scope["type"] != "http":
        return None
    path = route_path(scope)
    if scope["method"] == "POST" and path == "/batches":
        return "posted"
    return "archive" if scope["method"] == "GET" and _ARCHIVE.fullmatch(path) else None


def use_spool(folder: str) -> None:
    """Have all temporary files of this process in a folder; the system's own may be in memory.

    It is made, and what an API left there that died is deleted.

    Raises:
        OSError: if it cannot be made.
    """
    if not folder:
        return
    spool = Path(folder)
    spool.mkdir(parents=True, exist_ok=True)
    for left in spool.glob(f"{PREFIX}*"):
        if left.lstat().st_mtime < time.time() - LEFT_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    tempfile.tempdir = folder
