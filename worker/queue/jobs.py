"""How a job comes into its queue, whoever wants it: a request, or a batch. Wire layer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Literal, cast

from redis import Redis
from rq.exceptions import DuplicateJobError, InvalidJobOperation
from rq.job import Job, JobStatus
from rq.results import Result
from rq.serializers import JSONSerializer

from models.data.images import MAX_PIXELS
from worker.queue.events import add_event
from worker.queue.rq import TaskQueue
from worker.queue.schema import (
    FAILURE_SECONDS,
    RESULT_SECONDS,
    JobFailure,
    JobRequest,
    JobResult,
    Record,
)
from worker.storage import BlobStore

# What became of a job, in the API's words. Wire layer.

Status = Literal["queued", "running", "finished", "failed", "canceled"]

TERMINAL: Final[frozenset[Status]] = frozenset({"finished", "failed", "canceled"})
"""What a job ends with, unless the same is posted again."""

_STATUS: Final[dict[JobStatus, Status]] = {
    JobStatus.STARTED: "running",
    JobStatus.FINISHED: "finished",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELED: "canceled",
    JobStatus.STOPPED: "canceled",
}


def status_of(job: Job) -> Status:
    """Return a job's status in the API's words."""
    return status_word(job.get_status(refresh=False))


def status_word(status: JobStatus) -> Status:
    """Return RQ's status in the API's words."""
    return _STATUS.get(status, "queued")


def request_of(job: Job) -> JobRequest:
    """Return what a job was asked to do."""
    return JobRequest.model_validate(job.args[0])


def result_of(job: Job) -> JobResult | None:
    """Return what came out of a job, or None if it is not finished, or its result has expired."""
    if status_of(job) != "finished":
        return None
    value = job.return_value()
    return JobResult.model_validate(value) if value is not None else None


def results_of(redis: Redis, job_ids: Sequence[str]) -> dict[str, JobResult]:
    """Return what came out of those of some jobs whose result there is, in one round trip."""
    with redis.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.xrevrange(Result.get_key(job_id), count=1)  # type: ignore[no-untyped-call]
        answers: list[list[tuple[bytes, Any]]] = pipeline.execute()
    found = {}
    for job_id, entries in zip(job_ids, answers, strict=True):
        for identity, payload in entries:
            stored = Result.restore(
                job_id, identity.decode(), payload, connection=redis, serializer=JSONSerializer
            )
            if stored.return_value is not None:
                found[job_id] = JobResult.model_validate(stored.return_value)
    return found


def failure_of(job: Job) -> JobFailure:
    """Return why a job failed."""
    noted = job.meta.get("failure")
    if noted is not None:
        return JobFailure.model_validate(noted)
    # Nobody was there to note it: its worker died before it had the job in its hands.
    return JobFailure(code="worker_died", detail="the job's workers died", repeatable=True)


class Limits(Record):
    """How much is taken on; see service.settings."""

    max_queue: int = 1000
    job_timeout: int = 120
    job_timeout_per_megapixel: float = 5.0
    job_timeout_max: int = 300
    max_pixels: int = MAX_PIXELS

    def timeout(self, pixels: int) -> int:
        """Return the whole seconds that a job on so many pixels may take, at least 1."""
        seconds = self.job_timeout + self.job_timeout_per_megapixel * pixels / 1e6
        return max(1, round(min(seconds, self.job_timeout_max)))


def runs_again(job: Job, blobs: BlobStore) -> bool:
    """Return whether a job that there is already is to run again when the same is wanted once more.

    That is so if it was canceled, failed for a reason that may have passed, or lost a file that its answers need.

    Raises:
        BlobError: if the store does not say what it has.
    """
    status = status_of(job)
    if status == "failed":
        return failure_of(job).repeatable
    if status == "finished":
        result = result_of(job)
        if result is None:
            return True
        keys = (request_of(job).image, *result.blobs.model_dump().values())
        return not all(map(blobs.exists, keys))
    return status == "canceled"


def enqueue(queue: TaskQueue, job: Job, *, earlier: Job | None) -> bool:
    """Queue a job whose image is stored; return False if the same was queued just now.

    Args:
        queue: of its model.
        job: new.
        earlier: the same from before, which is forgotten.

    Raises:
        RedisError: if Redis is away.
    """
    if earlier is not None:
        with suppress(InvalidJobOperation):  # it expired just now
            earlier.delete()
    with queue.connection.pipeline() as pipeline:
        add_event(pipeline, job.id, "status", {"status": "queued"})
        pipeline.sadd(queue.redis_queues_keys, queue.key)
        pipeline.execute()
        try:
            # With a pipeline RQ does not go to Redis for the set of queues, which has just been written.
            queue.enqueue_job(job, pipeline=pipeline, unique=True)
        except DuplicateJobError:
            return False
    return True


# How fast a queue's jobs are done, and whether Redis has room for more. Wire layer.

RATE_SECONDS: Final = 60
"""How far back the rate of finished jobs is looked at."""

MEMORY_SHARE: Final = 0.75
"""Of Redis's memory, beyond which batches wait: a full Redis would take nobody's jobs."""


def jobs_done_lately(queue: TaskQueue, *, now: float) -> int:
    """Return how many jobs of a queue came to an end in the last minute.

    RQ keeps them sorted by the moment they expire, which is a fixed time after their end.

    Args:
        queue: a model's.
        now: seconds since the epoch.

    Raises:
        RedisError: if Redis is away.
    """
    since = now - RATE_SECONDS
    with queue.connection.pipeline(transaction=False) as pipeline:
        pipeline.zcount(queue.finished_job_registry.key, since + RESULT_SECONDS, "+inf")
        pipeline.zcount(queue.failed_job_registry.key, since + FAILURE_SECONDS, "+inf")
        return sum(cast("list[int]", pipeline.execute()))


def memory_in_use(redis: Redis) -> float:
    """Return the share of Redis's memory that is in use; 0 if it has no bound.

    Raises:
        RedisError: if Redis is away.
    """
    told = cast("dict[str, int]", redis.info("memory"))
    most = told.get("maxmemory", 0)
    return told["used_memory"] / most if most else 0.0
