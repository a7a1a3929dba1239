"""What happened to a job, in order, for those who listen: a bounded stream in Redis. Wire layer.

The end is not in it: that is the job's own status, which RQ writes in the transaction that ends the job.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq.job import Job

from models.inference.masks import OnProgress
from worker.queue.rq import JobCanceledError, cancel_key
from worker.queue.schema import RESULT_SECONDS, Progress

EventName = Literal["status", "progress"]

MAX_EVENTS: Final = 256
"""Of one job; the oldest go first. A job has about a dozen for each attempt."""


def events_key(job_id: str) -> str:
    """Return the key of a job's stream."""
    return f"semples:events:{job_id}"


def add_event(pipeline: Pipeline, job_id: str, name: EventName, data: Mapping[str, Any]) -> None:
    """Write an event at the end of a job's stream, which lives as long as a result does.

    Args:
        pipeline: executed by the caller.
        job_id: the job's.
        name: of the event.
        data: in JSON's types.
    """
    key = events_key(job_id)
    pipeline.xadd(key, {"event": name, "data": json.dumps(data)}, maxlen=MAX_EVENTS)
    pipeline.expire(key, RESULT_SECONDS)


# Telling how far jobs are, and hearing whether they are still wanted, in one round trip.

log = logging.getLogger(__name__)

# A stage's progress is written in steps of this fraction of the whole job.
STEP = 0.1

_SAVE_META = """
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'meta', ARGV[1]) end
"""


def reporter(redis: Redis, jobs: Sequence[Job]) -> OnProgress:
    """Return a function that writes jobs' progress into their meta and events, at each stage and each tenth.

    It raises JobCanceledError once none of the jobs is wanted any more. Redis being away is no reason to stop.
    """
    written = Progress(stage="", fraction=-1.0)

    def report(stage: str, fraction: float) -> None:
        nonlocal written
        if stage == written.stage and fraction - written.fraction < STEP:
            return
        first = not written.stage
        written = Progress(stage=stage, fraction=round(fraction, 3))
        try:
            wanted = _write(redis, jobs, written, first=first)
        except RedisError as error:
            log.warning("progress of %d jobs not written: %s", len(jobs), error)
            return
        if not wanted:
            raise JobCanceledError("expected a job that somebody waits for, got a canceled one")

    return report


def _write(redis: Redis, jobs: Sequence[Job], progress: Progress, *, first: bool) -> bool:
    """Write progress, and before the first one that the jobs run; return whether one of the jobs is wanted."""
    with redis.pipeline(transaction=False) as pipeline:
        for job in jobs:
            pipeline.exists(cancel_key(job.id))
        for job in jobs:
            job.meta["progress"] = progress.model_dump()
            # As RQ's save_meta, which has a round trip of its own for each job, and makes a job that is gone.
            pipeline.eval(_SAVE_META, 1, job.key, json.dumps(job.meta))
            if first:
                add_event(pipeline, job.id, "status", {"status": "running"})
            add_event(pipeline, job.id, "progress", progress.model_dump())
        answers = pipeline.execute()
    return not all(answers[: len(jobs)])
