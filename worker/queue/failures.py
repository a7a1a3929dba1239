"""What an exception in a job means: for the client, for retries, and for the list of dead letters.

A dead letter is a job whose worker died in its last attempt. Only a person queues it again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, TypeVar, cast

from redis import Redis
from redis.exceptions import RedisError
from rq.exceptions import AbandonedJobError
from rq.job import Job
from rq.timeouts import JobTimeoutException

from models.data.classes import UnknownLabelError
from models.data.images import ImageError
from models.inference.masks import CannotSegmentError
from worker.queue.jobs import failure_of, request_of, status_of
from worker.queue.rq import JobQueue, TaskNotAllowedError, fetch_job
from worker.queue.schema import (
    DEAD_KEY,
    FAILURE_SECONDS,
    FailureCode,
    JobFailure,
    Task,
    dead_key,
    model_of_queue,
)
from worker.storage import BlobError, BlobMissingError, BlobStore, BlobStoreFullError

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

MAX_DEAD: Final = 1000
"""Number of dead letters kept for each model; older ones are dropped."""

_DEATHS: Final = "deaths"
"""Key of a job's meta: how many workers died while they held it."""

_PATIENCE_SECONDS: Final = 600.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


class DeadLetterError(Exception):
    """A job cannot be queued again; the message is one line for the operator."""


@dataclass(frozen=True)
class DeadLetter:
    """A job that no worker tries any more: its id, what it asked for, when it was failed and why."""

    job: str
    model: str
    task: Task
    labels: tuple[str, ...]
    died: datetime
    reason: str


# type → code, sentence (None: the exception's own words, which are meant for users), repeatable.
_KNOWN: Final[tuple[tuple[type[BaseException], FailureCode, str | None, bool], ...]] = (
    (ImageError, "image_unreadable", None, False),
    (UnknownLabelError, "unknown_label", None, True),
    (CannotSegmentError, "cannot_segment", None, True),
    (BlobMissingError, "input_missing", "the uploaded image is no longer stored", True),
    (BlobStoreFullError, "storage_full", "there is no room to store the result", True),
    (BlobError, "storage_unavailable", "the blob store cannot be read or written", True),
    (RedisError, "storage_unavailable", "the queue cannot be reached", True),
    (JobTimeoutException, "timeout", "the job took longer than it may", True),
    (AbandonedJobError, "worker_died", "a worker died during this job, and no attempt is left", False),
    (MemoryError, "out_of_memory", "the image does not fit into memory with this model", True),
    (TaskNotAllowedError, "task_not_allowed", None, False),
)


def describe_failure(error: BaseException) -> JobFailure:
    """Return the failure that the client sees; internals stay in the worker's log."""
    for kind, code, sentence, repeatable in _KNOWN:
        if isinstance(error, kind):
            return JobFailure(code=code, detail=sentence or str(error), repeatable=repeatable)
    name = type(error).__name__
    if name == "OutOfMemoryError":  # torch's, which is not imported here
        return describe_failure(MemoryError())
    detail = f"the model failed on this image ({name})"
    return JobFailure(code="model_error", detail=detail, repeatable=True)


def is_transient(error: BaseException) -> bool:
    """Return whether another attempt may succeed; after any other error it would fail alike, or do harm."""
    lasting = isinstance(error, BlobMissingError | BlobStoreFullError)
    return isinstance(error, RedisError | BlobError) and not lasting


def was_abandoned(job: Job) -> bool:
    """Return whether a worker died while it held a job, which is worked on alone from then on."""
    return bool(job.meta.get(_DEATHS))


def note_abandoned(job: Job, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Write into a job's meta that its worker died; RQ's exception handler, called before it retries or fails it."""
    del kind, traceback
    if job.retries_left:
        _log.warning("a worker died during this job; %d attempts left", job.retries_left, extra={"job": job.id})
        job.meta[_DEATHS] = job.meta.get(_DEATHS, 0) + 1
    else:
        _dead_letter(job, now=datetime.now(UTC))
        job.meta.pop("progress", None)
        job.meta["failure"] = describe_failure(error).model_dump()
    job.save_meta()  # type: ignore[no-untyped-call]


def _dead_letter(job: Job, *, now: datetime) -> None:
    """Add a job to the dead letters, for as long as Redis knows it."""
    model = model_of_queue(job.origin) or ""
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


def drop_expired_letters(redis: Redis) -> int:
    """Drop the dead letters whose job has expired or was deleted; return how many."""
    gone = [entry for entry in _entries(redis) if not redis.exists(Job.key_for(entry[1]))]
    for key, job_id, _died in gone:
        redis.zrem(key, job_id)
    return len(gone)


def requeue(redis: Redis, blobs: BlobStore, job_id: str) -> Job:
    """Queue a dead letter again, with as many attempts as a new job; DeadLetterError, or BlobError of its image."""
    keys = [key for key, each, _died in _entries(redis) if each == job_id]
    job = fetch_job(redis, job_id)
    if not keys or job is None:
        raise DeadLetterError(f"expected the id of a dead letter, got {job_id[:80]!r}")
    if status_of(job) != "failed":
        raise DeadLetterError(f"job {job_id} is not failed any more")
    request = request_of(job)
    # Written again, the image lives for as long as one that was just posted.
    blobs.put("uploads", blobs.get(request.image))
    JobQueue(redis, request.model.name).requeue_failed(job)
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
    moment = datetime.fromtimestamp(died, UTC)
    reason = failure_of(job).detail
    return DeadLetter(job.id, request.model.name, request.task, request.labels, moment, reason)


@contextmanager
def ignore_redis_errors(what: str) -> Iterator[None]:
    """Go on where Redis does not answer, and log what was left out."""
    try:
        yield
    except RedisError as error:
        _log.warning("%s: %s", what, error)


def retry(
    action: Callable[[], _T],
    *,
    retryable: Callable[[Exception], bool] = lambda error: isinstance(error, RedisError),
    patience: float = _PATIENCE_SECONDS,
) -> _T:
    """Return what an action returns, tried again with growing pauses after retryable errors for ``patience`` seconds.

    Not tenacity: it takes 46 µs for an action that succeeds at once, several of which each job does.
    """
    end, pause = time.monotonic() + patience, _FIRST_PAUSE
    while True:
        try:
            return action()
        except Exception as error:
            if not retryable(error) or time.monotonic() + pause > end:
                raise
            _log.warning("trying again in %.2g s: %s", pause, error)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
