"""Jobs that took every worker down that tried them: kept in a list, and queued again by hand alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from redis import Redis
from rq.exceptions import InvalidJobOperation
from rq.job import Job
from rq.results import Result

from worker.blobs import BlobStore
from worker.outcome import failure_of, request_of, status_of
from worker.protocol import DEAD_KEY, FAILURE_SECONDS, MAX_ATTEMPTS, Task, dead_key, queue_name
from worker.queues import fetch_job

MAX_DEAD = 1000
"""The latest so many are kept, for each model."""


class DeadLetterError(Exception):
    """A job cannot be queued again; the message is one line for the operator."""


@dataclass(frozen=True)
class DeadLetter:
    """A job that nobody works on any more.

    Attributes:
        job: its id.
        model, task, labels: what it asked for.
        died: when it was failed.
        reason: why.
    """

    job: str
    model: str
    task: Task
    labels: tuple[str, ...]
    died: datetime
    reason: str


def bury(job: Job, *, now: datetime) -> None:
    """Note that a job is failed for good; it stays in the list for as long as Redis knows the job.

    Args:
        job: that has no attempt left.
        now: the time.
    """
    model = job.origin.removeprefix(queue_name(""))
    key = dead_key(model)
    with job.connection.pipeline() as pipeline:
        pipeline.sadd(DEAD_KEY, model)
        pipeline.expire(DEAD_KEY, FAILURE_SECONDS)
        pipeline.zadd(key, {job.id: now.timestamp()})
        pipeline.zremrangebyrank(key, 0, -MAX_DEAD - 1)
        pipeline.expire(key, FAILURE_SECONDS)
        pipeline.execute()


def dead_letters(redis: Redis) -> list[DeadLetter]:
    """Return the dead letters of all models, the latest first."""
    found = [(fetch_job(redis, job_id), died) for _key, job_id, died in _entries(redis)]
    letters = [_letter(job, died) for job, died in found if job is not None]
    return sorted(letters, key=lambda letter: letter.died, reverse=True)


def forget_gone(redis: Redis) -> int:
    """Drop the letters whose job has expired or was deleted; return how many."""
    gone = [entry for entry in _entries(redis) if not redis.exists(Job.key_for(entry[1]))]
    for key, job_id, _died in gone:
        redis.zrem(key, job_id)
    return len(gone)


def requeue(redis: Redis, blobs: BlobStore, job_id: str) -> Job:
    """Queue a dead letter again, with as many attempts as a new job, and return it.

    Raises:
        DeadLetterError: if it is none.
        BlobError: if its image is no longer stored, or the store cannot be written.
    """
    keys = [key for key, each, _died in _entries(redis) if each == job_id]
    job = fetch_job(redis, job_id)
    if not keys or job is None:
        raise DeadLetterError(f"expected the id of a dead letter, got {job_id[:80]!r}")
    if status_of(job) != "failed":
        raise DeadLetterError(f"job {job_id} is not failed any more")
    # Written again, the image lives for as long as one that was just posted.
    blobs.put("uploads", blobs.get(request_of(job).image))
    job.meta.pop("failure", None)
    job.save_meta()  # type: ignore[no-untyped-call]
    Result.delete_all(job)  # or who waits would be told of the earlier failure
    job.retries_left = MAX_ATTEMPTS - 1
    with suppress(InvalidJobOperation):  # somebody else was faster
        job.requeue()
    for key in keys:
        redis.zrem(key, job_id)
    return job


def _entries(redis: Redis) -> Iterator[tuple[str, str, float]]:
    """Give key, job and time of every letter."""
    for model in cast("set[bytes]", redis.smembers(DEAD_KEY)):
        key = dead_key(model.decode())
        found = cast("list[tuple[bytes, float]]", redis.zrange(key, 0, -1, withscores=True))
        for job_id, died in found:
            yield key, job_id.decode(), died


def _letter(job: Job, died: float) -> DeadLetter:
    request = request_of(job)
    return DeadLetter(
        job=job.id,
        model=request.model.name,
        task=request.task,
        labels=request.labels,
        died=datetime.fromtimestamp(died, UTC),
        reason=failure_of(job).detail,
    )
