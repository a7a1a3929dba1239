"""Taking a job back: a wish that the service writes and the worker looks for. Wire layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from redis import Redis
from rq.job import Job
from rq.registry import CanceledJobRegistry
from rq.utils import current_timestamp, now, utcformat

from worker.protocol import BLOB_SECONDS, RESULT_SECONDS
from worker.queues import TaskQueue

_CANCEL_WAITING = """
if redis.call('LREM', KEYS[1], 0, ARGV[1]) > 0 then
    redis.call('HSET', KEYS[2], 'status', 'canceled', 'ended_at', ARGV[4])
    redis.call('EXPIRE', KEYS[2], ARGV[2])
    redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
end
"""


class JobCanceledError(Exception):
    """Nobody wants the result any more."""


def cancel_key(job_id: str) -> str:
    """Return the key whose presence asks the worker to leave a job."""
    return f"semples:cancel:{job_id}"


def ask_to_cancel(redis: Redis, job_id: str) -> None:
    """Ask whoever has a job, or takes it later, to leave it."""
    redis.set(cancel_key(job_id), 1, ex=BLOB_SECONDS)


def cancel_waiting(queue: TaskQueue, job: Job) -> None:
    """Cancel a job that waits in the queue; one that a worker has taken is that worker's to end."""
    registry = CanceledJobRegistry.key_template.format(queue.name)
    keys = (queue.key, job.key, registry)
    ends = (RESULT_SECONDS, current_timestamp() + RESULT_SECONDS, utcformat(now()))
    queue.connection.eval(_CANCEL_WAITING, len(keys), *keys, job.id, *ends)


def take_back(queue: TaskQueue, job: Job) -> None:
    """Cancel a job that waits, and have its worker leave one that runs as soon as that looks up."""
    # First the wish: a worker that takes the job meanwhile finds it.
    ask_to_cancel(queue.connection, job.id)
    cancel_waiting(queue, job)


def withdraw_cancel(redis: Redis, job_id: str) -> None:
    """Take the wish back, for the same job is wanted again."""
    redis.delete(cancel_key(job_id))


def canceled(redis: Redis, job_ids: Sequence[str]) -> frozenset[str]:
    """Return those of some jobs that nobody wants any more."""
    if not job_ids:
        return frozenset()
    wishes = cast("list[bytes | None]", redis.mget([cancel_key(each) for each in job_ids]))
    return frozenset(
        job_id for job_id, wish in zip(job_ids, wishes, strict=True) if wish is not None
    )
