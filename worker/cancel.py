"""Taking a job back: a wish that the service writes and the worker looks for. Wire layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from redis import Redis
from rq.job import Job
from rq.registry import CanceledJobRegistry
from rq.utils import current_timestamp, now, utcformat

from worker.protocol import BLOB_SECONDS, RESULT_SECONDS
from worker.queues import TaskQueue

BY_BATCH: Final = "batch"
"""Who took a job back, where that was no person."""

_TAKE_BACK = """
if ARGV[6] == 'batch' then
    if redis.call('HEXISTS', KEYS[2], 'posted') == 1 then return end
else
    redis.call('HDEL', KEYS[2], 'posted')
end
redis.call('SET', KEYS[4], ARGV[6], 'EX', ARGV[5])
if redis.call('LREM', KEYS[1], 0, ARGV[1]) > 0 then
    redis.call('HSET', KEYS[2], 'status', 'canceled', 'ended_at', ARGV[4])
    redis.call('EXPIRE', KEYS[2], ARGV[2])
    redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
end
"""
_WANT = """
redis.call('DEL', KEYS[1])
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
redis.call('HSET', KEYS[2], 'posted', 1)
return 1
"""


class JobCanceledError(Exception):
    """Nobody wants the result any more."""


def cancel_key(job_id: str) -> str:
    """Return the key whose presence asks the worker to leave a job."""
    return f"semples:cancel:{job_id}"


def take_back(queue: TaskQueue, job: Job, *, from_batch: bool = False) -> None:
    """Cancel a job that waits, and have its worker, or who takes it later, leave one that runs.

    Args:
        queue: of its model.
        job: not ended.
        from_batch: whether it goes on if somebody has posted it, too; see ``want``.
    """
    registry = CanceledJobRegistry.key_template.format(queue.name)
    keys = (queue.key, job.key, registry, cancel_key(job.id))
    ends = (RESULT_SECONDS, current_timestamp() + RESULT_SECONDS, utcformat(now()))
    who = BY_BATCH if from_batch else "person"
    queue.connection.eval(_TAKE_BACK, len(keys), *keys, job.id, *ends, BLOB_SECONDS, who)


def want(redis: Redis, job_id: str) -> bool:
    """Take the wish back, for somebody posts the same; return whether there is such a job.

    One that a batch has made is not that batch's alone from now on.
    """
    return bool(redis.eval(_WANT, 2, cancel_key(job_id), Job.key_for(job_id)))


def withdraw_cancel(redis: Redis, job_id: str) -> None:
    """Take the wish back, for the same job is wanted again."""
    redis.delete(cancel_key(job_id))


def canceled(redis: Redis, job_ids: Sequence[str]) -> frozenset[str]:
    """Return those of some jobs that nobody wants any more."""
    return frozenset(_wishes(redis, job_ids))


def taken_back_by_batch(redis: Redis, job_ids: Sequence[str]) -> frozenset[str]:
    """Return those of some jobs that a batch took back, and no person."""
    found = _wishes(redis, job_ids)
    return frozenset(job_id for job_id, who in found.items() if who == BY_BATCH.encode())


def _wishes(redis: Redis, job_ids: Sequence[str]) -> dict[str, bytes]:
    """Return who took jobs back, by job."""
    if not job_ids:
        return {}
    found = cast("list[bytes | None]", redis.mget([cancel_key(each) for each in job_ids]))
    return {job_id: who for job_id, who in zip(job_ids, found, strict=True) if who is not None}
