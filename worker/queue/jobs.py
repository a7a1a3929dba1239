"""Submission of a job, its status, request, result and failure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, cast

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from rq.job import Job, JobStatus

from models.data.images import MAX_PIXELS
from worker.queue.rq import JobQueue, clear_cancel, fetch_job, fetch_return_values
from worker.queue.schema import JobFailure, JobRequest, JobResult, Record
from worker.storage import BlobStore

Status = Literal["queued", "running", "finished", "failed", "canceled"]

FINISHED_STATUSES: Final[frozenset[Status]] = frozenset({"finished", "failed", "canceled"})
"""What a job ends with, unless the same is posted again."""

MEMORY_SHARE: Final = 0.75
"""Of Redis's memory, beyond which batches wait: a full Redis would take nobody's jobs."""

_STATUS: Final[dict[JobStatus, Status]] = {
    JobStatus.STARTED: "running",
    JobStatus.FINISHED: "finished",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELED: "canceled",
    JobStatus.STOPPED: "canceled",
}


class Limits(Record):
    """How much the service accepts; see service.settings."""

    max_queue: int = 1000
    job_timeout: int = 120
    job_timeout_per_megapixel: float = 5.0
    job_timeout_max: int = 300
    max_pixels: int = MAX_PIXELS

    def timeout(self, pixels: int) -> int:
        """Return the whole seconds that a job on so many pixels may take, at least 1."""
        seconds = self.job_timeout + self.job_timeout_per_megapixel * pixels / 1e6
        return max(1, round(min(seconds, self.job_timeout_max)))


def read_status(redis: Redis, job_ids: Iterable[str]) -> dict[str, Status | None]:
    """Return the status of each job as Redis has it now, None if it is unknown or expired; in one round trip."""
    names = list(dict.fromkeys(job_ids))
    with redis.pipeline(transaction=False) as pipeline:
        for job_id in names:
            pipeline.hget(Job.key_for(job_id), "status")
        stored = cast("list[bytes | None]", pipeline.execute())
    return {job_id: _status(each) for job_id, each in zip(names, stored, strict=True)}


async def read_status_async(redis: AsyncRedis, job_id: str) -> Status | None:
    """Return a job's status as ``read_status`` does, without a thread."""
    return _status(cast("bytes | None", await redis.hget(Job.key_for(job_id), "status")))


def _status(stored: bytes | None) -> Status | None:
    return None if stored is None else _STATUS.get(JobStatus(stored.decode()), "queued")


def status_of(job: Job) -> Status:
    """Return the status that a job had when it was fetched."""
    return _STATUS.get(job.get_status(refresh=False), "queued")


def request_of(job: Job) -> JobRequest:
    """Return what a job was asked to do."""
    return JobRequest.model_validate(job.args[0])


def result_of(job: Job) -> JobResult | None:
    """Return a job's result, or None if it is not finished, or its result has expired."""
    if status_of(job) != "finished":
        return None
    value = job.return_value()
    return JobResult.model_validate(value) if value is not None else None


def results_of(redis: Redis, job_ids: Sequence[str]) -> dict[str, JobResult]:
    """Return the results of those of some jobs that have one, in one round trip."""
    values = fetch_return_values(redis, job_ids)
    return {job_id: JobResult.model_validate(value) for job_id, value in values.items()}


def failure_of(job: Job) -> JobFailure:
    """Return why a job failed."""
    noted = job.meta.get("failure")
    if noted is not None:
        return JobFailure.model_validate(noted)
    # RQ's own maintenance ended it, which writes no reason of ours.
    return JobFailure(code="worker_died", detail="the job's workers died", repeatable=True)


def _should_rerun(job: Job, blobs: BlobStore) -> bool:
    """Return whether posting the same request runs an existing job again."""
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


def submit(
    queue: JobQueue,
    blobs: BlobStore,
    job: Job,
    prepare: Callable[[], object],
    *,
    max_queue: int,
    batch: bool = False,
) -> tuple[Job, bool]:
    """Queue a new job unless the same one exists and need not run again; return the job and whether it was queued.

    ``prepare`` is called before it is queued: it stores the image, and may raise. An item of a ``batch`` waits behind
    interactive jobs; posted again without ``batch``, it becomes one of them if fewer than ``max_queue`` wait.
    """
    # The cancel flag goes first: a worker may be about to drop the job.
    if batch:
        clear_cancel(queue.redis, job.id)
    known = batch or queue.clear_cancel_on_repost(job.id, max_queue=max_queue)
    earlier = fetch_job(queue.redis, job.id) if known else None
    if earlier is not None and not _should_rerun(earlier, blobs):
        return earlier, False
    prepare()
    if queue.enqueue(job, earlier=earlier, batch=batch):
        return job, True
    if not batch:  # the same was queued just now, maybe by a batch
        queue.clear_cancel_on_repost(job.id, max_queue=max_queue)
    return fetch_job(queue.redis, job.id) or job, False


def memory_in_use(redis: Redis) -> float:
    """Return the share of Redis's memory that is in use; 0 if it has no bound."""
    info = cast("dict[str, int]", redis.info("memory"))
    most = info.get("maxmemory", 0)
    return info["used_memory"] / most if most else 0.0
