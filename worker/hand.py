"""A job in the worker's hands."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rq.executions import Execution
from rq.job import Job
from rq.utils import now

from worker.protocol import JobResult
from worker.steps import Photo

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
