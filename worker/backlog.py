"""How fast a queue's jobs are done, and whether Redis has room for more. Wire layer."""

from __future__ import annotations

from typing import Final, cast

from redis import Redis

from worker.protocol import FAILURE_SECONDS, RESULT_SECONDS
from worker.queues import TaskQueue

RATE_SECONDS: Final = 60
"""How far back the rate of finished jobs is looked at."""

MEMORY_SHARE: Final = 0.75
"""Of Redis's memory, beyond which batches wait: a full Redis would take nobody's jobs."""


def jobs_done_lately(queue: TaskQueue, *, now: float) -> int:
    """Return how many jobs of a queue came to an end in the last minute.

    RQ keeps them sorted by the moment they expire, which is a fixed time after their end.

    Args:
        queue: a model's.
        now: seconds since the epoch.

    Raises:
        RedisError: if Redis is away.
    """
    since = now - RATE_SECONDS
    with queue.connection.pipeline(transaction=False) as pipeline:
        pipeline.zcount(queue.finished_job_registry.key, since + RESULT_SECONDS, "+inf")
        pipeline.zcount(queue.failed_job_registry.key, since + FAILURE_SECONDS, "+inf")
        return sum(cast("list[int]", pipeline.execute()))


def memory_in_use(redis: Redis) -> float:
    """Return the share of Redis's memory that is in use; 0 if it has no bound.

    Raises:
        RedisError: if Redis is away.
    """
    told = cast("dict[str, int]", redis.info("memory"))
    most = told.get("maxmemory", 0)
    return told["used_memory"] / most if most else 0.0
