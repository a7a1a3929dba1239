"""GPU worker: an RQ worker that never forks, works on several jobs at once, and holds short leases of them.

RQ's SimpleWorker runs a job in the worker's own process, which a model in GPU memory needs, but one after the other; it
sends no heartbeat meanwhile and cannot be interrupted in a C call. Here RQ starts, stops and waits for a job; the
batcher works on it and on those behind it; the consumer writes their ends. A second thread renews the leases, maintains
the queue and ends the process when the main thread is stuck.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError, ResponseError
from rq import Queue, SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.worker import WorkerStatus

from worker.inference.batcher import (
    Batcher,
    BatchLimits,
    DeviceLostError,
    ThreadsStuckError,
    default_batch_size,
)
from worker.inference.consumer import JobConsumer, log_failed
from worker.inference.pipeline import WorkerContext
from worker.inference.watchdog import PeriodicSelfTest, StallDetector, self_test
from worker.periodic import PeriodicThread
from worker.queue.failures import (
    describe_failure,
    ignore_redis_errors,
    note_abandoned,
    was_abandoned,
)
from worker.queue.registry import (
    Explanation,
    ModelInfo,
    WorkerInfo,
    announce,
    live_workers,
    publish_metrics,
    withdraw,
)
from worker.queue.rq import AllowedJob, JobQueue, LeasedQueue, open_redis
from worker.queue.schema import LEASE_SECONDS
from worker.settings import WorkerSettings
from worker.signals import ignore, ignored
from worker.storage import BlobError, BlobStore
from worker.telemetry import Outcome, WorkerMetrics, about_job

if TYPE_CHECKING:
    from models.inference.predictor import Predictor

_log = logging.getLogger(__name__)

_HEARTBEATS_PER_LEASE: Final = 5
STUCK_GRACE_SECONDS: Final = 10.0
STUCK_EXIT_CODE: Final = 70


class WorkerStartError(Exception):
    """The worker cannot start; the message is one line for the operator."""


class _HeartbeatGap:
    """Heartbeat gap detector: after an outage of Redis an expired lease does not mean a dead worker."""

    def __init__(self, *, lease: float, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease = lease
        self._pause = pause
        self._clock = clock
        self._last = self._since = float("-inf")

    def settled(self) -> bool:
        """Note a heartbeat that succeeded; return whether there was no gap for a whole lease."""
        now = self._clock()
        if now - self._last > self._pause:
            self._since = now
        self._last = now
        return now - self._since >= self._lease


class GpuWorker(SimpleWorker):
    """Works on one model's queue; ``exit_process`` ends a process whose main thread is stuck."""

    queue_class = LeasedQueue
    job_class = AllowedJob
    max_connection_wait_time = 2.0
    dequeue_timeout = 1
    """Seconds that one wait for an interactive job may take; then the batch queue is read."""
    should_run_maintenance_tasks = True
    """RQ calls ``run_maintenance_tasks`` before each wait for a job."""

    def __init__(
        self,
        redis: Redis,
        context: WorkerContext,
        *,
        limits: BatchLimits,
        test: PeriodicSelfTest,
        explanation: Explanation | None = None,
        lease: int = LEASE_SECONDS,
        exit_process: Callable[[int], object] = os._exit,
    ) -> None:
        self.stall = test.stall
        self.heartbeat_gap = _HeartbeatGap(lease=lease, pause=lease / 2)
        self._context = context
        self._test = test
        self._explanation = explanation
        self._exit_process = exit_process
        self._queue = JobQueue(redis, context.model.name, lease=lease)
        super().__init__(
            self._queue.rq_queues,
            name=context.worker,
            connection=redis,
            job_class=AllowedJob,
            queue_class=LeasedQueue,
            serializer=JSONSerializer,
            log_job_description=False,
        )
        self._heartbeat_thread = PeriodicThread(
            self.send_heartbeat,
            interval=lease / _HEARTBEATS_PER_LEASE,
            name="heartbeat",
            on_error=lambda _error: self._exit_process(STUCK_EXIT_CODE),
        )
        self._workers = 1
        self._device_lost = False
        self._batcher = Batcher(context, limits=limits, stall=self.stall)
        self.consumer = JobConsumer(
            self._queue,
            context,
            pool=self._batcher.pool,
            is_stopping=lambda: self.stopped_on_request,
            workers=lambda: self._workers,
            on_success=test.proved,
        )

    def _set_ip_address(self, connection: Redis) -> None:
        """Name the connection; RQ would ask for its address too, and cannot read one of a socket with a space."""
        with suppress(ResponseError):  # of a server that forbids it; or the name has a space
            connection.client_setname(self.name)
        self.ip_address = "unknown"

    @property
    def stopped_on_request(self) -> bool:
        """Whether a signal asked this worker to stop."""
        return self._shutdown_requested_date is not None

    def serve(self) -> bool:
        """Work until asked to stop; return whether that was why. RedisError if Redis does not answer at the end."""
        try:
            self.work(logging_level=None)
        finally:
            self._heartbeat_thread.stop()
            if self.stall.error:
                self._announce()  # the reason stays until the lease expires
            else:
                withdraw(self.connection, self.name)
            self._batcher.close()
        if self._batcher.stuck_threads:
            # Python would wait for these threads before it ends.
            _log.critical("leaving %d threads that do not end", self._batcher.stuck_threads)
            self._exit_process(STUCK_EXIT_CODE)
        return self.stopped_on_request and not self._device_lost

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Work on a job that RQ has taken, and on those that wait behind it, until none is left."""
        del queue
        self.set_state(WorkerStatus.BUSY)  # from here on a signal does not interrupt
        try:
            first = self.consumer.start(job)
            self._batcher.work(first, self.consumer, alone=was_abandoned(job))
        except ThreadsStuckError as error:
            # No exit in order: it would wait for the very threads.
            _log.critical("leaving all jobs to another worker: %s", error)
            self._exit_process(STUCK_EXIT_CODE)
        except DeviceLostError:
            self._device_lost = True
            raise

    def send_heartbeat(self) -> None:
        """Renew all leases, queue the jobs of dead workers again, and see whether this worker is stuck."""
        leases = list(self.consumer.leases.values())
        with self.connection.pipeline() as pipeline:
            super().heartbeat(None, pipeline)
            pipeline.hset(self.key, mapping={**self.serialize(), "state": self.get_state()})
            self._queue.renew(leases, pipeline)
            pipeline.execute()
        self._announce()
        model = self._context.model.name
        self._workers = sum(each.model.name == model for each in live_workers(self.connection))
        if self.heartbeat_gap.settled():
            self._queue.maintain(self._on_abandoned)
            # Not after an outage: the main thread may have waited for Redis.
            if self.stall.overdue() > STUCK_GRACE_SECONDS:
                _log.critical("stuck: leaving all jobs to another worker")
                sys.stderr.flush()
                self._exit_process(STUCK_EXIT_CODE)

    def _announce(self) -> None:
        context, jobs = self._context, len(self.consumer.leases)
        info = WorkerInfo(
            name=context.worker,
            model=context.model.ref,
            device=str(context.predictor.device),
            host=socket.gethostname(),
            pid=os.getpid(),
            jobs_in_hand=jobs,
            lease=self._queue.lease_seconds,
            silent=round(self.stall.silent, 1),
            trouble=self.stall.error,
        )
        announce(self.connection, info, context.model, self._explanation, lease=info.lease)
        context.metrics.set_in_flight(jobs)
        snapshot = context.metrics.exposition()
        publish_metrics(self.connection, context.worker, snapshot, lease=info.lease)

    def _on_abandoned(self, job: Job, kind: Any, error: BaseException, traceback: Any) -> None:
        with about_job(job.id, request=job.meta.get("request", "")):
            note_abandoned(job, kind, error, traceback)
            outcome: Outcome = "retried" if job.should_retry else "failed"
            log_failed(job, outcome, describe_failure(error).code, self._context.metrics)

    # What RQ's work loop calls.

    def run_maintenance_tasks(self) -> None:
        """Test the model if that is due; the heartbeat thread maintains the queue, which no long job delays."""
        self.stall.idle()
        self._test.run_if_due()
        self.stall.idle()

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Do nothing in the main thread: see ``send_heartbeat``."""

    def set_state(self, state: str, pipeline: Pipeline | None = None) -> None:
        """Note the state for the next heartbeat, which costs no job a round trip."""
        self._state = state

    def set_shutdown_requested_date(self) -> None:
        """Write that a signal asked to stop; called by its handler, in the middle of anything."""
        with ignore_redis_errors("request to stop not written"):
            super().set_shutdown_requested_date()  # type: ignore[no-untyped-call]

    def check_for_suspension(self, burst: bool) -> None:
        """Wait while ``rq suspend`` holds; not for Redis, which the next step does."""
        with ignore_redis_errors("not asked whether suspended"):
            super().check_for_suspension(burst)

    def _install_signal_handlers(self) -> None:
        """Announce the worker only now: from here on a signal ends it in order, but one that was ignored before."""
        kept = ignored()
        super()._install_signal_handlers()  # type: ignore[no-untyped-call]
        ignore(kept)
        self._heartbeat_thread.start()


def run(settings: WorkerSettings, *, load: Callable[[WorkerSettings], Predictor]) -> bool:
    """Load the model, test it, then work until asked to stop; return whether that was why.

    Raises:
        WorkerStartError: if Redis, the blob store or the model does not work.
    """
    blobs = _open_stores(settings)
    try:
        predictor = load(settings)
        self_test(predictor)
        document: dict[str, Any] = predictor.info.to_json()
        model = ModelInfo.model_validate(document)
        explanation = Explanation.model_validate(document)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise WorkerStartError(f"cannot load bundle {settings.bundle!r}: {reason}") from error
    metrics = WorkerMetrics(device_memory=predictor.device_memory)
    context = WorkerContext(predictor, model, blobs, settings.name, settings.max_pixels, metrics=metrics)
    worker = _make_worker(
        # No blind retries: what a lost answer means is found out where the question was asked.
        open_redis(settings.redis_url, retries=0),
        context,
        settings,
        explanation=explanation,
    )
    try:
        return worker.serve()
    except RedisError as error:
        _log.error("lost Redis: %s", error)
        return False


def _make_worker(redis: Redis, context: WorkerContext, settings: WorkerSettings, **options: Any) -> GpuWorker:
    """Return a worker as the settings say; see GpuWorker for other options."""
    test = PeriodicSelfTest(
        lambda: self_test(context.predictor),
        StallDetector(),
        interval=settings.canary,
        patience=settings.canary_patience,
    )
    size = settings.batch or default_batch_size(str(context.predictor.device))
    limits = BatchLimits(max_batch_size=size, threads=settings.job_threads)
    return GpuWorker(redis, context, limits=limits, test=test, lease=settings.lease, **options)


def _open_stores(settings: WorkerSettings) -> BlobStore:
    """Check Redis and the blob store before the model is loaded, which takes longer."""
    try:
        open_redis(settings.redis_url).ping()
    except (RedisError, ValueError) as error:
        raise WorkerStartError(f"cannot reach REDIS_URL: {error}") from error
    try:
        blobs = BlobStore.open(settings.blobs)
        # Without it every job would fail here, and no other worker could have it.
        blobs.check()
    except BlobError as error:
        raise WorkerStartError(f"cannot use {settings.blobs}: {error}") from error
    return blobs
