"""URLs that a webhook may go to: on the internet, not in the service's own network.

A host's name says nothing of its address, which may change at any moment. So the addresses are checked, and the
connection goes to a checked address: see ``worker.webhooks.sender``.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

import httpx

RESOLVE_SECONDS: Final = 5.0

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host and port; raises OSError if there are none."""

_MAX_LENGTH: Final = 2048
_PORTS: Final = {"http": 80, "https": 443}
_HOST: Final = re.compile(rb"[0-9A-Za-z._-]+|[0-9A-Fa-f:.]+")  # a name, IPv4, IPv6
# The only part of IPv6 that is the internet; translations and tunnels to IPv4 lie elsewhere, but for 6to4.
_UNICAST: Final = IPv6Network("2000::/3")
# Special networks that ``is_global`` takes for the internet.
_NOT_GLOBAL: Final = (
    ip_network("2002::/16"),  # 6to4: an embedded IPv4 address
    ip_network("3fff::/20"),  # documentation
    ip_network("192.0.0.0/24"),  # protocols, among them Oracle's metadata
    ip_network("192.88.99.0/24"),  # relays of 6to4
    ip_network("168.63.129.16/32"),  # Azure's metadata
)


class CallbackRefusedError(ValueError):
    """A webhook may not go to a URL; the message is for the client that sent it."""


class HostUnknownError(CallbackRefusedError):
    """A URL's host has no address at the moment."""


@dataclass(frozen=True)
class Target:
    """A checked URL and the addresses of its host: at least one, all of them allowed."""

    url: httpx.URL
    addresses: tuple[str, ...]

    @property
    def host(self) -> str:
        """The host's name as in certificates."""
        return self.url.raw_host.decode("ascii")


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host from the system's resolver; raise OSError if there are none."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(each[4][0]) for each in found))


async def find_target(text: str, *, allow_private: bool, resolve: Resolve = resolve_host) -> Target:
    """Check a URL and every address of its host.

    Args:
        text: the URL.
        allow_private: whether addresses outside the internet are allowed.
        resolve: finds the addresses.

    Raises:
        HostUnknownError: if there are none, or the resolver takes too long.
        CallbackRefusedError: if a webhook may not go there.
    """
    url = _parse_url(text)
    port = url.port or _PORTS[url.scheme]
    host = url.raw_host.decode("ascii")
    # One message for an unknown host and a private one: the answer must not map our network.
    message = f"expected a host on the internet, got {host[:80]!r}"
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            addresses = tuple(await resolve(host, port))
    except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
        raise HostUnknownError(message) from error
    if not addresses:
        raise HostUnknownError(message)
    if not allow_private and not all(map(_is_public, addresses)):
        raise CallbackRefusedError(message)
    return Target(url, addresses)


def _is_public(text: str) -> bool:
    """Return whether an address is a single host's on the internet."""
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return _is_public(str(address.ipv4_mapped))
        if address not in _UNICAST:
            return False
    special = any(address in network for network in _NOT_GLOBAL)
    return address.is_global and not address.is_multicast and not special


def _parse_url(text: str) -> httpx.URL:
    """Parse an http or https URL with the parser of the client that will call it."""
    if len(text) > _MAX_LENGTH:
        raise CallbackRefusedError(f"expected at most {_MAX_LENGTH} characters, got {len(text)}")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise CallbackRefusedError("expected a URL, got something else") from error
    if url.scheme not in _PORTS:
        raise CallbackRefusedError(f"expected an http or https URL, got {url.scheme[:20]!r}")
    if url.userinfo:
        raise CallbackRefusedError("expected a URL without credentials")
    if not _HOST.fullmatch(url.raw_host):
        raise CallbackRefusedError("expected a URL with a host")
    if url.port is not None and not 0 < url.port < 2**16:
        raise CallbackRefusedError(f"expected a port up to {2**16 - 1}, got {url.port}")
    return url
