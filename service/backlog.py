"""How full a queue is, and when it is worth asking again."""

from __future__ import annotations

import math
from typing import Final

from rq.job import Job

from worker.queue.jobs import RATE_SECONDS
from worker.queue.rq import TaskQueue

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
