"""An RQ worker that never forks, works on several jobs at once, and holds short leases of them.

RQ's SimpleWorker runs a job in the worker's own process, which a model in GPU memory needs, but one after the other; it
sends no heartbeat meanwhile and cannot be interrupted in a C call. Here the jobs that wait go through the model
together (``worker.inference.batcher``), the results of several are written together (``worker.queue.rq``), failures by
RQ's own ``perform_job``; a second thread renews the leases, does RQ's maintenance every few seconds and ends the
process when a job is stuck.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import now
from rq.worker import WorkerStatus

from worker import telemetry
from worker.inference.batcher import (
    Conveyor,
    DeviceLostError,
    Sizes,
    ThreadsStuckError,
    usual_batch,
)
from worker.inference.consumer import QueueDesk
from worker.inference.pipeline import PredictorLike, Runtime, install
from worker.inference.watchdog import Activity, CanaryWatch, canary
from worker.periodic import PeriodicThread
from worker.queue.failures import (
    describe,
    has_cost_a_worker,
    note_failure,
    whether_or_not_redis_answers,
)
from worker.queue.maintenance import tidy
from worker.queue.registry import (
    Explanation,
    ModelInfo,
    WorkerInfo,
    announce,
    live_workers,
    publish_samples,
    withdraw,
)
from worker.queue.rq import AllowedJob, TaskQueue, open_queue, open_redis
from worker.queue.schema import LEASE_SECONDS
from worker.settings import WorkerSettings
from worker.storage import BlobError, BlobStore
from worker.telemetry import Outcome, WorkerMetrics, about_job, scrub

# How a worker is: what it measured, whether it gets ahead, whether its model works.


@dataclass(frozen=True)
class Vitals:
    """What a worker's threads say of it; made once, after the model was loaded.

    Attributes:
        meters: any thread's.
        activity: touched by the main thread, looked at by the pulse.
        canary: the main thread's.
    """

    meters: WorkerMetrics
    activity: Activity
    canary: CanaryWatch

    @classmethod
    def of(cls, predictor: PredictorLike, settings: WorkerSettings) -> Vitals:
        """Return the vitals of a worker whose model has just proved that it works."""
        activity = Activity()
        watch = CanaryWatch(
            lambda: canary(predictor),
            activity,
            interval=settings.canary,
            patience=settings.canary_patience,
        )
        return cls(WorkerMetrics(device_memory=predictor.device_memory), activity, watch)

    def idle(self) -> None:
        """Say that the main thread is alive and has nothing to do; the canary may be due.

        Raises:
            CanaryError: if it fails.
        """
        self.activity.rest()
        self.canary.check()
        self.activity.rest()


# What a worker tells the others: that it is alive, what it measured, what became of a job that failed.

log = logging.getLogger(__name__)


class Bulletin:
    """Speaks for one worker.

    Args:
        redis: where it is heard.
        runtime: the model and the worker's name.
        vitals: what the worker measures of itself.
        lease: seconds for which what is said holds.
        explanation: of the model, announced with it.
    """

    def __init__(
        self,
        redis: Redis,
        runtime: Runtime,
        vitals: Vitals,
        *,
        lease: int,
        explanation: Explanation | None = None,
    ) -> None:
        self._redis = redis
        self._runtime = runtime
        self._vitals = vitals
        self._lease = lease
        self._explanation = explanation

    def announce(self, *, in_hand: int) -> None:
        """Say that the worker is alive, how it is, and how many jobs it has in hand."""
        runtime, activity = self._runtime, self._vitals.activity
        info = WorkerInfo(
            name=runtime.worker,
            model=runtime.model.ref,
            device=str(runtime.predictor.device),
            host=socket.gethostname(),
            pid=os.getpid(),
            jobs_in_hand=in_hand,
            lease=self._lease,
            silent=round(activity.silent, 1),
            trouble=activity.trouble,
        )
        announce(self._redis, info, runtime.model, self._explanation, lease=self._lease)
        self._vitals.meters.set_in_flight(in_hand)
        samples = self._vitals.meters.exposition()
        publish_samples(self._redis, runtime.worker, samples, lease=self._lease)

    def goodbye(self) -> None:
        """Give the lease back; or let it run out with the reason, for those who ask."""
        if self._vitals.activity.trouble:
            self.announce(in_hand=0)
        else:
            withdraw(self._redis, self._runtime.worker)

    def colleagues(self) -> int:
        """Return how many live workers share the model's queue, this one among them."""
        model = self._runtime.model.name
        return sum(each.model.name == model for each in live_workers(self._redis))

    def note_failure(
        self,
        job: Job,
        kind: type[BaseException],
        error: BaseException,
        traceback: TracebackType | None,
    ) -> None:
        """Write down why a job failed, and count it; RQ's exception handler."""
        note_failure(job, kind, error, traceback)
        code = describe(error).code
        outcome: Outcome = "retried" if job.should_retry else "failed"
        self._vitals.meters.ended(outcome, code=code)
        telemetry.trace_job(job.meta, job.id, error=code)
        extra = {"job": job.id, "outcome": outcome, "code": code}
        log.warning("job %s: %s", outcome, code, extra=extra)


# Whether a lease that has run out tells of a death: not when Redis was away and nobody could renew any.


class Calm:
    """Sees from one worker's own beats whether the others can have made theirs.

    Args:
        lease: seconds within which every living worker renews its leases once Redis is there.
        pause: seconds between two beats that say that Redis was away.
        clock: seconds that never go back.
    """

    def __init__(
        self, *, lease: float, pause: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lease = lease
        self._pause = pause
        self._clock = clock
        self._last = self._since = float("-inf")

    def all_have_beaten(self) -> bool:
        """Note a beat that went well; return whether they have for a whole lease.

        A worker that has just started does not know what was before.
        """
        now = self._clock()
        if now - self._last > self._pause:
            self._since = now
        self._last = now
        return now - self._since >= self._lease


BEATS_PER_LEASE = 5
STUCK_GRACE_SECONDS = 10.0
STUCK_EXIT_CODE = 70


class LeaseWorker(SimpleWorker):
    """Works on one model's queue.

    Args:
        redis: where the jobs are.
        runtime: the model, the blobs and this worker's name, unique among workers.
        sizes: how many jobs at once.
        vitals: what this worker measures of itself and announces.
        explanation: of the model, announced with it.
        lease: seconds that this worker and its jobs count as alive after a sign of life.
        exit_process: how to end a process whose main thread is stuck.
    """

    queue_class = TaskQueue
    job_class = AllowedJob
    max_connection_wait_time = 2.0
    log_result_lifespan = False

    def __init__(
        self,
        redis: Redis,
        runtime: Runtime,
        *,
        sizes: Sizes,
        vitals: Vitals,
        explanation: Explanation | None = None,
        lease: int = LEASE_SECONDS,
        exit_process: Callable[[int], object] = os._exit,
    ) -> None:
        self.lease = lease
        self._bulletin = Bulletin(redis, runtime, vitals, lease=lease, explanation=explanation)
        self._queue = queue = open_queue(redis, runtime.model.name)
        queue.lease = lease
        super().__init__(
            [queue],
            name=runtime.worker,
            connection=redis,
            job_class=AllowedJob,
            queue_class=TaskQueue,
            serializer=JSONSerializer,
            exception_handlers=[self._bulletin.note_failure],
            log_job_description=False,
        )
        self._runtime = runtime
        self._exit_process = exit_process
        self._pulse = PeriodicThread(
            self.beat,
            interval=lease / BEATS_PER_LEASE,
            name="pulse",
            on_error=lambda _error: self._exit_process(STUCK_EXIT_CODE),
        )
        self._workers = 1
        self._device_lost = False
        self.vitals = vitals
        self.calm = Calm(lease=lease, pause=lease / 2)
        self._conveyor = Conveyor(runtime, sizes=sizes, watch=vitals.activity)
        self._desk = QueueDesk(
            queue,
            self,
            runtime,
            pool=self._conveyor.pool,
            may_take=lambda: not self.stopped_on_request,
            workers=lambda: self._workers,
        )

    dequeue_timeout = 5  # seconds of one blocking wait; a stop signal interrupts it
    should_run_maintenance_tasks = True  # RQ asks the main thread before each wait for a job

    def run_maintenance_tasks(self) -> None:
        """Look after the model; the queues are tidied by the pulse, which no long job delays.

        Raises:
            CanaryError: if the model does not work any more.
        """
        self.vitals.idle()

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Return a job's lease in seconds, the same for all."""
        del job, working_time
        return self.lease

    @property
    def stopped_on_request(self) -> bool:
        """Whether a signal asked this worker to stop."""
        return self._shutdown_requested_date is not None

    def serve(self) -> bool:
        """Work until asked to stop; return whether that was why.

        Raises:
            RedisError: if Redis is away when the worker says goodbye.
        """
        try:
            self.work(logging_level=None)
        finally:
            self._pulse.stop()
            self._bulletin.goodbye()
            self._conveyor.close()
        if self._conveyor.stuck:
            # Python would wait for these threads before it ends.
            log.critical("leaving %d threads that do not end", self._conveyor.stuck)
            self._exit_process(STUCK_EXIT_CODE)
        return self.stopped_on_request and not self._device_lost

    def _install_signal_handlers(self) -> None:
        """Announce the worker only now: from here on a signal ends it in order."""
        super()._install_signal_handlers()  # type: ignore[no-untyped-call]
        self._pulse.start()

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Work on a job that RQ has taken, and on those that wait behind it, until none is left."""
        del queue
        self.set_state(WorkerStatus.BUSY)  # from here on a signal does not interrupt
        try:
            first = self._desk.begin(job)
            self._conveyor.work(first, self._desk, alone=has_cost_a_worker(job))
        except ThreadsStuckError as error:
            # No exit in order: it would wait for the very threads.
            log.critical("leaving all jobs in hand to another worker: %s", error)
            self._exit_process(STUCK_EXIT_CODE)
        except DeviceLostError:
            self._device_lost = True
            raise

    def perform_job(self, job: Job, queue: Queue, execution: Execution) -> bool:
        """Have a job's task raise what it failed with, and write it down; see RQ."""
        with about_job(job.id, request=job.meta.get("request", "")):
            return bool(super().perform_job(job, queue, execution))

    def proved(self) -> None:
        """Take note that the model works."""
        self.vitals.canary.proved()

    def prepare_job_execution(self, job: Job, remove_from_intermediate_queue: bool = False) -> None:
        """Do nothing: the desk has prepared it, together with others."""

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Do nothing in the main thread: the pulse does it."""
        if pipeline is not None:
            super().heartbeat(timeout, pipeline)

    def set_state(self, state: str, pipeline: Pipeline | None = None) -> None:
        """Note what this worker does; the pulse tells it, which costs no job a round trip."""
        self._state = state
        if pipeline is not None:
            super().set_state(state, pipeline)

    def set_shutdown_requested_date(self) -> None:
        """Tell that a signal asked to stop; called by its handler, in the middle of anything."""
        with whether_or_not_redis_answers("request to stop not written"):
            super().set_shutdown_requested_date()  # type: ignore[no-untyped-call]

    def check_for_suspension(self, burst: bool) -> None:
        """Wait while ``rq suspend`` holds; not for Redis, which the next step does."""
        with whether_or_not_redis_answers("not asked whether suspended"):
            super().check_for_suspension(burst)

    def handle_execution_ended(self, job: Job, queue: Queue, heartbeat_ttl: int) -> None:
        """Note when a job ended; its lease needs no renewal on the way out."""
        job.ended_at = now()

    def _finalize_failure(
        self, job: Job, queue: Queue, execution: Execution, exc_info: tuple[Any, Any, Any]
    ) -> None:
        """Write down a job's failure, not one of the writing down (tried again) nor a second signal (SystemExit)."""
        error = exc_info[1]
        if isinstance(error, RedisError) or not isinstance(error, Exception):
            raise error or RuntimeError("expected an exception, got none")
        job.started_at = execution.created_at
        super()._finalize_failure(job, queue, execution, exc_info)

    def beat(self) -> None:
        """Renew all leases, tidy up after dead workers, and see whether this one is stuck."""
        executions = list(self.executions.values())
        with self.connection.pipeline() as pipeline:
            super().heartbeat(None, pipeline)
            pipeline.hset(self.key, "state", self.get_state())
            pipeline.execute()
        for execution in executions:
            self.maintain_heartbeats(execution.job, execution)
        self._bulletin.announce(in_hand=len(executions))
        self._workers = self._bulletin.colleagues()
        if self.calm.all_have_beaten():
            tidy(self._queue, note=self._bulletin.note_failure)
            self._leave_if_stuck()

    def _leave_if_stuck(self) -> None:
        """End the process if its main thread hangs; not after an outage, for that may have waited for Redis."""
        if self.vitals.activity.overdue() > STUCK_GRACE_SECONDS:
            log.critical("stuck: leaving all jobs in hand to another worker")
            sys.stderr.flush()
            self._exit_process(STUCK_EXIT_CODE)


# A worker's life: load, warm up, work, stop. Free of torch: how to load is an argument.

Load = Callable[[WorkerSettings], PredictorLike]


class WorkerStartError(Exception):
    """The worker cannot start; the message is one line for the operator."""


def run(settings: WorkerSettings, *, load: Load) -> bool:
    """Load the model, prove that it works, then work until told to stop.

    Readiness is announced only after the canary image went through the model.

    Args:
        settings: where everything is.
        load: makes the predictor, the slow part.

    Returns:
        Whether the worker stopped because it was asked to.

    Raises:
        WorkerStartError: if Redis, the blob store or the model is not to be had.
    """
    blobs = _reach_stores(settings)
    try:
        predictor = load(settings)
        canary(predictor)
        shown = predictor.info.to_json()
        model, explanation = ModelInfo.model_validate(shown), Explanation.model_validate(shown)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise WorkerStartError(f"cannot load bundle {settings.bundle!r}: {reason}") from error
    vitals = Vitals.of(predictor, settings)
    runtime = Runtime(
        predictor, model, blobs, settings.name, settings.max_pixels, meters=vitals.meters
    )
    install(runtime)
    batch = settings.batch or usual_batch(str(predictor.device))
    worker = LeaseWorker(
        # Not twice blindly: what a lost answer means is looked up by whoever asked.
        open_redis(settings.redis_url, retries=0),
        runtime,
        sizes=Sizes(batch=batch, threads=settings.job_threads),
        vitals=vitals,
        explanation=explanation,
        lease=settings.lease,
    )
    try:
        return worker.serve()
    except RedisError as error:
        log.error("lost Redis: %s", error)
        return False


def _reach_stores(settings: WorkerSettings) -> BlobStore:
    """Look for Redis and the blob store before the model is loaded, which takes longer."""
    try:
        open_redis(settings.redis_url).ping()
    except (RedisError, ValueError) as error:
        raise WorkerStartError(f"cannot reach {scrub(settings.redis_url)}: {error}") from error
    try:
        blobs = BlobStore.open(settings.blobs)
        # Without it every job would fail here, and no other worker could have it.
        blobs.check()
    except BlobError as error:
        raise WorkerStartError(f"cannot use {settings.blobs}: {error}") from error
    return blobs
