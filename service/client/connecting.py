"""Where a service is and who asks: what httpx's clients are made with."""

from __future__ import annotations

import re
from typing import Any, Final

import httpx

TIMEOUT_SECONDS: Final = 30.0
RETRIES: Final = 6
"""About half a minute without a word from the service."""


def http_options(url: str, key: str | None) -> dict[str, Any]:
    """Return what both of httpx's clients are made with.

    Raises:
        ValueError: if the URL or the key cannot be one.
    """
    return {
        "base_url": base_url(url),
        "headers": {"Accept": "application/json", **key_headers(key)},
        # How many requests are made at once is the caller's choice, and decided there alone.
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=100),
    }


def base_url(url: str) -> httpx.URL:
    """Check where a service is.

    Raises:
        ValueError: if it is no http or https URL, or holds a password, which would end in messages.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"expected the service's URL, got {error}") from error
    if parsed.userinfo:
        raise ValueError(
            "expected a URL without user and password; a key goes into its own argument"
        )
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"expected the service's URL, http:// or https://, got {url!r}")
    return parsed


def key_headers(key: str | None) -> dict[str, str]:
    """Return the headers that show a key.

    Raises:
        ValueError: if it cannot be one; it is not quoted.
    """
    if key is None:
        return {}
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError("expected a key of printable ASCII without spaces, got another one")
    return {"Authorization": f"Bearer {key}"}
