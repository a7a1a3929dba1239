"""Between RQ and the conveyor: jobs in, results out, and nothing lost when Redis is away for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from redis.client import Pipeline
from redis.exceptions import RedisError, WatchError
from rq import Queue
from rq.executions import Execution
from rq.job import Job
from rq.utils import now

from models.inference.masks import OnProgress
from worker.inference.pipeline import Photo, Runtime, decode
from worker.queue.events import reporter
from worker.queue.failures import has_cost_a_worker, persistently
from worker.queue.rq import (
    Ended,
    JobCanceledError,
    State,
    TaskQueue,
    cancel_key,
    check_task,
    finish,
    give_back,
    lease,
    leave_canceled,
    leave_ended,
    mark_canceled,
    new_execution,
    queue_again,
    states,
    take,
)
from worker.queue.rq import Worker as FinishingWorker
from worker.queue.schema import JobRequest, JobResult
from worker.telemetry import log_finished

# A job in the worker's hands.

T = TypeVar("T")


@dataclass(eq=False)
class Hand:
    """A job on its way: being decoded, then in the networks, then being concluded.

    Attributes:
        job: with a lease.
        execution: the lease.
        waited: seconds in the queue.
        decoded: the photo, sooner or later.
        concluded: the result, once the photo has been through the networks; or why there is none.
        again: whether it goes through the networks for the second time.
        clock: seconds that never go back.
    """

    job: Job
    execution: Execution
    waited: float
    decoded: Future[Photo] = field(default_factory=Future)
    concluded: Future[JobResult] | None = None
    again: bool = False
    clock: Callable[[], float] = time.monotonic
    _began: float | None = None

    @property
    def timeout(self) -> float:
        """Seconds that each part of the work may take."""
        limit = float(self.job.timeout or 0)
        return limit if limit > 0 else float("inf")

    def timed(self, work: Callable[[], T]) -> Callable[[], T]:
        """Return work that notes when a thread begins with it; until then it only waits for one."""
        self._began = None

        def run() -> T:
            self._began = self.clock()
            return work()

        return run

    def fail(self, error: BaseException) -> None:
        """Conclude without a result."""
        self.concluded = Future()
        self.concluded.set_exception(error)

    @property
    def pending(self) -> Future[Photo] | Future[JobResult]:
        """What a thread does for it, or has done last."""
        return self.decoded if self.concluded is None else self.concluded

    @property
    def error(self) -> BaseException | None:
        """Why it was concluded without a result."""
        return self.concluded.exception() if self.concluded is not None else None

    @property
    def value(self) -> dict[str, Any] | None:
        """The result as RQ keeps it; None if there is none."""
        if self.concluded is None or self.error is not None:
            return None
        return self.concluded.result().model_dump(mode="json")

    def is_late(self) -> bool:
        """Return whether a thread has had it for longer than it may."""
        if self._began is None or self.pending.done():
            return False
        return self.clock() - self._began > self.timeout


def seconds_since_queued(job: Job) -> float:
    """Return how long a job has waited, not below 0 where two hosts' clocks differ."""
    return max(0.0, (now() - job.enqueued_at).total_seconds()) if job.enqueued_at else 0.0


log = logging.getLogger(__name__)

EMPTY_SECONDS = 0.01
"""So long an empty queue is not looked at again: a job that is alone is not held up by looks for others."""


class Finisher(FinishingWorker, Protocol):
    """What the desk needs of RQ's worker."""

    lease: int

    def perform_job(self, job: Job, queue: Queue, execution: Execution) -> bool:
        """Call a job's task, and write down what comes of it; see RQ."""
        ...

    def cleanup_execution(self, job: Job, pipeline: Pipeline, execution: Execution | None) -> None:
        """Give a job's lease back; see RQ."""
        ...

    def proved(self) -> None:
        """Take note that the model works."""
        ...


class QueueDesk:
    """Takes jobs from one queue and finishes them.

    Args:
        queue: of the model.
        worker: finishes jobs, and renews the leases of its executions.
        runtime: decodes photos.
        pool: the threads that do so.
        may_take: whether more jobs are welcome: not when the worker is to stop.
        workers: how many workers share the queue.
    """

    def __init__(
        self,
        queue: TaskQueue,
        worker: Finisher,
        runtime: Runtime,
        *,
        pool: Executor,
        may_take: Callable[[], bool],
        workers: Callable[[], int],
    ) -> None:
        self._queue = queue
        self._worker = worker
        self._runtime = runtime
        self._pool = pool
        self._may_take = may_take
        self._workers = workers
        self._alone_next = False
        self._left, self._looked = 0, 0.0

    def begin(self, job: Job) -> list[Hand]:
        """Take a lease of the job that RQ has taken from the queue, and have its photo decoded."""
        self._alone_next = False
        return self.receive([job])

    def receive(self, jobs: Sequence[Job]) -> list[Hand]:
        """Take leases of jobs that are in the intermediate list, and have their photos decoded."""
        waiting = persistently(lambda: leave_ended(self._queue, jobs))
        wanted = persistently(lambda: leave_canceled(self._queue, waiting))
        if not wanted:
            return []
        worker = self._worker
        executions = [new_execution(job, worker=worker.name) for job in wanted]
        # First here: the lease may be taken and the answer lost, and then it must be renewed.
        worker.executions.update({each.id: each for each in executions})
        left = persistently(lambda: lease(self._queue, executions, seconds=worker.lease))
        self._left, self._looked = left, time.monotonic()
        hands = [Hand(each.job, each, seconds_since_queued(each.job)) for each in executions]
        for hand in hands:
            hand.decoded = self._pool.submit(hand.timed(partial(_decode, hand.job, self._runtime)))
            self._runtime.meters.started(waited=hand.waited)
            log.info(
                "job taken", extra={"job": hand.job.id, "request": hand.job.meta.get("request")}
            )
        return hands

    def more(self, most: int) -> list[Hand]:
        """Return more jobs that wait, at most so many; does not wait itself.

        Other workers get their share. A job that may be a worker's death is left for later, when it can be alone.
        """
        if most < 1 or self._alone_next or self.is_closing():
            return []
        waiting, held = self._count(), len(self._worker.executions)
        share = -(-(waiting + held) // max(1, self._workers())) - held
        jobs = persistently(lambda: take(self._queue, min(most, share, waiting)))
        first = next((i for i, job in enumerate(jobs) if has_cost_a_worker(job)), len(jobs))
        if first < len(jobs):
            self._alone_next = True  # not taken again before all others are done
            persistently(lambda: give_back(self._queue, jobs[first:]))
        return self.receive(jobs[:first])

    def _count(self) -> int:
        """Return how many jobs wait in the queue; one that was empty is left alone for a moment."""
        if self._left or time.monotonic() - self._looked > EMPTY_SECONDS:
            self._left = persistently(lambda: self._queue.count)
            self._looked = time.monotonic()
        return self._left

    def is_closing(self) -> bool:
        """Return whether no more jobs are welcome, for the worker is to stop."""
        return not self._may_take()

    def release(self, hands: Sequence[Hand]) -> None:
        """Put jobs back that nothing has been done with, to the front of the queue."""
        for hand in reversed(hands):
            persistently(partial(self._release_one, hand))

    def _release_one(self, hand: Hand) -> None:
        (state,) = self._states([hand])
        self._let_go(hand, canceled=state == "canceled", again=state == "ours")

    def reporter(self, hands: Sequence[Hand]) -> OnProgress:
        """Return what tells how far jobs are; see ``worker.queue.events``."""
        return reporter(self._queue.connection, [hand.job for hand in hands])

    def settle(self, hands: Sequence[Hand]) -> None:
        """Finish jobs that are concluded: as finished, failed or canceled."""
        try:
            left = self._finish(hands)
        except RedisError as error:
            log.warning("the end of %d jobs not written: %s", len(hands), error)
            left = list(hands)
        for hand in left:
            # It may have been written down for all that: look again before each try.
            persistently(partial(self._look_and_settle, hand))

    def _finish(self, hands: Sequence[Hand]) -> list[Hand]:
        """Write down what has a result; return the others, and those that are not ours or not wanted any more."""
        ended = [Ended(hand.job, hand.execution, hand.value) for hand in hands]
        written = finish(self._queue.connection, self._worker, ended)
        for hand, done in zip(hands, written, strict=True):
            if done and hand.concluded is not None:
                times = hand.concluded.result().timings
                log_finished(hand.job, times, self._runtime.meters)
                self._worker.proved()
        return [hand for hand, done in zip(hands, written, strict=True) if not done]

    def _look_and_settle(self, hand: Hand) -> None:
        # RQ lets go of the lease before a failure is written, and nobody would renew it.
        self._worker.executions[hand.execution.id] = hand.execution
        (state,), error = self._states([hand]), hand.error
        if state == "lost":
            # The lease ran out while Redis was away, and somebody else has the job by now; or its end was written.
            log.warning("job %s: not in hand any more, and nothing written for it", hand.job.id)
            self._let_go(hand)
        elif state == "canceled":
            self._let_go(hand, canceled=True)
        elif isinstance(error, JobCanceledError):
            self._let_go(hand, again=True)  # the same was posted again, and nothing has come out
        elif error is None:
            if self._finish([hand]):
                raise WatchError("expected a job in hand, got one that was just taken away")
        else:
            self._fail(hand, error)

    def _fail(self, hand: Hand, error: BaseException) -> None:
        """Have RQ call the task, which raises what it failed with, and write down what comes of it."""
        failures = self._runtime.failures
        failures[hand.job.id] = error
        try:
            self._worker.perform_job(hand.job, self._queue, hand.execution)
        finally:
            del failures[hand.job.id]
        if self._states([hand]) == ["ours"]:
            # RQ keeps it to itself.
            raise RedisError("expected a failure written down, got none")

    def _states(self, hands: Sequence[Hand]) -> list[State]:
        """Return how it stands with each job."""
        jobs = [hand.job for hand in hands]
        return states(self._queue.connection, jobs, worker=self._worker.name)

    def _let_go(self, hand: Hand, *, canceled: bool = False, again: bool = False) -> None:
        wish = cancel_key(hand.job.id)
        with self._queue.connection.pipeline() as pipeline:
            if canceled:
                pipeline.watch(wish)  # type: ignore[no-untyped-call]
                if not pipeline.exists(wish):
                    raise WatchError(
                        "expected a job that nobody wants, got one that was posted again"
                    )
                pipeline.multi()
                mark_canceled(hand.job, pipeline)
            if again:
                queue_again(self._queue, hand.job, pipeline)
            self._worker.cleanup_execution(hand.job, pipeline, hand.execution)
            pipeline.execute()
        if canceled:
            self._runtime.meters.ended("canceled")


def _decode(job: Job, runtime: Runtime) -> Photo:
    check_task(job)
    return decode(JobRequest.model_validate(job.args[0]), runtime)
