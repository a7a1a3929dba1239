"""Disk space for zips on their way in and out: slots that bound their number, and the temporary directory."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import anyio
from anyio.to_thread import run_sync
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import ProblemError, problem_response
from service.middleware.auth import route_path
from service.middleware.rate_limit import client_of

TEMP_PREFIX: Final = "semples-"
"""Of the names of temporary directories."""
ABANDONED_SECONDS: Final = 24 * 3600
"""Age of a temporary directory whose process must have died."""

_CLEANUP_SECONDS: Final = 3600
_STALL_SECONDS: Final = 60.0
_ARCHIVE_PATH: Final = re.compile(r"/batches/[^/]+/archive\.zip")

_Direction = Literal["upload", "archive"]

log = logging.getLogger(__name__)


class UploadSlots:
    """ASGI middleware that bounds the zips received at once, and likewise the archives sent; others get 503.

    A request holds its slot from before its body is read until its answer is sent: that is how long its zip may be on
    the disk. One client gets at most half of the slots.

    Args:
        app: the protected application.
        slots: of each direction.
        stall: seconds after which the client of an archive that reads nothing loses its slot.
    """

    def __init__(self, app: ASGIApp, *, slots: int, stall: float = _STALL_SECONDS) -> None:
        self.app = app
        self._slots = slots
        self._stall = stall
        self._used: Counter[tuple[_Direction, str]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; see ASGI."""
        direction = _direction(scope)
        if direction is None:
            await self.app(scope, receive, send)
            return
        slot = direction, client_of(scope)
        used = sum(count for (each, _), count in self._used.items() if each == direction)
        own = self._used[slot]
        if used >= self._slots or own >= max(1, self._slots // 2):
            state = "received" if direction == "upload" else "made or sent"
            problem = ProblemError("too-many-zips", f"{used} zips are being {state} already, {own} of them yours")
            await problem_response(problem, scope)(scope, receive, send)
            return
        self._used[slot] += 1
        try:
            await self._pass_on(scope, receive, send)
        finally:
            self._used[slot] -= 1
            self._used += Counter()  # drops the zeros

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        stalled = False

        async def send_in_time(message: Message) -> None:
            nonlocal stalled
            try:
                with anyio.fail_after(self._stall):
                    await send(message)
            except TimeoutError:
                stalled = True
                raise

        try:
            await self.app(scope, receive, send_in_time)
        except (TimeoutError, ClientDisconnect):  # the application may turn one into the other
            if not stalled:
                raise
            log.warning("%s: the client read nothing for %g s", scope["path"], self._stall)


def _direction(scope: Scope) -> _Direction | None:
    if scope["type"] != "http":
        return None
    path = route_path(scope)
    if scope["method"] == "POST" and path == "/batches":
        return "upload"
    return "archive" if scope["method"] == "GET" and _ARCHIVE_PATH.fullmatch(path) else None


def set_temp_directory(folder: str) -> None:
    """Use a directory, created if need be, for all temporary files of this process; the system's may be in memory."""
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = folder


async def clean_periodically(folder: str) -> None:
    """Delete what processes that died left in the temporary directory, every hour; others may do the same."""
    while folder:
        await run_sync(_delete_abandoned, Path(folder))
        await asyncio.sleep(_CLEANUP_SECONDS)


def _delete_abandoned(folder: Path) -> None:
    """Delete the temporary directories in a folder that are older than a day."""
    for path in folder.glob(f"{TEMP_PREFIX}*"):
        with suppress(OSError):
            if path.lstat().st_mtime < time.time() - ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
