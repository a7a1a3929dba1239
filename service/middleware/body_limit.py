"""Middleware that bounds request bodies in bytes, whether declared or not, and in seconds; packed ones are refused."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import ProblemError, problem_response
from service.middleware.auth import route_path

_DRAIN_FACTOR: Final = 4
_DRAIN_SECONDS: Final = 10.0


@dataclass(frozen=True)
class BodyBounds:
    """Bounds of a body: its bytes, the seconds for any body, and the bytes received that add a second."""

    max_bytes: int
    seconds: float
    rate: float


class BodyLimit:
    """ASGI middleware that answers a body beyond its bounds with a problem.

    FastAPI has ``max_body_size``, but where the length is declared it replaces the app's response by plain text.
    Uvicorn waits for a body without end.
    """

    def __init__(self, app: ASGIApp, *, bounds: BodyBounds, by_path: Mapping[str, BodyBounds]) -> None:
        self.app = app
        self._bounds = bounds
        self._by_path = by_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting its bytes and seconds; see ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        bounds = self._by_path.get(route_path(scope), self._bounds)
        body = _Body(receive, Headers(scope=scope), bounds)

        async def send_after_body(message: Message) -> None:
            if message["type"] == "http.response.start":
                await body.drain()
                if not body.complete:
                    # The rest of the body must not keep the connection open.
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        refusal = body.refusal()
        if refusal is not None:
            await problem_response(refusal, scope)(scope, receive, send_after_body)
            return
        await self.app(scope, body.receive, send_after_body)


class _Body:
    """A request's body as it arrives."""

    def __init__(self, receive: Receive, headers: Headers, bounds: BodyBounds) -> None:
        length = headers.get("content-length", "")
        self.declared = int(length) if length.isdecimal() else 0
        self.complete = not self.declared and "transfer-encoding" not in headers
        self._encoding = headers.get("content-encoding", "").strip()
        self._receive = receive
        self._bounds = bounds
        self._started = time.monotonic()
        self._received = 0
        self._late = False
        self._sent_on_request = "expect" in headers

    def refusal(self) -> Exception | None:
        """Return the error of a body that is refused by its headers alone; None if it is not."""
        if not self.complete and self._encoding.lower() not in ("", "identity"):
            # No form and no JSON would be found in it. The header says what is taken (RFC 9110, 15.5.16).
            detail = f"expected a body without Content-Encoding, got Content-Encoding: {self._encoding[:80]}"
            return ProblemError("content-encoding", detail, headers={"Accept-Encoding": "identity"})
        return _too_large(self._bounds.max_bytes) if self.declared > self._bounds.max_bytes else None

    async def receive(self) -> Message:
        """Return the next part, as ASGI's receive; raises HTTPException beyond the bounds."""
        if self.complete:  # next is the client's disconnect, which has no time limit
            return await self._receive()
        try:
            with anyio.fail_after(max(0.0, self._seconds_left())):
                message = await self._next()
        except TimeoutError as error:
            self._late = True
            raise HTTPException(408, "expected the body sooner") from error
        if self._received > self._bounds.max_bytes:
            raise _too_large(self._bounds.max_bytes)
        return message

    async def drain(self) -> None:
        """Read and discard the rest, up to a size and for a while."""
        most = _DRAIN_FACTOR * self._bounds.max_bytes
        not_sent = self._sent_on_request and not self._received
        if self._late or not_sent or self.declared > most:
            return
        with anyio.move_on_after(min(_DRAIN_SECONDS, max(0.0, self._seconds_left()))):
            while not self.complete and self._received <= most:
                await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        return message

    def _seconds_left(self) -> float:
        allowed = self._bounds.seconds + self._received / self._bounds.rate
        return self._started + allowed - time.monotonic()


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"expected a body of at most {max_bytes} bytes")
