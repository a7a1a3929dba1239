"""Taking a job back: a wish that the service writes and the worker looks for. Wire layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from redis import Redis

from worker.protocol import BLOB_SECONDS


class JobCanceledError(Exception):
    """Nobody wants the result any more."""


def cancel_key(job_id: str) -> str:
    """Return the key whose presence asks the worker to leave a job."""
    return f"semples:cancel:{job_id}"


def ask_to_cancel(redis: Redis, job_id: str) -> None:
    """Ask whoever has a job, or takes it later, to leave it."""
    redis.set(cancel_key(job_id), 1, ex=BLOB_SECONDS)


def withdraw_cancel(redis: Redis, job_id: str) -> None:
    """Take the wish back, for the same job is wanted again."""
    redis.delete(cancel_key(job_id))


def canceled(redis: Redis, job_ids: Sequence[str]) -> frozenset[str]:
    """Return those of some jobs that nobody wants any more."""
    if not job_ids:
        return frozenset()
    wishes = cast("list[bytes | None]", redis.mget([cancel_key(each) for each in job_ids]))
    return frozenset(
        job_id for job_id, wish in zip(job_ids, wishes, strict=True) if wish is not None
    )
