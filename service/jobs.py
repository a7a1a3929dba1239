"""Jobs as the API knows them: submit, find, read. Calls block, so routes run them in threads."""

from __future__ import annotations

import hashlib
import io
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from PIL import Image
from redis import Redis
from rq.exceptions import DuplicateJobError, InvalidJobOperation
from rq.job import Job

from models.images import MAX_PIXELS, read_image
from models.pictures import overlay_png
from service.backlog import SURGE, jobs_done_lately, keep_place, seconds_to_wait
from service.errors import ProblemError
from service.observe import origin
from worker.blobs import BlobStore
from worker.callbacks import Recipient, register
from worker.cancel import ask_to_cancel, cancel_waiting, withdraw_cancel
from worker.outcome import failure_of, request_of, status_of
from worker.protocol import RESULT_SECONDS, JobRequest, JobResult, idempotency_key
from worker.queues import TaskQueue, fetch_job, make_job, open_queue

ResultFile = Literal["mask", "scores"]


@dataclass(frozen=True)
class Limits:
    """How much the API takes on; see service.settings."""

    max_queue: int = 1000
    job_timeout: int = 120
    job_timeout_per_megapixel: float = 5.0
    job_timeout_max: int = 300
    max_pixels: int = MAX_PIXELS

    def timeout(self, pixels: int) -> int:
        """Return the whole seconds that a job on so many pixels may take, at least 1."""
        seconds = self.job_timeout + self.job_timeout_per_megapixel * pixels / 1e6
        return max(1, round(min(seconds, self.job_timeout_max)))


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
        job_id = (self._remembered(token, request) if token else None) or request.job_id()
        # Before the look at it: its worker may be about to leave it.
        withdraw_cancel(self._redis, job_id)
        job = fetch_job(self._redis, job_id)
        if job is not None and not self._runs_again(job):
            if token:
                self._remember(token, request)
            self._note(job.id, tell)
            return job
        new = make_job(self._redis, request, timeout=self.limits.timeout(pixels))
        self._note(new.id, tell)  # before the job can end
        job = self._enqueue(new, request, data, earlier=job)
        if token:
            self._remember(token, request)
        return job

    def _enqueue(self, job: Job, request: JobRequest, data: bytes, *, earlier: Job | None) -> Job:
        queue, places = self._queue(request.model.name), self.limits.max_queue
        waiting = queue.count
        if waiting >= places:
            raise _queue_full(queue, waiting)
        if earlier is not None:
            with suppress(InvalidJobOperation):  # it expired just now
                earlier.delete()
        # The image goes first: a worker may take the job at once.
        self._blobs.put("uploads", data)
        job.meta.update(origin())
        try:
            queue.enqueue_job(job, unique=True)
        except DuplicateJobError:  # another request with the same content was faster
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
        # First the wish: a worker that takes the job meanwhile finds it.
        ask_to_cancel(self._redis, job.id)
        cancel_waiting(self._queue(request_of(job).model.name), job)
        return self.find(job.id)

    def position(self, job: Job) -> int | None:
        """Return how many jobs are before a queued one, or None if it is not in the queue."""
        if status_of(job) != "queued":
            return None
        return self._queue(request_of(job).model.name).get_job_position(job.id)

    def result(self, job: Job) -> JobResult | None:
        """Return what came out of a job, or None if it is not finished."""
        if status_of(job) != "finished":
            return None
        value = job.return_value()
        return JobResult.model_validate(value) if value is not None else None

    def file(self, job: Job, file: ResultFile) -> bytes:
        """Return one of a finished job's files.

        Raises:
            ProblemError: if the job is not finished, or has failed.
            BlobMissingError: if the file has expired.
        """
        return self._blobs.get(cast("str", getattr(self._finished(job).blobs, file)))

    def overlay(self, job: Job) -> bytes:
        """Draw a finished job's mask over its image, as a PNG.

        Raises:
            ProblemError: if the job is not finished, or has failed.
            BlobMissingError: if image or mask have expired.
        """
        mask = self.file(job, "mask")
        image = read_image(
            self._blobs.get(request_of(job).image), max_pixels=self.limits.max_pixels
        )
        return overlay_png(image.pixels, np.array(Image.open(io.BytesIO(mask))))

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

    def _runs_again(self, job: Job) -> bool:
        status = status_of(job)
        if status == "failed":
            return failure_of(job).repeatable
        if status == "finished":
            result = self.result(job)
            return result is None or not self._has_files(request_of(job), result)
        return status == "canceled"

    def _has_files(self, request: JobRequest, result: JobResult) -> bool:
        """Whether all is still there that a finished job's answers are made from."""
        keys = (request.image, *result.blobs.model_dump().values())
        return all(map(self._blobs.exists, keys))

    def _note(self, job_id: str, tell: Recipient | None) -> None:
        if tell is not None:
            register(self._redis, job_id, tell, now=time.time())

    def _remembered(self, token: str, request: JobRequest) -> str | None:
        """Return the id of the job that a token stands for, if it was used before."""
        stored = cast("bytes | None", self._redis.get(idempotency_key(token)))
        if stored is None:
            return None
        memory = json.loads(stored)
        if memory["request"] != _fingerprint(request):
            raise ProblemError("idempotency-key-reused", "this key belongs to another request")
        return str(memory["job"])

    def _remember(self, token: str, request: JobRequest) -> None:
        memory = {"job": request.job_id(), "request": _fingerprint(request)}
        key = idempotency_key(token)
        if not self._redis.set(key, json.dumps(memory), ex=RESULT_SECONDS, nx=True):
            self._remembered(token, request)  # another request was faster: it must be the same


def _queue_full(queue: TaskQueue, waiting: int) -> ProblemError:
    seconds = seconds_to_wait(waiting, jobs_done_lately(queue, now=time.time()))
    detail = f"{waiting} jobs are waiting already, for about {seconds} s"
    return ProblemError("queue-full", detail, headers={"Retry-After": str(seconds)})


def _fingerprint(request: JobRequest) -> str:
    """What a client asked for; not the model's version, which may change between two tries."""
    asked = request.model_dump(mode="json", exclude={"model": {"version"}})
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
