"""RQ's maintenance of a queue, by whoever is alive: a worker's second thread, or the janitor."""

from __future__ import annotations

from rq.registry import CanceledJobRegistry, clean_registries
from rq.utils import current_timestamp
from rq.worker import BaseWorker
from rq.worker_registration import clean_worker_registry

from worker.failures import note_failure
from worker.queues import TaskQueue


def tidy(queue: TaskQueue, worker: BaseWorker) -> None:
    """Queue the jobs of dead workers again, and drop what has expired from RQ's registries.

    Args:
        queue: to look after.
        worker: writes down what becomes of jobs that are lost between queue and hand.
    """
    if not queue.acquire_maintenance_lock():
        return
    try:
        clean_registries(queue, worker._exc_handlers or [note_failure])
        clean_worker_registry(queue)
        queue.intermediate_queue.cleanup(worker, queue)
        # RQ never forgets a canceled job's id.
        canceled = CanceledJobRegistry.key_template.format(queue.name)
        queue.connection.zremrangebyscore(canceled, 0, current_timestamp())
    finally:
        queue.release_maintenance_lock()  # type: ignore[no-untyped-call]
