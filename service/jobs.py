"""Jobs as the API knows them: submit, find, read. Calls block, so routes run them in threads."""

from __future__ import annotations

import time

from redis import Redis
from rq.job import Job

from service.backlog import SURGE, keep_place, seconds_to_wait
from service.errors import ProblemError
from service.idempotency import remember, remembered
from service.observe import origin
from service.removal import remove_job
from service.results import Finished, Results
from worker.queue.jobs import (
    Limits,
    enqueue,
    failure_of,
    jobs_done_lately,
    request_of,
    result_of,
    runs_again,
    status_of,
)
from worker.queue.rq import TaskQueue, fetch_job, make_job, open_queue, take_back, want
from worker.queue.schema import JobRequest, JobResult, Options
from worker.storage import BlobStore
from worker.webhooks.store import Recipient, register


class Jobs:
    """The queue and the blob store, seen from the API.

    Args:
        redis: where jobs and announcements are.
        blobs: where uploads go and results come from.
        limits: how much is taken on.

    All methods raise RedisError if Redis is away and BlobError if the store is.
    """

    def __init__(self, redis: Redis, blobs: BlobStore, limits: Limits) -> None:
        self.limits = limits
        self._redis = redis
        self._blobs = blobs
        self._queues: dict[str, TaskQueue] = {}

    def submit(
        self,
        request: JobRequest,
        data: bytes,
        *,
        pixels: int,
        token: str | None = None,
        tell: Recipient | None = None,
    ) -> Job:
        """Return the job of a request: a new one, or the one that there is already.

        A job that failed for a reason that may have passed, and one whose files have expired, runs
        again.

        Args:
            request: checked.
            data: the image's bytes.
            pixels: the image's width times height; decides how long the job may take, and nothing else.
            token: the client's Idempotency-Key.
            tell: who wants to hear of the job's end, even if it has ended already.

        Raises:
            ProblemError: if the queue is full, or the token was used for another request.
            CallbacksFullError: if too many wait to hear of jobs.
        """
        job_id = (remembered(self._redis, token, request) if token else None) or request.job_id()
        # Before the look at it: its worker may be about to leave it.
        known = want(self._redis, job_id)
        job = fetch_job(self._redis, job_id) if known else None
        if job is not None and not runs_again(job, self._blobs):
            if token:
                remember(self._redis, token, request)
            self._note(job.id, tell)
            return job
        new = make_job(self._redis, request, timeout=self.limits.timeout(pixels))
        job = self._enqueue(new, request, data, earlier=job, tell=tell)
        if token:
            remember(self._redis, token, request)
        return job

    def _enqueue(
        self,
        job: Job,
        request: JobRequest,
        data: bytes,
        *,
        earlier: Job | None,
        tell: Recipient | None,
    ) -> Job:
        queue, places = self._queue(request.model.name), self.limits.max_queue
        waiting = queue.count
        if waiting >= places:
            raise _queue_full(queue, waiting)
        # The image goes first: a worker may take the job at once.
        self._blobs.put("uploads", data)
        job.meta.update(origin())
        self._note(job.id, tell)  # before the job can end
        if not enqueue(
            queue, job, earlier=earlier
        ):  # another request with the same content was faster, or a batch
            want(self._redis, job.id)
            return self.find(job.id)
        if waiting + SURGE >= places and not keep_place(queue, job, places=places):
            raise _queue_full(queue, places)
        return job

    def find(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            ProblemError: if it is unknown or expired.
        """
        job = fetch_job(self._redis, job_id)
        if job is None:
            raise ProblemError("unknown-job", "no such job; results are kept for a day")
        return job

    def cancel(self, job: Job) -> Job:
        """Take a job back, and return it as it is then.

        One that waits is canceled at once; one that runs is left by its worker as soon as that looks up; what is
        finished, failed or canceled stays so.
        """
        if status_of(job) not in ("queued", "running"):
            return job
        take_back(self._queue(request_of(job).model.name), job)
        return self.find(job.id)

    def remove(self, job_id: str) -> None:
        """Forget a job and all that came of it; an unknown one is forgotten already."""
        job = fetch_job(self._redis, job_id)
        if job is not None:
            remove_job(self._redis, self._blobs, job, self.result(job))

    def position(self, job: Job) -> int | None:
        """Return how many jobs are before a queued one, or None if it is not in the queue."""
        if status_of(job) != "queued":
            return None
        return self._queue(request_of(job).model.name).get_job_position(job.id)

    def result(self, job: Job) -> JobResult | None:
        """Return what came out of a job, or None if it is not finished."""
        return result_of(job)

    def mask(self, job: Job) -> bytes:
        """Return a finished job's mask, a PNG.

        Raises:
            ProblemError: if the job is not finished, or has failed.
            BlobMissingError: if the file has expired.
        """
        return self._blobs.get(self._finished(job).blobs.mask)

    def finished(self, job_id: str) -> Finished:
        """Return a finished job.

        Raises:
            ProblemError: if it is unknown, not finished, or has failed.
        """
        job = self.find(job_id)
        return Finished(job.id, request_of(job), self._finished(job))

    def results(self, job: Finished, options: Options) -> Results:
        """Return a finished job's files, decided as some options say."""
        return Results(job, options, self._blobs, max_pixels=self.limits.max_pixels)

    def _finished(self, job: Job) -> JobResult:
        result = self.result(job)
        if result is not None:
            return result
        status = status_of(job)
        if status == "failed":
            failure = failure_of(job)
            raise ProblemError("job-failed", failure.detail, code=failure.code)
        if status == "finished":
            raise ProblemError("unknown-job", "the job's result has expired")
        raise ProblemError("job-not-ready", f"the job is {status}", job_status=status)

    def _queue(self, model: str) -> TaskQueue:
        if model not in self._queues:
            self._queues[model] = open_queue(self._redis, model)
        return self._queues[model]

    def _note(self, job_id: str, tell: Recipient | None) -> None:
        if tell is not None:
            register(self._redis, job_id, tell, now=time.time())


def _queue_full(queue: TaskQueue, waiting: int) -> ProblemError:
    seconds = seconds_to_wait(waiting, jobs_done_lately(queue, now=time.time()))
    detail = f"{waiting} jobs are waiting already, for about {seconds} s"
    return ProblemError("queue-full", detail, headers={"Retry-After": str(seconds)})
