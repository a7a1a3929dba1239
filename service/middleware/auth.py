"""API keys: their file, the middleware that checks them, the command ``semples api-key`` that makes them."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import socket
from base64 import b64decode
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from fastapi import Depends
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from models.messages import accept_any_output, one_line
from service.api.errors import ProblemError, problem_response
from service.settings import Settings

SCHEMES: Final = (
    Depends(HTTPBearer(auto_error=False, description="A key of `semples api-key`.")),
    Depends(APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key.")),
)
"""For the OpenAPI document alone; KeyCheck does the check."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LINE: Final = re.compile(rf"({_NAME.pattern})\s+sha256:([0-9a-f]{{64}})")
_KEY_BYTES: Final = 32
# Documentation and health checks need no key.
_OPEN_PATHS: Final = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json"})
_OPEN_FOLDERS: Final = ("/problems/", "/web/")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ApiKey:
    """The name of a key's owner, and the SHA-256 of the key in hex: 256 random bits need no slow hash."""

    name: str
    digest: str

    @property
    def line(self) -> str:
        """The key's line in a file."""
        return f"{self.name} sha256:{self.digest}"


def _make_key(name: str) -> tuple[str, ApiKey]:
    """Return a new key, and its record, which alone is stored; ValueError if the name is malformed."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected a name of at most 64 letters, digits, '.', '-' and '_', got {name[:80]!r}")
    key = f"semples_{secrets.token_urlsafe(_KEY_BYTES)}"
    return key, ApiKey(name, _digest(key))


def _parse_keys(text: str, *, source: str) -> tuple[ApiKey, ...]:
    """Read names and hashes, with commas or line breaks between them; a # begins a comment."""
    keys = []
    for number, line in enumerate(text.replace(",", "\n").splitlines(), 1):
        content = line.partition("#")[0].strip()
        match = _LINE.fullmatch(content)
        if match:
            keys.append(ApiKey(match[1], match[2]))
        elif content:
            raise ValueError(f'{source}, line {number}: expected "NAME sha256:HASH"')
    return tuple(keys)


class ApiKeys:
    """The valid keys: those of a file, and of lines as ``_parse_keys`` takes them; ValueError if there are none.

    The file is read again when it has changed. If it cannot be read then, its earlier keys stay valid, which is logged;
    a file without keys makes none valid.
    """

    def __init__(self, *, file: Path | None, lines: str) -> None:
        self._file = file
        self._fixed = _parse_keys(lines, source="SEMPLES_KEYS")
        self._stamp = _stamp(file)
        self._from_file = _read(file)
        if not (self._fixed or self._from_file):
            raise ValueError("expected at least one API key, got none (semples api-key makes one)")

    def owner(self, key: str) -> str | None:
        """Return the name of a key's owner, or None. Takes the same time for every key."""
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
            _log.error("the API keys from before stay valid: %s", error)
        else:
            _log.info("read %d API keys from %s", len(self._from_file), self._file)


def load_keys(settings: Settings) -> ApiKeys | None:
    """Return the keys that the settings name, or None if they name none; ValueError as ApiKeys."""
    if not (settings.keys_file or settings.keys.strip()):
        return None
    file = Path(settings.keys_file) if settings.keys_file else None
    return ApiKeys(file=file, lines=settings.keys)


def require_auth_for_public_bind(settings: Settings, host: str) -> None:
    """Raise ValueError if there are no keys and other hosts can reach the API."""
    address = settings.published or host
    if settings.open or load_keys(settings) is not None or _is_loopback(address):
        return
    raise ValueError(
        f"expected API keys (SEMPLES_KEYS_FILE) to listen on {address or 'all addresses'}, got none; "
        "set SEMPLES_OPEN=1 if something else protects the API"
    )


def _is_loopback(host: str) -> bool:
    """Return whether every address of a host is this host's own loopback."""
    if not host:  # all interfaces
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


class KeyCheck:
    """ASGI middleware that answers requests without a valid key with a problem, before their body is read.

    Adds ``key_name``, the name of the key's owner, to the request's state.
    """

    def __init__(self, app: ASGIApp, *, keys: ApiKeys) -> None:
        self.app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; see ASGI."""
        if scope["type"] == "http" and not is_open(route_path(scope)):
            key = _presented_key(Headers(scope=scope))
            owner = self._keys.owner(key) if key else None
            if owner is None:
                await problem_response(_refusal(wrong=bool(key)), scope)(scope, receive, send)
                return
            scope.setdefault("state", {})["key_name"] = owner
        await self.app(scope, receive, send)


def is_open(path: str) -> bool:
    """Return whether a path needs no key."""
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDERS)


def route_path(scope: Scope) -> str:
    """Return a request's path without the prefix that a proxy adds."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def key_name(scope: Scope) -> str | None:
    """Return the name of the owner of a request's key, or None where no keys are required."""
    state: dict[str, Any] = scope.get("state", {})
    name: str | None = state.get("key_name")
    return name


def main(name: Annotated[str, typer.Argument(help="Name of its owner.")]) -> None:
    """Make an API key: its line for SEMPLES_KEYS_FILE on standard output, the key itself beside it on standard error.

    The key is shown this once and kept nowhere.
    """
    try:
        key, record = _make_key(name)
    except ValueError as error:
        typer.echo(one_line(f"semples api-key: {error}"), err=True)
        raise typer.Exit(2) from error
    typer.echo(f"{name}'s key, which is not shown again: {key}", err=True)
    typer.echo(record.line)


def _presented_key(headers: Headers) -> str:
    """Return a request's Bearer token, else its X-API-Key, else its Basic password, else an empty string.

    Label Studio can send a user's name and a password alone.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    if "x-api-key" not in headers and scheme.lower() == "basic":
        return _basic_password(token)
    return headers.get("x-api-key", "").strip()


def _basic_password(credentials: str) -> str:
    try:
        return b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _refusal(*, wrong: bool) -> ProblemError:
    detail = "unknown key" if wrong else "expected Authorization: Bearer KEY, or X-API-Key"
    challenge = 'Bearer error="invalid_token"' if wrong else "Bearer"
    return ProblemError("unauthorized", detail, headers={"WWW-Authenticate": challenge})


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
    return _parse_keys(text, source=str(file))


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    """Return inode, size and time of a file, which change when it does; None if there is none."""
    if file is None:
        return None
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


if __name__ == "__main__":
    accept_any_output()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app(prog_name="semples api-key")
