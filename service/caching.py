"""Answers that clients may keep: tags of what decides their content, and 304 where that is known already."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from worker.queue.schema import RESULT_SECONDS

CACHE_CONTROL = f"private, max-age={RESULT_SECONDS}, immutable"


def entity_tag(*decides: Any) -> str:
    """Return the ETag of an answer from everything that decides its content, in JSON's types.

    Blobs are decided by their keys, which are hashes, so nothing needs to be read or drawn to know the tag.
    """
    content = json.dumps(decides, sort_keys=True).encode()
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def is_known(tag: str, if_none_match: str | None) -> bool:
    """Return whether an If-None-Match header names a tag, weakly or not, or any."""
    named = [each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")]
    return tag in named or named == ["*"]


def headers(tag: str) -> dict[str, str]:
    """Return the headers of an answer with a tag."""
    return {"ETag": tag, "Cache-Control": CACHE_CONTROL}
