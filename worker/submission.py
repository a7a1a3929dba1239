"""How a job comes into its queue, whoever wants it: a request, or a batch. Wire layer."""

from __future__ import annotations

from contextlib import suppress

from rq.exceptions import DuplicateJobError, InvalidJobOperation
from rq.job import Job

from models.data.images import MAX_PIXELS
from worker.blobs import BlobStore
from worker.events import add_event
from worker.outcome import failure_of, request_of, result_of, status_of
from worker.protocol import Record
from worker.queues import TaskQueue


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
