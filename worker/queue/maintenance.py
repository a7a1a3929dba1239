"""Putting RQ's books in order: jobs of dead workers back to the queue, expired entries out.

Any worker does it for its own queue; the janitor for all of them, so that a job does not depend on another worker being
alive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis import Redis
from rq.job import Job
from rq.registry import CanceledJobRegistry, clean_registries
from rq.serializers import JSONSerializer
from rq.utils import current_timestamp
from rq.worker_registration import clean_worker_registry

from worker.queue.failures import note_failure
from worker.queue.rq import TaskQueue, open_queue
from worker.queue.schema import LEASE_SECONDS, queue_name

ExceptionHandler = Callable[[Job, Any, Any, Any], object]


def tidy(queue: TaskQueue, *, note: ExceptionHandler = note_failure) -> None:
    """Queue the jobs of dead workers again, and drop what has expired from RQ's registries.

    Does nothing while somebody else is at it.

    Args:
        queue: whose.
        note: told of jobs whose worker died.

    Raises:
        RedisError: if Redis is away.
    """
    if not queue.acquire_maintenance_lock():
        return
    try:
        clean_registries(queue, [note])
        clean_worker_registry(queue)
        queue.intermediate_queue.cleanup(None, queue)
        # RQ never forgets a canceled job's id.
        canceled = CanceledJobRegistry.key_template.format(queue.name)
        queue.connection.zremrangebyscore(canceled, 0, current_timestamp())
    finally:
        queue.release_maintenance_lock()  # type: ignore[no-untyped-call]


def model_queues(redis: Redis, *, lease: int = LEASE_SECONDS) -> list[TaskQueue]:
    """Return the queues of all models that ever had a job.

    Args:
        redis: where they are.
        lease: seconds after which a job in nobody's hands is taken for lost.
    """
    found = TaskQueue.all(redis, serializer=JSONSerializer)
    names = sorted(queue.name for queue in found if queue.name.startswith(queue_name("")))
    queues = [open_queue(redis, name.removeprefix(queue_name(""))) for name in names]
    for queue in queues:
        queue.lease = lease
    return queues


def tidy_all(redis: Redis, *, lease: int = LEASE_SECONDS) -> None:
    """Tidy up every model's queue; see ``tidy`` and ``model_queues``."""
    for queue in model_queues(redis, lease=lease):
        tidy(queue)
