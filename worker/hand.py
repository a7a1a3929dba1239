"""A job in the worker's hands."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from rq.executions import Execution
from rq.job import Job

from worker.protocol import MAX_ATTEMPTS, JobResult
from worker.steps import Photo


def has_cost_a_worker(job: Job) -> bool:
    """Return whether an attempt at a job did not come to an end.

    Such a job is worked on alone: if it is what killed the worker, no other goes down with it again.
    """
    return job.retries_left is not None and job.retries_left < MAX_ATTEMPTS - 1


@dataclass(eq=False)
class Hand:
    """A job on its way: being decoded, then in the networks, then being concluded.

    Attributes:
        job: with a lease.
        execution: the lease.
        waited: seconds in the queue.
        decoded: the photo, sooner or later.
        concluded: the result, once the photo has been through the networks; or why there is none.
        since: when the latest of the two was begun, in seconds of the monotonic clock.
    """

    job: Job
    execution: Execution
    waited: float
    decoded: Future[Photo]
    concluded: Future[JobResult] | None = None
    since: float = field(default_factory=time.monotonic)

    @property
    def timeout(self) -> float:
        """Seconds that each part of the work may take."""
        return float(self.job.timeout or 0)

    def conclude_with(self, concluded: Future[JobResult]) -> None:
        """Wait for what is being made, from now on."""
        self.concluded, self.since = concluded, time.monotonic()

    def fail(self, error: BaseException) -> None:
        """Conclude without a result."""
        self.concluded = Future()
        self.concluded.set_exception(error)

    def is_late(self) -> bool:
        """Return whether a thread has had it for longer than it may."""
        pending = self.decoded if self.concluded is None else self.concluded
        return not pending.done() and time.monotonic() - self.since > self.timeout
