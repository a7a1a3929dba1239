"""Middleware for what HTTP and proxies expect of every call: HEAD as GET without a body, and a path prefix."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from anyio import CancelScope
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Letters that mean the same in a path, a link and a header, so that a prefix needs no quoting anywhere.
_PREFIX: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)*/?")


def parse_prefix(text: str) -> str:
    """Return a path prefix without a slash at its end, such as "/ml"; empty for none.

    Raises:
        ValueError: if it is no path of plain letters, which links could carry as they are.
    """
    if not _PREFIX.fullmatch(text):
        raise ValueError(f'expected a path such as "/ml", of letters, digits and . _ ~ - alone, got {text[:80]!r}')
    return text.rstrip("/")


def parse_networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return addresses and networks with commas between them; ValueError if one is neither, such as "*"."""
    return tuple(ip_network(each.strip(), strict=False) for each in text.split(",") if each.strip())


class PathPrefix:
    """ASGI middleware for a service below a path, whether the proxy before it strips that path or passes it on.

    The prefix is the setting's, or what a trusted proxy says in X-Forwarded-Prefix. It becomes ASGI's ``root_path``,
    which links begin with. Must see the proxy's own address, not yet the client's.
    """

    def __init__(self, app: ASGIApp, *, prefix: str, trusted: Sequence[IPv4Network | IPv6Network]) -> None:
        self.app = app
        self._prefix = prefix
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; see ASGI."""
        prefix = self._prefix_of(scope) if scope["type"] == "http" else ""
        if prefix:
            path: str = scope["path"]
            if path == prefix:  # the page's relative links need the slash
                await RedirectResponse(f"{prefix}/")(scope, receive, send)
                return
            kept = path.startswith(f"{prefix}/")
            scope = {**scope, "root_path": prefix, "path": path if kept else prefix + path}
        await self.app(scope, receive, send)

    def _prefix_of(self, scope: Scope) -> str:
        forwarded = ",".join(Headers(scope=scope).getlist("x-forwarded-prefix"))
        if not forwarded or not self._is_trusted(scope):
            return self._prefix
        try:  # each proxy adds its own prefix at the end
            return "".join(parse_prefix(each.strip()) for each in forwarded.split(","))
        except ValueError:
            return self._prefix

    def _is_trusted(self, scope: Scope) -> bool:
        try:
            address = ip_address((scope.get("client") or ("",))[0])
        except ValueError:  # a unix socket
            return False
        return any(address in network for network in self._trusted)


class HeadAsGet:
    """ASGI middleware that answers HEAD with what GET answers, without its body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; see ASGI."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        # Changed in place: the router notes the route in this scope, and the log reads it there.
        scope["method"] = "GET"
        with CancelScope() as answer:

            async def send_head(message: Message) -> None:
                if message["type"] != "http.response.body":
                    await send(message)
                elif not answer.cancel_called:
                    await send({"type": "http.response.body", "body": b""})
                    if message.get("more_body", False):
                        answer.cancel()  # events would go on for as long as the job

            try:
                await self.app(scope, receive, send_head)
            finally:
                scope["method"] = "HEAD"
