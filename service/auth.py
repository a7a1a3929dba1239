"""Who may come in: keys are checked before a request's body is read, and addresses before the API starts."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from fastapi import Depends
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ProblemError, response
from service.keys import KeyRing
from service.settings import Settings

OPEN_PATHS: Final = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json"})
OPEN_FOLDERS: Final = ("/problems/", "/web/")
"""What says how to use the API, and whether it is up, is told to anyone."""

SCHEMES: Final = (
    Depends(HTTPBearer(auto_error=False, description="A key of `semples api-key`.")),
    Depends(APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key.")),
)
"""For the document at /openapi.json alone; the check itself is in KeyCheck."""


class KeyCheck:
    """ASGI middleware that answers a request without a valid key with a problem, whatever it asks for.

    The name that a key belongs to is in the request's state, as ``key_name``.

    Args:
        app: what is protected.
        ring: the valid keys.
    """

    def __init__(self, app: ASGIApp, *, ring: KeyRing) -> None:
        self.app = app
        self.ring = ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; see ASGI."""
        if scope["type"] == "http" and not is_open(route_path(scope)):
            key = presented_key(Headers(scope=scope))
            owner = self.ring.owner(key) if key else None
            if owner is None:
                await response(_refusal(wrong=bool(key)))(scope, receive, send)
                return
            scope.setdefault("state", {})["key_name"] = owner
        await self.app(scope, receive, send)


def is_open(path: str) -> bool:
    """Return whether a path is open to anyone."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def route_path(scope: Scope) -> str:
    """Return a request's path without the prefix that a proxy put before it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def key_name(scope: Scope) -> str | None:
    """Return the name that a request's key belongs to, or None where no keys are asked for."""
    state: dict[str, Any] = scope.get("state", {})
    name: str | None = state.get("key_name")
    return name


def presented_key(headers: Headers) -> str:
    """Return the key that a request shows, or nothing: a Bearer token, else X-API-Key."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return (token if scheme.lower() == "bearer" else headers.get("x-api-key", "")).strip()


def open_ring(settings: Settings) -> KeyRing | None:
    """Return the keys that the settings name, or None if they name none.

    Raises:
        ValueError: as KeyRing does.
    """
    if not (settings.keys_file or settings.keys.strip()):
        return None
    file = Path(settings.keys_file) if settings.keys_file else None
    return KeyRing(file=file, lines=settings.keys)


def require_keys(settings: Settings, host: str) -> None:
    """Refuse to be open to a network by mistake.

    Args:
        settings: keys, or what stands in for them.
        host: name or address that is listened on.

    Raises:
        ValueError: if there are no keys, and others than this host can reach the API.
    """
    address = settings.published or host
    if settings.open or open_ring(settings) is not None or is_loopback(address):
        return
    raise ValueError(
        f"expected API keys (SEMPLES_KEYS_FILE) to listen on {address or 'all addresses'}, got none; "
        "SEMPLES_OPEN=1 says that something else keeps strangers away"
    )


def is_loopback(host: str) -> bool:
    """Return whether all that a name or an address stands for is this host's own loopback."""
    if not host:  # all interfaces
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def _refusal(*, wrong: bool) -> ProblemError:
    detail = "unknown key" if wrong else "expected Authorization: Bearer KEY, or X-API-Key"
    challenge = 'Bearer error="invalid_token"' if wrong else "Bearer"
    return ProblemError("unauthorized", detail, headers={"WWW-Authenticate": challenge})
