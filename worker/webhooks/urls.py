"""Where a webhook may go: to the internet, not into the network that the service stands in. Wire layer.

A host's name says nothing of where it leads, and may lead elsewhere a moment later. So the addresses are judged, and
what was judged is what is connected to: see ``worker.webhooks.sender``.
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

MAX_URL = 2048
RESOLVE_SECONDS = 5.0

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives the addresses of a host and port; OSError if there are none."""

_PORTS: Final = {"http": 80, "https": 443}
_HOST: Final = re.compile(rb"[0-9A-Za-z._-]+|[0-9A-Fa-f:.]+")  # a name, IPv4, IPv6
# Of IPv6 only this is the internet; translations and tunnels to IPv4 lie elsewhere, but for 6to4.
_UNICAST: Final = IPv6Network("2000::/3")
_NOT_GLOBAL: Final = tuple(
    map(
        ip_network,
        (
            "2002::/16",  # 6to4: an IPv4 address in disguise
            "3fff::/20",  # documentation
            "192.0.0.0/24",  # protocols, among them Oracle's metadata
            "192.88.99.0/24",  # the way to 6to4
            "168.63.129.16/32",  # Azure's metadata, though it looks like anybody's
        ),
    )
)


class CallbackRefusedError(ValueError):
    """A URL is none that a webhook may go to; the message is meant for the one who named it."""


class HostUnknownError(CallbackRefusedError):
    """A URL's host has no address, for now."""


@dataclass(frozen=True)
class Target:
    """A URL that was judged.

    Attributes:
        url: as it was given.
        addresses: of its host, all of them allowed; at least one.
    """

    url: httpx.URL
    addresses: tuple[str, ...]

    @property
    def host(self) -> str:
        """The host's name as certificates spell it."""
        return self.url.raw_host.decode("ascii")


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """Ask the system for the addresses of a host.

    Raises:
        OSError: if there are none.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(each[4][0]) for each in found))


async def find_target(text: str, *, allow_private: bool, resolve: Resolve = resolve_host) -> Target:
    """Judge a URL and every address of its host.

    Args:
        text: the URL.
        allow_private: whether to take addresses that are not on the internet.
        resolve: finds the addresses.

    Raises:
        HostUnknownError: if there are none, or the answer takes too long.
        CallbackRefusedError: if it may not be called.
    """
    url = parse_url(text)
    port = url.port or _PORTS[url.scheme]
    host = url.raw_host.decode("ascii")
    # The same words for a host that is unknown and for one that is ours: the answer must not map our network.
    message = f"expected a host on the internet, got {host[:80]!r}"
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            addresses = tuple(await resolve(host, port))
    except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
        raise HostUnknownError(message) from error
    if not addresses:
        raise HostUnknownError(message)
    if not allow_private and not all(map(is_public, addresses)):
        raise CallbackRefusedError(message)
    return Target(url, addresses)


def parse_url(text: str) -> httpx.URL:
    """Read a URL with the parser that it will be called with.

    Raises:
        CallbackRefusedError: unless it is http or https, with a host and without credentials.
    """
    if len(text) > MAX_URL:
        raise CallbackRefusedError(f"expected at most {MAX_URL} characters, got {len(text)}")
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


def is_public(text: str) -> bool:
    """Return whether an address is on the internet: a single host's, nobody's own network."""
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        if address not in _UNICAST:
            return False
    special = any(address in network for network in _NOT_GLOBAL)
    return address.is_global and not address.is_multicast and not special
