"""A bound on request bodies, whether their length is declared or not."""

from __future__ import annotations

import anyio
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import response, to_problem

DRAIN_FACTOR = 4
DRAIN_SECONDS = 10.0


class BodyLimit:
    """ASGI middleware that answers a body beyond the limit with a problem.

    FastAPI has ``max_body_size``, but where the length is declared it replaces whatever the app
    answers with plain text.

    Args:
        app: what is protected.
        max_bytes: largest body.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting its bytes; see ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(receive, Headers(scope=scope), self.max_bytes)

        async def send_after_body(message: Message) -> None:
            if message["type"] == "http.response.start":
                await body.drain()
            await send(message)

        if body.declared > self.max_bytes:
            refusal = response(to_problem(_too_large(self.max_bytes)))
            await refusal(scope, receive, send_after_body)
            return
        await self.app(scope, body.receive, send_after_body)


class _Body:
    """A request's body on its way in."""

    def __init__(self, receive: Receive, headers: Headers, max_bytes: int) -> None:
        length = headers.get("content-length", "")
        self.declared = int(length) if length.isdecimal() else 0
        self._receive = receive
        self._max_bytes = max_bytes
        self._received = 0
        self._complete = not self.declared and "transfer-encoding" not in headers
        self._on_request = "expect" in headers

    async def receive(self) -> Message:
        """Return the next part, as ASGI's receive.

        Raises:
            HTTPException: if the body is larger than it may be.
        """
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._received > self._max_bytes:
            raise _too_large(self._max_bytes)
        return message

    async def drain(self) -> None:
        """Read and forget what is left, up to a limit and for a while.

        A server that closes a connection on unread data resets it, and the client never sees the
        answer. A client that asks before it sends (``Expect``) need not send at all.
        """
        most = DRAIN_FACTOR * self._max_bytes
        if self.declared > most or (self._on_request and not self._received):
            return
        with anyio.move_on_after(DRAIN_SECONDS):
            while not self._complete and self._received <= most:
                message = await self._receive()
                self._received += len(message.get("body", b""))
                self._complete = not message.get("more_body", False)


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"expected a body of at most {max_bytes} bytes")
