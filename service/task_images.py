"""Where a Label Studio task's image comes from: the task itself, or the one Label Studio that is configured."""

from __future__ import annotations

import asyncio
import binascii
from base64 import b64decode
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import httpx

from service.errors import ProblemError

_SECONDS: Final = 20.0
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True)
class TaskImages:
    """Fetches images.

    Tasks come from outside: no other address is asked than the one that the operator named, and no redirect followed,
    or a task could have this host fetch what only it can reach.

    Attributes:
        url: of the Label Studio; empty for none.
        token: of a user of it.
        max_bytes: largest image.
    """

    url: str
    token: str
    max_bytes: int

    async def fetch(self, source: object) -> bytes:
        """Return a task's image: a ``data:`` URL, or a URL or path on the configured Label Studio.

        Raises:
            ProblemError: if it is elsewhere, too large, or cannot be fetched.
        """
        if not isinstance(source, str) or not source:
            raise _refused("expected the image's URL in the task's data")
        if source.startswith("data:"):
            return _decode(source)
        return await self._download(self._address(source))

    def _address(self, source: str) -> str:
        if not self.url:
            raise _refused("expected a data: URL; SEMPLES_LABEL_STUDIO_URL names no Label Studio")
        try:
            address = urlsplit(urljoin(self.url.rstrip("/") + "/", source))
            same = _origin(address.geturl()) == _origin(self.url)
        except ValueError as error:
            raise _refused("expected the URL of an image") from error
        if not same or address.username is not None:
            raise _refused(f"expected an image on {self.url}")
        return address.geturl()

    async def _download(self, address: str) -> bytes:
        headers = {"Authorization": f"Token {self.token}"} if self.token else {}
        try:
            async with (
                asyncio.timeout(_SECONDS),
                # Without the environment's proxies: they would be asked in our stead.
                httpx.AsyncClient(trust_env=False, follow_redirects=False) as client,
                client.stream("GET", address, headers=headers) as answer,
            ):
                if answer.status_code != 200:
                    raise _refused(f"Label Studio answers {answer.status_code} for the image")
                return await self._read(answer)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise _refused("the image cannot be fetched from Label Studio") from error

    async def _read(self, answer: httpx.Response) -> bytes:
        content = bytearray()
        async for part in answer.aiter_bytes():
            content += part
            if len(content) > self.max_bytes:
                raise _refused(f"expected an image of at most {self.max_bytes} bytes")
        return bytes(content)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def _decode(source: str) -> bytes:
    head, _, content = source.partition(",")
    try:
        raw = unquote_to_bytes(content)
        return b64decode(raw, validate=True) if head.endswith(";base64") else raw
    except (binascii.Error, ValueError) as error:
        raise _refused("expected a data: URL of an image") from error


def _refused(message: str) -> ProblemError:
    return ProblemError("unreadable-image", message)
