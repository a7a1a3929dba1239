"""An RQ worker that never forks, holds short leases and cleans up after dead ones.

RQ's SimpleWorker runs a job in the worker's own process, which a model in GPU memory needs, but it
sends no heartbeat meanwhile and cannot be interrupted in a C call. Here a second thread renews the
leases, does RQ's maintenance every few seconds and ends the process when a job is stuck.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable
from datetime import datetime, timedelta

from redis import Redis
from rq import SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import now

from worker.failures import note_failure
from worker.presence import Explanation, ModelInfo, WorkerInfo, announce, withdraw
from worker.protocol import LEASE_SECONDS
from worker.pulse import Pulse
from worker.queues import AllowedJob, TaskQueue, open_queue
from worker.upkeep import tidy

log = logging.getLogger(__name__)

BEATS_PER_LEASE = 5
STUCK_GRACE_SECONDS = 10.0
STUCK_EXIT_CODE = 70


class LeaseWorker(SimpleWorker):
    """Works on one model's queue.

    Micro-batching has its place in ``execute_job``: leases are renewed for every execution in hand,
    and each job is finished through RQ's ``perform_job``.

    Args:
        redis: where the jobs are.
        name: unique among workers.
        model: what this worker announces.
        explanation: of the model, announced too.
        device: the model's device, announced too.
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
        *,
        name: str,
        model: ModelInfo,
        device: str,
        explanation: Explanation | None = None,
        lease: int = LEASE_SECONDS,
        exit_process: Callable[[int], object] = os._exit,
    ) -> None:
        self.lease = lease
        queue = open_queue(redis, model.name)
        queue.lease = lease
        super().__init__(
            [queue],
            name=name,
            connection=redis,
            job_class=AllowedJob,
            queue_class=TaskQueue,
            serializer=JSONSerializer,
            exception_handlers=[note_failure],
            log_job_description=False,
        )
        self._model = model
        self._explanation = explanation
        self._device = device
        self._exit_process = exit_process

    @property
    def dequeue_timeout(self) -> int:
        """Seconds of one blocking wait; a stop signal interrupts it."""
        return 5

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """Never in the main thread: it would wait while a long job runs."""
        return False

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
        pulse = Pulse(
            self.beat,
            interval=self.lease / BEATS_PER_LEASE,
            name="pulse",
            on_death=lambda _error: self._exit_process(STUCK_EXIT_CODE),
        )
        pulse.start()
        try:
            self.work(logging_level=None)
        finally:
            pulse.stop()
            withdraw(self.connection, self.name)
        return self.stopped_on_request

    def beat(self) -> None:
        """Renew all leases, tidy up after dead workers, and see whether this one is stuck."""
        executions = list(self.executions.values())
        for execution in executions:
            if self._is_stuck(execution.job, execution.created_at):
                log.critical("job %s is stuck: leaving it to another worker", execution.job_id)
                sys.stderr.flush()
                self._exit_process(STUCK_EXIT_CODE)
            self.maintain_heartbeats(execution.job, execution)
        info = self._worker_info(len(executions))
        announce(self.connection, info, self._model, self._explanation, lease=self.lease)
        for queue in self.queues:
            tidy(queue, self)

    def _is_stuck(self, job: Job, since: datetime) -> bool:
        # RQ's own timeout is a signal: it waits for Python, and C code that hangs never comes back.
        limit = float(job.timeout or 0) + STUCK_GRACE_SECONDS
        return now() - since > timedelta(seconds=limit)

    def _worker_info(self, jobs_in_hand: int) -> WorkerInfo:
        return WorkerInfo(
            name=self.name,
            model=self._model.ref,
            device=self._device,
            host=socket.gethostname(),
            pid=os.getpid(),
            jobs_in_hand=jobs_in_hand,
        )
