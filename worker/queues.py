"""RQ as we use it: JSON on the wire, only our own tasks, short leases.

Part of the wire layer: both service and worker use it. Written against RQ 3.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry as RedisRetry
from rq import Queue, Retry
from rq.exceptions import NoSuchJobError
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import now

from worker.protocol import (
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
