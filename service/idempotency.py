"""A client's Idempotency-Key: the same key stands for the same request, and for its job."""

from __future__ import annotations

import hashlib
import json
from typing import cast

from redis import Redis

from service.errors import ProblemError
from worker.queue.schema import RESULT_SECONDS, JobRequest, idempotency_key


def remembered(redis: Redis, token: str, request: JobRequest) -> str | None:
    """Return the id of the job that a token stands for, if it was used before.

    Raises:
        ProblemError: if it was used for another request.
    """
    stored = cast("bytes | None", redis.get(idempotency_key(token)))
    if stored is None:
        return None
    memory = json.loads(stored)
    if memory["request"] != _fingerprint(request):
        raise ProblemError("idempotency-key-reused", "this key belongs to another request")
    return str(memory["job"])


def remember(redis: Redis, token: str, request: JobRequest) -> None:
    """Have a token stand for a request from now on.

    Raises:
        ProblemError: if it was used for another request just now.
    """
    memory = {"job": request.job_id(), "request": _fingerprint(request)}
    key = idempotency_key(token)
    if not redis.set(key, json.dumps(memory), ex=RESULT_SECONDS, nx=True):
        remembered(redis, token, request)  # another request was faster: it must be the same


def _fingerprint(request: JobRequest) -> str:
    """What a client asked for; not the model's version, which may change between two tries."""
    asked = request.model_dump(mode="json", exclude={"model": {"version"}})
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
