"""Job queue on RQ; every access to RQ's own records in Redis is here.

JSON alone on the wire, only our own tasks, leases of a few seconds. A job goes from its queue to an intermediate list
(``take``), to a lease (``lease``) and to its end (``ack``, ``nack``, ``cancel_leased``). ``maintain`` puts back what a
dead worker leaves behind. RQ's worker takes one job at a time with a dozen round trips and writes each end with five
more; here the steps and the records are the same, for many jobs in a few round trips. Written against RQ 3.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, cast
from urllib.parse import parse_qs
from uuid import uuid4

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, WatchError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry as RedisRetry
from rq import Queue, Retry, Worker
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job, JobStatus
from rq.registry import clean_registries
from rq.results import Result
from rq.serializers import JSONSerializer
from rq.utils import current_timestamp, now, str_to_date, utcformat
from rq.worker_registration import clean_worker_registry

from worker.queue.schema import (
    BLOB_SECONDS,
    FAILURE_SECONDS,
    JOB_ID,
    LEASE_SECONDS,
    MAX_JOB_ATTEMPTS,
    QUEUE_SECONDS,
    RESULT_SECONDS,
    TASK_PATHS,
    JobFailure,
    JobRequest,
    Progress,
    add_event,
    batch_queue_name,
    cancel_key,
    model_of_queue,
    queue_name,
)

MAINTENANCE_LOCK_SECONDS: Final = 10
RATE_SECONDS: Final = 60
"""How far back ``ended_lately`` counts."""

_SCHEMES: Final = ("redis", "rediss", "unix")
# Others are objects of Python's, or change the type of answers.
_URL_OPTIONS: Final = frozenset(
    [
        *("db", "username", "password", "protocol", "client_name", "health_check_interval", "max_connections"),
        *("socket_connect_timeout", "socket_timeout", "socket_keepalive", "ssl_ca_certs", "ssl_ca_data", "ssl_ca_path"),
        *("ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile", "ssl_password"),
    ]
)
_NOT_ENCODED: Final = "expected a Redis URL whose user and password are percent-encoded, got one that cannot be read"
_BY_BATCH: Final = "batch"
"""Value of a cancel flag that a batch has set; a person's is "person"."""

STATES: Final = (*("queued", "taken", "started", "finished", "failed", "canceled", "deferred", "scheduled"),)
"""Of jobs in ``_QueueStats``."""

State = Literal["ours", "canceled", "lost"]
"""Of a leased job: ours, ours and canceled, or not this worker's any more."""

Lease = Execution
"""RQ's record of a worker that works on a job; it expires unless it is renewed."""

_TAKE = """
local taken = {}
for i = 1, #KEYS, 2 do
  while #taken < tonumber(ARGV[1]) do
    local id = redis.call('LMOVE', KEYS[i], KEYS[i + 1], 'LEFT', 'RIGHT')
    if not id then break end
    taken[#taken + 1] = id
  end
end
return taken
"""
# Of a job that came from a queue; one that somebody posted meanwhile goes to the interactive one.
_QUEUE_AGAIN = """
local found, queue = #KEYS == 3, KEYS[2]
for i = 4, #KEYS do
    found = redis.call('LREM', KEYS[i], 0, ARGV[1]) > 0 or found
end
if not found then return end
if redis.call('HEXISTS', KEYS[1], 'posted') == 1 then
    redis.call('HSET', KEYS[1], 'origin', ARGV[3])
    queue = KEYS[3]
end
redis.call(ARGV[2], queue, ARGV[1])
"""
_DROP_EXPIRED = """
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('LREM', KEYS[2], 0, ARGV[1]) end
"""
_STATES = """
local answer = {}
for i = 1, #KEYS, 2 do
  local job = redis.call('HMGET', KEYS[i], 'status', 'worker_name')
  local ours = job[1] == 'started' and job[2] == ARGV[1]
  local canceled = redis.call('EXISTS', KEYS[i + 1]) == 1
  answer[#answer + 1] = not ours and 'lost' or canceled and 'canceled' or 'ours'
end
return answer
"""
_REQUEST_CANCEL = """
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
_CLEAR_CANCEL_ON_REPOST = """
redis.call('DEL', KEYS[1])
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
redis.call('HSET', KEYS[2], 'posted', 1)
if redis.call('LLEN', KEYS[4]) < tonumber(ARGV[3]) and redis.call('LREM', KEYS[3], 0, ARGV[1]) > 0 then
    redis.call('HSET', KEYS[2], 'origin', ARGV[2])
    redis.call('RPUSH', KEYS[4], ARGV[1])
end
return 1
"""
_SAVE_META = """
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'meta', ARGV[1]) end
"""


class TaskNotAllowedError(Exception):
    """A queued job names something that is not one of our tasks."""


class JobCanceledError(Exception):
    """All jobs that are worked on together are canceled."""


class AllowedJob(Job):
    """A job that names one of our tasks and nothing else.

    A client that can write to Redis could otherwise have a worker call any importable function, or post to any address:
    callbacks and RQ's own webhooks are dropped.
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
        """Raise TaskNotAllowedError: a task's path says what to do, and is never imported."""
        check_task(self)
        raise TaskNotAllowedError("expected a worker of ours, got a call of the task's path")


def check_task(job: Job) -> None:
    """Raise TaskNotAllowedError if a job names anything but one of our tasks."""
    allowed = sorted(TASK_PATHS.values())
    if job.instance is not None or job.func_name not in allowed:
        raise TaskNotAllowedError(f"expected one of {allowed}, got {job.func_name!r}")


class LeasedQueue(Queue):
    """An RQ queue of AllowedJobs that loses no job between the queue and a worker."""

    job_class = AllowedJob

    @classmethod
    def dequeue_any(  # type: ignore[override]
        cls, queues: Iterable[Queue], timeout: int | None, connection: Redis, **options: Any
    ) -> Any:
        """Move the next job to its intermediate list, from the first queue that has one; wait at the first alone.

        Given several queues, RQ's own takes the job out of Redis at once: a worker that dies then loses it.
        """
        in_order = list(queues)
        for queue in in_order:
            found = super().dequeue_any([queue], None, connection, **options)
            if found is not None:
                return found
        return super().dequeue_any(in_order[:1], timeout, connection, **options)

    def acquire_maintenance_lock(self) -> bool:
        """Take the lock of one worker's maintenance, which RQ would keep for 15 minutes if the worker died."""
        key = self.registry_cleaning_key
        return bool(self.connection.set(key, 1, nx=True, ex=MAINTENANCE_LOCK_SECONDS))


@dataclass(frozen=True)
class Attempt:
    """A leased job's attempt that has ended, with a value or a failure; with neither, it is not to be written."""

    lease: Lease
    value: dict[str, Any] | None = None  # the result in JSON's types
    failure: JobFailure | None = None
    error: BaseException | None = None  # behind the failure
    retry: bool = False  # whether the job is queued again after the failure


@dataclass(frozen=True)
class _QueueStats:
    """Jobs of a model by state, and the seconds that its next interactive job has waited, 0 if none waits."""

    jobs: dict[str, int]
    oldest: float


def open_redis(url: str, *, timeout: float = 5.0, retries: int = 2) -> Redis:
    """Return a client that gives up soon; ``retries`` are of a command without an answer, which may be carried out.

    Raises:
        ValueError: unless the URL is redis://, rediss:// or unix:// and its options are known; quotes no part of it.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES:
        raise ValueError(f"expected a Redis URL that begins with {', '.join(f'{each}://' for each in _SCHEMES)}")
    # A password with # or / would be cut there, and its first part be read as a host or port, which errors name.
    if "#" in rest or (scheme != "unix" and re.search(r"[/?].*@", rest)):
        raise ValueError(_NOT_ENCODED)
    database = rest.partition("?")[0].partition("/")[2].strip("/")
    if scheme != "unix" and database and not database.isdecimal():  # redis-py would take the first one
        raise ValueError("expected a number after the host in the Redis URL, that of a database, got something else")
    options = parse_qs(url.partition("?")[2]).keys()
    if odd := options - _URL_OPTIONS:
        raise ValueError(f"expected options that a Redis URL can have, got {', '.join(sorted(odd))}")
    try:
        redis = Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=min(timeout, 2.0),
            retry=RedisRetry(ExponentialBackoff(cap=0.2, base=0.02), retries),
            retry_on_error=[RedisConnectionError, RedisTimeoutError],
        )
        redis.connection_pool.make_connection()  # without a request: odd options show only here
    except (ValueError, TypeError, AttributeError, RedisError):
        # The message would quote a part of the URL.
        refused = f"expected options of {scheme}:// with values that they take, got {', '.join(sorted(options))}"
        raise ValueError(refused if options else _NOT_ENCODED) from None
    return redis


def make_job(redis: Redis, request: JobRequest, *, timeout: int) -> Job:
    """Return a job for a request, not yet queued; ``timeout`` is the seconds that one attempt may take."""
    return AllowedJob.create(
        TASK_PATHS[request.task],
        args=(request.model_dump(mode="json"),),
        connection=redis,
        id=request.job_id(),
        description=request.task,
        timeout=timeout,
        ttl=QUEUE_SECONDS,
        result_ttl=RESULT_SECONDS,
        failure_ttl=FAILURE_SECONDS,
        # Without an interval: RQ's scheduler, which would be needed, forks.
        retry=Retry(max=MAX_JOB_ATTEMPTS - 1),
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


def fetch_jobs(redis: Redis, job_ids: Sequence[str]) -> list[Job | None]:
    """Return jobs in one round trip, None for each that is unknown, expired or damaged."""
    try:
        return AllowedJob.fetch_many(job_ids, connection=redis, serializer=JSONSerializer)
    except NoSuchJobError:  # of one that is not whole, and RQ gives up on all
        return [fetch_job(redis, job_id) for job_id in job_ids]


def fetch_return_values(redis: Redis, job_ids: Sequence[str]) -> dict[str, Any]:
    """Return the latest return values of those of some jobs that have one, in one round trip."""
    with redis.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.xrevrange(Result.get_key(job_id), count=1)  # type: ignore[no-untyped-call]
        answers: list[list[tuple[bytes, Any]]] = pipeline.execute()
    found = {}
    for job_id, entries in zip(job_ids, answers, strict=True):
        for identity, payload in entries:
            stored = Result.restore(job_id, identity.decode(), payload, connection=redis, serializer=JSONSerializer)
            if stored.return_value is not None:
                found[job_id] = stored.return_value
    return found


def clear_cancel(redis: Redis, job_id: str) -> None:
    """Delete a job's cancel flag."""
    redis.delete(cancel_key(job_id))


def canceled_by_batch(redis: Redis, job_ids: Sequence[str]) -> frozenset[str]:
    """Return those of some jobs that a batch has canceled, and no person."""
    flags = _cancel_flags(redis, job_ids)
    return frozenset(job_id for job_id, value in flags.items() if value == _BY_BATCH.encode())


def _cancel_flags(redis: Redis, job_ids: Sequence[str]) -> dict[str, bytes]:
    if not job_ids:
        return {}
    found = cast("list[bytes | None]", redis.mget([cancel_key(each) for each in job_ids]))
    return {job_id: flag for job_id, flag in zip(job_ids, found, strict=True) if flag is not None}


def job_queues(redis: Redis, *, lease: int = LEASE_SECONDS) -> list[JobQueue]:
    """Return the queues of all models that ever had a job."""
    models = {model_of_queue(each.name) for each in Queue.all(redis, serializer=JSONSerializer)}
    return [JobQueue(redis, each, lease=lease) for each in sorted(models - {None})]  # type: ignore[type-var,arg-type]


def queue_stats(queues: Sequence[JobQueue], *, moment: datetime) -> list[_QueueStats]:
    """Return each model's numbers of jobs and its next interactive job's wait until a moment, in two round trips."""
    if not queues:
        return []
    redis, width = queues[0].redis, len(STATES)
    with redis.pipeline(transaction=False) as pipeline:
        for each in (rq_queue for queue in queues for rq_queue in queue.rq_queues):
            pipeline.llen(each.key)
            pipeline.llen(each.intermediate_queue_key)
            for registry in STATES[2:]:
                pipeline.zcard(getattr(each, f"{registry}_job_registry").key)
        for queue in queues:
            pipeline.lindex(queue.interactive.key, 0)
        answers = pipeline.execute()
        for job_id in answers[-len(queues) :]:
            pipeline.hget(Job.key_for(job_id.decode() if job_id else ""), "enqueued_at")
        queued_at = [str_to_date(each) if each else moment for each in pipeline.execute()]
    stats = []
    for number, since in enumerate(queued_at):
        first, second = (answers[n * width : (n + 1) * width] for n in (2 * number, 2 * number + 1))
        jobs = {state: a + b for state, a, b in zip(STATES, first, second, strict=True)}
        # Not below 0 where two hosts' clocks differ.
        stats.append(_QueueStats(jobs, max(0.0, (moment - since).total_seconds())))
    return stats


class JobQueue:
    """A model's jobs in Redis: two RQ queues, read in order.

    ``interactive`` holds the jobs that somebody posts; ``batch`` the items of batches, which workers take only while
    ``interactive`` is empty. All methods raise RedisError if Redis does not answer; those that write do all or nothing.
    A taken or leased job is lost ``lease`` seconds after its last heartbeat.
    """

    def __init__(self, redis: Redis, model: str, *, lease: int = LEASE_SECONDS) -> None:
        self.redis = redis
        self.lease_seconds = lease
        self.interactive, self.batch = (
            LeasedQueue(name, connection=redis, serializer=JSONSerializer)
            for name in (queue_name(model), batch_queue_name(model))
        )

    @property
    def rq_queues(self) -> list[LeasedQueue]:
        """The RQ queues in the order in which workers read them."""
        return [self.interactive, self.batch]

    def is_batch(self, job: Job) -> bool:
        """Return whether a job waits, or waited, behind the interactive ones."""
        return bool(job.origin == self.batch.name)

    def _rq_queue(self, job: Job) -> LeasedQueue:
        return self.batch if self.is_batch(job) else self.interactive

    # Used by the API and the batch scheduler.

    def enqueue(self, job: Job, *, earlier: Job | None = None, batch: bool = False) -> bool:
        """Queue a new job whose image is stored; return False if the same was queued just now.

        An ``earlier`` job with the same id is deleted; an item of a ``batch`` waits behind all interactive jobs.
        """
        if earlier is not None:
            with suppress(InvalidJobOperation):  # it expired just now
                earlier.delete()
        queue, other = (self.batch, self.interactive) if batch else (self.interactive, self.batch)
        with self.redis.pipeline() as pipeline:
            add_event(pipeline, job.id, "status", {"status": "queued"})
            # The id of an expired job, which would be taken a second time.
            pipeline.eval(_DROP_EXPIRED, 2, job.key, other.key, job.id)
            pipeline.sadd(queue.redis_queues_keys, queue.key)
            pipeline.execute()
            try:
                # With a pipeline RQ does not go to Redis for the set of queues, which has just been written.
                queue.enqueue_job(job, pipeline=pipeline, unique=True)
            except DuplicateJobError:
                return False
        return True

    def withdraw(self, job: Job) -> bool:
        """Delete a job that waits; return False if a worker has just taken it."""
        if not self.redis.lrem(self._rq_queue(job).key, 1, job.id):
            return False
        job.delete()
        return True

    def unfailed_job_ids(self) -> set[str]:
        """Return the ids of all jobs that wait, run or are finished."""
        found: set[str] = set()
        for queue in self.rq_queues:
            taken = cast("list[bytes]", self.redis.lrange(queue.intermediate_queue_key, 0, -1))
            found.update(queue.get_job_ids(), (each.decode() for each in taken))
            for registry in (queue.started_job_registry, queue.finished_job_registry):
                found.update(registry.get_job_ids(cleanup=False))
        return found

    def requeue_failed(self, job: Job) -> None:
        """Queue a failed job again, with as many attempts as a new one; nothing if somebody else just did."""
        job.meta.pop("failure", None)
        job.save_meta()  # type: ignore[no-untyped-call]
        Result.delete_all(job)  # or a request that waits would be given the earlier failure
        job.retries_left = MAX_JOB_ATTEMPTS - 1
        with suppress(InvalidJobOperation):
            job.requeue()

    def request_cancel(self, job: Job, *, from_batch: bool = False) -> None:
        """Cancel a job that waits; set the cancel flag, at which a worker drops it, of one that runs.

        A batch (``from_batch``) does not cancel a job that somebody has posted, too.
        """
        queue = self._rq_queue(job)
        keys = (queue.key, job.key, queue.canceled_job_registry.key, cancel_key(job.id))
        ends = (RESULT_SECONDS, current_timestamp() + RESULT_SECONDS, utcformat(now()))
        by = _BY_BATCH if from_batch else "person"
        self.redis.eval(_REQUEST_CANCEL, len(keys), *keys, job.id, *ends, BLOB_SECONDS, by)

    def clear_cancel_on_repost(self, job_id: str, *, max_queue: int) -> bool:
        """Note that a person posts a job; return whether there is such a job.

        Its cancel flag goes, it is not its batch's alone any more, and if it waits behind the interactive jobs it
        becomes the last of them, unless ``max_queue`` of them wait.
        """
        keys = (cancel_key(job_id), Job.key_for(job_id), self.batch.key, self.interactive.key)
        arguments = (job_id, self.interactive.name, max_queue)
        return bool(self.redis.eval(_CLEAR_CANCEL_ON_REPOST, len(keys), *keys, *arguments))

    def position(self, job: Job) -> int | None:
        """Return how many jobs are before one, or None if it does not wait."""
        position = self._rq_queue(job).get_job_position(job.id)
        if position is None or not self.is_batch(job):
            return position
        return int(position + self.interactive.count)

    def count(self) -> int:
        """Return how many jobs wait in both queues."""
        with self.redis.pipeline(transaction=False) as pipeline:
            for queue in self.rq_queues:
                pipeline.llen(queue.key)
            return sum(cast("list[int]", pipeline.execute()))

    def ended_lately(self, *, now: float) -> int:
        """Return how many jobs ended in the minute before ``now``, in seconds since the epoch.

        RQ keeps them sorted by the moment they expire, which is a fixed time after their end.
        """
        since = now - RATE_SECONDS
        with self.redis.pipeline(transaction=False) as pipeline:
            for queue in self.rq_queues:
                pipeline.zcount(queue.finished_job_registry.key, since + RESULT_SECONDS, "+inf")
                pipeline.zcount(queue.failed_job_registry.key, since + FAILURE_SECONDS, "+inf")
            return sum(cast("list[int]", pipeline.execute()))

    # Used by a worker.

    def take(self, count: int) -> list[Job]:
        """Move up to ``count`` waiting jobs to the intermediate lists, interactive ones first, and return them."""
        if count < 1:
            return []
        keys = [key for each in self.rq_queues for key in (each.key, each.intermediate_queue_key)]
        moved = cast("list[bytes]", self.redis.eval(_TAKE, len(keys), *keys, count))
        job_ids = list(dict.fromkeys(each.decode() for each in moved))
        if not job_ids:
            return []
        found = fetch_jobs(self.redis, job_ids)
        for job_id, job in zip(job_ids, found, strict=True):
            if job is None:  # expired while it waited
                self._drop_taken(self.redis, job_id)
        return [job for job in found if job is not None]

    def put_back(self, jobs: Sequence[Job]) -> None:
        """Move taken jobs back to the front of their queues, in their order; twice is once."""
        for job in reversed(jobs):
            self._put_back(self._rq_queue(job), job.id)

    def _put_back(self, queue: LeasedQueue, job_id: str) -> None:
        taken = [each.intermediate_queue_key for each in self.rq_queues]
        self._queue_again(self.redis, job_id, queue, "LPUSH", taken)

    def _queue_again(
        self,
        redis: Redis,
        job_id: str,
        queue: LeasedQueue,
        command: Literal["LPUSH", "RPUSH"],
        lists: Sequence[str] = (),
    ) -> None:
        """Push a job to its queue, or to the interactive one if somebody posted it, too.

        With ``lists``, only if it is in one of them, which it leaves.
        """
        keys = [Job.key_for(job_id), queue.key, self.interactive.key, *lists]
        redis.eval(_QUEUE_AGAIN, len(keys), *keys, job_id, command, self.interactive.name)

    def _drop_taken(self, redis: Redis, job_id: str) -> None:
        """Remove an id from the intermediate lists; a job's queue does not say from which one its id was taken."""
        for queue in self.rq_queues:
            redis.lrem(queue.intermediate_queue_key, 0, job_id)

    def skip_finished(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the taken jobs that wait; drop those that were queued twice and have been worked on already."""
        ended = [job for job in jobs if job.get_status(refresh=False) != JobStatus.QUEUED]
        for job in ended:
            self._drop_taken(self.redis, job.id)
        return [job for job in jobs if job not in ended]

    def skip_canceled(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the taken jobs that are not canceled; write the end of the others."""
        flags = _cancel_flags(self.redis, [job.id for job in jobs])
        if not flags:
            return list(jobs)
        with self.redis.pipeline() as pipeline:
            for job in jobs:
                if job.id in flags:
                    self._write_canceled(pipeline, job)
                    self._drop_taken(pipeline, job.id)
            pipeline.execute()
        return [job for job in jobs if job.id not in flags]

    def new_lease(self, job: Job, *, worker: str) -> Lease:
        """Return a lease of a taken job, which ``lease`` writes."""
        made = Execution(uuid4().hex, job.id, self.redis, worker_name=worker)
        made._job = job  # otherwise RQ fetches it again, as a job of any task
        return made

    def lease(self, leases: Sequence[Lease]) -> int:
        """Write new leases and drop their jobs from the intermediate lists; return how many other jobs wait.

        As RQ's ``Execution.create`` and ``prepare_job_execution``, for many; doing it twice is doing it once.
        """
        seconds = self.lease_seconds
        with self.redis.pipeline() as pipeline:
            for each in leases:
                job = each.job
                each.save(seconds, pipeline)
                ExecutionRegistry(job.id, connection=pipeline).add(each, seconds, pipeline)
                job.started_job_registry.add_execution(each, pipeline, ttl=seconds, xx=False)
                pipeline.sadd(each.worker_executions_key, each.composite_key)
                pipeline.expire(each.worker_executions_key, seconds + 60)
                job.prepare_for_execution(each.worker_name, pipeline=pipeline)
                pipeline.persist(job.key)
                self._drop_taken(pipeline, job.id)
            for queue in self.rq_queues:
                pipeline.llen(queue.key)
            return int(sum(pipeline.execute()[-2:]))

    def renew(self, leases: Sequence[Lease], pipeline: Pipeline) -> None:
        """Renew leases that have not been given up, when the caller executes the pipeline."""
        for each in leases:
            registry = each.job.started_job_registry
            each.heartbeat(registry, self.lease_seconds, pipeline=pipeline)

    def states(self, leases: Sequence[Lease], redis: Redis | None = None) -> list[State]:
        """Return the state of each leased job; ``redis`` may be a pipeline that watches."""
        keys = [key for each in leases for key in (each.job.key, cancel_key(each.job_id))]
        script = (redis or self.redis).eval(_STATES, len(keys), *keys, leases[0].worker_name)
        return [cast("State", each.decode()) for each in cast("list[bytes]", script)]

    def save_progress(self, jobs: Sequence[Job], progress: Progress, *, first: bool) -> bool:
        """Write jobs' progress, before the first one that they run; return whether one is not canceled."""
        with self.redis.pipeline(transaction=False) as pipeline:
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

    def ack(self, attempts: Sequence[Attempt]) -> list[bool]:
        """Write the end of attempts whose job is this worker's and not canceled; return which were written.

        RedisError if Redis does not answer, or this worker lost a job meanwhile.
        """
        ended = [each for each in attempts if each.value is not None or each.failure is not None]
        if not ended:
            return [False] * len(attempts)
        with self.redis.pipeline() as pipeline:
            pipeline.watch(*(each.lease.job.key for each in ended))  # type: ignore[no-untyped-call]
            states = self.states([each.lease for each in ended], cast("Redis", pipeline))
            ours = [each for each, state in zip(ended, states, strict=True) if state == "ours"]
            pipeline.multi()
            for each in ours:
                self._write_end(pipeline, each)
            pipeline.execute()
        return [each in ours for each in attempts]

    def _write_end(self, pipeline: Pipeline, attempt: Attempt) -> None:
        """As RQ's ``handle_job_success`` and ``handle_job_failure``, without what no job of ours has: dependents,
        repeats, callbacks, rate limits.
        """
        lease, job, failure = attempt.lease, attempt.lease.job, attempt.failure
        job.ended_at = ended_at = now()
        execution: dict[str, Any] = {
            "worker_name": lease.worker_name,
            "pipeline": pipeline,
            "execution_id": lease.id,
            "execution_started_at": lease.created_at,
            "execution_ended_at": ended_at,
        }
        if failure is None:
            job.set_status(JobStatus.FINISHED, pipeline=pipeline)
            pipeline.hset(job.key, "ended_at", utcformat(ended_at))
            pipeline.expire(job.key, RESULT_SECONDS)
            kind, ttl = Result.Type.SUCCESSFUL, RESULT_SECONDS
            Result.create(job, kind, ttl=ttl, return_value=attempt.value, **execution)
            job.finished_job_registry.add(job, ttl, pipeline)
        else:
            job.meta = {name: value for name, value in job.meta.items() if name != "progress"}
            job.meta["failure"] = failure.model_dump()
            pipeline.hset(job.key, "meta", json.dumps(job.meta))
            if attempt.retry:
                pipeline.hset(job.key, "retries_left", (job.retries_left or 1) - 1)
                pipeline.hset(job.key, "enqueued_at", utcformat(ended_at))
                self._write_queued(pipeline, job)
                self._queue_again(pipeline, job.id, self._rq_queue(job), "RPUSH")
            else:
                job.set_status(JobStatus.FAILED, pipeline=pipeline)
                lines = traceback.format_exception(attempt.error) if attempt.error else ()
                job._handle_failure("".join(lines), **execution)
        worker = Worker.redis_worker_namespace_prefix + lease.worker_name
        pipeline.hincrby(worker, f"{'failed' if failure else 'successful'}_job_count", 1)
        seconds = (ended_at - lease.created_at).total_seconds()
        pipeline.hincrbyfloat(worker, "total_working_time", seconds)
        lease.delete(job, pipeline)

    def _write_queued(self, pipeline: Pipeline, job: Job) -> None:
        job.set_status(JobStatus.QUEUED, pipeline=pipeline)
        job.cleanup(job.ttl, pipeline=pipeline, remove_from_queue=False)

    def _write_canceled(self, pipeline: Pipeline, job: Job) -> None:
        job.set_status(JobStatus.CANCELED, pipeline=pipeline)
        pipeline.hset(job.key, "ended_at", utcformat(now()))
        registry = self._rq_queue(job).canceled_job_registry
        registry.add(job, ttl=RESULT_SECONDS, pipeline=pipeline)
        job.cleanup(RESULT_SECONDS, pipeline=pipeline, remove_from_queue=False)

    def nack(self, lease: Lease) -> None:
        """Give up a lease and queue the job again, before all others; it loses no attempt."""
        with self.redis.pipeline() as pipeline:
            self._write_queued(pipeline, lease.job)
            self._queue_again(pipeline, lease.job_id, self._rq_queue(lease.job), "LPUSH")
            lease.delete(lease.job, pipeline)
            pipeline.execute()

    def cancel_leased(self, lease: Lease) -> None:
        """Give up a lease and write that the job is canceled; WatchError if its cancel flag was cleared just now."""
        flag = cancel_key(lease.job_id)
        with self.redis.pipeline() as pipeline:
            pipeline.watch(flag)  # type: ignore[no-untyped-call]
            if not pipeline.exists(flag):
                raise WatchError("expected a canceled job, got one that was posted again")
            pipeline.multi()
            self._write_canceled(pipeline, lease.job)
            lease.delete(lease.job, pipeline)
            pipeline.execute()

    def drop_lease(self, lease: Lease) -> None:
        """Give up a lease of a job that is another worker's by now, or has ended."""
        with self.redis.pipeline() as pipeline:
            lease.delete(lease.job, pipeline)
            pipeline.execute()

    # Maintenance: any worker does it for its own queue, the janitor for all of them.

    def maintain(self, on_abandoned: Callable[..., object]) -> None:
        """Queue the jobs of dead workers again, and drop what has expired from RQ's registries.

        Does nothing while another process does it. ``on_abandoned`` is RQ's exception handler: called with the job,
        AbandonedJobError, an instance of it, and None.
        """
        for queue in self.rq_queues:
            if not queue.acquire_maintenance_lock():
                continue
            try:
                self._clean_registries(queue, on_abandoned)
                clean_worker_registry(queue)
                self._put_back_stranded(queue)
                # RQ never forgets a canceled job's id.
                canceled = queue.canceled_job_registry.key
                self.redis.zremrangebyscore(canceled, 0, current_timestamp())
            finally:
                queue.release_maintenance_lock()  # type: ignore[no-untyped-call]

    def _clean_registries(self, queue: LeasedQueue, on_abandoned: Callable[..., object]) -> None:
        abandoned: list[str] = []
        clean_registries(queue, [lambda job, *_: abandoned.append(job.id), on_abandoned])
        for job_id in abandoned:  # RQ has queued it where it was; it may have been posted since
            self._queue_again(self.redis, job_id, queue, "RPUSH", [queue.key])

    def _put_back_stranded(self, queue: LeasedQueue) -> None:
        """Put back jobs that stay in the intermediate list for longer than a lease: a worker died there."""
        list_key = queue.intermediate_queue_key
        for job_id in map(bytes.decode, cast("list[bytes]", self.redis.lrange(list_key, 0, -1))):
            seen_key, moment = f"{list_key}:first_seen:{job_id}", now().timestamp()
            if not self.redis.exists(Job.key_for(job_id)):  # expired while it waited
                self.redis.lrem(list_key, 0, job_id)
            elif not self.redis.set(seen_key, moment, nx=True, ex=3 * self.lease_seconds):
                since = cast("bytes | None", self.redis.get(seen_key))
                if since is not None and moment - float(since) > self.lease_seconds:
                    self._put_back(queue, job_id)
                    self.redis.delete(seen_key)
