"""Bounds on request bodies: bytes, whether their number is declared or not, and the time they take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import response, to_problem
from service.middleware.auth import route_path

DRAIN_FACTOR = 4
DRAIN_SECONDS = 10.0


@dataclass(frozen=True)
class BodyBounds:
    """What a body may take.

    Attributes:
        max_bytes: its size.
        seconds: time for any body.
        rate: bytes that add a second to that once they are here.
    """

    max_bytes: int
    seconds: float
    rate: float


class BodyLimit:
    """ASGI middleware that answers a body beyond the bounds with a problem.

    FastAPI has ``max_body_size``, but where the length is declared it replaces whatever the app
    answers with plain text. Uvicorn waits for a body for ever.

    Args:
        app: what is protected.
        bounds: see BodyBounds.
        others: of paths that have their own.
    """

    def __init__(
        self, app: ASGIApp, *, bounds: BodyBounds, others: Mapping[str, BodyBounds]
    ) -> None:
        self.app = app
        self.bounds = bounds
        self.others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting its bytes and seconds; see ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        bounds = self.others.get(route_path(scope), self.bounds)
        body = _Body(receive, Headers(scope=scope), bounds)

        async def send_after_body(message: Message) -> None:
            if message["type"] == "http.response.start":
                await body.drain()
                if not body.complete:
                    # What still trickles in must not keep the connection, whoever sends it.
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        if body.declared > bounds.max_bytes:
            refusal = response(to_problem(_too_large(bounds.max_bytes)))
            await refusal(scope, receive, send_after_body)
            return
        await self.app(scope, body.receive, send_after_body)


class _Body:
    """A request's body on its way in."""

    def __init__(self, receive: Receive, headers: Headers, bounds: BodyBounds) -> None:
        length = headers.get("content-length", "")
        self.declared = int(length) if length.isdecimal() else 0
        self.complete = not self.declared and "transfer-encoding" not in headers
        self._receive = receive
        self._bounds = bounds
        self._started = time.monotonic()
        self._received = 0
        self._late = False
        self._on_request = "expect" in headers

    async def receive(self) -> Message:
        """Return the next part, as ASGI's receive.

        Raises:
            HTTPException: if the body is larger than it may be, or takes longer.
        """
        if self.complete:  # what comes now is the client's farewell, which may take its time
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
        """Read and forget what is left, up to a limit and for a while.

        A server that closes a connection on unread data resets it, and the client never sees the
        answer. A client that asks before it sends (``Expect``) need not send at all.
        """
        most = DRAIN_FACTOR * self._bounds.max_bytes
        asks_first = self._on_request and not self._received
        if self._late or asks_first or self.declared > most:
            return
        with anyio.move_on_after(min(DRAIN_SECONDS, max(0.0, self._seconds_left()))):
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
