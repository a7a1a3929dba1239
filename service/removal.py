"""Forgetting a job: its record, and the blobs that no other job names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import cast

from redis import Redis
from rq.exceptions import InvalidJobOperation
from rq.job import Job
from rq.serializers import JSONSerializer

from worker.batches.records import kept
from worker.queue.events import events_key
from worker.queue.jobs import request_of, results_of
from worker.queue.rq import AllowedJob, TaskQueue, withdraw_cancel
from worker.queue.schema import JobResult
from worker.storage import BlobStore

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
