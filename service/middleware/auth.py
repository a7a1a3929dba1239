"""Who may come in: keys are checked before a request's body is read, and addresses before the API starts."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from fastapi import Depends
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import ProblemError, response
from service.settings import Settings

# API keys: names and hashes, from a file and from the environment; `semples api-key NAME` makes one.

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LINE = re.compile(rf"({_NAME.pattern})\s+sha256:([0-9a-f]{{64}})")
_KEY_BYTES = 32


@dataclass(frozen=True)
class ApiKey:
    """Who a key belongs to, and the SHA-256 of the key in hex.

    A slow hash with salt protects what people think up. Our keys are 256 random bits: nobody can try them
    out, so a quick hash keeps them as safe, and costs each request next to nothing.
    """

    name: str
    digest: str

    @property
    def line(self) -> str:
        """The key's line in a file."""
        return f"{self.name} sha256:{self.digest}"


def make_key(name: str) -> tuple[str, ApiKey]:
    """Return a new key and what to remember of it.

    Raises:
        ValueError: if the name holds anything but letters, digits, dots, dashes and underscores.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"expected a name of at most 64 letters, digits, '.', '-' and '_', got {name[:80]!r}"
        )
    key = f"semples_{secrets.token_urlsafe(_KEY_BYTES)}"
    return key, ApiKey(name, _digest(key))


def parse_keys(text: str, *, source: str) -> tuple[ApiKey, ...]:
    """Read lines of a name and a hash; what follows a # is a comment.

    Several lines may bear the same name, as they do while a key is being replaced.

    Args:
        text: the lines, with commas or line breaks between them.
        source: where they are from, for the error.

    Raises:
        ValueError: if a line is none; it is not quoted, for it may hold a key by mistake.
    """
    keys = []
    for number, line in enumerate(text.replace(",", "\n").splitlines(), 1):
        content = line.partition("#")[0].strip()
        match = _LINE.fullmatch(content)
        if match:
            keys.append(ApiKey(match[1], match[2]))
        elif content:
            raise ValueError(f'{source}, line {number}: expected "NAME sha256:HASH"')
    return tuple(keys)


class KeyRing:
    """The keys that are good now.

    The file is read again when it has changed. If it cannot be read then, the keys from before stay good and the log
    says so; a file without keys lets nobody in.

    Args:
        file: of keys.
        lines: more of them, as ``parse_keys`` takes them.

    Raises:
        ValueError: if the file cannot be read, a line is none, or there is no key at all.
    """

    def __init__(self, *, file: Path | None, lines: str) -> None:
        self._file = file
        self._fixed = parse_keys(lines, source="SEMPLES_KEYS")
        self._stamp = _stamp(file)
        self._from_file = _read(file)
        if not (self._fixed or self._from_file):
            raise ValueError("expected at least one API key, got none (semples api-key makes one)")

    def owner(self, key: str) -> str | None:
        """Return the name that a key belongs to, or None.

        Every key is compared, each in constant time: how long it takes says nothing.
        """
        self._refresh()
        digest = _digest(key)
        owner = None
        for each in (*self._fixed, *self._from_file):
            if hmac.compare_digest(each.digest, digest):
                owner = each.name
        return owner

    def _refresh(self) -> None:
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._from_file = _read(self._file)
        except ValueError as error:
            log.error("the API keys from before stay good: %s", error)
        else:
            log.info("read %d API keys from %s", len(self._from_file), self._file)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _read(file: Path | None) -> tuple[ApiKey, ...]:
    if file is None:
        return ()
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read the API keys in {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read the API keys in {file}: expected UTF-8") from error
    return parse_keys(text, source=str(file))


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    """Return what changes when a file does, or None without one."""
    if file is None:
        return None
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def main(name: Annotated[str, typer.Argument(help="Whose key it is.")]) -> None:
    """Make an API key: its line for SEMPLES_KEYS_FILE on standard output, the key itself beside it on standard error.

    The key is shown this once and kept nowhere.
    """
    try:
        key, remembered = make_key(name)
    except ValueError as error:
        typer.echo(f"semples api-key: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"{name}'s key, which is not shown again: {key}", err=True)
    typer.echo(remembered.line)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    app(prog_name="semples api-key")


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
