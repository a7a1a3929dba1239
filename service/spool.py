"""The disk on which zips lie while they come in and go out: who has a place there, and what is left of the dead."""

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

from service.auth import route_path
from service.errors import ProblemError, response, to_problem
from service.rates import client_of

log = logging.getLogger(__name__)

PREFIX: Final = "semples-"
"""Of folders that are made there."""
LEFT_SECONDS: Final = 24 * 3600
"""A folder that nobody has touched for so long was left by an API that died."""
CLEAN_SECONDS: Final = 3600
STALL_SECONDS: Final = 60.0
"""After which a client that takes nothing of an archive loses its place."""

Zip = Literal["posted", "archive"]
_ARCHIVE: Final = re.compile(r"/batches/[^/]+/archive\.zip")


class SpoolPlaces:
    """ASGI middleware with so many places for zips that are posted, and as many for archives; 503 to all others.

    A request has its place before a byte of its body is read, and until its answer is sent: so long there may be a zip
    of it on the disk, however slow the client is. One client has no more than half of the places.

    Args:
        app: what is protected.
        most: places of each kind.
        stall: seconds that the client of an archive may take nothing.
    """

    def __init__(self, app: ASGIApp, *, most: int, stall: float = STALL_SECONDS) -> None:
        self.app = app
        self._most = most
        self._stall = stall
        self._taken: Counter[tuple[Zip, str]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; see ASGI."""
        kind = _zip_of(scope)
        if kind is None:
            await self.app(scope, receive, send)
            return
        place = kind, client_of(scope)
        taken = sum(count for (each, _), count in self._taken.items() if each == kind)
        if taken >= self._most or self._taken[place] >= max(1, self._most // 2):
            busy = "zips are being received" if kind == "posted" else "archives are on their way"
            mine = self._taken[place]
            refusal = ProblemError("too-many-zips", f"{taken} {busy} already, {mine} of them yours")
            await response(to_problem(refusal))(scope, receive, send)
            return
        self._taken[place] += 1
        try:
            await self._pass_on(scope, receive, send)
        finally:
            self._taken[place] -= 1
            self._taken += Counter()  # forget who has none

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
        except (TimeoutError, ClientDisconnect):  # what becomes of the first on its way out
            if not stalled:
                raise
            log.warning("%s: nothing of it was taken for %g s", scope["path"], self._stall)


def _zip_of(scope: Scope) -> Zip | None:
    if scope["type"] != "http":
        return None
    path = route_path(scope)
    if scope["method"] == "POST" and path == "/batches":
        return "posted"
    return "archive" if scope["method"] == "GET" and _ARCHIVE.fullmatch(path) else None


def use_spool(folder: str) -> None:
    """Have all temporary files of this process in a folder, which is made; the system's own may be in memory.

    Raises:
        OSError: if it cannot be made.
    """
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = folder


async def keep_clean(folder: str) -> None:
    """Delete now and again what APIs left in a folder that died; another one may do the same there."""
    while folder:
        await run_sync(clean, Path(folder))
        await asyncio.sleep(CLEAN_SECONDS)


def clean(spool: Path) -> None:
    """Delete the folders there that nobody has touched for long."""
    for left in spool.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if left.lstat().st_mtime < time.time() - LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
