"""Jobs behind the HTTP API: submit, find, cancel, delete. All calls block: routes run them in threads."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from redis import Redis
from rq.exceptions import InvalidJobOperation
from rq.job import Job

from models.inference.masks import MaskOptions
from service.api.errors import ProblemError
from service.jobs.results import FinishedJob, JobResults
from service.middleware.observability import request_context
from worker.batches.store import BatchStore
from worker.queue.jobs import (
    Limits,
    failure_of,
    request_of,
    result_of,
    results_of,
    status_of,
    submit,
)
from worker.queue.rq import (
    RATE_SECONDS,
    JobQueue,
    clear_cancel,
    fetch_job,
    fetch_jobs,
    job_queues,
    make_job,
)
from worker.queue.schema import JobRequest, JobResult, events_key
from worker.storage import BlobStore
from worker.webhooks.store import Recipient, register

_MAX_RETRY_SECONDS: Final = 600
_RACE_MARGIN: Final = 500  # posts at once; one API process has 40 threads
_CHUNK: Final = 500  # jobs that are read in one round trip


class JobService:
    """The queue and the blob store, as the API uses them; all methods raise RedisError and BlobError."""

    def __init__(self, redis: Redis, blobs: BlobStore, limits: Limits) -> None:
        self.limits = limits
        self._redis = redis
        self._blobs = blobs
        self._queues: dict[str, JobQueue] = {}

    def submit(self, request: JobRequest, data: bytes, *, pixels: int, callback: Recipient | None = None) -> Job:
        """Return the job of a request: a new one, or the existing one of the same content.

        A job that failed for a transient reason, was canceled, or has lost its files runs again. ``pixels`` decides
        the timeout. Raises ProblemError if the queue is full, CallbacksFullError if too many callbacks are waiting.
        """
        queue, limit = self._queue(request.model.name), self.limits.max_queue
        waiting, registered = 0, False
        new = make_job(self._redis, request, timeout=self.limits.timeout(pixels))
        new.meta.update(request_context())

        def prepare() -> None:
            nonlocal waiting, registered
            waiting = queue.interactive.count
            if waiting >= limit:
                raise _queue_full(queue, waiting)
            # The image first: a worker may fetch the job at once. The callback before the job can end.
            self._blobs.put("uploads", data)
            self._register(new.id, callback)
            registered = True

        job, is_new = submit(queue, self._blobs, new, prepare, max_queue=limit)
        if not is_new:
            if not registered:  # or another post of the same was faster, and the callback would come twice
                self._register(job.id, callback)
        elif waiting + _RACE_MARGIN >= limit and not _enforce_queue_limit(queue, job, limit=limit):
            raise _queue_full(queue, limit)
        return job

    def find(self, job_id: str) -> Job:
        """Return a job; ProblemError if it is unknown or expired."""
        job = fetch_job(self._redis, job_id)
        if job is None:
            raise ProblemError("unknown-job", "no such job; results are kept for a day")
        return job

    def cancel(self, job: Job) -> Job:
        """Cancel a job and return its new state; one that runs is canceled when its worker next checks."""
        if status_of(job) not in ("queued", "running"):
            return job
        self._queue(request_of(job).model.name).request_cancel(job)
        return self.find(job.id)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with its events and files; an unknown one is no error.

        Files that a batch, or another job that waits, runs or is finished, names as well are kept: blobs are named by
        their content. A job that comes to name one at this very moment runs again when it is posted again. After a
        BlobError the job's record is kept.
        """
        job = fetch_job(self._redis, job_id)
        if job is None:
            return
        result = result_of(job)
        keys = {request_of(job).image, *(result.blobs.model_dump().values() if result else ())}
        shared = self._blobs_of_other_jobs(job_id) | BatchStore(self._redis).pinned(sorted(keys))
        for key in keys - shared:
            self._blobs.delete(key)
        with suppress(InvalidJobOperation):  # it expired just now
            job.delete()
        self._redis.delete(events_key(job_id))
        clear_cancel(self._redis, job_id)

    def position(self, job: Job) -> int | None:
        """Return how many jobs are before a queued one, or None if it is not in the queue."""
        if status_of(job) != "queued":
            return None
        return self._queue(request_of(job).model.name).position(job)

    def finished(self, job_id: str) -> FinishedJob:
        """Return a finished job; ProblemError if it is unknown, not finished, or has failed."""
        job = self.find(job_id)
        result = result_of(job)
        if result is not None:
            return FinishedJob(job.id, request_of(job), result)
        status = status_of(job)
        if status == "failed":
            failure = failure_of(job)
            raise ProblemError("job-failed", failure.detail, code=failure.code)
        if status == "finished":
            raise ProblemError("unknown-job", "the job's result has expired")
        raise ProblemError("job-not-ready", f"the job is {status}", job_status=status)

    def results(self, job: FinishedJob, options: MaskOptions | None = None) -> JobResults:
        """Return a finished job's files, as its own or other options decide."""
        chosen = job.result.options if options is None else options
        return JobResults(job, chosen, self._blobs, max_pixels=self.limits.max_pixels)

    def _queue(self, model: str) -> JobQueue:
        if model not in self._queues:
            self._queues[model] = JobQueue(self._redis, model)
        return self._queues[model]

    def _register(self, job_id: str, callback: Recipient | None) -> None:
        if callback is not None:
            register(self._redis, job_id, callback, now=time.time())

    def _blobs_of_other_jobs(self, job_id: str) -> set[str]:
        named: set[str] = set()
        for queue in job_queues(self._redis):
            others = sorted(queue.unfailed_job_ids() - {job_id})
            for start in range(0, len(others), _CHUNK):
                named |= self._blobs_of(others[start : start + _CHUNK])
        return named

    def _blobs_of(self, job_ids: Sequence[str]) -> set[str]:
        jobs = fetch_jobs(self._redis, job_ids)
        images = {request_of(job).image for job in jobs if job is not None}
        results: Sequence[JobResult] = list(results_of(self._redis, job_ids).values())
        return images | {key for each in results for key in each.blobs.model_dump().values()}


def _seconds_to_wait(waiting: int, done_lately: int) -> int:
    """Return when the waiting jobs will be done at the last minute's rate: 1 to 600 seconds, 60 without a rate."""
    if not done_lately:
        return RATE_SECONDS
    return min(max(1, math.ceil(waiting * RATE_SECONDS / done_lately)), _MAX_RETRY_SECONDS)


def _enforce_queue_limit(queue: JobQueue, job: Job, *, limit: int) -> bool:
    """Remove a job that was just queued if it is beyond the queue's limit; return whether it stays."""
    position = queue.position(job)
    return position is None or position < limit or not queue.withdraw(job)


def _queue_full(queue: JobQueue, waiting: int) -> ProblemError:
    seconds = _seconds_to_wait(waiting, queue.ended_lately(now=time.time()))
    detail = f"{waiting} jobs are waiting already, for about {seconds} s"
    return ProblemError("queue-full", detail, headers={"Retry-After": str(seconds)})
