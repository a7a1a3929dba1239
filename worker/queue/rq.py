"""RQ as we use it: JSON on the wire, only our own tasks, short leases.

Part of the wire layer: both service and worker use it. Written against RQ 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, Protocol, cast
from uuid import uuid4

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry as RedisRetry
from rq import Queue, Retry
from rq.exceptions import NoSuchJobError
from rq.executions import Execution, ExecutionRegistry
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job, JobStatus
from rq.registry import CanceledJobRegistry
from rq.results import Result
from rq.serializers import JSONSerializer
from rq.utils import current_timestamp, now, utcformat

from worker.queue.schema import (
    BLOB_SECONDS,
    FAILURE_SECONDS,
    JOB_ID,
    LEASE_SECONDS,
    MAX_ATTEMPTS,
    PATHS,
    QUEUE_SECONDS,
    RESULT_SECONDS,
    TASKS,
    JobRequest,
    queue_name,
)

MAINTENANCE_LOCK_SECONDS = 10

_GIVE_BACK = """
if redis.call('LREM', KEYS[1], 0, ARGV[1]) > 0 then redis.call('LPUSH', KEYS[2], ARGV[1]) end
"""


class TaskNotAllowedError(Exception):
    """A queued job names something that is not one of our tasks."""


def check_task(job: Job) -> None:
    """Refuse a job that names anything but one of our tasks.

    Raises:
        TaskNotAllowedError: if it does.
    """
    if job.instance is not None or job.func_name not in TASKS:
        raise TaskNotAllowedError(f"expected one of {sorted(TASKS)}, got {job.func_name!r}")


class AllowedJob(Job):
    """A job that runs our tasks and nothing else.

    With JSON alone, whoever can write to Redis could still have a worker call any importable
    function, and have it post to any address: callbacks and RQ's own webhooks are dropped.
    """

    def restore(self, raw_data: Any) -> Any:
        """Fill in the job from Redis; see RQ."""
        super().restore(raw_data)
        self._success_callback_name = None
        self._failure_callback_name = None
        self._stopped_callback_name = None
        self.webhooks = []

    @property
    def func(self) -> Callable[..., Any]:
        """The task's function.

        Raises:
            TaskNotAllowedError: if the job names anything but one of our tasks.
        """
        check_task(self)
        function: Callable[..., Any] = super().func
        return function


class LeasedIntermediateQueue(IntermediateQueue):
    """Jobs between the queue and a worker's hands, a matter of milliseconds.

    One that stays for a lease belongs to a worker that died there; RQ waits a minute, and remembers
    for a day that it saw the job, which would make a later passage look like a stay. RQ counts the stay as an attempt
    and writes down a failure; here the job goes back to the queue, for nobody has begun with it.

    Args:
        queue_key: the queue's.
        connection: to Redis.
        lease: seconds.
    """

    def __init__(self, queue_key: str, connection: Redis, *, lease: int) -> None:
        super().__init__(queue_key, connection)
        self.lease = lease

    def should_be_cleaned_up(self, job_id: str) -> bool:
        """Return whether the job has been here for longer than a lease."""
        first_seen = self.get_first_seen(job_id)
        return first_seen is not None and now() - first_seen > timedelta(seconds=self.lease)

    def set_first_seen(self, job_id: str) -> bool:
        """Note when the job was first seen here; return whether this was the first time."""
        key = self.get_first_seen_key(job_id)
        moment = now().timestamp()
        return bool(self.connection.set(key, moment, nx=True, ex=3 * self.lease))

    def give_back(self, job_id: str) -> None:
        """Put a job back to the front of the queue, unless it is not here any more: twice is once."""
        self.connection.eval(_GIVE_BACK, 2, self.key, self.queue_key, job_id)

    def cleanup(self, worker: object, queue: Queue) -> None:
        """Give back what a worker left that died."""
        del worker
        for job_id in self.get_job_ids():
            if queue.fetch_job(job_id) is None:  # expired while it waited
                self.remove(job_id)
            elif not self.set_first_seen(job_id) and self.should_be_cleaned_up(job_id):
                self.give_back(job_id)
                self.connection.delete(self.get_first_seen_key(job_id))


class TaskQueue(Queue):
    """A queue of AllowedJobs whose maintenance lock does not outlive a dead worker by 15 minutes.

    Attributes:
        lease: seconds after which a job in nobody's hands is taken for lost.
    """

    job_class = AllowedJob
    lease: int = LEASE_SECONDS

    @property
    def intermediate_queue(self) -> LeasedIntermediateQueue:
        """The jobs that a worker has taken but not yet in its hands."""
        return LeasedIntermediateQueue(self.key, self.connection, lease=self.lease)

    def acquire_maintenance_lock(self) -> bool:
        """Take the lock that keeps several workers from cleaning at once."""
        key = self.registry_cleaning_key
        return bool(self.connection.set(key, 1, nx=True, ex=MAINTENANCE_LOCK_SECONDS))


def open_redis(url: str, *, timeout: float = 5.0, retries: int = 2) -> Redis:
    """Return a client that gives up soon, so that a caller can say that Redis is away.

    Args:
        url: redis://, rediss:// or unix://.
        timeout: of connecting and of one answer, in seconds.
        retries: of a command whose answer did not come; it may have been carried out for all that.

    Raises:
        ValueError: if the URL has another scheme.
    """
    return Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=min(timeout, 2.0),
        retry=RedisRetry(ExponentialBackoff(cap=0.2, base=0.02), retries),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
    )


def open_queue(redis: Redis, model: str) -> TaskQueue:
    """Return a model's queue."""
    return TaskQueue(queue_name(model), connection=redis, serializer=JSONSerializer)


def make_job(redis: Redis, request: JobRequest, *, timeout: int) -> Job:
    """Return a job for a request, not yet queued.

    Args:
        redis: where it will live.
        request: its only argument; its hash is the job's id.
        timeout: seconds that one attempt may take.
    """
    return AllowedJob.create(
        PATHS[request.task],
        args=(request.model_dump(mode="json"),),
        connection=redis,
        id=request.job_id(),
        description=request.task,
        timeout=timeout,
        ttl=QUEUE_SECONDS,
        result_ttl=RESULT_SECONDS,
        failure_ttl=FAILURE_SECONDS,
        # Without an interval: RQ's scheduler, which would be needed, forks.
        retry=Retry(max=MAX_ATTEMPTS - 1),
        serializer=JSONSerializer,
    )


def fetch_job(redis: Redis, job_id: str) -> Job | None:
    """Return a job, or None if it is unknown or expired, or no job of ours can have this id."""
    if not JOB_ID.fullmatch(job_id):
        return None
    try:
        return AllowedJob.fetch(job_id, connection=redis, serializer=JSONSerializer)
    except NoSuchJobError:
        return None


# Taking a job back: a wish that the service writes and the worker looks for. Wire layer.

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


# From the queue into a worker's hands, many jobs in a few round trips.
#
# RQ itself takes one job at a time with a dozen round trips. The steps are the same: through the intermediate
# list, so that a worker that dies in between loses nothing, then in one transaction to a lease.


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


# Writing down that jobs have finished, many in three round trips.
#
# RQ's own way takes five round trips for each job, and packs all of the job once more. The steps are the same and make
# the same records, in one transaction that is only carried out while each job is in its worker's hands.

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
