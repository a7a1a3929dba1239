"""Every error that the API answers with, and the one place that decides its status code."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from models.data.classes import UnknownLabelError
from models.data.images import ImageError, ImageErrorKind
from worker.storage import BlobError, BlobMissingError, BlobStoreFullError
from worker.webhooks.store import CallbacksFullError

MEDIA_TYPE: Final = "application/problem+json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _ProblemType:
    """A kind of error: name in the ``type`` member, status code, title, advice, seconds of Retry-After."""

    name: str
    status: int
    title: str
    advice: str
    retry_after: int | None = None

    def path(self, root: str) -> str:
        """Return where it is explained, below the prefix of the API's paths."""
        return f"{root}/problems/{self.name}"

    def document(self, detail: str, *, root: str = "") -> dict[str, Any]:
        """Return the RFC 9457 document of an occurrence; ``root`` is the prefix of the API's paths."""
        return {"type": self.path(root), "title": self.title, "status": self.status, "detail": detail}


_PROBLEM_TYPES: Final = (
    _ProblemType("malformed", 400, "Malformed request", "Correct the request's form."),
    _ProblemType("unauthorized", 401, "No valid key", "Send a key: Authorization: Bearer KEY."),
    _ProblemType("not-found", 404, "Not found", "See /docs for the calls."),
    _ProblemType("unknown-job", 404, "Unknown or expired job", "Post the image again."),
    _ProblemType("unknown-batch", 404, "Unknown or expired batch", "Post the zip again."),
    _ProblemType("unknown-model", 404, "Unknown model", "Take one of GET /models."),
    _ProblemType("unknown-class", 404, "Unknown class", "Take one of the job's classes."),
    _ProblemType("method-not-allowed", 405, "Method not allowed", "See the Allow header."),
    _ProblemType("body-too-slow", 408, "Request too slow", "Send it faster, or a smaller file."),
    _ProblemType("job-not-ready", 409, "Job not finished", "Ask again, or post with ?wait=.", 1),
    _ProblemType("job-failed", 409, "Job failed", "Read the detail; the job has no files."),
    _ProblemType("batch-not-ready", 409, "Batch not ended", "Ask again, or follow its events.", 10),
    _ProblemType("cannot-segment", 409, "No segmenter", "Name a model of GET /models that can."),
    _ProblemType("body-too-large", 413, "Request too large", "Send a smaller file."),
    _ProblemType("image-too-large", 413, "Image too large", "Scale the image down."),
    _ProblemType("archive-too-large", 413, "Archive too large", "Send several smaller zips."),
    _ProblemType("not-multipart", 415, "Wrong content type", "Send multipart/form-data."),
    _ProblemType("content-encoding", 415, "Unsupported content encoding", "Send the body as it is, not packed."),
    _ProblemType("unsupported-image", 415, "Unsupported image", "Send a still JPEG, PNG or WebP."),
    _ProblemType("unsupported-archive", 415, "Unsupported archive", "Send a zip."),
    _ProblemType("invalid-archive", 422, "Invalid archive", "Correct the entry that is named."),
    _ProblemType("invalid-labels", 422, "Invalid labels", "Correct the zip's labels."),
    _ProblemType("cannot-export", 422, "Cannot export", "Take another format."),
    _ProblemType("unreadable-image", 422, "Unreadable image", "Check that the file is complete."),
    _ProblemType(
        "unknown-label",
        422,
        "Unknown label",
        "Take one of GET /models; if its open_vocabulary is true, vocabulary=open accepts others.",
    ),
    _ProblemType("closed-vocabulary", 422, "Closed vocabulary", "Take a model whose open_vocabulary is true."),
    _ProblemType("invalid-request", 422, "Invalid request", "Correct the fields named in errors."),
    _ProblemType("rate-limited", 429, "Too many requests", "Wait as long as Retry-After says.", 1),
    _ProblemType("internal-error", 500, "Internal error", "A bug of the service; please report it."),
    _ProblemType("queue-unreachable", 503, "Queue unreachable", "Try again.", 2),
    _ProblemType("queue-full", 503, "Queue full", "Try again when others are done.", 10),
    _ProblemType("too-many-listeners", 503, "Too many listeners", "Ask for the job instead.", 5),
    _ProblemType("too-many-zips", 503, "Too many zips", "Try again when others are done.", 30),
    _ProblemType("storage-full", 503, "Storage full", "Try again later.", 60),
    _ProblemType("storage-unavailable", 503, "Storage unavailable", "Try again.", 5),
    _ProblemType("not-ready", 503, "Not ready", "Try again when a worker is up.", 2),
)
PROBLEMS: Final[Mapping[str, _ProblemType]] = {each.name: each for each in _PROBLEM_TYPES}

_IMAGES: Final[Mapping[ImageErrorKind, str]] = {
    "unsupported": "unsupported-image",
    "too_large": "image-too-large",
    "unreadable": "unreadable-image",
}
_STORES: Final[tuple[tuple[type[Exception], str, str], ...]] = (
    (BlobMissingError, "unknown-job", "the job's files are no longer stored"),
    (BlobStoreFullError, "storage-full", "there is no room to store the files"),
    (BlobError, "storage-unavailable", "the blob store cannot be read or written"),
    (RedisError, "queue-unreachable", "the queue cannot be reached"),
    (CallbacksFullError, "queue-full", "too many callbacks wait already"),
)
_PSEUDO_MASK_FIELDS: Final = ("labels", "vocabulary", "background_threshold", "background_power")
_FILE_PART: Final = "expected a file, a part whose Content-Disposition has a filename="
_STATUS_CODES: Final = {
    404: "not-found",
    405: "method-not-allowed",
    408: "body-too-slow",
    413: "body-too-large",
}


class ProblemDocument(BaseModel):
    """An RFC 9457 problem; some types have members of their own."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str


class ProblemError(Exception):
    """An error response: a key of PROBLEMS, one sentence on this occurrence, and the type's own members."""

    def __init__(self, name: str, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.kind = PROBLEMS[name]
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members


def to_problem(error: Exception) -> ProblemError:
    """Return the problem that an exception is answered with."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, ImageError):
        return ProblemError(_IMAGES[error.kind], str(error))
    if isinstance(error, UnknownLabelError):
        nearest = list(error.nearest)
        return ProblemError("unknown-label", str(error), label=error.label[:80], nearest=nearest)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ProblemError("storage-full", "there is no room for temporary files")
    for kind, name, detail in _STORES:
        if isinstance(error, kind):
            return ProblemError(name, detail)
    return _framework_problem(error)


def invalid_field(field: str, message: str) -> ProblemError:
    """Return the problem of a field that is well-formed, but has no acceptable value."""
    return _invalid_request([{"field": field, "message": message}])


def problem_response(error: Exception, scope: Scope) -> JSONResponse:
    """Return the response that an exception is answered with, to the request of an ASGI scope."""
    problem = to_problem(error)
    kind, headers = problem.kind, dict(problem.headers)
    if kind.retry_after is not None:
        headers.setdefault("Retry-After", str(kind.retry_after))
    content = kind.document(problem.detail, root=scope.get("root_path", "")) | problem.members
    return JSONResponse(content, kind.status, headers, MEDIA_TYPE)


def problem_responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` argument of a route that may answer with problems of these status codes."""
    return {code: {"model": ProblemDocument} for code in codes}


def install(app: FastAPI) -> None:
    """Answer every exception in an app with a problem."""
    for kind in _HANDLED:
        app.add_exception_handler(kind, _handle)


_HANDLED: Final[tuple[type[Exception], ...]] = (
    ProblemError,
    ImageError,
    UnknownLabelError,
    BlobError,
    RedisError,
    CallbacksFullError,
    RequestValidationError,
    HTTPException,
    Exception,
)


async def _handle(request: Request, error: Exception) -> JSONResponse:
    problem = to_problem(error)
    if problem.kind.status >= 500:
        _log.warning("%s %s: %s: %s", request.method, request.url.path, problem.kind.name, error)
    return problem_response(problem, request.scope)


def _framework_problem(error: Exception) -> ProblemError:
    if isinstance(error, RequestValidationError):
        found = error.errors()
        return _invalid_request([_field_error(e["loc"], e["type"], e["msg"]) for e in found])
    if isinstance(error, HTTPException):
        if _is_disk_error(error.__cause__):  # Starlette writes a form's files to disk
            return ProblemError("storage-full", "there is no room to receive the request")
        name, detail = _STATUS_CODES.get(error.status_code, "malformed"), str(error.detail)
        if detail.startswith("Part exceeded"):  # of Starlette: a field is smaller than a file
            detail = f"{detail.rstrip('.')}: {_FILE_PART}"
        return ProblemError(name, detail, headers=_with_head(error.headers or {}))
    return ProblemError("internal-error", "an unexpected error; the server's log has the details")


def _with_head(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers whose Allow names HEAD beside GET; see HeadAsGet."""
    allowed = {each.strip() for each in headers.get("Allow", "").split(",") if each.strip()}
    return {**headers, "Allow": ", ".join(sorted(allowed | {"HEAD"}))} if "GET" in allowed else dict(headers)


def _is_disk_error(error: BaseException | None) -> bool:
    # Network errors and timeouts are OSErrors, too.
    return isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError)


def _invalid_request(errors: Sequence[Mapping[str, str]]) -> ProblemError:
    first = errors[0]
    return ProblemError("invalid-request", f"{first['field']}: {first['message']}", errors=errors)


def _field_error(location: tuple[int | str, ...], kind: str, message: str) -> dict[str, str]:
    """Return pydantic's error in words that do not speak of Python."""
    field = ".".join(map(str, location[1:])) or str(location[0])
    if kind == "extra_forbidden":
        hint = "; POST /pseudo-mask does" if field in _PSEUDO_MASK_FIELDS else ""
        message = f"this request takes no such field{hint}"
    elif "UploadFile" in message:
        message = _FILE_PART
    return {"field": field, "message": message.removeprefix("Value error, ")}
