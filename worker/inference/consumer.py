"""Between the job queue and the batcher: jobs in, results out, and no job lost while Redis does not answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from redis.exceptions import RedisError, WatchError
from rq.job import Job
from rq.utils import now

from models.inference.masks import OnProgress
from worker import telemetry
from worker.inference.pipeline import PreprocessedImage, WorkerContext, preprocess
from worker.queue.failures import describe_failure, is_transient, retry, was_abandoned
from worker.queue.rq import Attempt, JobCanceledError, JobQueue, Lease, State, check_task
from worker.queue.schema import JobRequest, JobResult, Progress
from worker.telemetry import Outcome, log_finished

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_EMPTY_SECONDS: Final = 0.01
"""Seconds for which an empty queue is not counted again, so that counting does not delay a single job."""

_PROGRESS_STEP: Final = 0.1
"""A stage's progress is written in steps of this fraction of the whole job."""


@dataclass(eq=False)
class InFlightJob:
    """A leased job: being preprocessed, then in the networks, then being postprocessed."""

    job: Job
    lease: Lease
    waited: float  # seconds in the queue
    behind: bool = False  # whether interactive jobs go before it
    image: Future[PreprocessedImage] = field(default_factory=Future)
    result: Future[JobResult] | None = None  # None until the image has been through the networks
    retried: bool = False  # whether it goes through the networks for the second time
    clock: Callable[[], float] = time.monotonic
    _began: float | None = None

    @property
    def timeout(self) -> float:
        """Seconds that each part of the work may take."""
        limit = float(self.job.timeout or 0)
        return limit if limit > 0 else float("inf")

    def timed(self, work: Callable[[], _T]) -> Callable[[], _T]:
        """Return work that notes when a thread begins with it; until then the job only waits for a thread."""
        self._began = None

        def run() -> _T:
            self._began = self.clock()
            return work()

        return run

    def fail(self, error: BaseException) -> None:
        """End without a result."""
        self.result = Future()
        self.result.set_exception(error)

    @property
    def pending(self) -> Future[PreprocessedImage] | Future[JobResult]:
        """The thread's current work on it, or the latest."""
        return self.image if self.result is None else self.result

    @property
    def error(self) -> BaseException | None:
        """Why it ended without a result."""
        return self.result.exception() if self.result is not None else None

    def is_late(self) -> bool:
        """Return whether a thread has worked on it for longer than it may."""
        if self._began is None or self.pending.done():
            return False
        return self.clock() - self._began > self.timeout

    def attempt(self) -> Attempt:
        """Return how the attempt ended; a cancellation is no end that is written."""
        error = self.error
        if isinstance(error, JobCanceledError) or self.result is None:
            return Attempt(self.lease)
        if error is None:
            return Attempt(self.lease, value=self.result.result().model_dump(mode="json"))
        again = bool(self.job.retries_left) and is_transient(error)
        return Attempt(self.lease, failure=describe_failure(error), error=error, retry=again)


class JobConsumer:
    """Prefetches and leases jobs of one queue, and writes their ends.

    ``pool`` preprocesses; ``workers`` counts those that share the queue; ``on_success`` follows each finished job.
    """

    def __init__(
        self,
        queue: JobQueue,
        context: WorkerContext,
        *,
        pool: Executor,
        is_stopping: Callable[[], bool],
        workers: Callable[[], int],
        on_success: Callable[[], object],
    ) -> None:
        self.is_stopping = is_stopping
        self.leases: dict[str, Lease] = {}
        """What the heartbeat renews, by id; any thread may read it."""
        self._queue = queue
        self._context = context
        self._pool = pool
        self._workers = workers
        self._on_success = on_success
        self._alone_next = False
        self._waiting, self._counted = 0, 0.0

    def start(self, job: Job) -> list[InFlightJob]:
        """Lease the job that RQ has taken from the queue, and have its image preprocessed."""
        self._alone_next = False
        return self.lease([job])

    def lease(self, jobs: Sequence[Job]) -> list[InFlightJob]:
        """Lease taken jobs that are to be worked on, and have their images preprocessed."""
        queue, context = self._queue, self._context
        unfinished = retry(lambda: queue.skip_finished(jobs))
        wanted = retry(lambda: queue.skip_canceled(unfinished))
        if not wanted:
            return []
        leases = [queue.new_lease(job, worker=context.worker) for job in wanted]
        # First here: the lease may be written and the answer lost, and then it must be renewed.
        self.leases.update({each.id: each for each in leases})
        self._waiting = retry(lambda: queue.lease(leases))
        self._counted = time.monotonic()
        return [self._preprocess(each) for each in leases]

    def _preprocess(self, lease: Lease) -> InFlightJob:
        job = lease.job
        # Not below 0 where two hosts' clocks differ.
        waited = max(0.0, (now() - job.enqueued_at).total_seconds()) if job.enqueued_at else 0.0
        in_flight = InFlightJob(job, lease, waited, behind=self._queue.is_batch(job))
        in_flight.image = self._pool.submit(in_flight.timed(partial(_preprocess, job, self._context)))
        self._context.metrics.started(waited=waited)
        _log.info("job taken", extra={"job": job.id, "request": job.meta.get("request")})
        return in_flight

    def prefetch(self, count: int) -> list[InFlightJob]:
        """Lease up to ``count`` more jobs, without waiting for any; other workers get their share.

        A job during which a worker died is left for later, when it can be alone.
        """
        if count < 1 or self._alone_next or self.is_stopping():
            return []
        waiting, held = self._count(), len(self.leases)
        share = -(-(waiting + held) // max(1, self._workers())) - held
        jobs = retry(lambda: self._queue.take(min(count, share, waiting)))
        first = next((i for i, job in enumerate(jobs) if was_abandoned(job)), len(jobs))
        if first < len(jobs):
            self._alone_next = True  # not taken again before all others are done
            retry(lambda: self._queue.put_back(jobs[first:]))
        return self.lease(jobs[:first])

    def _count(self) -> int:
        if self._waiting or time.monotonic() - self._counted > _EMPTY_SECONDS:
            self._waiting = retry(self._queue.count)
            self._counted = time.monotonic()
        return self._waiting

    def progress_reporter(self, jobs: Sequence[InFlightJob]) -> OnProgress:
        """Return a function that writes progress, at each stage and each tenth; Redis need not answer.

        It raises JobCanceledError once all of the jobs are canceled.
        """
        written = Progress(stage="", fraction=-1.0)

        def report(stage: str, fraction: float) -> None:
            nonlocal written
            if stage == written.stage and fraction - written.fraction < _PROGRESS_STEP:
                return
            first = not written.stage
            written = Progress(stage=stage, fraction=round(fraction, 3))
            try:
                of_jobs = [each.job for each in jobs]
                wanted = self._queue.save_progress(of_jobs, written, first=first)
            except RedisError as error:
                _log.warning("progress of %d jobs not written: %s", len(jobs), error)
                return
            if not wanted:
                raise JobCanceledError("expected a job that is not canceled, got canceled ones")

        return report

    def nack(self, jobs: Sequence[InFlightJob]) -> None:
        """Queue jobs again that have not been through the networks, before all others."""
        for each in reversed(jobs):
            retry(partial(self._nack, each))

    def _nack(self, in_flight: InFlightJob) -> None:
        state = self._state(in_flight)
        if state == "ours":
            self._queue.nack(in_flight.lease)
        elif state == "canceled":
            self._cancel(in_flight)
        else:
            self._queue.drop_lease(in_flight.lease)
        self.leases.pop(in_flight.lease.id, None)

    def ack(self, jobs: Sequence[InFlightJob]) -> None:
        """Write that jobs have finished, failed or are canceled."""
        try:
            left = self._write(jobs)
        except RedisError as error:
            _log.warning("the end of %d jobs not written: %s", len(jobs), error)
            left = list(jobs)
        for each in left:
            # It may have been written for all that: its state is read before each try.
            retry(partial(self._ack, each))

    def _ack(self, in_flight: InFlightJob) -> None:
        state = self._state(in_flight)
        if state == "lost":
            # The lease expired while Redis did not answer, and another worker has the job; or its end was written.
            _log.warning("job %s: another worker's, or written already", in_flight.job.id)
            self._queue.drop_lease(in_flight.lease)
        elif state == "canceled":
            self._cancel(in_flight)
        elif isinstance(in_flight.error, JobCanceledError):
            self._queue.nack(in_flight.lease)  # the same was posted again, and there is no result
        elif self._write([in_flight]):
            raise WatchError("expected a leased job, got one that was just taken away")
        self.leases.pop(in_flight.lease.id, None)

    def _state(self, in_flight: InFlightJob) -> State:
        return self._queue.states([in_flight.lease])[0]

    def _cancel(self, in_flight: InFlightJob) -> None:
        self._queue.cancel_leased(in_flight.lease)
        self._context.metrics.ended("canceled")

    def _write(self, jobs: Sequence[InFlightJob]) -> list[InFlightJob]:
        """Write ends; return the jobs whose end is not written, since they are canceled or not this worker's."""
        attempts = [each.attempt() for each in jobs]
        written = self._queue.ack(attempts)
        for in_flight, attempt, done in zip(jobs, attempts, written, strict=True):
            if done:  # not before: until then the lease must be renewed
                self.leases.pop(in_flight.lease.id, None)
                self._log_end(in_flight, attempt)
        return [each for each, done in zip(jobs, written, strict=True) if not done]

    def _log_end(self, in_flight: InFlightJob, attempt: Attempt) -> None:
        job, metrics = in_flight.job, self._context.metrics
        if attempt.failure is None and in_flight.result is not None:
            log_finished(job, in_flight.result.result().timings, metrics)
            self._on_success()
        elif attempt.failure is not None:
            outcome: Outcome = "retried" if attempt.retry else "failed"
            log_failed(job, outcome, attempt.failure.code, metrics, error=attempt.error)


def log_failed(
    job: Job,
    outcome: Outcome,
    code: str,
    metrics: telemetry.WorkerMetrics,
    *,
    error: BaseException | None = None,
) -> None:
    """Count, trace and log a failed attempt."""
    metrics.ended(outcome, code=code)
    telemetry.trace_job(job.meta, job.id, error=code)
    ids = {"job": job.id, "request": job.meta.get("request")}
    extra = {**ids, "outcome": outcome, "code": code}
    _log.warning("job %s: %s", outcome, code, extra=extra, exc_info=error)


def _preprocess(job: Job, context: WorkerContext) -> PreprocessedImage:
    check_task(job)
    return preprocess(JobRequest.model_validate(job.args[0]), context)
