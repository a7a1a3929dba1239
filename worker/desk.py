"""Between RQ and the conveyor: jobs in, results out, and nothing lost when Redis is away for a while."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Protocol

from redis.client import Pipeline
from redis.exceptions import RedisError, WatchError
from rq import Queue
from rq.executions import Execution
from rq.job import Job
from rq.utils import now

from models.photos import OnProgress
from worker.cancel import JobCanceledError, cancel_key
from worker.hand import Hand, has_cost_a_worker
from worker.persistence import persistently
from worker.progress import reporter
from worker.protocol import JobRequest
from worker.queues import TaskQueue, check_task
from worker.runtime import Runtime
from worker.steps import Photo, decode
from worker.taking import (
    give_back,
    lease,
    leave_canceled,
    leave_ended,
    mark_canceled,
    new_execution,
    queue_again,
    take,
)

log = logging.getLogger(__name__)


class Finisher(Protocol):
    """What the desk needs of RQ's worker."""

    name: str
    executions: dict[str, Execution]
    lease: int

    def perform_job(self, job: Job, queue: Queue, execution: Execution) -> bool:
        """Finish a job; see RQ."""
        ...

    def cleanup_execution(self, job: Job, pipeline: Pipeline, execution: Execution | None) -> None:
        """Give a job's lease back; see RQ."""
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
        persistently(lambda: lease(self._queue, executions, seconds=worker.lease))
        return [
            Hand(job, execution, _waited(job), self._pool.submit(_decode, job, self._runtime))
            for job, execution in zip(wanted, executions, strict=True)
        ]

    def more(self, most: int) -> list[Hand]:
        """Return more jobs that wait, at most so many; does not wait itself.

        Other workers get their share. A job that may be a worker's death is left for later, when it can be alone.
        """
        if most < 1 or not self._may_take():
            return []
        waiting = persistently(lambda: self._queue.count)
        share = -(-waiting // max(1, self._workers()))
        jobs = persistently(lambda: take(self._queue, min(most, share)))
        first = next((i for i, job in enumerate(jobs) if has_cost_a_worker(job)), len(jobs))
        persistently(lambda: give_back(self._queue, jobs[first:]))
        return self.receive(jobs[:first])

    def reporter(self, hands: Sequence[Hand]) -> OnProgress:
        """Return what tells how far jobs are; see ``worker.progress``."""
        return reporter(self._queue.connection, [hand.job for hand in hands])

    def settle(self, hands: Sequence[Hand]) -> None:
        """Finish jobs that are concluded: as finished, failed or canceled."""
        states = persistently(lambda: self._states(hands))
        for hand, state in zip(hands, states, strict=True):
            try:
                self._settle_one(hand, state)
            except RedisError as error:
                # It may have been written down for all that: look again before each try.
                log.warning("job %s: its end not written: %s", hand.job.id, error)
                persistently(partial(self._look_and_settle, hand))

    def _look_and_settle(self, hand: Hand) -> None:
        # RQ lets go of the lease before the end is written, and nobody would renew it.
        self._worker.executions[hand.execution.id] = hand.execution
        (state,) = self._states([hand])
        self._settle_one(hand, state)

    def _settle_one(self, hand: Hand, state: str) -> None:
        if state == "lost":
            # The lease ran out while Redis was away, and somebody else has the job by now.
            log.warning("job %s: its lease was lost, and the result with it", hand.job.id)
            self._let_go(hand)
        elif state == "canceled":
            self._let_go(hand, canceled=True)
        elif isinstance(_error(hand), JobCanceledError):
            self._let_go(hand, again=True)  # the same was posted again, and nothing has come out
        else:
            if hand.concluded is not None:
                self._runtime.concluded[hand.job.id] = hand.concluded
            well = self._worker.perform_job(hand.job, self._queue, hand.execution)
            if not well and self._states([hand]) == ["ours"]:
                # RQ keeps it to itself.
                raise RedisError("expected a failure written down, got none")

    def _states(self, hands: Sequence[Hand]) -> list[str]:
        """Return whether each job is still ours and wanted: "ours", "canceled" or "lost"."""
        with self._queue.connection.pipeline(transaction=False) as pipeline:
            for hand in hands:
                pipeline.hmget(hand.job.key, "status", "worker_name")
                pipeline.exists(cancel_key(hand.job.id))
            answers = pipeline.execute()
        ours = [b"started", self._worker.name.encode()]
        return [
            "lost" if holder != ours else "canceled" if unwanted else "ours"
            for holder, unwanted in zip(answers[::2], answers[1::2], strict=True)
        ]

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


def _decode(job: Job, runtime: Runtime) -> Photo:
    check_task(job)
    return decode(JobRequest.model_validate(job.args[0]), runtime)


def _error(hand: Hand) -> BaseException | None:
    return hand.concluded.exception() if hand.concluded is not None else None


def _waited(job: Job) -> float:
    """Seconds since a job was queued, not below 0 where two hosts' clocks differ."""
    return max(0.0, (now() - job.enqueued_at).total_seconds()) if job.enqueued_at else 0.0
