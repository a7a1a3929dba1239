"""From the queue into a worker's hands, many jobs in a few round trips.

RQ's own way takes one job at a time, and a dozen round trips with it. The steps are the same: through the intermediate
list, so that a worker that dies in between loses nothing, then in one transaction to a lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast
from uuid import uuid4

from redis.client import Pipeline
from rq.exceptions import NoSuchJobError
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job, JobStatus
from rq.registry import CanceledJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import now, utcformat

from worker.cancel import canceled
from worker.protocol import RESULT_SECONDS
from worker.queues import AllowedJob, TaskQueue, fetch_job


def take(queue: TaskQueue, most: int) -> list[Job]:
    """Move jobs into the intermediate list, without waiting for any, and return them."""
    if most < 1:
        return []
    redis, intermediate = queue.connection, queue.intermediate_queue_key
    with redis.pipeline(transaction=False) as pipeline:
        for _ in range(most):
            pipeline.lmove(queue.key, intermediate)
        moved = cast("list[bytes | None]", pipeline.execute())
    job_ids = list(dict.fromkeys(job_id.decode() for job_id in moved if job_id is not None))
    if not job_ids:
        return []
    found = _fetch(queue, job_ids)
    for job_id, job in zip(job_ids, found, strict=True):
        if job is None:  # expired while it waited
            redis.lrem(intermediate, 0, job_id)
    return [job for job in found if job is not None]


def _fetch(queue: TaskQueue, job_ids: Sequence[str]) -> list[Job | None]:
    """Return jobs, None where there is none or not a whole one: RQ's fetch of many gives up at the first such."""
    redis = queue.connection
    try:
        return AllowedJob.fetch_many(job_ids, connection=redis, serializer=JSONSerializer)
    except NoSuchJobError:
        return [fetch_job(redis, job_id) for job_id in job_ids]


def give_back(queue: TaskQueue, jobs: Sequence[Job]) -> None:
    """Put taken jobs back to the front of the queue, in their order; twice is once."""
    for job in reversed(jobs):
        queue.intermediate_queue.give_back(job.id)


def leave_ended(queue: TaskQueue, jobs: Sequence[Job]) -> list[Job]:
    """Return the taken jobs that wait; one that was in the queue twice has been worked on already."""
    ended = [job for job in jobs if job.get_status(refresh=False) != JobStatus.QUEUED]
    for job in ended:
        queue.connection.lrem(queue.intermediate_queue_key, 0, job.id)
    return [job for job in jobs if job not in ended]


def leave_canceled(queue: TaskQueue, jobs: Sequence[Job]) -> list[Job]:
    """Return the taken jobs that are still wanted; the others are canceled for good."""
    unwanted = canceled(queue.connection, [job.id for job in jobs])
    if not unwanted:
        return list(jobs)
    with queue.connection.pipeline() as pipeline:
        for job in jobs:
            if job.id in unwanted:
                mark_canceled(job, pipeline)
                pipeline.lrem(queue.intermediate_queue_key, 0, job.id)
        pipeline.execute()
    return [job for job in jobs if job.id not in unwanted]


def mark_canceled(job: Job, pipeline: Pipeline) -> None:
    """Write a job's end into a pipeline: canceled, and known as such for as long as a result would be."""
    job.set_status(JobStatus.CANCELED, pipeline=pipeline)
    pipeline.hset(job.key, "ended_at", utcformat(now()))
    registry = CanceledJobRegistry(
        job.origin, connection=job.connection, job_class=AllowedJob, serializer=JSONSerializer
    )
    registry.add(job, ttl=RESULT_SECONDS, pipeline=pipeline)
    job.cleanup(RESULT_SECONDS, pipeline=pipeline, remove_from_queue=False)


def queue_again(queue: TaskQueue, job: Job, pipeline: Pipeline) -> None:
    """Write into a pipeline that a job waits again, before all others."""
    job.set_status(JobStatus.QUEUED, pipeline=pipeline)
    job.cleanup(job.ttl, pipeline=pipeline, remove_from_queue=False)
    pipeline.lpush(queue.key, job.id)


def new_execution(job: Job, *, worker: str) -> Execution:
    """Return what a lease of a job will be known by."""
    execution = Execution(uuid4().hex, job.id, job.connection, worker_name=worker)
    execution._job = job  # otherwise RQ fetches it again, as a job of any task
    return execution


def lease(queue: TaskQueue, executions: Sequence[Execution], *, seconds: int) -> int:
    """Take leases of taken jobs, which start now, and clear them from the intermediate list.

    Returns how many other jobs wait in the queue.

    As RQ's ``Execution.create`` and ``prepare_job_execution``, for many; doing it twice is doing it once.
    """
    with queue.connection.pipeline() as pipeline:
        for execution in executions:
            job = execution.job
            execution.save(seconds, pipeline)
            known = ExecutionRegistry(job.id, connection=pipeline)
            known.add(execution, seconds, pipeline)
            job.started_job_registry.add_execution(execution, pipeline, ttl=seconds, xx=False)
            pipeline.sadd(execution.worker_executions_key, execution.composite_key)
            pipeline.expire(execution.worker_executions_key, seconds + 60)
            job.prepare_for_execution(execution.worker_name, pipeline=pipeline)
            pipeline.persist(job.key)
            pipeline.lrem(queue.intermediate_queue_key, 0, job.id)
        pipeline.llen(queue.key)
        return int(pipeline.execute()[-1])
