"""Writing down that jobs have finished, many in three round trips.

RQ's own way takes five round trips for each job, and packs all of the job once more. The steps are the same and make
the same records, in one transaction that is only carried out while each job is in its worker's hands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

from redis import Redis
from redis.client import Pipeline
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.results import Result
from rq.utils import now, utcformat

from worker.cancel import cancel_key
from worker.protocol import RESULT_SECONDS

State = Literal["ours", "canceled", "lost"]
"""Of a job in hand: ours and wanted, not wanted any more, or in somebody else's hands."""

_STATES = """
local answer = {}
for i = 1, #KEYS, 2 do
  local job = redis.call('HMGET', KEYS[i], 'status', 'worker_name')
  local ours = job[1] == 'started' and job[2] == ARGV[1]
  local unwanted = redis.call('EXISTS', KEYS[i + 1]) == 1
  answer[#answer + 1] = not ours and 'lost' or unwanted and 'canceled' or 'ours'
end
return answer
"""


class Worker(Protocol):
    """What is needed of RQ's worker."""

    name: str
    executions: dict[str, Execution]

    @property
    def key(self) -> str:
        """Of its counters."""
        ...


@dataclass(frozen=True)
class Ended:
    """A job in hand, and what has come of it.

    Attributes:
        job: with a lease.
        execution: the lease.
        value: the result in JSON's types; None if it is not to be written down as finished.
    """

    job: Job
    execution: Execution
    value: dict[str, Any] | None = None


def states(redis: Redis, jobs: Sequence[Job], *, worker: str) -> list[State]:
    """Return how it stands with each job in a worker's hands.

    Args:
        redis: or a pipeline that watches.
        jobs: in hand.
        worker: its name.
    """
    keys = [key for job in jobs for key in (job.key, cancel_key(job.id))]
    answers = cast("list[bytes]", redis.eval(_STATES, len(keys), *keys, worker))
    return [cast("State", each.decode()) for each in answers]


def finish(redis: Redis, worker: Worker, ended: Sequence[Ended]) -> list[bool]:
    """Write down, for each job that has a value and is this worker's and wanted, that it has finished.

    Args:
        redis: where the jobs are.
        worker: who has them in hand.
        ended: the jobs.

    Returns:
        Of each job whether it is written down; the others are left as they are.

    Raises:
        RedisError: if Redis is away, or a job was taken from this worker meanwhile: all are written down, or none.
    """
    candidates = [each.job for each in ended if each.value is not None]
    if not candidates:
        return [False] * len(ended)
    with redis.pipeline() as pipeline:
        pipeline.watch(*(job.key for job in candidates))  # type: ignore[no-untyped-call]
        found = dict(zip(candidates, states(pipeline, candidates, worker=worker.name), strict=True))
        written = [found.get(each.job) == "ours" for each in ended]
        pipeline.multi()
        for each, ours in zip(ended, written, strict=True):
            if ours:
                _write(pipeline, worker, each)
        pipeline.execute()
    for each, done in zip(ended, written, strict=True):
        if done:  # not before: until then the lease must be renewed
            worker.executions.pop(each.execution.id, None)
    return written


def _write(pipeline: Pipeline, worker: Worker, ended: Ended) -> None:
    """As RQ's ``handle_job_success``, less what no job of ours has: dependents, repeats, callbacks, rate limits."""
    job, execution = ended.job, ended.execution
    job.ended_at = now()
    job.set_status(JobStatus.FINISHED, pipeline=pipeline)
    pipeline.hset(job.key, "ended_at", utcformat(job.ended_at))
    pipeline.expire(job.key, RESULT_SECONDS)
    Result.create(
        job,
        Result.Type.SUCCESSFUL,
        ttl=RESULT_SECONDS,
        return_value=ended.value,
        worker_name=worker.name,
        pipeline=pipeline,
        execution_id=execution.id,
        execution_started_at=execution.created_at,
        execution_ended_at=job.ended_at,
    )
    job.finished_job_registry.add(job, RESULT_SECONDS, pipeline)
    worked = (job.ended_at - execution.created_at).total_seconds()
    pipeline.hincrby(worker.key, "successful_job_count", 1)
    pipeline.hincrbyfloat(worker.key, "total_working_time", worked)
    execution.delete(job, pipeline)
