"""What an exception in a job means: for the person who posted it, and for RQ's retries."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import TypeVar, cast

from redis import Redis
from redis.exceptions import RedisError
from rq.exceptions import AbandonedJobError, InvalidJobOperation
from rq.job import Job
from rq.results import Result
from rq.timeouts import JobTimeoutException
from rq.utils import now

from models.data.classes import UnknownLabelError
from models.data.images import ImageError
from models.inference.masks import CannotSegmentError
from worker.queue.jobs import failure_of, request_of, status_of
from worker.queue.rq import TaskNotAllowedError, fetch_job
from worker.queue.schema import (
    DEAD_KEY,
    FAILURE_SECONDS,
    MAX_ATTEMPTS,
    FailureCode,
    JobFailure,
    Task,
    dead_key,
    queue_name,
)
from worker.storage import BlobError, BlobMissingError, BlobStore, BlobStoreFullError

# Jobs that took every worker down that tried them: kept in a list, and queued again by hand alone.

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


log = logging.getLogger(__name__)

_DEATHS = "deaths"
"""Key of a job's meta: how many workers died with it in their hands."""


# type → code, sentence (None: the exception's own words, which are meant for users), repeatable.
_KNOWN: tuple[tuple[type[BaseException], FailureCode, str | None, bool], ...] = (
    (ImageError, "image_unreadable", None, False),
    (UnknownLabelError, "unknown_label", None, True),
    (CannotSegmentError, "cannot_segment", None, True),
    (BlobMissingError, "input_missing", "the uploaded image is no longer stored", True),
    (BlobStoreFullError, "storage_full", "there is no room to store the result", True),
    (BlobError, "storage_unavailable", "the blob store cannot be read or written", True),
    (RedisError, "storage_unavailable", "the queue cannot be reached", True),
    (JobTimeoutException, "timeout", "the job took longer than it may", True),
    (
        AbandonedJobError,
        "worker_died",
        f"the worker died on this job {MAX_ATTEMPTS} times",
        False,
    ),
    (MemoryError, "out_of_memory", "the image does not fit into memory with this model", True),
    (TaskNotAllowedError, "task_not_allowed", None, False),
)


def describe(error: BaseException) -> JobFailure:
    """Return what to tell the person who posted the job; internals stay in the worker's log."""
    for kind, code, sentence, repeatable in _KNOWN:
        if isinstance(error, kind):
            return JobFailure(code=code, detail=sentence or str(error), repeatable=repeatable)
    # torch is not imported here: its error is known by name.
    if type(error).__name__ == "OutOfMemoryError":
        return describe(MemoryError())
    name = type(error).__name__
    return JobFailure(
        code="model_error", detail=f"the model failed on this image ({name})", repeatable=True
    )


def may_pass(error: BaseException) -> bool:
    """Return whether another attempt may go well; anything else would fail alike, or do harm."""
    lasting = isinstance(error, BlobMissingError | BlobStoreFullError)
    return isinstance(error, RedisError | BlobError) and not lasting


def has_cost_a_worker(job: Job) -> bool:
    """Return whether a worker died with a job in its hands.

    Such a job is worked on alone: if it is what killed the worker, no other goes down with it again.
    """
    return bool(job.meta.get(_DEATHS))


def note_failure(
    job: Job,
    kind: type[BaseException],
    error: BaseException,
    traceback: TracebackType | None,
) -> None:
    """Write why a job failed into its meta, and spare it retries that cannot help.

    RQ calls this for an exception in a job, and with AbandonedJobError for a job whose worker died.
    """
    del kind, traceback
    died = isinstance(error, AbandonedJobError)
    retries_left = job.retries_left or 0
    if died and retries_left > 0:
        log.warning("its worker died; %d attempts left", retries_left, extra={"job": job.id})
        job.meta[_DEATHS] = job.meta.get(_DEATHS, 0) + 1
        job.save_meta()  # type: ignore[no-untyped-call]
        return
    if died:
        bury(job, now=now())
    elif not may_pass(error):
        job.retries_left = 0
    job.meta.pop("progress", None)
    job.meta["failure"] = describe(error).model_dump()
    job.save_meta()  # type: ignore[no-untyped-call]


# Doing something even if what it needs is away for a while.

T = TypeVar("T")


@contextmanager
def whether_or_not_redis_answers(what: str) -> Iterator[None]:
    """Go on where Redis is away, and log what was left out."""
    try:
        yield
    except RedisError as error:
        log.warning("%s: %s", what, error)


PATIENCE_SECONDS = 600.0
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0


def persistently(
    action: Callable[[], T],
    *,
    passes: Callable[[Exception], bool] = lambda error: isinstance(error, RedisError),
    patience: float = PATIENCE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Return what an action returns, tried again with growing pauses while what it needs is away.

    Args:
        action: may be done more than once.
        passes: whether an exception is one of those that pass by themselves; those of Redis.
        patience: seconds after which to give up.
        sleep: how to pause for some seconds.
        clock: seconds that never go back.

    Raises:
        Exception: the action's own, at once if it does not pass, else when patience is at its end.
    """
    end, pause = clock() + patience, FIRST_PAUSE
    while True:
        try:
            return action()
        except Exception as error:
            if not passes(error) or clock() + pause > end:
                raise
            log.warning("trying again in %.2g s: %s", pause, error)
        sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
