"""What a worker tells the others: that it is alive, what it measured, what became of a job that failed."""

from __future__ import annotations

import logging
import os
import socket
from types import TracebackType

from redis import Redis
from rq.job import Job

from worker import tracing
from worker.failures import describe, note_failure
from worker.meters import Outcome
from worker.presence import Explanation, WorkerInfo, announce, live_workers, withdraw
from worker.runtime import Runtime
from worker.samples import publish_samples
from worker.vitals import Vitals

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
        self._vitals.meters.holds(in_hand)
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
        tracing.record_job(job.meta, job.id, error=code)
        extra = {"job": job.id, "outcome": outcome, "code": code}
        log.warning("job %s: %s", outcome, code, extra=extra)
