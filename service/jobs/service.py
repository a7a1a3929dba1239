"""Jobs as the API knows them: submit, find, read. Calls block, so routes run them in threads."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, cast

from redis import Redis
from rq.exceptions import InvalidJobOperation
from rq.job import Job
from rq.serializers import JSONSerializer

from service.api.errors import ProblemError
from service.jobs.results import Finished, Results
from service.middleware.observability import origin
from worker.batches.records import kept
from worker.queue.events import events_key
from worker.queue.jobs import (
    RATE_SECONDS,
    Limits,
    enqueue,
    failure_of,
    jobs_done_lately,
    request_of,
    result_of,
    results_of,
    runs_again,
    status_of,
)
from worker.queue.rq import (
    AllowedJob,
    TaskQueue,
    fetch_job,
    make_job,
    open_queue,
    take_back,
    want,
    withdraw_cancel,
)
from worker.queue.schema import RESULT_SECONDS, JobRequest, JobResult, Options, idempotency_key
from worker.storage import BlobStore
from worker.webhooks.store import Recipient, register

# How full a queue is, and when it is worth asking again.

MAX_RETRY_SECONDS: Final = 600

SURGE: Final = 500
"""More posts than can be between their look at a queue's length and its end at once: 40 threads an API process."""


def seconds_to_wait(waiting: int, done_lately: int) -> int:
    """Return when the jobs that wait now are done if it goes on like this: 1 to 600 seconds.

    Where nothing was done in the last minute nobody knows; then it is a minute.
    """
    if not done_lately:
        return RATE_SECONDS
    return min(max(1, math.ceil(waiting * RATE_SECONDS / done_lately)), MAX_RETRY_SECONDS)


def keep_place(queue: TaskQueue, job: Job, *, places: int) -> bool:
    """Take a job that was just queued back if it is beyond the queue's places; return whether it stays.

    Many posts at once all see the same last place. Positions only ever fall, so those beyond go, and nobody else.

    Raises:
        RedisError: if Redis is away.
    """
    position = queue.get_job_position(job.id)
    if position is None or position < places:
        return True
    if not queue.connection.lrem(queue.key, 1, job.id):  # a worker has just taken it
        return True
    job.delete()
    return False


# Forgetting a job: its record, and the blobs that no other job names.

_CHUNK = 500  # jobs that are looked at in one round trip


def remove_job(redis: Redis, blobs: BlobStore, job: Job, result: JobResult | None) -> None:
    """Delete a job that is over, and its blobs unless a batch, or a job that waits, runs or is finished names
    them too.

    Blobs are named by their content, so two jobs on one photo share it, and two that find nothing share their masks.
    Who shares them is known from the jobs alone: all of them are looked at. A job that comes to name a blob in the very
    moment runs again when it is posted again.

    Args:
        redis: where jobs are.
        blobs: where files are.
        job: to forget.
        result: what came of it, if anything.

    Raises:
        BlobError: if the store does not let a blob be deleted; the record is still there.
    """
    keys = {request_of(job).image, *(result.blobs.model_dump().values() if result else ())}
    for key in keys - _named_by_others(redis, job.id) - kept(redis, sorted(keys)):
        blobs.delete(key)
    with suppress(InvalidJobOperation):  # it expired just now
        job.delete()
    redis.delete(events_key(job.id))
    withdraw_cancel(redis, job.id)


def _named_by_others(redis: Redis, job_id: str) -> set[str]:
    named = set()
    queues = TaskQueue.all(connection=redis, job_class=AllowedJob, serializer=JSONSerializer)
    for queue in cast("list[TaskQueue]", queues):
        for chunk in _chunks(_living(queue, without=job_id)):
            named |= _images(redis, chunk) | _files(redis, chunk)
    return named


def _living(queue: TaskQueue, *, without: str) -> list[str]:
    taken = cast("list[bytes]", queue.connection.lrange(queue.intermediate_queue_key, 0, -1))
    found = {*queue.get_job_ids(), *(each.decode() for each in taken)}
    for registry in (queue.started_job_registry, queue.finished_job_registry):
        found |= set(registry.get_job_ids(cleanup=False))
    return sorted(found - {without})


def _chunks(job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(job_ids), _CHUNK):
        yield job_ids[start : start + _CHUNK]


def _images(redis: Redis, job_ids: Sequence[str]) -> set[str]:
    jobs = AllowedJob.fetch_many(job_ids, connection=redis, serializer=JSONSerializer)
    return {request_of(job).image for job in jobs if job is not None}


def _files(redis: Redis, job_ids: Sequence[str]) -> set[str]:
    results = results_of(redis, job_ids).values()
    return {key for result in results for key in result.blobs.model_dump().values()}


# A client's Idempotency-Key: the same key stands for the same request, and for its job.


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
