"""Errors of the client: problem documents and lost connections as exceptions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx


class SemplesError(Exception):
    """Any error of the client: a sentence, the problem's kind ("unknown-label"), the HTTP status, other members."""

    def __init__(
        self,
        detail: str,
        *,
        kind: str = "",
        status: int | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.kind = kind
        self.status = status
        self.members = dict(members or {})


class Unauthorized(SemplesError):
    """There is no key, or the service does not accept it."""


class NotFound(SemplesError):
    """There is no such job, model or class, or not any more."""


class InvalidRequest(SemplesError):
    """The request is wrong; sending it again does not help."""


class BadImage(InvalidRequest):
    """The image is damaged, too large, or of an unsupported format."""


class UnknownLabel(InvalidRequest):
    """A label that the model does not know."""

    @property
    def label(self) -> str:
        """The label, as far as the service quotes it."""
        return str(self.members.get("label", ""))

    @property
    def nearest(self) -> tuple[str, ...]:
        """Known names most like it, best first."""
        return tuple(map(str, self.members.get("nearest", ())))


class Unavailable(SemplesError):
    """The service cannot be reached or is busy; the same request may succeed later."""

    retry_after: float | None = None  # seconds, from the answer's Retry-After


class JobFailed(SemplesError):
    """The job ended without a mask."""

    @property
    def code(self) -> str:
        """Why, in a word, such as ``out_of_memory``."""
        return str(self.members.get("code", ""))

    @property
    def repeatable(self) -> bool:
        """Whether posting the same image again runs the job again."""
        return bool(self.members.get("repeatable", False))


class JobCanceled(SemplesError):
    """The job was canceled."""


_BY_KIND: Final[Mapping[str, type[SemplesError]]] = {
    "unknown-label": UnknownLabel,
    "image-too-large": BadImage,
    "body-too-large": BadImage,
    "unsupported-image": BadImage,
    "unreadable-image": BadImage,
    "job-failed": JobFailed,
}
# Answers of the service or of a proxy in front of it.
_BY_STATUS: Final[Mapping[int, type[SemplesError]]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    429: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def error_of(answer: httpx.Response, *, now: datetime) -> SemplesError:
    """Return the exception of an answer that is no success and has been read; ``now`` is for dates in Retry-After."""
    members = _members(answer)
    kind = str(members.pop("type", "")).rpartition("/")[2]
    detail = str(members.pop("detail", "")) or _unexpected(answer)
    status = answer.status_code
    own = InvalidRequest if 400 <= status < 500 else SemplesError
    error = (_BY_KIND.get(kind) or _BY_STATUS.get(status, own))(detail, kind=kind, status=status, members=members)
    if isinstance(error, Unavailable):
        error.retry_after = _retry_after(answer, now)
    return error


def _members(answer: httpx.Response) -> dict[str, Any]:
    try:
        content = json.loads(answer.content)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _unexpected(answer: httpx.Response) -> str:
    where = answer.headers.get("location", "")
    more = f", which leads to {where[:200]}" if where else ""
    return f"expected an answer of the service, got {answer.status_code} {answer.reason_phrase}{more}"


def _retry_after(answer: httpx.Response, now: datetime) -> float | None:
    """Return the seconds of a Retry-After header; None without a valid one."""
    value = answer.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        then = parsedate_to_datetime(value)
    except ValueError:
        return None
    # A date without a zone is in UTC.
    return max(0.0, ((then if then.tzinfo else then.replace(tzinfo=UTC)) - now).total_seconds())
